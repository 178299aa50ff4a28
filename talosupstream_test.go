package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// silentEndpoint accepts connections and says nothing.
func silentEndpoint(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

// deadEndpoint is where nobody listens.
func deadEndpoint(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// testUpstream reaches a context of these endpoints.
func testUpstream(t *testing.T, ca *testTalosCA, now func() time.Time, role string, endpoints ...string) *talosUpstream {
	t.Helper()
	c := newTalosContext("prod", ca.context(t, "os:admin", endpoints...))
	if c.err != nil {
		t.Fatal(c.err)
	}
	return newTalosUpstream(c, role, nil, now)
}

func TestTheFirstEndpointThatIsUpIsTaken(t *testing.T) {
	ca, other := newTestTalosCA(t), newTestTalosCA(t)
	good := newTestApid(t, ca, ca, answerGRPC("0", nil))
	rejecting := newTestApid(t, ca, other, answerGRPC("0", nil))
	foreign := newTestApid(t, other, ca, answerGRPC("0", nil))
	dead, silent := deadEndpoint(t), silentEndpoint(t)
	p := newTestTalos(t, talosPlaneConfig{}, "mixed", map[string]*talosContextYAML{
		"mixed":  ca.context(t, "os:admin", dead, rejecting.addr, foreign.addr, silent, good.addr),
		"broken": ca.context(t, "os:admin", dead, rejecting.addr, foreign.addr),
	})
	for range 2 {
		if a := p.call(t, versionRPC, nil); a.status != "0" {
			t.Fatalf("%+v", a)
		}
	}
	if got := p.lines(t); len(got) != 2 || got[1].Host != good.addr {
		t.Errorf("audit lines %+v", got)
	}
	if got := p.view.Load().upstreams["mixed"].order(); got[0].String() != good.addr {
		t.Errorf("then the order is %v", got)
	}
	a := p.call(t, versionRPC, nil, "context", "broken")
	want := []string{`muxproxy: no Talos endpoint of context "broken" answers: `, dead + ": connect: connection refused", rejecting.addr + ": rejects the client certificate or the handshake: ", foreign.addr + ": its certificate: not signed by the ca of the talosconfig"}
	for _, text := range want {
		if a.status != "14" || !strings.Contains(a.message, text) {
			t.Errorf("status %s, %q lacks %q", a.status, a.message, text)
		}
	}
	lines := p.lines(t)
	if l := lines[len(lines)-1]; l.Decision != "failed" || l.Injected || *l.GRPC != 14 || l.Code != 200 || l.Error != "no endpoint answers" || l.Context != "broken" {
		t.Errorf("audit line %+v", l)
	}
	if len(rejecting.take()) > 0 || len(foreign.take()) > 0 {
		t.Error("an RPC went to an endpoint that is not up")
	}
}

func TestEndpointsThatFailedAreTriedLastForAWhile(t *testing.T) {
	now := time.Now()
	u := testUpstream(t, newTestTalosCA(t), func() time.Time { return now }, "", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
	e := u.context.endpoints
	check := func(what string, want ...int) {
		t.Helper()
		var order []authority
		for _, i := range want {
			order = append(order, e[i])
		}
		if got := u.order(); !slices.Equal(got, order) {
			t.Errorf("%s: %v, want %v", what, got, order)
		}
	}
	check("at first", 0, 1, 2, 3)
	u.remember(e[2], nil)
	check("the last one that was good", 2, 0, 1, 3)
	u.remember(e[0], errors.New("bad"))
	check("a bad one", 2, 1, 3, 0)
	u.remember(e[2], errors.New("bad"))
	check("the good one has gone bad", 1, 3, 0, 2)
	now = now.Add(endpointMemory - 1)
	check("within the memory", 1, 3, 0, 2)
	now = now.Add(1)
	check("after it", 2, 0, 1, 3)
	u.remember(e[0], errors.New("bad"))
	u.remember(e[0], nil)
	check("good again", 0, 1, 2, 3)
}

func TestASlowEndpointDoesNotHoldUpTheNext(t *testing.T) {
	ca := newTestTalosCA(t)
	good := newTestApid(t, ca, ca, answerGRPC("0", nil))
	silent := silentEndpoint(t)
	u := testUpstream(t, ca, time.Now, "", silent, good.addr)
	began := time.Now()
	up, endpoint, err := u.connect(t.Context(), []byte(testHello))
	if err != nil || endpoint.String() != good.addr {
		t.Fatalf("%v, %v", endpoint, err)
	}
	defer up.close()
	if took := time.Since(began); took < endpointStagger || took > endpointWait {
		t.Errorf("it took %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	u = testUpstream(t, ca, time.Now, "", silent)
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, _, err := u.connect(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("when the client leaves: %v", err)
	}
	if len(u.failed) > 0 {
		t.Error("the endpoint is remembered as bad")
	}
}

// testHello is the preface and empty SETTINGS.
const testHello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// connectProxy is an HTTP proxy that tunnels CONNECTs, and counts them.
func connectProxy(t *testing.T) (*url.URL, *atomic.Int32) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	proxyLoop(t, ln, func(conn net.Conn) (string, error) {
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil || r.Method != "CONNECT" || r.Header.Get("Proxy-Authorization") != "Basic dTpw" {
			return "", fmt.Errorf("%v, %v", r, err)
		}
		asked.Add(1)
		_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		return r.RequestURI, err
	})
	return &url.URL{Scheme: "http", User: url.UserPassword("u", "p"), Host: ln.Addr().String()}, &asked
}

// socksProxy is a SOCKS 5 proxy (RFC 1928) that connects to IPv4 addresses, and counts them.
func socksProxy(t *testing.T) (*url.URL, *atomic.Int32) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	proxyLoop(t, ln, func(conn net.Conn) (string, error) {
		head := make([]byte, 2)
		io.ReadFull(conn, head)
		io.ReadFull(conn, make([]byte, head[1]))
		conn.Write([]byte{5, 0})
		request := make([]byte, 10)
		if _, err := io.ReadFull(conn, request); err != nil || request[3] != 1 {
			return "", fmt.Errorf("%v, %v", request, err)
		}
		asked.Add(1)
		_, err := conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		return fmt.Sprintf("%d.%d.%d.%d:%d", request[4], request[5], request[6], request[7], int(request[8])<<8|int(request[9])), err
	})
	return &url.URL{Scheme: "socks5", Host: ln.Addr().String()}, &asked
}

// proxyLoop tunnels each connection to the address that read gives.
func proxyLoop(t *testing.T, ln net.Listener, read func(net.Conn) (string, error)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				address, err := read(conn)
				if err != nil {
					conn.Close()
					t.Errorf("the proxy was asked %v", err)
					return
				}
				upstream, err := net.Dial("tcp", address)
				if err != nil {
					conn.Close()
					return
				}
				relay(context.Background(), conn, upstream)
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
}

func TestEndpointsAreReachedThroughTheProxyOfTheContextOrTheEnvironment(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	viaHTTP, askedHTTP := connectProxy(t)
	viaSOCKS, askedSOCKS := socksProxy(t)
	tests := []struct {
		name, proxy string
		environment *url.URL
		http, socks int32
	}{
		{"no proxy", "", nil, 0, 0},
		{"the environment's", "", viaHTTP, 1, 0},
		{"the context's before it", viaSOCKS.String(), viaHTTP, 0, 1},
		{"the context's", viaHTTP.String(), nil, 1, 0},
		{"direct before the environment's", "direct", viaHTTP, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			y := ca.context(t, "os:admin", apid.addr)
			y.ProxyURL = tt.proxy
			u := newTalosUpstream(newTalosContext("prod", y), "", func(u *url.URL) (*url.URL, error) {
				if u.String() != "https://"+apid.addr {
					t.Errorf("a proxy is asked for to %s", u)
				}
				return tt.environment, nil
			}, time.Now)
			up, _, err := u.connect(t.Context(), []byte(testHello))
			if err != nil {
				t.Fatal(err)
			}
			up.close()
			if h, s := askedHTTP.Swap(0), askedSOCKS.Swap(0); h != tt.http || s != tt.socks {
				t.Errorf("the proxies were asked %d and %d times", h, s)
			}
		})
	}
	y := ca.context(t, "os:admin", apid.addr)
	y.ProxyURL = "http://u:c4n4ry@" + deadEndpoint(t)
	_, _, err := newTalosUpstream(newTalosContext("prod", y), "", nil, time.Now).connect(t.Context(), nil)
	if err == nil || strings.Contains(err.Error(), "c4n4ry") {
		t.Errorf("a dead proxy: %v", err)
	}
}
