package main

import (
	"net"
	"time"

	"muxproxy/e2e/measure"
)

// relayParameters are those of the role "relay".
type relayParameters struct {
	To  string        // "127.0.0.1:443"
	RTT time.Duration // the distance that is simulated
}

// serveRelay is a server's port at a distance: bytes arrive half a round trip after they were sent, in both directions,
// at whatever rate they come. The kernel accepts connections without delay, so what a client sends first is held back for
// the round trip that its connection would have taken to come about.
func serveRelay(p relayParameters) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go relayFar(conn.(*net.TCPConn), p)
		}
	}()
	return measure.UntilEOF(ln.Addr().String())
}

func relayFar(client *net.TCPConn, p relayParameters) {
	defer client.Close()
	established := time.Now().Add(p.RTT)
	conn, err := net.Dial("tcp", p.To)
	if err != nil {
		return
	}
	defer conn.Close()
	server := conn.(*net.TCPConn)
	done := make(chan struct{})
	go func() { defer close(done); delay(server, client, p.RTT/2, established) }()
	delay(client, server, p.RTT/2, time.Time{})
	<-done
}

// flight is a piece of a stream on its way.
type flight struct {
	data    []byte
	arrives time.Time
}

// delay copies from src to dst, late by d; nothing leaves before the time first.
func delay(dst, src *net.TCPConn, d time.Duration, first time.Time) {
	flights := make(chan flight, 4096)
	go func() {
		defer close(flights)
		for {
			buf := make([]byte, 16<<10)
			n, err := src.Read(buf)
			sent := time.Now()
			if sent.Before(first) {
				sent = first
			}
			flights <- flight{buf[:n], sent.Add(d)}
			if err != nil {
				return
			}
		}
	}()
	var err error
	for f := range flights {
		time.Sleep(time.Until(f.arrives)) // the distance that this relay is made of
		if err == nil && len(f.data) > 0 {
			_, err = dst.Write(f.data)
		}
	}
	if err != nil {
		src.Close()
	}
	dst.CloseWrite()
}
