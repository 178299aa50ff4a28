package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"
)

// githubProxy is a proxy with a credential for github in front of handler.
func githubProxy(t *testing.T, handler http.HandlerFunc) (*testProxy, *testOrigin) {
	t.Helper()
	o := newOrigin(t, handler)
	return newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}}), o
}

func TestAnswersArriveAsSent(t *testing.T) {
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Date"], h["Content-Type"] = nil, nil
		switch r.URL.Path {
		case "/length":
			h.Set("Content-Length", "5")
			io.WriteString(w, "hello")
		case "/none":
			h.Set("Content-Length", "0")
		case "/chunked":
			io.WriteString(w, "hel")
			w.(http.Flusher).Flush()
			io.WriteString(w, "lo")
		case "/204":
			w.WriteHeader(204)
		case "/304":
			w.WriteHeader(304)
		case "/gzip":
			h.Set("Content-Encoding", "gzip")
			io.WriteString(w, "not really gzip")
		case "/418":
			w.WriteHeader(418)
		}
	})
	for _, version := range []int{1, 2} {
		client := p.client(t, version)
		for _, c := range []struct {
			method, path string
			code         int
			length       int64
			content      string
		}{
			{"GET", "/length", 200, 5, "hello"},
			{"HEAD", "/length", 200, 5, ""},
			{"GET", "/none", 200, 0, ""},
			{"GET", "/chunked", 200, -1, "hello"},
			{"GET", "/204", 204, 0, ""},
			{"GET", "/304", 304, 0, ""},
			{"GET", "/gzip", 200, 15, "not really gzip"},
			{"GET", "/418", 418, 0, ""},
		} {
			r, _ := http.NewRequest(c.method, "https://api.github.com"+c.path, nil)
			res, err := client.Do(r)
			if err != nil {
				t.Fatalf("HTTP/%d %s %s: %v", version, c.method, c.path, err)
			}
			b, err := io.ReadAll(res.Body)
			res.Body.Close()
			length := res.ContentLength
			if err != nil || res.StatusCode != c.code || string(b) != c.content || length != c.length {
				t.Errorf("HTTP/%d %s %s: %s, length %d, %q, %v", version, c.method, c.path, res.Status, length, b, err)
			}
			for _, field := range []string{"Date", "Content-Type", "Via", "X-Forwarded-For"} {
				if v := res.Header[field]; len(v) > 0 {
					t.Errorf("HTTP/%d %s %s: %s %q was added", version, c.method, c.path, field, v)
				}
			}
		}
	}
}

func TestTheLengthOfA304AndOddTargetsArriveAsSent(t *testing.T) {
	targets := make(chan string, 1)
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	o.addr = rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		r, err := http.ReadRequest(br)
		if err == nil {
			targets <- r.RequestURI
			io.WriteString(conn, "HTTP/1.1 304 Strange Reason\r\nContent-Length: 1234\r\n\r\n")
		}
	}).Host
	p := newTestProxy(t, o, testProxyOptions{})
	for _, target := range []string{"//double", "/a\"b|c", "/a;b?;&"} {
		conn, err := dialProxy(p)
		if err != nil {
			t.Fatal(err)
		}
		res, _ := exchangeRaw(t, conn, "GET http://other.example"+target+" HTTP/1.1\r\nHost: ignored.example\r\n\r\n")
		if got := <-targets; got != target || res.Status != "304 Strange Reason" || res.Header.Get("Content-Length") != "1234" {
			t.Errorf("sent %s, the upstream got %s; answer %s %v", target, got, res.Status, res.Header)
		}
		conn.Close()
	}
}

