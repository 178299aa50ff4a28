package main

import (
	"net"
	"time"
)

// h2KeepAlive has the kernel notice within 25 s that a peer is gone without a word: half-open connections (RFC 9293 §3.5.1).
var h2KeepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}

// h2Unacknowledged is for how long an upstream may leave bytes unacknowledged, since nothing is probed while some are: as long as
// h2KeepAlive takes.
const h2Unacknowledged = 25 * time.Second

// tcpOf gives the TCP connection below conn, nil where there is none.
func tcpOf(conn net.Conn) *net.TCPConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// h2Close closes conn at once: closing a TLS connection alone waits up to 5 s for its last alert to be taken.
func h2Close(conn net.Conn) {
	if tcp := tcpOf(conn); tcp != nil {
		tcp.Close()
	}
	conn.Close()
}

// keepH2Alive has a connection's end noticed. A client's may leave bytes unacknowledged for as long as it likes: the time-out
// would also end one whose user has it wait before a full window, as "logs -f | less" does.
func keepH2Alive(conn net.Conn, upstream bool) {
	tcp := tcpOf(conn)
	if tcp == nil {
		return
	}
	tcp.SetKeepAliveConfig(h2KeepAlive)
	if upstream {
		limitUnacknowledged(tcp, h2Unacknowledged)
	}
}
