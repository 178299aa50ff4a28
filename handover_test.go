package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// handoverPlane gives a plane behind kube.example:18081 that tells what it was asked, and by whom.
func handoverPlane(t *testing.T, handler http.HandlerFunc) func(authority) *handover {
	t.Helper()
	conns := newHandedConns()
	server := &http.Server{Handler: handler}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(conns) }()
	t.Cleanup(func() { server.Close(); <-done })
	to := &handover{serve: func(conn net.Conn) { conns.conns <- conn }, http: true}
	return func(a authority) *handover {
		if a.host == "kube.example" && a.port == 18081 {
			return to
		}
		return nil
	}
}

// handedConns is a net.Listener of the connections that are sent to it.
type handedConns struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newHandedConns() *handedConns {
	return &handedConns{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (h *handedConns) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handedConns) Close() error   { close(h.closed); return nil }
func (h *handedConns) Addr() net.Addr { return &net.TCPAddr{} }

func tellRequest(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s %q by %s, proxy %q", r.Method, r.RequestURI, r.Host, body, r.RemoteAddr, r.Header.Get("Proxy-Authorization"))
}

func TestAConnectToAnotherPlanesPortIsHandedToIt(t *testing.T) {
	p, _ := githubProxy(t, nil)
	p.handover = handoverPlane(t, tellRequest)
	conn, err := dialProxy(p)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The first request comes early, with the CONNECT.
	io.WriteString(conn, "CONNECT kube.example:18081 HTTP/1.1\r\nHost: kube.example:18081\r\n\r\nGET /a%2Fb HTTP/1.1\r\nHost: kube.example:18081\r\n\r\n")
	br := bufio.NewReader(conn)
	connect := &http.Request{Method: "CONNECT"}
	if res, err := http.ReadResponse(br, connect); err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	for range 2 {
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(res.Body)
		if want := fmt.Sprintf(`GET /a%%2Fb kube.example:18081 "" by %s, proxy ""`, conn.LocalAddr()); string(got) != want {
			t.Errorf("%s\nwant %s", got, want)
		}
		io.WriteString(conn, "GET /a%2Fb HTTP/1.1\r\nHost: kube.example:18081\r\n\r\n")
	}
	conn.Close()
	p.quiesce()
	if lines := p.lines(t); len(lines) != 0 {
		t.Errorf("the plane writes the lines: %v", lines)
	}
}

func TestAnAbsoluteFormRequestToAnotherPlanesPortIsHandedToIt(t *testing.T) {
	p, origin := githubProxy(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "elsewhere") })
	p.handover = handoverPlane(t, tellRequest)
	conn, err := dialProxy(p)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := fmt.Sprintf(`POST /x?y=%%2F&z;w kube.example:18081 "content" by %s, proxy ""`, conn.LocalAddr())
	request := "POST http://kube.example:18081/x?y=%2F&z;w HTTP/1.1\r\nHost: kube.example:18081\r\nProxy-Authorization: Basic eDp5\r\nContent-Length: 7\r\n\r\ncontent"
	for range 2 { // over the client's one connection
		if _, got := exchangeRaw(t, conn, request); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	if n := len(origin.take()); n != 0 {
		t.Errorf("the origin got %d requests", n)
	}
	conn.Close()
	p.quiesce()
	if lines := p.lines(t); len(lines) != 0 {
		t.Errorf("the plane writes the lines: %v", lines)
	}
}

func TestAWebSocketOfAnAbsoluteFormRequestIsHandedToAnotherPlane(t *testing.T) {
	p, _ := githubProxy(t, nil)
	p.handover = handoverPlane(t, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		line, _ := rw.ReadString('\n')
		io.WriteString(conn, strings.ToUpper(line))
	})
	conn, err := dialProxy(p)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET http://kube.example:18081/ HTTP/1.1\r\nHost: kube.example:18081\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello\n")
	br := bufio.NewReader(conn)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	if line, err := br.ReadString('\n'); line != "HELLO\n" {
		t.Errorf("%q, %v", line, err)
	}
}
