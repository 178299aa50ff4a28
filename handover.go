package main

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// handover leads from the http plane to another plane of this process (spec 6.6): a client that ignores NO_PROXY asks the proxy for the
// port of a plane, and reaches it as if it had not. The client keeps its address, and the plane its checks.
type handover struct {
	serve func(net.Conn) // takes a connection whose RemoteAddr is the client's, and closes it when it is over
	http  bool           // the plane speaks plain HTTP: it takes requests in absolute-form too
}

// handedOver is a client's connection while another plane serves it.
type handedOver struct {
	*prefixedConn
	once sync.Once
	over chan struct{} // closed with the connection
}

func (c *handedOver) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.over) })
	return err
}

// handConnect gives the connection of a CONNECT to a plane, which writes the audit lines of what comes inside.
func (c *clientConn) handConnect(h *http1Conn, x *exchange, to *handover) {
	x.audited = true
	early, err := h.established(c.conn)
	if err != nil {
		return
	}
	conn := &handedOver{prefixedConn: &prefixedConn{Conn: c.conn, early: early}, over: make(chan struct{})}
	x.next = func() {
		to.serve(conn)
		<-conn.over
	}
}

// handPlain sends a request in absolute-form to a plane that speaks HTTP, over a connection in memory: the next request of the client's
// connection may be for another host. The plane writes its audit line.
func (c *clientConn) handPlain(x *exchange, to *handover, a authority) {
	x.audited = true
	cleanRequest(x.r)
	x.body.clean = func(h http.Header) { cleanTrailer(h, false) }
	u := newUpstream(&dialer{guarded: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		to.serve(&pipedConn{far, c.conn})
		return near, nil
	}}, nil)
	defer u.closeIdle()
	x.target("http", hostField(a, 80), originForm(x.r))
	x.send(u)
}

// pipedConn is a plane's end of a connection in memory, with the addresses of the client's.
type pipedConn struct {
	net.Conn
	client net.Conn
}

func (c *pipedConn) RemoteAddr() net.Addr { return c.client.RemoteAddr() }
func (c *pipedConn) LocalAddr() net.Addr  { return c.client.LocalAddr() }
