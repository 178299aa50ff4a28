package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxIdlePerHost  = 128              // connections kept for one host; a later one is closed instead of kept
	maxIdle         = 1024             // kept for all hosts: a client may name any number of them
	upstreamIdle    = 90 * time.Second // after which a kept connection is closed
	upstreamWait    = 15 * time.Minute // for the head of an answer: models think for minutes
	upstreamTLSWait = 10 * time.Second
	upstreamHead    = 256 << 10   // bytes of an answer's head
	continueWait    = time.Second // for 100, before content is sent without it; curl waits as long
)

// upstream sends requests to the servers that clients name: an http.RoundTripper over a pool of HTTP/1.1 connections that
// have no goroutine of their own, so that a request is written and its answer read by the goroutine that asks. Requests
// that need HTTP/2 ("te: trailers", which gRPC sends) go through net/http's Transport.
//
// The request target is sent byte for byte where URL.Opaque is "//" + URL.Host + target; otherwise it is
// URL.RequestURI(). An answer 101 has an io.ReadWriteCloser as its Body, any 1xx goes to httptrace's Got1xxResponse, as
// net/http's Transport does it. Redirects are not followed and content is not decoded. Safe for concurrent use.
type upstream struct {
	dialer   *dialer
	tls      *tls.Config // cloned for each connection, for its ServerName where it has none
	h2       *http.Transport
	wait     time.Duration // for the head of an answer; upstreamWait but in tests
	patience time.Duration // see secondTry; 0: without end

	mu    sync.Mutex
	idle  map[upstreamKey][]*upstreamConn // the latest last
	kept  int                             // connections in idle
	sweep *time.Timer                     // closes what is idle for too long; nil while nothing is idle
}

// upstreamKey tells which requests may share connections: {"https", "api.github.com:443"}.
type upstreamKey struct {
	scheme string
	host   string
}

// newUpstream gives an upstream that trusts roots; nil is the system's.
func newUpstream(d *dialer, roots *x509.CertPool) *upstream {
	return newUpstreamTLS(d, &tls.Config{RootCAs: roots})
}

// newUpstreamTLS gives an upstream for servers that want more of TLS than to be trusted; config is its own from now on.
func newUpstreamTLS(d *dialer, config *tls.Config) *upstream {
	config.MinVersion = tls.VersionTLS12
	config.NextProtos = []string{"http/1.1"}
	config.ClientSessionCache = tls.NewLRUClientSessionCache(256)
	u := &upstream{dialer: d, tls: config, wait: upstreamWait, idle: make(map[upstreamKey][]*upstreamConn)}
	u.h2 = u.transport()
	return u
}

// transport is the HTTP/2 side. Browsers send "te: trailers" to everybody: where the server does not offer h2 the request fails with
// errNoHTTP2, since the Transport's own HTTP/1.1 would send the target in absolute-form.
func (u *upstream) transport() *http.Transport {
	t := &http.Transport{
		DisableCompression:  true,
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdlePerHost,
		IdleConnTimeout:     upstreamIdle,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		Protocols:           new(http.Protocols),
	}
	t.Protocols.SetHTTP2(true)
	h2 := u.tls.Clone()
	h2.NextProtos = []string{"h2", "http/1.1"}
	t.DialTLSContext = func(ctx context.Context, _, addr string) (conn net.Conn, err error) {
		key := upstreamKey{"https", strings.TrimSuffix(addr, ":443")}
		conn, _, err = u.connect(ctx, key, h2)
		if err == nil && conn.(*tls.Conn).ConnectionState().NegotiatedProtocol != "h2" {
			u.put(newUpstreamConn(u, key, conn, nil))
			return nil, errNoHTTP2
		}
		return conn, err
	}
	return t
}

// RoundTrip sends r and gives the answer's head; the caller reads Body to its end or closes it. Once RoundTrip returns
// an error, or once the answer's Body is closed, r.Body is read no more. A request that meets a connection which the
// server has just closed is sent once more over a new one, if nothing came back and sending it twice does no harm
// (RFC 9110 §9.2.2).
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ProtoMajor == 2 && r.Header.Get("Te") != "" {
		res, err := u.roundTrip2(r)
		if !errors.Is(err, errNoHTTP2) {
			return res, err
		}
	}
	return u.pooled(r)
}

