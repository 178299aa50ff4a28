package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// socketPair gives the two ends of a TCP connection on loopback.
func socketPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialed, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close(); accepted.Close() })
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// notSocket hides a socket, so that the relay has to copy.
type notSocket struct{ net.Conn }

func (c notSocket) CloseWrite() error { return closeWrite(c.Conn) }

func TestRelayPassesAHalfCloseOnAndLosesNoByte(t *testing.T) {
	for _, hide := range []bool{false, true} {
		client, clientEnd := socketPair(t)
		server, upstreamEnd := socketPair(t)
		var a, b stream = clientEnd, upstreamEnd
		if hide {
			a, b = notSocket{clientEnd}, notSocket{upstreamEnd}
		}
		counts := make(chan [2]int64, 1)
		go func() {
			in, out := relay(context.Background(), a, b)
			counts <- [2]int64{in, out}
		}()
		request := strings.Repeat("request", 100_000)
		go func() { io.WriteString(client, request); client.CloseWrite() }()
		got, err := io.ReadAll(server)
		if err != nil || string(got) != request {
			t.Fatalf("the upstream got %d bytes of %d, %v", len(got), len(request), err)
		}
		io.WriteString(server, "answer after the client's end")
		server.Close()
		got, err = io.ReadAll(client)
		if err != nil || string(got) != "answer after the client's end" {
			t.Fatalf("the client got %q, %v", got, err)
		}
		if c := <-counts; c != [2]int64{int64(len(request)), 29} {
			t.Errorf("counted %d", c)
		}
	}
}

func TestRelayEndsBothDirectionsWhenOneBreaks(t *testing.T) {
	client, clientEnd := socketPair(t)
	server, upstreamEnd := socketPair(t)
	done := make(chan struct{})
	go func() { relay(context.Background(), clientEnd, upstreamEnd); close(done) }()
	server.SetLinger(0)
	server.Close() // a reset
	if _, err := io.ReadAll(client); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the client got %v", err)
	}
	<-done
}

func TestRelayEndsWithItsContext(t *testing.T) {
	_, clientEnd := socketPair(t)
	_, upstreamEnd := socketPair(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { relay(ctx, clientEnd, upstreamEnd); close(done) }()
	cancel()
	<-done
}

func TestTunnelLosesNoByteThatTheClientSentEarly(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	echo := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) { io.Copy(conn, br) })
	o.addr = echo.Host
	p := newTestProxy(t, o, testProxyOptions{})
	conn, err := dialProxy(p)
	if err != nil {
		t.Fatal(err)
	}
	early := strings.Repeat("early", 20_000)
	go io.WriteString(conn, "CONNECT other.example:443 HTTP/1.1\r\nHost: x\r\n\r\n"+early)
	br := bufio.NewReader(conn)
	if res, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"}); err != nil || res.StatusCode != 200 {
		t.Fatalf("CONNECT: %v %v", res, err)
	}
	got := make([]byte, len(early))
	if _, err := io.ReadFull(br, got); err != nil || string(got) != early {
		t.Fatalf("the echo differs: %v", err)
	}
	if l := p.lastLine(t); !l.Open || l.Decision != "tunneled" || l.Host != "other.example" || l.Service != "" || l.Code != 0 {
		t.Errorf("opening line %+v", l)
	}
	conn.(*net.TCPConn).CloseWrite()
	if _, err := io.ReadAll(br); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	p.quiesce()
	if l := p.lastLine(t); l.Open || l.Code != 200 || l.In != int64(len(early)) || l.Out != int64(len(early)) {
		t.Errorf("closing line %+v", l)
	}
}

func TestConnectTellsWhyNothingCameOfIt(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{})
	d := p.policy.Load().dialer
	for _, c := range []struct {
		name string
		err  error
		code int
		text string
	}{
		{"no such host", &net.DNSError{Err: "no such host", IsNotFound: true}, 502, "does not resolve"},
		{"a broken resolver", &net.DNSError{Err: "server misbehaving"}, 502, "could not be looked up"},
		{"refused", &net.OpError{Op: "dial", Err: errors.New("connection refused")}, 502, "no connection"},
		{"time-out", &net.OpError{Op: "dial", Err: context.DeadlineExceeded}, 504, "did not answer in time"},
		{"the guard", &net.OpError{Op: "dial", Err: d.guard.check(netip.MustParseAddrPort("169.254.169.254:443"))}, 403, "allowed_networks"},
	} {
		d.guarded = func(context.Context, string, string) (net.Conn, error) { return nil, c.err }
		_, res := p.connect(t, "other.example:443")
		if res.StatusCode != c.code || !strings.Contains(res.Status, c.text) {
			t.Errorf("%s: %s, want %d and %q", c.name, res.Status, c.code, c.text)
		}
	}
	_, res := p.connect(t, "host.docker.internal:5432")
	if res.StatusCode != 403 || !strings.Contains(res.Status, "NO_PROXY") {
		t.Errorf("docker_host: %s", res.Status)
	}
}

