package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// answerOrigin answers /first with whatever a fuzzer thinks of and /second with secondAnswer, without TLS. A connection that
// brings no further request soon is closed, so that an answer without an end of its own has one.
type answerOrigin struct {
	addr  string
	first atomic.Pointer[[]byte]
}

const secondAnswer = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nthe second"

func newAnswerOrigin(t testing.TB) *answerOrigin {
	o := &answerOrigin{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.addr = ln.Addr().String()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { o.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return o
}

func (o *answerOrigin) serve(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReader(conn)
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if r.URL.Path == "/first" {
			conn.Write(*o.first.Load())
		} else {
			io.WriteString(conn, secondAnswer)
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	}
}

// seen is an answer as a client sees it.
type seen struct {
	interim []string
	status  string // "404 Not Found"
	code    int
	header  http.Header
	content string
	trailer http.Header
	broken  bool // it is not whole
}

// readSeen reads the next answer as a client of the proxy.
func readSeen(br *bufio.Reader, method string) seen {
	var s seen
	for {
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			s.broken = true
			return s
		}
		if res.StatusCode < 200 && res.StatusCode != 101 {
			s.interim = append(s.interim, interim(res.StatusCode, res.Header))
			continue
		}
		content, err := io.ReadAll(res.Body)
		s.status, s.code, s.header, s.content, s.trailer, s.broken = res.Status, res.StatusCode, res.Header, string(content), res.Trailer, err != nil
		return s
	}
}

// askSeen asks by net/http's client, without the proxy.
func askSeen(t testing.TB, client *http.Client, method, target string) seen {
	var s seen
	r, err := http.NewRequest(method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r = r.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		s.interim = append(s.interim, interim(code, http.Header(h)))
		return nil
	}}))
	res, err := client.Do(r)
	if err != nil {
		s.broken = true
		return s
	}
	defer res.Body.Close()
	if res.StatusCode == 101 {
		s.code = 101
		return s
	}
	content, err := io.ReadAll(res.Body)
	s.status, s.code, s.header, s.content, s.trailer, s.broken = res.Status, res.StatusCode, res.Header, string(content), res.Trailer, err != nil
	return s
}

// interim gives what of an interim answer has to reach the client; it has no content, and so no length.
func interim(code int, h http.Header) string {
	h = endToEnd(h)
	h.Del("Content-Length")
	return fmt.Sprint(code, h)
}

