package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// openServer accepts connections and gives each to handle at once; n is the connection's number.
func openServer(t *testing.T, handle func(n int, conn net.Conn, br *bufio.Reader)) *url.URL {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				handle(n, conn, bufio.NewReader(conn))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return &url.URL{Scheme: "http", Host: ln.Addr().String()}
}

// serveRaw answers each request on conn by what answer gives for its number, from 0; "" ends it without an answer.
func serveRaw(conn net.Conn, br *bufio.Reader, answer func(n int, r *http.Request) string) {
	for n := 0; ; n++ {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(r.Body)
		text := answer(n, r)
		if text == "" {
			return
		}
		text += " " + string(body)
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: "+strconv.Itoa(len(text))+"\r\n\r\n"+text)
	}
}

func TestASilentConnectionGetsASecondTry(t *testing.T) {
	frozen := make(chan struct{})
	server := openServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
		serveRaw(conn, br, func(i int, _ *http.Request) string {
			if n == 0 && i == 1 {
				<-frozen
			}
			return []string{"first", "second"}[min(n, 1)]
		})
	})
	u := newUpstream(loopbackDialer(), nil)
	u.patience = 30 * time.Millisecond
	defer u.closeIdle()
	defer close(frozen)
	if _, text := roundTrip(t, u, rawRequest(t, server, "GET", nil)); text != "first " {
		t.Fatal(text)
	}
	if _, text := roundTrip(t, u, rawRequest(t, server, "GET", nil)); text != "second " {
		t.Errorf("the frozen connection: %q", text)
	}
	if _, text := roundTrip(t, u, rawRequest(t, server, "GET", nil)); text != "second " || u.kept != 1 {
		t.Errorf("after it: %q, %d kept", text, u.kept)
	}
}

func TestALongAnswerIsNotCutByTheSecondTry(t *testing.T) {
	begun := make(chan struct{})
	server := openServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
		serveRaw(conn, br, func(i int, r *http.Request) string {
			switch {
			case n == 0 && i == 1:
				<-begun // answers once the second try has arrived, which then never ends
			case n == 1:
				close(begun)
				br.Peek(1)
				return ""
			}
			return "first"
		})
	})
	u := newUpstream(loopbackDialer(), nil)
	u.patience = 30 * time.Millisecond
	defer u.closeIdle()
	for range 2 {
		if _, text := roundTrip(t, u, rawRequest(t, server, "GET", nil)); text != "first " {
			t.Errorf("got %q", text)
		}
	}
}

func TestAServerThatRefusesASecondTryMayStillAnswerTheFirst(t *testing.T) {
	refused := make(chan struct{})
	server := openServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
		serveRaw(conn, br, func(i int, _ *http.Request) string {
			if i == 1 {
				<-refused
			}
			return "first"
		})
	})
	u := newUpstream(loopbackDialer(), nil)
	u.patience = 30 * time.Millisecond
	defer u.closeIdle()
	roundTrip(t, u, rawRequest(t, server, "GET", nil))
	a, err := parseAuthority(server.Host, 80)
	if err != nil {
		t.Fatal(err)
	}
	u.dialer = newDialer(dialerConfig{guard: guard{ownPorts: []uint16{a.port}}})
	guarded := u.dialer.guarded
	u.dialer.guarded = func(ctx context.Context, network, address string) (net.Conn, error) {
		defer close(refused)
		return guarded(ctx, network, address)
	}
	if _, text := roundTrip(t, u, rawRequest(t, server, "GET", nil)); text != "first " {
		t.Errorf("got %q", text)
	}
}

func TestContentThatCanBeHadAgainIsSentAgain(t *testing.T) {
	for _, again := range []bool{true, false} {
		server := openServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
			serveRaw(conn, br, func(i int, _ *http.Request) string {
				if n == 0 && i == 1 {
					return "" // closes the connection just as the request has come
				}
				return []string{"first", "second"}[min(n, 1)]
			})
		})
		u := newUpstream(loopbackDialer(), nil)
		u.patience = time.Minute
		roundTrip(t, u, rawRequest(t, server, "GET", nil))
		r := rawRequest(t, server, "POST", strings.NewReader("content"))
		if !again {
			r.GetBody = nil
		}
		res, err := u.RoundTrip(r)
		if (err == nil) != again {
			t.Fatalf("can be had again %v: %v", again, err)
		}
		if again {
			if text, _ := io.ReadAll(res.Body); string(text) != "second content" {
				t.Errorf("got %q", text)
			}
			res.Body.Close()
		}
		u.closeIdle()
	}
}

func TestAPostTakesNoConnectionThatHasBeenIdleForLong(t *testing.T) {
	server := openServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
		serveRaw(conn, br, func(int, *http.Request) string { return []string{"first", "second"}[min(n, 1)] })
	})
	u := newUpstream(loopbackDialer(), nil)
	defer u.closeIdle()
	u.patience = time.Minute
	age := func(by time.Duration) {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, conns := range u.idle {
			conns[0].idleSince = conns[0].idleSince.Add(-by)
		}
	}
	roundTrip(t, u, rawRequest(t, server, "GET", nil))
	age(50 * time.Second)
	if _, text := roundTrip(t, u, rawRequest(t, server, "POST", nil)); text != "first " {
		t.Errorf("within the patience: %q", text)
	}
	age(70 * time.Second)
	if _, text := roundTrip(t, u, rawRequest(t, server, "GET", nil)); text != "first " {
		t.Errorf("a GET: %q", text)
	}
	age(70 * time.Second)
	if _, text := roundTrip(t, u, rawRequest(t, server, "POST", nil)); text != "second " {
		t.Errorf("a POST: %q", text)
	}
}
