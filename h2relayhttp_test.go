package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2HTTP is a relay between net/http's HTTP/2 clients and server, without TLS.
type h2HTTP struct {
	relay  *h2Relay
	addr   string
	origin string
	url    string
	dial   atomic.Pointer[func() (net.Conn, error)] // in the place of a connection to the origin
	ends   atomic.Int64
	owner  h2Owner
}

// newH2HTTP relays to handler. Requests to "/refused" are refused.
func newH2HTTP(t testing.TB, handler http.HandlerFunc) *h2HTTP {
	t.Helper()
	h := &h2HTTP{relay: &h2Relay{}}
	h.origin = serveH2(t, handler)
	h.owner = h2Owner{
		judge: func(s *h2Stream) h2Verdict {
			if s.field(":path") == "/refused" {
				return h2Verdict{refusal: &h2Refusal{7, "refused"}}
			}
			return h2Verdict{}
		},
		open: func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
			conn, err := net.Dial("tcp", h.origin)
			if dial := h.dial.Load(); dial != nil {
				conn, err = (*dial)()
			}
			if err != nil {
				return nil, &h2Refusal{14, err.Error()}
			}
			up, err := greetH2(ctx, conn, hello)
			if err != nil {
				return nil, &h2Refusal{14, err.Error()}
			}
			return up, nil
		},
		forward:  func(s *h2Stream) []hpack.HeaderField { return s.fields },
		trailers: func(s *h2Stream, fields []hpack.HeaderField) ([]hpack.HeaderField, bool) { return fields, true },
		ended:    func(s *h2Stream, e h2End) { h.ends.Add(1) },
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	h.url = "http://" + h.addr
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { h.relay.serve(conn, h.owner) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		h.relay.shutdown(ctx)
		serving.Wait()
	})
	return h
}

// serveH2 starts net/http's server for HTTP/2 without TLS.
func serveH2(t testing.TB, handler http.HandlerFunc) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newH2Server(handler)
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(ln) }()
	t.Cleanup(func() { server.Close(); <-done })
	return ln.Addr().String()
}

func newH2Server(handler http.HandlerFunc) *http.Server {
	server := &http.Server{Handler: handler, Protocols: new(http.Protocols), ErrorLog: discardLog}
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}

// newH2Client gives a client with connections of its own.
func newH2Client(t testing.TB) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// echo answers with the content, the method and path in a field, and with trailers.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-Sum")
	w.Header()["X-Multi"] = r.Header["X-Multi"]
	w.Header().Set("X-Request", r.Method+" "+r.RequestURI)
	sum := sha256.New()
	io.Copy(w, io.TeeReader(r.Body, sum))
	w.Header().Set("X-Sum", fmt.Sprintf("%x %s", sum.Sum(nil), r.Trailer.Get("X-Trailer")))
}

func TestRelayIsTransparentToNetHTTP(t *testing.T) {
	t.Parallel()
	h := newH2HTTP(t, echo)
	client := newH2Client(t)
	large := strings.Repeat("0123456789abcdef", 1<<16)
	tests := []struct {
		name, method, content string
		header                http.Header
	}{
		{"no content", "GET", "", nil},
		{"one byte", "POST", "x", nil},
		{"1 MiB", "PUT", large, nil},
		{"100 KB of fields", "POST", "x", http.Header{"X-Multi": {large[:60000], "b", large[:40000], "b"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var results [2]string
			for i, addr := range []string{h.origin, h.addr} {
				var body io.Reader
				if tt.content != "" {
					body = strings.NewReader(tt.content)
				}
				r, _ := http.NewRequest(tt.method, "http://"+addr+"/a%2Fb?c=d", body)
				r.Header = tt.header.Clone()
				r.ContentLength = -1
				if body != nil {
					r.Trailer = http.Header{"X-Trailer": {"end"}}
				}
				res, err := client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				content, err := io.ReadAll(res.Body)
				if err != nil || string(content) != tt.content {
					t.Fatalf("%d bytes, %v", len(content), err)
				}
				res.Header.Del("Date")
				results[i] = fmt.Sprint(res.StatusCode, res.Header, res.Trailer)
			}
			if results[0] != results[1] {
				t.Errorf("directly: %.300s\nrelayed: %.300s", results[0], results[1])
			}
		})
	}
}

func TestRelayCarriesManyRequestsOnOneConnection(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	var n atomic.Int64
	h.owner.judge = func(*h2Stream) h2Verdict { return h2Verdict{} }
	h.owner.ended = func(_ *h2Stream, e h2End) { n.Add(1) }
	h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		near, far := tcpPair(t)
		go answerH2(far, 100)
		up, err := greetH2(ctx, near, hello)
		if err != nil {
			t.Error(err)
		}
		return up, nil
	}
	near, far := tcpPair(t)
	go func() { h.served <- h.relay.serve(far, h.owner) }()
	roundTrips(t, newH2Caller(near), 2000, 16)
	near.Close()
	<-h.served
	if n.Load() != 2000 {
		t.Errorf("%d streams have ended", n.Load())
	}
}

func post(t testing.TB, client *http.Client, url, content string) {
	res, err := client.Post(url, "application/grpc", strings.NewReader(content))
	if err != nil {
		t.Error(err)
		return
	}
	got, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || string(got) != content {
		t.Errorf("%d bytes came back of %d: %v", len(got), len(content), err)
	}
}

func TestRelayServesManyConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	h := newH2HTTP(t, echo)
	dial := func() (net.Conn, error) {
		near, far := tcpPair(t)
		go answerH2(far, 100)
		return near, nil
	}
	h.dial.Store(&dial)
	var callers []*h2Caller
	for range 50 {
		conn, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		callers = append(callers, newH2Caller(conn))
	}
	for range 2 {
		for _, c := range callers {
			roundTrips(t, c, 3, 3)
		}
	}
}

