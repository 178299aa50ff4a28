package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"sync"
	"time"

	"muxproxy/e2e/measure"
)

// reverse does muxproxy's job with the parts of net/http: its server for CONNECT and, on the hijacked connection's TLS, for
// the requests inside, and httputil.ReverseProxy with http.Transport for the way to the origin.
type reverse struct {
	p      proxyParameters
	inner  *http.Server
	tls    *tls.Config // one for all connections, so that sessions can be resumed
	tunnel net.Dialer
}

func serveReverse(p proxyParameters) error {
	transport, err := p.transport()
	if err != nil {
		return err
	}
	leaf, err := p.leaf()
	if err != nil {
		return err
	}
	discard := log.New(io.Discard, "", 0)
	s := &reverse{p: p, tls: &tls.Config{NextProtos: []string{"h2", "http/1.1"}, Certificates: []tls.Certificate{leaf}}}
	s.inner = &http.Server{ErrorLog: discard, Protocols: new(http.Protocols), Handler: &httputil.ReverseProxy{
		Transport: transport, ErrorLog: discard, BufferPool: &bufferPool{},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", r.In.Host
			r.Out.Header.Set("Authorization", "Bearer "+p.Token)
		},
	}}
	s.inner.Protocols.SetHTTP1(true)
	s.inner.Protocols.SetHTTP2(true)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(ln, s)
	return measure.UntilEOF(ln.Addr().String())
}

// leaf makes the one leaf that is needed.
func (p proxyParameters) leaf() (tls.Certificate, error) {
	ca, err := tls.LoadX509KeyPair(p.CACert, p.CAKey)
	if err != nil {
		return tls.Certificate{}, err
	}
	return newLeaf(ca)
}

func newLeaf(ca tls.Certificate) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotBefore: ca.Leaf.NotBefore, NotAfter: ca.Leaf.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.Leaf, key.Public(), ca.PrivateKey)
	return tls.Certificate{Certificate: [][]byte{der, ca.Certificate[0]}, PrivateKey: key}, err
}

// bufferPool is ReverseProxy's way to copy without allocating.
type bufferPool struct{ sync.Pool }

func (p *bufferPool) Get() []byte {
	if b, ok := p.Pool.Get().(*[32 << 10]byte); ok {
		return b[:]
	}
	return make([]byte, 32<<10)
}

func (p *bufferPool) Put(b []byte) { p.Pool.Put((*[32 << 10]byte)(b)) }

// ServeHTTP answers CONNECT.
func (s *reverse) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if slices.Contains(s.p.Tunneled, r.Host) {
		s.relay(client, r.Host)
		return
	}
	if _, err := io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		client.Close()
		return
	}
	tc := tls.Server(client, s.tls)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if tc.HandshakeContext(ctx) != nil {
		client.Close()
		return
	}
	s.inner.Serve(&oneConn{Conn: tc})
}

// relay tunnels.
func (s *reverse) relay(client net.Conn, authority string) {
	defer client.Close()
	server, err := s.tunnel.Dial("tcp", authority)
	if err != nil {
		return
	}
	defer server.Close()
	io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	var both sync.WaitGroup
	both.Go(func() { io.Copy(server, client); server.(*net.TCPConn).CloseWrite() })
	both.Go(func() { io.Copy(client, server); client.(*net.TCPConn).CloseWrite() })
	both.Wait()
}

// oneConn is the listener through which a server gets one connection, and is then told that it is closed.
type oneConn struct {
	net.Conn
	taken bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.taken {
		return nil, net.ErrClosed
	}
	l.taken = true
	return l.Conn, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.LocalAddr() }
