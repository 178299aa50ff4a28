package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"

	socks "golang.org/x/net/proxy"
)

const dialWait = 30 * time.Second // for a name look-up and a connection, or for an upstream proxy's answer

// dialer opens connections to what clients name: behind the address guard, and through the operator's upstream proxy where
// one is configured. It never changes once made and is safe for concurrent use.
type dialer struct {
	dialerConfig
	// guarded dials what clients name: it asks the guard about the very address that is dialed. A test puts its own
	// names before it.
	guarded  func(ctx context.Context, network, address string) (net.Conn, error)
	proxied  net.Dialer    // to the upstream proxy, which the operator named: no guard
	resolver *net.Resolver // for names that an upstream proxy is to dial
}

// dialerConfig is what a dialer is made of.
type dialerConfig struct {
	guard      guard
	dockerHost string // "host.docker.internal": recognised before DNS and refused
	// proxy gives the upstream proxy for a URL, nil for none: httpproxy.Config.ProxyFunc.
	proxy func(*url.URL) (*url.URL, error)
}

// errDockerHost refuses what a container can reach only on the host itself.
var errDockerHost = errors.New("a port of the host itself: name it in NO_PROXY to reach it directly")

func newDialer(c dialerConfig) *dialer {
	d := &dialer{dialerConfig: c}
	d.guarded = (&net.Dialer{Timeout: dialWait, ControlContext: d.control}).DialContext
	d.proxied = net.Dialer{Timeout: dialWait}
	d.resolver = net.DefaultResolver
	return d
}

// control judges the address that is about to be dialed; it runs after name resolution, for each address that is tried.
func (d *dialer) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("guard %q: %w", address, err)
	}
	return d.guard.check(ap)
}

// dial opens a connection to a for TLS or a tunnel. Errors: *guardError and errDockerHost are refusals; *net.DNSError is a
// name that does not resolve; anything else is a failed connection; all may be time-outs (net.Error).
func (d *dialer) dial(ctx context.Context, a authority) (net.Conn, error) {
	via, err := d.route(ctx, "https", a)
	if err != nil {
		return nil, err
	}
	if via == nil {
		return d.guarded(ctx, "tcp", a.String())
	}
	return d.dialThrough(ctx, via, a)
}

// dialPlain opens a connection for a request to http://a. Where via is not nil the connection leads to that upstream
// proxy, which wants the request in absolute-form.
func (d *dialer) dialPlain(ctx context.Context, a authority) (conn net.Conn, via *url.URL, err error) {
	via, err = d.route(ctx, "http", a)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case via == nil:
		conn, err = d.guarded(ctx, "tcp", a.String())
	case isSOCKS(via):
		conn, err = d.dialSOCKS(ctx, via, a)
		via = nil
	default:
		conn, err = d.dialProxy(ctx, via)
	}
	return conn, via, err
}

func isSOCKS(via *url.URL) bool { return via.Scheme == "socks5" || via.Scheme == "socks5h" }

