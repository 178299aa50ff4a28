package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// loopbackDialer dials loopback addresses, as if allowed_networks named them.
func loopbackDialer() *dialer {
	return newDialer(dialerConfig{
		guard:      guard{allowed: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, isOwn: func(netip.Addr) bool { return false }},
		dockerHost: "host.docker.internal",
	})
}

// newTestUpstream gives an upstream that trusts server and ends with the test.
func newTestUpstream(t *testing.T, server *httptest.Server) *upstream {
	t.Helper()
	var roots *x509.CertPool
	if cert := server.Certificate(); cert != nil {
		roots = x509.NewCertPool()
		roots.AddCert(cert)
	}
	u := newUpstream(loopbackDialer(), roots)
	t.Cleanup(u.closeIdle)
	return u
}

// newTestRequest gives a request to server with the target byte for byte.
func newTestRequest(t *testing.T, server *httptest.Server, method, target string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, server.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = r.URL.Host
	r.URL.Opaque = "//" + r.URL.Host + target
	return r
}

// roundTrip sends r and reads the answer whole.
func roundTrip(t *testing.T, u *upstream, r *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := u.RoundTrip(r)
	if err != nil {
		t.Fatalf("RoundTrip %s: %v", r.Method, err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read content: %v", err)
	}
	res.Body.Close()
	return res, string(b)
}

func TestUpstreamReusesAConnectionAfterAWholeAnswer(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.RemoteAddr)
	}))
	defer server.Close()
	u := newTestUpstream(t, server)
	bodies := []io.Reader{nil, strings.NewReader("abc"), io.MultiReader(strings.NewReader("unknown length")), nil}
	var first string
	for i, body := range bodies {
		_, from := roundTrip(t, u, newTestRequest(t, server, "POST", "/", body))
		if i == 0 {
			first = from
		}
		if from != first {
			t.Errorf("request %d came from %s, the first from %s", i, from, first)
		}
	}
}

func TestUpstreamSendsTheTargetByteForByte(t *testing.T) {
	got := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.RequestURI }))
	defer server.Close()
	u := newTestUpstream(t, server)
	for _, target := range []string{"/", "/a%2Fb?q=%2B&x=;y&z", `/a"b|c`, "//double//slash", "/?", "/%41%zz"[:4], "/a?b?c#"[:6]} {
		roundTrip(t, u, newTestRequest(t, server, "GET", target, nil))
		if g := <-got; g != target {
			t.Errorf("sent %q, the server got %q", target, g)
		}
	}
}

// rawServer accepts connections and gives each to handle, one after the other; n is the connection's number.
func rawServer(t *testing.T, handle func(n int, conn net.Conn, br *bufio.Reader)) *url.URL {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			handle(n, conn, bufio.NewReader(conn))
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return &url.URL{Scheme: "http", Host: ln.Addr().String()}
}

func rawRequest(t *testing.T, u *url.URL, method string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, u.String(), body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

const okAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestUpstreamRetriesOnAConnectionThatTheServerJustClosed(t *testing.T) {
	for _, c := range []struct {
		method string
		retry  bool
	}{{"GET", true}, {"HEAD", true}, {"DELETE", true}, {"POST", false}, {"PATCH", false}} {
		t.Run(c.method, func(t *testing.T) {
			server := rawServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
				if _, err := http.ReadRequest(br); err == nil {
					io.WriteString(conn, okAnswer)
				}
				if n == 0 { // the second request of the first connection is read, and not answered
					http.ReadRequest(br)
				}
			})
			u := newUpstream(loopbackDialer(), nil)
			defer u.closeIdle()
			roundTrip(t, u, rawRequest(t, server, "GET", nil))
			res, err := u.RoundTrip(rawRequest(t, server, c.method, nil))
			if (err == nil) != c.retry {
				t.Fatalf("second request: %v, retry wanted: %v", err, c.retry)
			}
			if err == nil {
				res.Body.Close()
			} else if !errors.Is(err, errNothingBack) {
				t.Errorf("error %v is not errNothingBack", err)
			}
		})
	}
}

func TestUpstreamDoesNotUseAConnectionOnWhichTheServerSpokeUnasked(t *testing.T) {
	spoken := make(chan struct{})
	server := rawServer(t, func(n int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		io.WriteString(conn, okAnswer)
		if n == 0 {
			io.WriteString(conn, "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
			close(spoken)
		}
	})
	u := newUpstream(loopbackDialer(), nil)
	defer u.closeIdle()
	roundTrip(t, u, rawRequest(t, server, "GET", nil))
	<-spoken
	if res, _ := roundTrip(t, u, rawRequest(t, server, "POST", nil)); res.StatusCode != 200 {
		t.Errorf("the answer to nobody reached the next request: %s", res.Status)
	}
}

func TestUpstreamPassesInterimAnswersOn(t *testing.T) {
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"+okAnswer)
	})
	var got []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		got = append(got, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	u := newUpstream(loopbackDialer(), nil)
	defer u.closeIdle()
	res, content := roundTrip(t, u, rawRequest(t, server, "GET", nil).WithContext(ctx))
	if want := "103</a> 102"; strings.Join(got, " ") != want || res.StatusCode != 200 || content != "ok" {
		t.Errorf("interim %q (want %q), final %s %q", got, want, res.Status, content)
	}
}