func TestRequestsArriveAsSent(t *testing.T) {
	p, o := githubProxy(t, func(http.ResponseWriter, *http.Request) {})
	for _, version := range []int{1, 2} {
		client := p.client(t, version)
		for _, target := range []string{"/a%2Fb?q=%2B&x=;y&z", "/%41/é"[:5], "/?", "/a?b=%zz", "/a//b/../c"} {
			r, _ := http.NewRequest("PUT", "https://api.github.com/", io.MultiReader(strings.NewReader("con"), strings.NewReader("tent")))
			r.URL.Opaque = target
			r.Header = http.Header{"User-Agent": {""}, "Accept-Encoding": {"br, zstd"}, "X-Two": {"1", "2"}}
			r.Trailer = http.Header{"X-Sum": {"7"}}
			res, err := client.Do(r)
			if err != nil {
				t.Fatalf("HTTP/%d %s: %v", version, target, err)
			}
			res.Body.Close()
			got := o.take()[0]
			if got.RequestURI != target || got.content != "content" || got.Trailer.Get("X-Sum") != "7" {
				t.Errorf("HTTP/%d: sent %s, the upstream got %s %q trailers %v", version, target, got.RequestURI, got.content, got.Trailer)
			}
			delete(got.Header, "Authorization")
			if fmt.Sprint(got.Header) != "map[Accept-Encoding:[br, zstd] X-Two:[1 2]]" {
				t.Errorf("HTTP/%d: the upstream got %v", version, got.Header)
			}
		}
	}
}

func TestAnHTTP2RequestWithoutContentIsSentWithoutAny(t *testing.T) {
	p, o := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {})
	client := p.client(t, 2)
	for _, method := range []string{"GET", "HEAD", "DELETE", "POST", "OPTIONS"} {
		r, _ := http.NewRequest(method, "https://api.github.com/x", nil)
		if method == "OPTIONS" {
			r.URL.Opaque = "*"
		}
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		got := o.take()
		if len(got) != 1 || got[0].Method != method || got[0].RequestURI == "*" != (method == "OPTIONS") || got[0].TransferEncoding != nil || got[0].ContentLength != 0 {
			t.Errorf("%s: the upstream got %d requests: %+v", method, len(got), got)
		}
	}
}

func TestInterimAnswersAndTrailersReachTheClient(t *testing.T) {
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(103)
		w.Header().Del("Link")
		w.Header().Set("Trailer", "X-Declared")
		io.WriteString(w, "content")
		w.(http.Flusher).Flush()
		w.Header().Set("X-Declared", "1")
		w.Header().Set(http.TrailerPrefix+"X-Undeclared", "2")
		w.Header().Set(http.TrailerPrefix+"Set-Cookie", "a=b")
	})
	for _, version := range []int{1, 2} {
		var interim []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			interim = append(interim, fmt.Sprint(code, h))
			return nil
		}})
		r, _ := http.NewRequestWithContext(ctx, "GET", "https://api.github.com/", nil)
		res, err := p.client(t, version).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		if got := strings.Join(interim, ""); got != "103 map[Link:[</a>]]" {
			t.Errorf("HTTP/%d: interim answers %s", version, got)
		}
		if fmt.Sprint(res.Trailer) != "map[X-Declared:[1] X-Undeclared:[2]]" {
			t.Errorf("HTTP/%d: trailers %v", version, res.Trailer)
		}
	}
}

func TestEventsArriveWhenSent(t *testing.T) {
	next := make(chan string)
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for event := range next {
			fmt.Fprintf(w, "data: %s\n\n", event)
			w.(http.Flusher).Flush()
		}
	})
	for _, version := range []int{1, 2} {
		res, err := p.client(t, version).Get("https://api.github.com/")
		if err != nil {
			t.Fatal(err)
		}
		if l := p.lastLine(t); !l.Open || l.Code != 0 || l.Decision != "injected" {
			t.Errorf("HTTP/%d: opening line %+v", version, l)
		}
		br := bufio.NewReader(res.Body)
		for i := range 3 {
			next <- fmt.Sprint(i)
			if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("HTTP/%d: event %d is %q, %v", version, i, line, err)
			}
			br.ReadString('\n')
		}
		res.Body.Close() // in the middle of the stream
		p.client(t, version)
		if version == 1 {
			close(next)
			next = make(chan string)
		}
	}
	close(next)
}

func TestTheAuditLineIsThereBeforeTheAnswerIsWhole(t *testing.T) {
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/chunked" {
			w.(http.Flusher).Flush()
		}
		if r.URL.Path != "/empty" {
			io.WriteString(w, "content")
		}
	})
	for _, version := range []int{1, 2} {
		client := p.client(t, version)
		for _, path := range []string{"/length", "/chunked", "/empty"} {
			for range 20 {
				res, err := client.Get("https://api.github.com" + path + "?token=x")
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				l := p.lastLine(t)
				if l.Path != path || l.Code != 200 || l.Decision != "injected" || l.Out != res.ContentLength && res.ContentLength > 0 {
					t.Fatalf("HTTP/%d %s: last audit line %+v", version, path, l)
				}
				res.Body.Close()
				before := len(p.lines(t))
				if before == 0 {
					t.Fatal("no lines")
				}
			}
		}
	}
}

