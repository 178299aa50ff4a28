package testbed

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
)

// Serve serves handler over TLS, HTTP/2 included, on a port of Address() until the test ends.
func Serve(t testing.TB, ca *CA, port string, handler http.Handler) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(Address(), port))
	if err != nil {
		t.Fatal(err)
	}
	// Clients leave in the middle here, and handshakes fail, on purpose.
	s := &http.Server{Handler: handler, TLSConfig: &tls.Config{GetCertificate: ca.Leaf}, ErrorLog: log.New(io.Discard, "", 0)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.ServeTLS(ln, "", "") })
	t.Cleanup(func() { s.Close(); serving.Wait() })
}

// ServeConn has handle serve each connection to a port of Address() until the test ends.
func ServeConn(t testing.TB, port string, handle func(*net.TCPConn)) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(Address(), port))
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer conn.Close(); handle(conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
}