// dialSOCKS opens a connection to a through a SOCKS 5 proxy (RFC 1928), which looks the name up, as net/http has it do.
func (d *dialer) dialSOCKS(ctx context.Context, via *url.URL, a authority) (net.Conn, error) {
	port := via.Port()
	if port == "" {
		port = "1080"
	}
	var auth *socks.Auth
	if via.User != nil {
		password, _ := via.User.Password()
		auth = &socks.Auth{User: via.User.Username(), Password: password}
	}
	to, err := socks.SOCKS5("tcp", net.JoinHostPort(via.Hostname(), port), auth, &d.proxied)
	if err != nil {
		return nil, fmt.Errorf("connect through upstream proxy %q: %w", via.Redacted(), err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	return to.(socks.ContextDialer).DialContext(ctx, "tcp", a.String())
}

// route gives the upstream proxy for a, or nil. What goes through one is judged here, since the proxy resolves the name
// itself: a literal, and all addresses of a name that resolves on this host.
func (d *dialer) route(ctx context.Context, scheme string, a authority) (*url.URL, error) {
	if a.host == d.dockerHost {
		return nil, errDockerHost
	}
	if d.proxy == nil {
		return nil, nil
	}
	via, err := d.proxy(&url.URL{Scheme: scheme, Host: a.String()})
	if err != nil || via == nil {
		return nil, err
	}
	if d.guard.open {
		return via, nil // without a look-up: it may be the proxy alone that knows the name
	}
	if ip, err := netip.ParseAddr(a.host); err == nil {
		return via, d.guard.check(netip.AddrPortFrom(ip, a.port))
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	ips, _ := d.resolver.LookupNetIP(ctx, "ip", a.host)
	for _, ip := range ips {
		if err := d.guard.check(netip.AddrPortFrom(ip.Unmap(), a.port)); err != nil {
			return nil, err
		}
	}
	return via, nil
}

// dialProxy connects to the upstream proxy itself.
func (d *dialer) dialProxy(ctx context.Context, via *url.URL) (net.Conn, error) {
	port := via.Port()
	if port == "" {
		port = fmt.Sprint(schemePort(via.Scheme))
	}
	conn, err := d.proxied.DialContext(ctx, "tcp", net.JoinHostPort(via.Hostname(), port))
	if err != nil || via.Scheme == "http" {
		return conn, err
	}
	tc := tls.Client(&belowTLS{Conn: conn}, &tls.Config{ServerName: via.Hostname(), MinVersion: tls.VersionTLS12})
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, &handshakeError{err}
	}
	return tc, nil
}

// dialThrough opens a tunnel to a by CONNECT (RFC 9110 §9.3.6). What the proxy sends behind its answer is not lost.
func (d *dialer) dialThrough(ctx context.Context, via *url.URL, a authority) (net.Conn, error) {
	if isSOCKS(via) {
		return d.dialSOCKS(ctx, via, a)
	}
	conn, err := d.dialProxy(ctx, via)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SetDeadline(time.Now().Add(dialWait))
	request := "CONNECT " + a.String() + " HTTP/1.1\r\nHost: " + a.String() + "\r\n"
	if via.User != nil {
		request += "Proxy-Authorization: " + proxyAuthorization(via) + "\r\n"
	}
	head := &limitedReader{conn: conn}
	head.limit(upstreamHead)
	br := bufio.NewReader(head)
	_, err = io.WriteString(conn, request+"\r\n")
	var res *http.Response
	if err == nil {
		res, err = http.ReadResponse(br, &http.Request{Method: "CONNECT"})
	}
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("upstream proxy answered %d", res.StatusCode)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect through upstream proxy %q: %w", via.Redacted(), err)
	}
	conn.SetDeadline(time.Time{})
	if br.Buffered() == 0 {
		return conn, nil
	}
	early, _ := br.Peek(br.Buffered())
	return &prefixedConn{Conn: conn, early: early}, nil
}

// proxyAuthorization is the Basic credential in an upstream proxy's URL.
func proxyAuthorization(via *url.URL) string {
	password, _ := via.User.Password()
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(via.User.Username()+":"+password))
}

// prefixedConn is a connection from which bytes have already been read: early comes first.
type prefixedConn struct {
	net.Conn
	early []byte
}

func (c *prefixedConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.early)
	c.early = c.early[n:]
	return n, nil
}

// CloseWrite passes a half-close on.
func (c *prefixedConn) CloseWrite() error { return closeWrite(c.Conn) }

// NetConn is the connection below.
func (c *prefixedConn) NetConn() net.Conn { return c.Conn }

// stream is one end of a relay: a socket, a TLS connection, or the body of an answer 101.
type stream interface {
	io.ReadWriteCloser
}

// relay copies bytes between a client and an upstream until both directions have ended, and closes both. A direction that
// ends is passed on as a half-close, so that the other can go on; an error ends both. When ctx is done both are closed.
// in counts what came from the client, out what came from the upstream.
func relay(ctx context.Context, client, upstream stream) (in, out int64) {
	stop := context.AfterFunc(ctx, func() { client.Close(); upstream.Close() })
	defer stop()
	var both sync.WaitGroup
	// relay itself waits for it: either direction's error closes both ends.
	both.Go(func() { in = pump(upstream, client) })
	out = pump(client, upstream)
	both.Wait()
	client.Close()
	upstream.Close()
	return in, out
}

// pump copies from src to dst and then half-closes dst; where that is not possible, or after an error, it closes both.
func pump(dst, src stream) int64 {
	n, err := copyStream(dst, src)
	if err != nil || closeWrite(dst) != nil {
		dst.Close()
		src.Close()
	}
	return n
}

// copyStream lets the kernel move the bytes where both ends are sockets (splice).
func copyStream(dst io.Writer, src io.Reader) (int64, error) {
	if to, ok := socket(dst); ok {
		if from, ok := socket(src); ok {
			return to.ReadFrom(from)
		}
	}
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
}

// errNoHalfClose is a stream that can only be closed whole.
var errNoHalfClose = errors.New("no half-close")

func closeWrite(s any) error {
	if w, ok := s.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errNoHalfClose
}

const copyBuffer = 32 << 10

// copyBuffers holds the buffers through which content is copied.
var copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}

// socket gives the TCP socket that s is, where nothing has to be done to its bytes.
func socket(s any) (*net.TCPConn, bool) {
	switch c := s.(type) {
	case *net.TCPConn:
		return c, true
	case *acceptedConn:
		return c.TCPConn, true
	}
	return nil, false
}