func TestRelayCarriesA32MiBMessage(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.greeting = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 30}}
	h.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	h.client.framer.WriteWindowUpdate(0, 1<<30)
	h.client.request(1, false, "/1")
	u := h.upstream()
	u.framer.WriteWindowUpdate(0, 1<<30)
	h.client.wants("SETTINGS", "WINDOW_UPDATE 0 1073741824")
	in, out := sha256.New(), sha256.New()
	u.data = func(p []byte) { in.Write(p); u.framer.WriteData(1, false, p) }
	h.client.data = func(p []byte) { out.Write(p) }
	u.headers(1, false, ":status", "200")
	sent, piece := sha256.New(), make([]byte, h2Piece)
	for i := range 2048 {
		piece[0], piece[1] = byte(i), byte(i>>8)
		sent.Write(piece)
		h.client.content(1, i == 2047, string(piece))
	}
	u.until("DATA 1 end")
	u.headers(1, true, "grpc-status", "0")
	h.client.until("HEADERS 1 end")
	if want := string(sent.Sum(nil)); want != string(in.Sum(nil)) || want != string(out.Sum(nil)) {
		t.Error("what arrives is not what was sent")
	}
	h.ends("/1 0 0 33554432 33554432")
}

func TestRelayedStreamsGoOnAfterRefusedUploads(t *testing.T) {
	t.Parallel()
	h := newH2HTTP(t, echo)
	client := newH2Client(t)
	upload := bytes.Repeat([]byte("x"), 3<<20)
	for range 10 {
		res, err := client.Post(h.url+"/refused", "application/grpc", bytes.NewReader(upload))
		if err != nil {
			t.Fatal(err)
		}
		if got := res.Header.Get("Grpc-Status"); got != "7" {
			t.Fatalf("status %q", got)
		}
		res.Body.Close()
	}
	post(t, client, h.url, string(upload))
}

func TestRelayStallsAndRecoversWithTheWindow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		read := make(chan bool)
		h := newH2Test(t)
		h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
			near, far := bufferedPipe()
			go serveConn(newH2Server(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stalled" {
					<-read
				}
				n, _ := io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, n)
			}), far)
			up, _ := greetH2(ctx, near, hello)
			return up, nil
		}
		near, far := bufferedPipe()
		go func() { h.served <- h.relay.serve(far, h.owner) }()
		client := newH2Client(t).Transport.(*http.Transport)
		client.DialContext = func(context.Context, string, string) (net.Conn, error) { return near, nil }
		post := func(path string, body io.Reader) string {
			r, _ := http.NewRequest("POST", "http://door"+path, body)
			res, err := client.RoundTrip(r)
			if err != nil {
				return err.Error()
			}
			content, _ := io.ReadAll(res.Body)
			return string(content)
		}
		var sent atomic.Int64
		stalled := make(chan string)
		go func() {
			stalled <- post("/stalled", io.TeeReader(strings.NewReader(strings.Repeat("x", 3<<20)), countWriter{&sent}))
		}()
		synctest.Wait()
		if n := sent.Load(); n < h2Window || n > 2<<20 {
			t.Errorf("%d bytes were taken from the client while the upstream took none", n)
		}
		if got := post("/other", nil); got != "0" {
			t.Errorf("another stream: %q", got)
		}
		close(read)
		if got := <-stalled; got != fmt.Sprint(3<<20) {
			t.Errorf("got %q", got)
		}
		near.Close()
		<-h.served
	})
}

type countWriter struct{ n *atomic.Int64 }

func (w countWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return len(p), nil
}

func TestRelaySurvivesGoAwayEverySoOften(t *testing.T) {
	t.Parallel()
	// Each connection's server shuts down gracefully after some requests; the client moves on to new connections.
	h := newH2HTTP(t, echo)
	var mu sync.Mutex
	closed := 0
	dial := func() (net.Conn, error) {
		near, far := tcpPair(t)
		go goAwayAfter(far, 10, func() { mu.Lock(); closed++; mu.Unlock() })
		return near, nil
	}
	h.dial.Store(&dial)
	client := newH2Client(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				post(t, client, h.url, "hello")
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if closed < 5 {
		t.Errorf("%d connections ended", closed)
	}
}

// goAwayAfter serves conn until n requests have come, and then ends it gracefully.
func goAwayAfter(conn net.Conn, n int64, ended func()) {
	var count atomic.Int64
	over := make(chan struct{})
	var server *http.Server
	server = newH2Server(func(w http.ResponseWriter, r *http.Request) {
		if count.Add(1) == n {
			go func() { defer close(over); server.Shutdown(context.Background()) }()
		}
		echo(w, r)
	})
	serveConn(server, conn)
	<-over
	ended()
}

// serveConn has server serve conn alone, and returns when conn is over or the server shuts down.
func serveConn(server *http.Server, conn net.Conn) {
	ln := &connListener{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	ln.conn <- conn
	server.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			ln.Close()
		}
	}
	server.Serve(ln)
}

// connListener is a net.Listener of one connection.
type connListener struct {
	conn   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conn:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestRelayPassesACancelledRequestOn(t *testing.T) {
	t.Parallel()
	gone := make(chan error, 1)
	h := newH2HTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- r.Context().Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", h.url, nil)
	res, err := newH2Client(t).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(res.Body); !errors.Is(err, context.Canceled) {
		t.Errorf("reading ends with %v", err)
	}
	<-gone
}