func TestUpstreamGivesAnAnswerThatComesBeforeTheContentWasSent(t *testing.T) {
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
		io.Copy(io.Discard, br)
	})
	body, client := io.Pipe() // a client that never sends
	defer client.Close()
	u := newUpstream(loopbackDialer(), nil)
	defer u.closeIdle()
	res, content := roundTrip(t, u, rawRequest(t, server, "POST", body))
	if res.StatusCode != 413 || content != "no" {
		t.Errorf("got %s %q", res.Status, content)
	}
	if _, err := client.Write([]byte("x")); err == nil {
		t.Error("the request's content is still read after the exchange")
	}
}

func TestUpstreamEndsTheRequestWhenTheClientBreaksOff(t *testing.T) {
	ended := make(chan error, 1)
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err == nil {
			_, err = io.Copy(io.Discard, r.Body)
		}
		ended <- err
	})
	body, client := io.Pipe()
	u := newUpstream(loopbackDialer(), nil)
	defer u.closeIdle()
	go func() {
		client.Write([]byte("some"))
		client.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if _, err := u.RoundTrip(rawRequest(t, server, "POST", body)); !errors.Is(err, errClientContent) {
		t.Errorf("error %v is not errClientContent", err)
	}
	if err := <-ended; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the server took a broken request for whole: %v", err)
	}
}

func TestUpstreamEndsTheRequestWithItsContext(t *testing.T) {
	arrived, ended := make(chan struct{}), make(chan struct{})
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		close(arrived)
		br.ReadByte()
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	u := newUpstream(loopbackDialer(), nil)
	if _, err := u.RoundTrip(rawRequest(t, server, "GET", nil).WithContext(ctx)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v is not context.Canceled", err)
	}
	<-ended
}

func TestUpstreamTimesOutOnASilentServer(t *testing.T) {
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		br.ReadByte()
	})
	u := newUpstream(loopbackDialer(), nil)
	u.wait = 20 * time.Millisecond
	_, err := u.RoundTrip(rawRequest(t, server, "GET", nil))
	if f := upstreamRefusal("h", err); f.code != http.StatusGatewayTimeout {
		t.Errorf("%v gives %d, want 504", err, f.code)
	}
}

func TestUpstreamPassesTrailersBothWays(t *testing.T) {
	got := make(chan http.Header, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		got <- r.Trailer
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		w.Header().Set("X-Sum", "out")
	}))
	defer server.Close()
	u := newTestUpstream(t, server)
	r := newTestRequest(t, server, "POST", "/", io.MultiReader(strings.NewReader("content")))
	r.Trailer = http.Header{"X-In": {"in"}}
	res, _ := roundTrip(t, u, r)
	if g := <-got; g.Get("X-In") != "in" {
		t.Errorf("the server got trailers %v", g)
	}
	if res.Trailer.Get("X-Sum") != "out" {
		t.Errorf("the client got trailers %v", res.Trailer)
	}
}

func TestUpstreamGivesAnUpgradedConnectionWithWhatCameEarly(t *testing.T) {
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nearly")
		line, _ := br.ReadString('\n')
		io.WriteString(conn, line)
	})
	r := rawRequest(t, server, "POST", nil)
	r.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}
	res, err := newUpstream(loopbackDialer(), nil).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	fmt.Fprintln(res.Body.(io.Writer), " late")
	b, _ := io.ReadAll(res.Body)
	if string(b) != "early late\n" {
		t.Errorf("got %q", b)
	}
}

func TestUpstreamRefusesAServerThatItDoesNotTrust(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	server.Config.ErrorLog = discardLog
	defer server.Close()
	_, err := newUpstream(loopbackDialer(), nil).RoundTrip(newTestRequest(t, server, "GET", "/", nil))
	var tlsErr *handshakeError
	if !errors.As(err, &tlsErr) {
		t.Fatalf("error %v is not a handshakeError", err)
	}
	if f := upstreamRefusal("h", err); f.code != 502 || !strings.Contains(f.text, "certificate") {
		t.Errorf("refusal %d %q", f.code, f.text)
	}
}

func TestUpstreamClosesWhatIsIdleForTooLong(t *testing.T) {
	var open atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	closed := make(chan struct{})
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			close(closed)
		}
	}
	server.Start()
	defer server.Close()
	u := newTestUpstream(t, server)
	roundTrip(t, u, newTestRequest(t, server, "GET", "/", nil))
	for _, conns := range u.idle {
		conns[0].idleSince = time.Now().Add(-2 * upstreamIdle)
	}
	u.expire()
	<-closed
	if len(u.idle) != 0 {
		t.Errorf("%d hosts are kept", len(u.idle))
	}
}

func TestUpstreamNeverAddsFieldsOfItsOwn(t *testing.T) {
	got := make(chan http.Header, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header }))
	defer server.Close()
	u := newTestUpstream(t, server)
	roundTrip(t, u, newTestRequest(t, server, "GET", "/", nil))
	if h := <-got; len(h) != 0 {
		t.Errorf("the server got %v", h)
	}
}

func TestNothingHoldsAnUpstreamThatWasClosed(t *testing.T) {
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		io.WriteString(conn, okAnswer)
	})
	u := newUpstream(loopbackDialer(), nil)
	roundTrip(t, u, rawRequest(t, server, "GET", nil))
	u.closeIdle()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.sweep != nil {
		t.Error("a timer that will look for idle connections holds it")
	}
}