func TestUnmatchedDenyRefusesWhatNoRuleNames(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{deny: true})
	_, res := p.connect(t, "other.example:443")
	if res.StatusCode != 403 || !strings.Contains(res.Status, "unmatched") {
		t.Errorf("CONNECT: %s", res.Status)
	}
	res, err := p.client(t, 1).Get("http://other.example/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if l := p.lastLine(t); res.StatusCode != 403 || l.Decision != "denied" || len(o.take()) > 0 {
		t.Errorf("absolute-form: %s, audit line %+v", res.Status, l)
	}
}

// upstreamProxy is an HTTP proxy of the operator's: it answers CONNECT itself with what is in early and records requests.
func upstreamProxy(t *testing.T, status, early string) (*url.URL, chan *http.Request) {
	t.Helper()
	got := make(chan *http.Request, 10)
	u := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		got <- r
		if r.Method == "CONNECT" {
			fmt.Fprintf(conn, "HTTP/1.1 %s\r\n\r\n%s", status, early)
			io.Copy(conn, br)
			return
		}
		io.WriteString(conn, okAnswer)
	})
	u.User = url.UserPassword("op", canary)
	return u, got
}

func TestUpstreamProxyTakesTunnelsAndPlainRequests(t *testing.T) {
	via, got := upstreamProxy(t, "200 OK", "early ")
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{})
	d := p.policy.Load().dialer
	d.proxy = func(u *url.URL) (*url.URL, error) { return via, nil }
	_, res := p.connect(t, "203.0.113.9:443")
	if res.StatusCode != 403 {
		t.Errorf("a literal that the guard refuses went through the upstream proxy: %s", res.Status)
	}
	conn, accepted := p.connect(t, "93.184.215.14:443")
	if accepted.StatusCode != 200 {
		t.Fatalf("CONNECT: %s", accepted.Status)
	}
	io.WriteString(conn, "late")
	conn.(*net.TCPConn).CloseWrite()
	if b, _ := io.ReadAll(conn); string(b) != "early late" {
		t.Errorf("the tunnel gave %q", b)
	}
	if r := <-got; r.RequestURI != "93.184.215.14:443" || r.Header.Get("Proxy-Authorization") != proxyAuthorization(via) {
		t.Errorf("the upstream proxy got %s %v", r.RequestURI, r.Header)
	}
	res, err := p.client(t, 1).Get("http://93.184.215.14/a%2Fb?c")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if r := <-got; r.RequestURI != "http://93.184.215.14/a%2Fb?c" || r.Header.Get("Proxy-Authorization") != proxyAuthorization(via) {
		t.Errorf("the upstream proxy got %s %v", r.RequestURI, r.Header)
	}
}

func TestUpstreamProxyThatRefusesIsToldWithoutItsPassword(t *testing.T) {
	via, _ := upstreamProxy(t, "407 Proxy Authentication Required", "")
	d := loopbackDialer()
	d.proxy = func(u *url.URL) (*url.URL, error) { return via, nil }
	_, err := d.dial(t.Context(), authority{"93.184.215.14", 443})
	if err == nil || !strings.Contains(err.Error(), "407") || strings.Contains(err.Error(), canary) {
		t.Errorf("error %v", err)
	}
}

func TestSplicedCopyIsUsedBetweenSockets(t *testing.T) {
	a, _ := socketPair(t)
	for s, want := range map[any]bool{a: true, &acceptedConn{TCPConn: a}: true, notSocket{a}: false, &prefixedConn{Conn: a}: false} {
		if _, ok := socket(s); ok != want {
			t.Errorf("socket(%T) is %v", s, ok)
		}
	}
}