func TestParallelRequestsAreToldApart(t *testing.T) {
	release := make(chan struct{})
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) { <-release; io.WriteString(w, r.URL.Path) })
	client := p.client(t, 2)
	done := make(chan error, 10)
	for i := range cap(done) {
		go func() {
			res, err := client.Get(fmt.Sprintf("https://api.github.com/%d", i))
			if err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			done <- err
		}()
	}
	close(release)
	for range cap(done) {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	ids, paths := map[string]bool{}, map[string]bool{}
	for _, l := range p.lines(t) {
		ids[l.ID], paths[l.Path] = true, true
	}
	if len(ids) != cap(done) || len(paths) != cap(done) {
		t.Errorf("%d ids and %d paths for %d requests", len(ids), len(paths), cap(done))
	}
}

func TestWebSocketIsRelayedAndNoOtherUpgrade(t *testing.T) {
	p, o := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			io.WriteString(w, "no upgrade")
			return
		}
		conn, rw, _ := w.(http.Hijacker).Hijack()
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nearly ")
		io.Copy(conn, rw)
	})
	ask := func(upgrade string) (*tls.Conn, *bufio.Reader, *http.Response) {
		conn := p.intercepted(t, "api.github.com:443", "api.github.com")
		io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: api.github.com\r\nConnection: keep-alive, Upgrade\r\nUpgrade: "+upgrade+"\r\nX-Stream: 1\r\n\r\nclient")
		br := bufio.NewReader(conn)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		return conn, br, res
	}
	conn, br, res := ask("websocket")
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" || res.Header.Get("Sec-Websocket-Accept") != "x" {
		t.Fatalf("upgrade: %s %v", res.Status, res.Header)
	}
	got := make([]byte, len("early client"))
	if _, err := io.ReadFull(br, got); err != nil || string(got) != "early client" {
		t.Errorf("relayed %q, %v", got, err)
	}
	if l := p.lastLine(t); !l.Open || !l.Injected {
		t.Errorf("opening line %+v", l)
	}
	if o.take()[0].Header.Get("Authorization") != "Bearer "+canary {
		t.Error("no credential on the upgrade request")
	}
	conn.Close()
	for _, other := range []string{"h2c", "TLS/1.0", "websocket, h2c"} {
		conn, _, res := ask(other)
		b := make([]byte, 10)
		io.ReadFull(res.Body, b)
		if r := o.take()[0]; res.StatusCode != 200 || r.Header.Get("Upgrade") != "" || r.Header.Get("Connection") != "" {
			t.Errorf("Upgrade: %s gave %s %q, the upstream got %v", other, res.Status, b, r.Header)
		}
		conn.Close()
	}
}

func TestAnUpgradeWithContentIsPassedOnAsAPlainRequest(t *testing.T) {
	p, o := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/unasked" {
			conn, _, _ := w.(http.Hijacker).Hijack()
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		}
	})
	for path, code := range map[string]int{"/ws": 200, "/unasked": 502} {
		res, _ := exchangeRaw(t, p.intercepted(t, "api.github.com:443", "api.github.com"), "GET "+path+" HTTP/1.1\r\nHost: api.github.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
		if got := o.take(); res.StatusCode != code || got[0].Header.Get("Upgrade") != "" {
			t.Errorf("%s: answer %s, the upstream got %v", path, res.Status, got[0].Header)
		}
	}
}

func TestExpectIsPassedOnAndAnsweredByTheUpstream(t *testing.T) {
	p, o := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(417)
			return
		}
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	_ = o
	head := func(path string) string {
		return "PUT " + path + " HTTP/1.1\r\nHost: api.github.com\r\nX-Stream: 1\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\r\n"
	}
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	io.WriteString(conn, head("/yes"))
	br := bufio.NewReader(conn)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != 100 {
		t.Fatalf("interim answer %v, %v", res, err)
	}
	io.WriteString(conn, "content")
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); string(b) != "content" || err != nil {
		t.Errorf("content %q, %v", b, err)
	}
	io.WriteString(conn, head("/no"))
	res, err = http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 417 || !res.Close {
		t.Fatalf("answer %v, %v; a client that sends its next request must know that the connection ends", res, err)
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("the connection goes on although the content was never sent: %v", err)
	}
}

