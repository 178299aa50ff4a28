package main

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// What one HTTP/2 connection may use: requests at once, and bytes of content that wait for an upstream. net/http's own bounds are
// for a server that has few clients on each address: with 1,024 connections from one they would come to gigabytes.
const (
	maxStreams   = 100
	connWindow   = 512 << 10
	streamWindow = 256 << 10
	maxFrame     = 64 << 10 // of content or fields; each connection keeps a buffer for one
)

// http2Server serves intercepted HTTP/2 connections by net/http's server. That takes its connections from a listener: http2Server
// is one, to which they are handed after their handshake.
type http2Server struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	close  func() // closes closed, once
}

// interceptedKey is under which a request's context holds its *intercepted.
type interceptedKey struct{}

func newHTTP2Server(log *slog.Logger) *http2Server {
	s := &http2Server{conns: make(chan net.Conn), closed: make(chan struct{})}
	s.close = sync.OnceFunc(func() { close(s.closed) })
	s.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			i := r.Context().Value(interceptedKey{}).(*intercepted)
			if !i.requests.enter() {
				panic(http.ErrAbortHandler)
			}
			defer i.requests.exit()
			i.serveHTTP2(w, r)
		}),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, interceptedKey{}, below(conn).served)
		},
		ConnState:         connState,
		MaxHeaderBytes:    headLimit,
		ReadHeaderTimeout: headWait,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReadFrameSize:              maxFrame,
			MaxReceiveBufferPerConnection: connWindow,
			MaxReceiveBufferPerStream:     streamWindow,
		},
		Protocols: new(http.Protocols),
		// "OPTIONS *" asks the upstream, not us.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	s.server.Protocols.SetHTTP2(true)
	return s
}

// connState closes connections that are idle for idleWait, and tells when one is over. The server's own IdleTimeout would hold
// the memory of each connection that a client leaves within a request for as long: it is started once more when
// the connection has ended (net/http's h2_bundle.go, closeStream in closeAllStreamsOnConnClose).
func connState(conn net.Conn, state http.ConnState) {
	c := below(conn)
	if c.idle != nil {
		c.idle.Stop()
	}
	switch state {
	case http.StateIdle:
		if c.idle == nil {
			c.idle = time.AfterFunc(idleWait, func() { conn.Close() })
		} else {
			c.idle.Reset(idleWait)
		}
	case http.StateClosed:
		close(c.over)
	}
}

// below gives what an intercepted TLS connection runs on.
func below(conn net.Conn) *interceptConn {
	return conn.(*tls.Conn).NetConn().(*interceptConn)
}

// run serves until shutdown.
func (s *http2Server) run() { s.server.Serve(s) }

// serve serves one connection and returns when it is over, with all its requests: net/http does not wait for those.
func (s *http2Server) serve(conn *tls.Conn) {
	select {
	case s.conns <- conn:
		<-below(conn).over
		below(conn).served.requests.wait()
	case <-s.closed:
	}
}

// gate counts the requests of a connection and, once closed, lets none in.
type gate struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.inside.Add(1)
	}
	return !g.closed
}

func (g *gate) exit() { g.inside.Done() }

// wait closes the gate and waits until nobody is inside.
func (g *gate) wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.inside.Wait()
}

// shutdown has all connections end after the requests under way, and waits for that or for ctx.
func (s *http2Server) shutdown(ctx context.Context) { s.server.Shutdown(ctx) }

// Accept, Close and Addr make it a net.Listener.
func (s *http2Server) Accept() (net.Conn, error) {
	select {
	case conn := <-s.conns:
		return conn, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *http2Server) Close() error {
	s.close()
	return nil
}

func (s *http2Server) Addr() net.Addr { return &net.TCPAddr{} }

// body2 puts a requestBody in the place of the content of out, a copy of the HTTP/2 request in. Its length is 0 only where there
// is none, -1 where it is not told; the server's Body is never http.NoBody.
func body2(in, out *http.Request) *requestBody {
	b := &requestBody{Reader: in.Body, in: in, out: out, clean: removeHopByHop, buffered: func() int { return 0 }}
	if in.ContentLength == 0 {
		out.Body = http.NoBody
		b.done.Store(true)
		return b
	}
	b.cut = func() { in.Body.Close() }
	out.Body = b
	return b
}

// reply2 writes one answer to a stream of a client's HTTP/2 connection, through net/http's server.
type reply2 struct {
	w        http.ResponseWriter
	rc       *http.ResponseController
	headOnly bool // a gRPC answer without content: it has to end with its head, in one frame
}

func (p *reply2) inform(code int, h http.Header) error {
	own := p.w.Header()
	for name, values := range h {
		own[name] = values
	}
	// WriteHeader may return while the map is still read, when the stream is reset. Of one with this field, which no 1xx may
	// have, the server makes a copy.
	own["Content-Length"] = []string{"0"}
	p.w.WriteHeader(code)
	clear(own)
	return nil
}

func (p *reply2) begin(res *http.Response) {
	h := p.w.Header()
	h["Date"], h["Content-Type"] = nil, nil // else the server adds them
	for name, values := range res.Header {
		h[name] = values
	}
	if names := trailerNames(res.Trailer); names != "" {
		h["Trailer"] = []string{names}
	}
	p.headOnly = res.ContentLength == 0 && res.Header["Grpc-Status"] != nil
	p.w.WriteHeader(res.StatusCode)
}

func (p *reply2) Write(b []byte) (int, error) { return p.w.Write(b) }

func (p *reply2) flush() error { return p.rc.Flush() }

func (p *reply2) end(trailer http.Header) error {
	h := p.w.Header()
	for name, values := range trailer {
		h[http.TrailerPrefix+name] = values
	}
	return nil
}

// linger gives the client a moment with an answer that came before the end of its content, before the handler returns: then
// net/http resets the stream, and some clients (curl 7.88) drop what they have not read of the answer. Those of gRPC keep it, but
// take a head behind which the stream does not end for one with trailers to come.
func (p *reply2) linger(ctx context.Context, b *requestBody) {
	if p.headOnly || b.done.Load() || p.rc.Flush() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lingerWait)
	defer cancel()
	p.rc.SetReadDeadline(time.Now().Add(lingerWait))
	io.CopyN(io.Discard, b, lingerBytes)
	if !b.done.Load() {
		<-ctx.Done() // the client resets the stream once it has the answer
	}
}