// pooled sends r over HTTP/1.1.
func (u *upstream) pooled(r *http.Request) (*http.Response, error) {
	key := upstreamKey{r.URL.Scheme, r.URL.Host}
	if c := u.take(key); c != nil && !u.doubts(c, r) {
		res, err := u.reuse(c, r)
		if err == nil || !c.stale(err) || !replayable(r) {
			return res, err
		}
		if err := rewind(r); err != nil {
			return nil, err
		}
	}
	return u.fresh(r, key)
}

// fresh sends r over a new connection.
func (u *upstream) fresh(r *http.Request, key upstreamKey) (*http.Response, error) {
	conn, via, err := u.connect(r.Context(), key, u.tls)
	if err != nil {
		closeBody(r)
		return nil, err
	}
	return newUpstreamConn(u, key, conn, via).roundTrip(r)
}

// errNoHTTP2 is a server that does not offer h2; the connection to it is in the pool.
var errNoHTTP2 = errors.New("no HTTP/2 here")

// roundTrip2 sends r over HTTP/2; with errNoHTTP2 it is as it was.
func (u *upstream) roundTrip2(r *http.Request) (*http.Response, error) {
	_, own := r.Header["User-Agent"]
	if !own {
		r.Header["User-Agent"] = []string{""} // else the Transport adds its own
	}
	// The Transport would append the query to the target, which has it already, and a whole URL to what does not begin "//".
	out, to := *r, *r.URL
	to.RawQuery, to.ForceQuery = "", false
	if target := requestTarget(r.URL); !strings.HasPrefix(target, "//") {
		to.Opaque = target
	}
	out.URL = &to
	if hasBody(r) {
		out.Body = &unreadBody{ReadCloser: r.Body}
	}
	res, err := u.h2.RoundTrip(&out)
	switch {
	case errors.Is(err, errNoHTTP2):
		if !own {
			delete(r.Header, "User-Agent")
		}
	case err != nil:
		closeBody(r)
	default:
		// The Transport wakes neither a sender that waits for the server's window nor a reader when the client leaves.
		body := res.Body
		res.Body = &stoppedBody{body, context.AfterFunc(r.Context(), func() { body.Close() })}
	}
	return res, err
}

// stoppedBody is the content of an answer over HTTP/2, which is closed when the request's context ends.
type stoppedBody struct {
	io.ReadCloser
	stop func() bool
}

func (b *stoppedBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

// unreadBody is content that Close leaves alone unless some of it has been read: a Transport that cannot connect closes it.
type unreadBody struct {
	io.ReadCloser
	read atomic.Bool
}

func (b *unreadBody) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.ReadCloser.Read(p)
}

func (b *unreadBody) Close() error {
	if b.read.Load() {
		return b.ReadCloser.Close()
	}
	return nil
}

// closeIdle closes all connections that no request uses.
func (u *upstream) closeIdle() {
	u.h2.CloseIdleConnections()
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, conns := range u.idle {
		u.drop(key, len(conns))
	}
	if u.sweep != nil { // it would hold the upstream for as long as a connection may be idle
		u.sweep.Stop()
		u.sweep = nil
	}
}

// take gives the connection to key that was used last and that the server has neither closed nor written to; nil where
// there is none.
func (u *upstream) take(key upstreamKey) *upstreamConn {
	for {
		u.mu.Lock()
		conns := u.idle[key]
		if len(conns) == 0 {
			u.mu.Unlock()
			return nil
		}
		c := conns[len(conns)-1]
		conns[len(conns)-1] = nil
		u.idle[key] = conns[:len(conns)-1]
		u.kept--
		u.mu.Unlock()
		if c.quiet() {
			c.reused = true
			return c
		}
		c.abort()
	}
}

// put keeps c for the next request.
func (u *upstream) put(c *upstreamConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle[c.key]) >= maxIdlePerHost {
		c.abort()
		return
	}
	if u.kept >= maxIdle {
		u.dropAny()
	}
	c.idleSince = time.Now()
	u.idle[c.key] = append(u.idle[c.key], c)
	u.kept++
	if u.sweep == nil {
		u.sweep = time.AfterFunc(upstreamIdle, u.expire)
	}
}

// drop closes the n connections to key that have been idle longest. u.mu is held.
func (u *upstream) drop(key upstreamKey, n int) {
	conns := u.idle[key]
	for _, c := range conns[:n] {
		c.abort()
	}
	u.kept -= n
	if u.idle[key] = append([]*upstreamConn(nil), conns[n:]...); n == len(conns) {
		delete(u.idle, key)
	}
}