func TestAnAnswerBeforeTheContentWasSentArrives(t *testing.T) {
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(413) })
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	res, _ := exchangeRaw(t, conn, "POST / HTTP/1.1\r\nHost: api.github.com\r\nX-Stream: 1\r\nContent-Length: 1000000\r\n\r\nsome")
	if res.StatusCode != 413 {
		t.Errorf("answer %s", res.Status)
	}
}

func TestAnEarlyAnswerArrivesAtAClientThatSendsAllItsContentFirst(t *testing.T) {
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex() // else net/http reads some of the content first
		w.WriteHeader(413)
	})
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	content := make([]byte, 32<<20)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: api.github.com\r\nX-Stream: 1\r\nContent-Length: %d\r\n\r\n", len(content))
	if n, err := conn.Write(content); err != nil {
		t.Errorf("reset after %d bytes: %v", n, err)
	}
	if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 413 {
		t.Errorf("answer %v, %v", res, err)
	}
}

func TestAClientThatLeavesEndsTheUpstreamRequest(t *testing.T) {
	for _, version := range []int{1, 2} {
		arrived, ended := make(chan struct{}), make(chan struct{})
		p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
			close(ended)
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		r, _ := http.NewRequestWithContext(ctx, "GET", "https://api.github.com/", nil)
		if _, err := p.client(t, version).Do(r); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		<-ended
		if version == 1 {
			p.quiesce()
			if l := p.lastLine(t); l.Decision != "failed" || l.Error != "client left" {
				t.Errorf("audit line %+v", l)
			}
		}
	}
}

func TestNothingStaysOfAConnectionWhoseClientLeftWithinARequest(t *testing.T) {
	for _, version := range []int{1, 2} {
		arrived, ended := make(chan struct{}), make(chan struct{})
		p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
			close(ended)
		})
		client := p.client(t, version)
		var socket net.Conn
		client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			socket = conn
			return conn, err
		}
		failed := make(chan struct{})
		go func() {
			defer close(failed)
			if res, err := client.Get("https://api.github.com/"); err == nil {
				res.Body.Close()
			}
		}()
		<-arrived
		var left weak.Pointer[clientConn]
		p.mu.Lock()
		for c := range p.conns {
			left = weak.Make(c)
		}
		p.mu.Unlock()
		socket.Close()
		<-ended
		<-failed
		p.quiesce()
		for start := time.Now(); left.Value() != nil; runtime.GC() {
			if time.Since(start) > 30*time.Second { // net/http's own timers of a second or two may have to end
				t.Fatalf("HTTP/%d: its memory is still held", version)
			}
			forgetStoppedTimers()
		}
	}
}

// forgetStoppedTimers has the runtime let go of what stopped timers refer to, a context's among them. A processor keeps a
// stopped timer until its time comes, or until more than a quarter of its timers are stopped ones (timers.check in runtime/time.go).
func forgetStoppedTimers() {
	var all sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for range 1000 {
				time.AfterFunc(time.Hour, func() {}).Stop()
			}
			runtime.Gosched() // the next may run on another processor
		})
	}
	all.Wait()
}

func TestAClientThatSentItsNextRequestAndLeavesEndsTheUpstreamRequest(t *testing.T) {
	arrived, ended := make(chan struct{}), make(chan struct{})
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(ended)
	})
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	io.WriteString(conn, "GET /1 HTTP/1.1\r\nHost: api.github.com\r\n\r\nGET /2 HTTP/1.1\r\n")
	<-arrived
	conn.Close()
	<-ended
}

