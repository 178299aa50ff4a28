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

// serve answers the requests that come to the proxy port itself.
func (c *clientConn) serve() {
	h := newHTTP1Conn(c.conn)
	c.loop(h, "", func(x *exchange) { c.handle(h, x) })
}

// loop reads the requests of an HTTP/1.1 connection one by one and has each handled. host is what the audit log calls
// their host until they are understood.
func (c *clientConn) loop(h *http1Conn, host string, handle func(*exchange)) {
	var x *exchange
	ctx := httptrace.WithClientTrace(c.ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, fields textproto.MIMEHeader) error { return x.got1xx(code, fields) },
	})
	for c.idle() {
		if h.await() != nil || !c.state.CompareAndSwap(connIdle, connBusy) {
			return
		}
		r, err := h.read()
		if err != nil {
			c.refuseHead(h, host, err)
			return
		}
		x = c.newExchange(r.WithContext(ctx), host)
		x.body = h.body(r, x.r)
		answer := &reply1{c: h, old: !r.ProtoAtLeast(1, 1), close: r.Close || c.p.draining()}
		x.reply, x.upgraded = answer, h.upgraded
		h.beginWatch(x.body, c.cancel)
		handle(x)
		h.endWatch()
		if x.broken {
			return
		}
		if !h.finish(x.r, x.body) || answer.close {
			h.linger()
			return
		}
	}
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
	h.linger()
}
