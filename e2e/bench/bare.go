package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"sync"

	"muxproxy/e2e/measure"
)

// bare ends TLS on both sides and copies what is inside without looking at it: what any proxy of this kind must cost. Its
// clients send the credential themselves.
type bare struct {
	client *tls.Config
	roots  *x509.CertPool
}

func serveBare(p proxyParameters) error {
	leaf, err := p.leaf()
	if err != nil {
		return err
	}
	b := &bare{client: &tls.Config{Certificates: []tls.Certificate{leaf}}}
	if b.roots, err = loadRoots(p.Roots); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go b.accept(ln) // ends with the process
	return measure.UntilEOF(ln.Addr().String())
}

func (b *bare) accept(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go b.serve(conn) // ends with its client
	}
}

// serve relays one connection. What its ends do not say ends it.
func (b *bare) serve(conn net.Conn) {
	defer conn.Close()
	r, err := http.ReadRequest(bufio.NewReader(conn)) // nothing follows before the answer
	if err != nil {
		return
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	server, err := tls.Dial("tcp", r.Host, &tls.Config{RootCAs: b.roots, ServerName: host})
	if err != nil {
		return
	}
	defer server.Close()
	client := tls.Server(conn, b.client)
	var both sync.WaitGroup
	both.Go(func() { io.Copy(server, client); server.CloseWrite() })
	both.Go(func() { io.Copy(client, server); client.CloseWrite() })
	both.Wait()
}