func TestATruncatedAnswerIsNeverPassedOnAsWhole(t *testing.T) {
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/length":
			w.Header().Set("Content-Length", "100")
		case "/chunk": // the content comes together with the error
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nsome")
				conn.Close()
			}
			return
		}
		io.WriteString(w, "some")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	for _, version := range []int{1, 2} {
		for _, path := range []string{"/length", "/chunked", "/chunk"} {
			res, err := p.client(t, version).Get("https://api.github.com" + path)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err == nil || string(b) != "some" {
				t.Errorf("HTTP/%d %s: a truncated answer arrived as %q, %v", version, path, b, err)
			}
			res.Body.Close()
			if l := p.lastLine(t); l.Error != "upstream: truncated answer" || l.Out != 4 {
				t.Errorf("HTTP/%d %s: audit line %+v", version, path, l)
			}
		}
	}
}

func TestAnUpstreamThatFailsWhileContentIsSentIsTold(t *testing.T) {
	p, _ := githubProxy(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	res, _ := exchangeRaw(t, conn, "POST / HTTP/1.1\r\nHost: api.github.com\r\nX-Stream: 1\r\nContent-Length: 1000000\r\n\r\nsome")
	if l := p.lastLine(t); res.StatusCode != 502 || l.Code != 502 || l.Error != "upstream closed without an answer" {
		t.Errorf("answer %s, audit line %+v", res.Status, l)
	}
}

func TestEachRequestThatAnUpstreamSawHasItsLineHoweverManyFail(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	p := newTestProxy(t, o, testProxyOptions{})
	client := p.client(t, 2)
	for range maxRefusals + 5 {
		res, err := client.Post("https://sentry.io/", "text/plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if seen, lines := len(o.take()), len(p.lines(t)); seen != maxRefusals+5 || lines != seen {
		t.Errorf("the upstream saw %d requests, the log has %d lines", seen, lines)
	}
}

func TestAFailedUpstreamIsToldInTheServicesOwnShape(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary, "ANTHROPIC_API_KEY": canary, "DOCKER_USERNAME": "u", "DOCKER_TOKEN": canary}})
	for _, c := range []struct{ url, want, contentType string }{
		{"https://api.github.com/", `"message":"muxproxy: `, "application/json"},
		{"https://api.anthropic.com/v1/messages", `{"type":"error","error":{"type":"api_error","message":"muxproxy: `, "application/json"},
		{"https://auth.docker.io/token", `{"errors":[{"code":"DENIED","message":"muxproxy: `, "application/json"},
		{"https://github.com/o/r/info/refs", "muxproxy: ", "text/plain; charset=utf-8"},
	} {
		res, err := p.client(t, 1).Get(c.url)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		l := p.lastLine(t)
		if res.StatusCode != 502 || !strings.Contains(string(b), c.want) || res.Header.Get("Content-Type") != c.contentType || !strings.Contains(string(b), l.ID) {
			t.Errorf("%s: %s %s %s", c.url, res.Status, res.Header.Get("Content-Type"), b)
		}
		if l.Decision != "failed" || l.Code != 502 || !l.Injected {
			t.Errorf("%s: audit line %+v", c.url, l)
		}
	}
}

func TestADrainLetsExchangesEndAndTakesNoNewOnes(t *testing.T) {
	for _, version := range []int{1, 2} {
		arrived, release := make(chan struct{}), make(chan struct{})
		p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(arrived)
				<-release
			}
			io.WriteString(w, "whole")
		})
		idle := p.intercepted(t, "api.github.com:443", "api.github.com")
		exchangeRaw(t, idle, "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
		answer := make(chan string, 1)
		go func() {
			res, err := p.client(t, version).Get("https://api.github.com/slow")
			if err != nil {
				answer <- err.Error()
				return
			}
			b, _ := io.ReadAll(res.Body)
			answer <- string(b)
		}()
		<-arrived
		drained := make(chan struct{})
		go func() { p.shutdown(context.Background()); close(drained) }()
		if _, err := idle.Read(make([]byte, 1)); err == nil {
			t.Error("an idle connection lives on in a drain")
		}
		if conn, err := dialProxy(p); err == nil {
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("a new connection is served in a drain")
			}
			conn.Close()
		}
		close(release)
		if got := <-answer; got != "whole" {
			t.Errorf("HTTP/%d: the exchange under way gave %q", version, got)
		}
		<-drained
	}
}

