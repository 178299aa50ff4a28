package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// slowWorld is a proxy and its origin without a network, in a bubble of synctest.
type slowWorld struct {
	*testProxy
	client *http.Client // of somebody else
}

func newSlowWorld(t *testing.T, handler http.HandlerFunc) *slowWorld {
	t.Helper()
	p, client := newPipeProxy(t, 1, handler)
	return &slowWorld{p, client}
}

// port opens a connection to the proxy port.
func (w *slowWorld) port(t *testing.T) net.Conn {
	t.Helper()
	conn, err := w.client.Transport.(*http.Transport).DialContext(t.Context(), "tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// connected opens a CONNECT to sentry.io.
func (w *slowWorld) connected(t *testing.T) net.Conn {
	t.Helper()
	conn := w.port(t)
	io.WriteString(conn, "CONNECT sentry.io:443 HTTP/1.1\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(iotest.OneByteReader(conn)), &http.Request{Method: "CONNECT"})
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("CONNECT: %v, %v", res, err)
	}
	return conn
}

// inside gives an intercepted connection. Session tickets would wait in the pipe until they are read.
func (w *slowWorld) inside(t *testing.T, protocol string) *tls.Conn {
	t.Helper()
	tc := tls.Client(w.connected(t), &tls.Config{ServerName: "sentry.io", RootCAs: w.ca, NextProtos: []string{protocol}, SessionTicketsDisabled: true})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}

// othersGoOn fails unless another client is answered meanwhile.
func (w *slowWorld) othersGoOn(t *testing.T) {
	t.Helper()
	res, err := w.client.Get("https://sentry.io/other")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("another client got %s", res.Status)
	}
}

// drip writes text, a byte a second, until it ends or the connection does.
func drip(conn net.Conn, text string) {
	for i := range len(text) {
		if _, err := conn.Write([]byte(text[i : i+1])); err != nil {
			return
		}
		<-time.After(time.Second)
	}
}

func slowHead(line, fields string) string {
	return line + "\r\nHost: sentry.io\r\n" + fields + "\r\n"
}

func TestSlowClientsAreCutOffByTheLimits(t *testing.T) {
	get := slowHead("GET /a HTTP/1.1", strings.Repeat("X-A: b\r\n", 100))
	port := func(t *testing.T, w *slowWorld) net.Conn { return w.port(t) }
	connected := func(t *testing.T, w *slowWorld) net.Conn { return w.connected(t) }
	inside := func(t *testing.T, w *slowWorld) net.Conn { return w.inside(t, "http/1.1") }
	used := func(t *testing.T, w *slowWorld) net.Conn {
		conn := w.inside(t, "http/1.1")
		exchangeRaw(t, conn, slowHead("GET /first HTTP/1.1", ""))
		return conn
	}
	without := func(t *testing.T, w *slowWorld) net.Conn { return w.inside(t, "h2") }
	begun := func(t *testing.T, w *slowWorld) net.Conn {
		conn := w.inside(t, "h2")
		framer := http2.NewFramer(conn, conn)
		framer.ReadFrame() // theirs comes first, and a pipe holds nothing
		io.WriteString(conn, http2.ClientPreface)
		framer.WriteSettings()
		return conn
	}
	for _, c := range []struct {
		name  string
		open  func(*testing.T, *slowWorld) net.Conn
		drip  string
		after time.Duration // when the connection ends, and not long before
	}{
		{"nothing is sent to the port", port, "", headWait},
		{"a CONNECT, byte by byte", port, "CONNECT sentry.io:443 HTTP/1.1\r\nX: " + get, headWait},
		{"a request to the port, byte by byte", port, "GET http://other.example/ HTTP/1.1\r\nX: " + get, headWait},
		{"no TLS behind the CONNECT", connected, "", headWait},
		{"a TLS handshake, byte by byte", connected, "\x16\x03\x01\x10\x00\x01\x00\x0f\xfc\x03\x03" + strings.Repeat("a", 5000), headWait},
		{"nothing is sent inside", inside, "", headWait},
		{"a header, byte by byte", inside, get, headWait},
		{"the next header, byte by byte", used, get, headWait},
		{"no next request", used, "", idleWait},
		{"an HTTP/2 connection without its preface", without, "", headWait},
		{"an HTTP/2 preface, byte by byte", without, http2.ClientPreface, headWait},
		{"an idle HTTP/2 connection", begun, "", idleWait},
		// net/http's server has no clock for a header section alone: it ends with the idle time.
		{"an HTTP/2 header, byte by byte", begun, "\x00\x40\x00\x01\x04\x00\x00\x00\x01" + strings.Repeat("\x82", 1<<14), idleWait},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newSlowWorld(t, func(http.ResponseWriter, *http.Request) {})
				conn := c.open(t, w)
				start := time.Now()
				dripped := make(chan struct{})
				go func() { defer close(dripped); drip(conn, c.drip) }()
				ended := make(chan time.Duration, 1)
				go func() { io.Copy(io.Discard, conn); ended <- time.Since(start) }()
				<-time.After(c.after / 2)
				w.othersGoOn(t)
				if after := <-ended; after < c.after-time.Second || after > c.after+5*time.Second {
					t.Errorf("the connection ended after %v, want %v", after, c.after)
				}
				conn.Close()
				<-dripped
			})
		})
	}
}

func TestSlowContentIsNotCutOffAndHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		content := make(chan string, 1)
		w := newSlowWorld(t, func(_ http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				b, err := io.ReadAll(r.Body)
				content <- fmt.Sprint(string(b), err)
			}
		})
		conn := w.inside(t, "http/1.1")
		const size = 2000 // seconds
		io.WriteString(conn, slowHead("POST /a HTTP/1.1", fmt.Sprintf("Content-Length: %d\r\n", size)))
		dripped := make(chan struct{})
		go func() { defer close(dripped); drip(conn, strings.Repeat("a", size)) }()
		defer func() { conn.Close(); <-dripped }()
		for range 10 {
			<-time.After(time.Minute)
			w.othersGoOn(t)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("answer %v, %v", res, err)
		}
		if got := <-content; got != strings.Repeat("a", size)+"<nil>" {
			t.Errorf("the upstream got %d bytes", len(got))
		}
	})
}