// endToEnd gives what of an answer's fields has to reach the client (spec 6.4).
func endToEnd(h http.Header) http.Header {
	out := h.Clone()
	for _, list := range h["Connection"] {
		for _, name := range strings.Split(list, ",") {
			out.Del(strings.Trim(name, " \t"))
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Alt-Svc"} {
		out.Del(name)
	}
	return out
}

// checkRelayed fails unless the client of the proxy saw what net/http's client sees directly, or clearly no whole answer.
func checkRelayed(t *testing.T, got, direct seen) {
	t.Helper()
	refused := got.code == 502 && got.header.Get("Cache-Control") == "no-store" && got.header.Get("Content-Type") == "application/json"
	if direct.code == 204 {
		direct.header.Del("Content-Length") // it has no content, and so no length
	}
	switch {
	case got.broken, refused:
		return
	case direct.broken, direct.code == 101:
		t.Errorf("net/http's client takes no whole answer, ours got %q %v %q", got.status, got.header, got.content)
	case got.code != direct.code || got.content != direct.content || !slices.Equal(got.interim, direct.interim):
		t.Errorf("the client got %q %q after %v, not %q %q after %v", got.status, got.content, got.interim, direct.status, direct.content, direct.interim)
	case !equalFields(endToEnd(got.header), endToEnd(direct.header)):
		t.Errorf("the client got %q, not %q", endToEnd(got.header), endToEnd(direct.header))
	case !equalFields(endToEnd(got.trailer), endToEnd(direct.trailer)):
		t.Errorf("the client got the trailer %q, not %q", got.trailer, direct.trailer)
	}
}

// answerCorpus are answers that two parsers could differ about.
func answerCorpus() []string {
	answer := func(fields, content string) string { return "HTTP/1.1 200 OK\r\n" + fields + "\r\n" + content }
	corpus := []string{
		"", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nabc", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na",
		"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 205 Reset Content\r\n\r\nabc",
		"HTTP/1.1 000 No\r\n\r\n", "HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 999 Yes\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 +20 No\r\n\r\n", "HTTP/1.1 2000 No\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nabc",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 5\r\n\r\n" + answer("Content-Length: 2\r\n", "ok"),
		strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 20) + answer("Content-Length: 2\r\n", "ok"),
		"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n", "http/1.1 200 OK\r\n\r\n", "ICY 200 OK\r\n\r\n", "HTTP/1.1 200 a\rb\x00\r\nContent-Length: 0\r\n\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n",
		answer("Content-Length: 3\r\n", "ab"), answer("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"), answer("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"), answer("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
		answer("Content-Length: +3\r\n", "abc"), answer("Content-Length: -1\r\n", "abc"), answer("Content-Length: 3, 3\r\n", "abc"), answer("Content-Length: 99999999999999999999\r\n", "abc"),
		answer("Content-Length: 3\r\n", "abc"+secondAnswer), answer("Content-Length: 3\r\n", "abcHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"), answer("Connection: close\r\nContent-Length: 3\r\n", "abcdef"),
		answer("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"), answer("Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", "0\r\nX-Sum : 7\r\nX-B: \x00\r\n\r\n"), answer("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n"),
		answer("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\nabc"), answer("Transfer-Encoding: chunked\r\n", "3;a=b\r\nabc\r\n00\r\n\r\n"), answer("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"), answer("Transfer-Encoding: identity\r\n", "abc"),
		answer("X-A : b\r\n", ""), answer("X-A: b\r\n c\r\n", ""), answer("X-A: b\rc\r\n", ""), answer("X-A: \x00\r\n", ""), answer("X\xe9: b\r\n", ""), answer("X-A: \xe9\r\nContent-Length: 0\r\n", ""), answer("no colon\r\n", ""),
		answer("Alt-Svc: h3\r\nConnection: X-A\r\nX-A: b\r\nKeep-Alive: 5\r\nContent-Length: 0\r\n", ""), answer("Content-Length: 9000\r\n", strings.Repeat("a", 9000)+"rest"), answer(strings.Repeat("X-A: b\r\n", 600)+"Content-Length: 0\r\n", ""),
	}
	return corpus
}

// FuzzAnswers holds that a client gets of an upstream's bytes the answer that net/http's client would have got, or a 502, or one
// that it cannot take for whole, and that nothing of them meets the next request.
func FuzzAnswers(f *testing.F) {
	methods := []string{"GET", "HEAD", "POST"}
	for _, answer := range answerCorpus() {
		for method := range methods {
			f.Add([]byte(answer), byte(method))
		}
	}
	o := newAnswerOrigin(f)
	p := newTestProxy(f, &testOrigin{addr: o.addr}, testProxyOptions{})
	direct := &http.Client{
		Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	f.Fuzz(func(t *testing.T, answer []byte, method byte) {
		o.first.Store(&answer)
		name := methods[int(method)%len(methods)]
		want := askSeen(t, direct, name, (&url.URL{Scheme: "http", Host: o.addr, Path: "/first"}).String())

		conn := newMemConn([]byte(name+" http://origin.example/first HTTP/1.1\r\nHost: origin.example\r\nContent-Length: 0\r\n\r\n"+
			"GET http://origin.example/second HTTP/1.1\r\nHost: origin.example\r\nConnection: close\r\n\r\n"), 4096)
		conn.hold = true
		c := p.admit(conn)
		c.serve()
		p.leave(c)
		p.live.Done()
		br := bufio.NewReader(bytes.NewReader(conn.output()))
		got := readSeen(br, name)
		checkRelayed(t, got, want)
		if got.broken {
			if rest, _ := io.ReadAll(br); bytes.Contains(rest, []byte("the second")) {
				t.Errorf("an answer follows one that is not whole: %q", conn.output())
			}
			return
		}
		second := readSeen(br, "GET")
		if second.code != 200 || second.content != "the second" || second.broken {
			t.Errorf("after %q the next answer is %+v", conn.output(), second)
		}
		if _, err := br.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("bytes behind the last answer: %q", conn.output())
		}
	})
}