func TestADrainEndsTunnelsAndUpgradesWithItsContext(t *testing.T) {
	p, _ := githubProxy(t, func(http.ResponseWriter, *http.Request) {})
	conn, _ := p.connect(t, "other.example:443")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	p.shutdown(ctx)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a tunnel outlives the drain")
	}
	if l := p.lastLine(t); l.Open || l.Decision != "tunneled" {
		t.Errorf("audit line %+v", l)
	}
}

func TestMalformedRequestsAreRefusedAndAudited(t *testing.T) {
	p, o := githubProxy(t, func(http.ResponseWriter, *http.Request) {})
	for _, c := range []struct {
		request string
		code    int
	}{
		{"GET / HTTP/1.1\r\nHost: api.github.com\r\nX: " + strings.Repeat("a", headLimit+8192) + "\r\n\r\n", 431},
		{"GET / HTTP/1.1\r\nHost: api.github.com\r\nX : y\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: api.github.com\r\nX: a\x00b\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: api.github.com\r\nTransfer-Encoding: xchunked\r\n\r\n", 501},
		{"GET / HTTP/3.7\r\nHost: api.github.com\r\n\r\n", 505},
		{"nonsense\r\n\r\n", 400},
	} {
		res, content := exchangeRaw(t, p.intercepted(t, "api.github.com:443", "api.github.com"), c.request)
		l := p.lastLine(t)
		if res.StatusCode != c.code || len(o.take()) > 0 || l.Code != c.code || l.Decision != "denied" || !strings.Contains(content, l.ID) {
			t.Errorf("%.60q: %s %s, audit line %+v", c.request, res.Status, content, l)
		}
	}
}

func TestBytesThatAreNotTLSAreRefused(t *testing.T) {
	p, o := githubProxy(t, func(http.ResponseWriter, *http.Request) {})
	conn, _ := p.connect(t, "api.github.com:443")
	res, _ := exchangeRaw(t, conn, "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
	if l := p.lastLine(t); res.StatusCode != 400 || len(o.take()) > 0 || l.Decision != "denied" {
		t.Errorf("%s, audit line %+v", res.Status, l)
	}
}

func TestHealthAnswersOnlyToOurOwnHost(t *testing.T) {
	p, _ := githubProxy(t, func(http.ResponseWriter, *http.Request) {})
	for _, c := range []struct {
		request string
		code    int
	}{
		{"GET /proxy/health HTTP/1.1\r\nHost: 127.0.0.1:18080\r\n\r\n", 200},
		{"GET /proxy/ca.pem HTTP/1.1\r\nHost: 127.0.0.1:18080\r\n\r\n", 200},
		{"GET /proxy/health HTTP/1.1\r\nHost: rebinding.example\r\n\r\n", 404},
		{"POST /proxy/health HTTP/1.1\r\nHost: 127.0.0.1:18080\r\nContent-Length: 0\r\n\r\n", 404},
		{"GET /other HTTP/1.1\r\nHost: 127.0.0.1:18080\r\n\r\n", 404},
	} {
		conn, err := dialProxy(p)
		if err != nil {
			t.Fatal(err)
		}
		if res, _ := exchangeRaw(t, conn, c.request); res.StatusCode != c.code {
			t.Errorf("%q: %s", c.request, res.Status)
		}
		conn.Close()
	}
}

func TestTRACEIsRefusedWhereAnUpstreamProxyWouldShowItsCredential(t *testing.T) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { r.Header.Write(w) }))
	defer echo.Close()
	via, err := url.Parse(echo.URL)
	if err != nil {
		t.Fatal(err)
	}
	via.User = url.UserPassword("operator", "upstream-canary")
	p := newTestProxy(t, newPlainOrigin(t), testProxyOptions{})
	p.policy.Load().plain.dialer.proxy = func(*url.URL) (*url.URL, error) { return via, nil }
	for method, code := range map[string]int{"TRACE": 403, "trace": 403, "Track": 403, "GET": 200} {
		conn, err := dialProxy(p)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		res, text := exchangeRaw(t, conn, method+" http://93.184.215.14/ HTTP/1.1\r\nHost: 93.184.215.14\r\nMax-Forwards: 0\r\n\r\n")
		if res.StatusCode != code || strings.Contains(text, "Basic ") != (code == 200) {
			t.Errorf("%s: %s %q", method, res.Status, text)
		}
	}
}
