package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"sync/atomic"
)

// clientConn is one connection of a client.
type clientConn struct {
	p      *proxy
	conn   net.Conn
	addr   netip.AddrPort
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	state  atomic.Int32 // connIdle, connBusy or connClosed
}

// The states of a clientConn: only an idle one may be closed by a drain.
const (
	connIdle int32 = iota
	connBusy
	connClosed
)

// closeIdle closes the connection if no exchange goes on.
func (c *clientConn) closeIdle() {
	if c.state.CompareAndSwap(connIdle, connClosed) {
		c.conn.Close()
	}
}

// serve answers the requests that come to the proxy port itself, and then what a CONNECT leads to. By then the reader and
// the writer of the former are garbage: an idle intercepted connection should be small.
func (c *clientConn) serve() {
	if next := c.serveRequests(); next != nil {
		next()
	}
}

func (c *clientConn) serveRequests() (next func()) {
	h := newHTTP1Conn(c.conn)
	return c.loop(h, "", func(x *exchange) { c.handle(h, x) })
}

// loop reads the requests of an HTTP/1.1 connection one by one and has each handled. host is what the audit log calls
// their host until they are understood. It returns when the connection is over, or with what comes next on it.
func (c *clientConn) loop(h *http1Conn, host string, handle func(*exchange)) (next func()) {
	var x *exchange
	ctx := httptrace.WithClientTrace(c.ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, fields textproto.MIMEHeader) error { return x.got1xx(code, fields) },
	})
	for c.idle() {
		x = nil // the last request: an idle connection should be small
		if h.await() != nil || !c.state.CompareAndSwap(connIdle, connBusy) {
			return nil
		}
		r, err := h.read()
		if err != nil {
			c.refuseHead(h, host, err)
			return nil
		}
		x = c.newExchange(r.WithContext(ctx), host)
		x.body = h.body(r, x.r)
		answer := &reply1{c: h, old: !r.ProtoAtLeast(1, 1), close: r.Close || c.p.draining() || r.Method == "CONNECT"}
		if r.Header.Get("Expect") != "" {
			answer.expects = x.body
		}
		x.reply, x.upgraded = answer, h.upgraded
		h.beginWatch(x.body, c.cancel)
		handle(x)
		h.endWatch()
		switch {
		case x.next != nil:
			return x.next
		case x.broken:
			c.reset()
			return nil
		case !h.finish(x.r, x.body), answer.close:
			h.linger(noBound)
			return nil
		}
	}
	return nil
}

// reset closes the connection so that nobody takes what was sent for whole: without TLS's close_notify, and with RST.
func (c *clientConn) reset() {
	if s, ok := socket(c.conn); ok {
		s.SetLinger(0)
	}
	c.conn.Close()
}

// idle makes the connection one that a drain may close; false when it is over.
func (c *clientConn) idle() bool {
	c.state.CompareAndSwap(connBusy, connIdle)
	if c.p.draining() {
		c.closeIdle()
		return false
	}
	return true
}

// refuseHead answers what is not a request, and ends the connection.
func (c *clientConn) refuseHead(h *http1Conn, host string, err error) {
	var bad *badRequest
	if !errors.As(err, &bad) {
		return
	}
	r := &http.Request{Method: "GET", Header: http.Header{}}
	x := c.newExchange(r, host)
	x.event.method = ""
	x.reply = &reply1{c: h, close: true}
	x.refuse(denied(bad.code, "malformed request", bad.text))
	h.linger(lingerBytes)
}