// dropAny makes room for one more: at some host, which is most likely one of a client that names a great many. u.mu is held.
func (u *upstream) dropAny() {
	for key, conns := range u.idle {
		if len(conns) > 0 {
			u.drop(key, 1)
			return
		}
	}
}

// expire closes the connections that have been idle for upstreamIdle and comes back while any are left.
func (u *upstream) expire() {
	u.mu.Lock()
	defer u.mu.Unlock()
	oldest := time.Now().Add(-upstreamIdle)
	for key, conns := range u.idle {
		n := 0
		for n < len(conns) && conns[n].idleSince.Before(oldest) {
			n++
		}
		u.drop(key, n)
	}
	u.sweep = nil
	if len(u.idle) > 0 {
		u.sweep = time.AfterFunc(upstreamIdle/2, u.expire)
	}
}

// connect opens a connection to key.host, with TLS for https. via is the upstream proxy to which a plain request has to be
// sent in absolute-form, else nil. The errors are those of dialer.dial, and handshakeError, in a connectError.
func (u *upstream) connect(ctx context.Context, key upstreamKey, config *tls.Config) (conn net.Conn, via *url.URL, err error) {
	defer func() {
		if err != nil {
			err = &connectError{err}
		}
	}()
	a, err := parseAuthority(key.host, schemePort(key.scheme))
	if err != nil {
		return nil, nil, err
	}
	if key.scheme == "http" {
		return u.dialer.dialPlain(ctx, a)
	}
	if conn, err = u.dialer.dial(ctx, a); err != nil {
		return nil, nil, err
	}
	config = config.Clone()
	if config.ServerName == "" {
		config.ServerName = a.host
	}
	tc := tls.Client(&belowTLS{Conn: conn}, config)
	ctx, cancel := context.WithTimeout(ctx, upstreamTLSWait)
	defer cancel()
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, nil, &handshakeError{err}
	}
	return tc, nil, nil
}

// connectError is an error that came before anything of the request was sent.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// handshakeError is a TLS handshake with an upstream that came to nothing: its certificate does not verify, or it is not
// TLS.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "tls handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// schemePort is the port of an authority that names none (RFC 9110 §4.2).
func schemePort(scheme string) uint16 {
	if scheme == "http" {
		return 80
	}
	return 443
}

// requestTarget is what the request line holds: see upstream.
func requestTarget(u *url.URL) string {
	if rest, ok := strings.CutPrefix(u.Opaque, "//"); ok {
		if target, ok := strings.CutPrefix(rest, u.Host); ok {
			return target
		}
	}
	return u.RequestURI()
}

// replayable tells whether r can be sent twice: it has no content and its method is idempotent (RFC 9110 §9.2.2). Who sets GetBody
// says that it can, whatever its method.
func replayable(r *http.Request) bool {
	if r.GetBody != nil {
		return true
	}
	if r.Body != nil && r.Body != http.NoBody {
		return false
	}
	switch r.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// rewind makes r ready to be sent once more.
func rewind(r *http.Request) (err error) {
	if r.GetBody != nil {
		r.Body, err = r.GetBody()
	}
	return err
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}

// limitedReader bounds what a parser reads of a head from conn: bytes, and lines, since a field costs a parser far more
// memory than its bytes.
type limitedReader struct {
	conn  net.Conn
	left  int64 // bytes that may still be read, or unlimited
	lines int   // line feeds likewise
	over  bool  // more was asked for
}

const unlimited = 1<<63 - 1

// headLines bounds the lines of a head: over a hundred is rare.
const headLines = 500

var errHeadTooLarge = errors.New("header section too large")

// limit begins a head of at most so many bytes.
func (l *limitedReader) limit(bytes int64) { l.left, l.lines, l.over = bytes, headLines, false }

// lift ends the limits: content comes.
func (l *limitedReader) lift() { l.left = unlimited }

// Read gives errHeadTooLarge once a limit has been passed. Who asks for more has found no end of the head in what there was, so
// that all lines of it are the head's.
func (l *limitedReader) Read(p []byte) (int, error) {
	if l.left == unlimited {
		return l.conn.Read(p)
	}
	if l.over = l.left <= 0 || l.lines < 0; l.over {
		return 0, errHeadTooLarge
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err := l.conn.Read(p)
	l.left -= int64(n)
	l.lines -= bytes.Count(p[:n], newline)
	return n, err
}

var newline = []byte("\n")
