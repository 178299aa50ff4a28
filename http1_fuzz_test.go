package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fuzzTag is the field in which a fuzzed exchange carries its number to the upstream. It is not in the corpus.
const fuzzTag = "X-Exchange-5e1f"

// fuzzProxy runs an intercepted connection's loop over bytes in memory, against an upstream that records.
type fuzzProxy struct {
	*testProxy
	origin *wireOrigin
	number int // of the last exchange
}

func newFuzzProxy(t testing.TB) *fuzzProxy {
	o := newWireOrigin(t)
	return &fuzzProxy{origin: o, testProxy: newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})}
}

// run feeds data to the loop, at most step bytes at a time; hold keeps the connection open behind them. It gives the numbers of the exchanges that came of it, first and one
// behind the last, and what the client got.
func (p *fuzzProxy) run(data []byte, step int, hold bool) (first, end int, output []byte) {
	conn := newMemConn(data, step)
	conn.hold = hold
	c := p.admit(conn)
	s := &intercepted{i: p.intercept, c: c, a: authority{"api.github.com", 443}, host: "api.github.com"}
	first = p.number + 1
	c.loop(newHTTP1Conn(conn), s.host, func(x *exchange) {
		p.number++
		x.r.Header[fuzzTag] = []string{fmt.Sprint(p.number)}
		s.handle(x)
	})
	p.leave(c)
	p.live.Done()
	return first, p.number + 1, conn.output()
}

// reference is net/http's server as the judge of what requests some bytes are.
type reference struct {
	conns chan net.Conn
	mu    sync.Mutex
	got   []*wireRequest // whole ones; nil stands for one whose content broke off
}

func newReference(t testing.TB) *reference {
	ref := &reference{conns: make(chan net.Conn)}
	server := &http.Server{
		Handler: ref, ErrorLog: discardLog, DisableGeneralOptionsHandler: true, MaxHeaderBytes: headLimit,
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				close(conn.(*referenceConn).over)
			}
		},
	}
	done := make(chan struct{})
	go func() { defer close(done); server.Serve(&memListener{ref.conns}) }()
	t.Cleanup(func() { close(ref.conns); <-done; server.Close() })
	return ref
}

func (ref *reference) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	content, err := io.ReadAll(r.Body)
	got := &wireRequest{method: r.Method, target: r.RequestURI, header: r.Header.Clone(), content: string(content), trailer: r.Trailer}
	if err != nil {
		got = nil
	}
	ref.mu.Lock()
	defer ref.mu.Unlock()
	ref.got = append(ref.got, got)
}

// requests gives the requests in data, in order.
func (ref *reference) requests(data []byte) []*wireRequest {
	conn := &referenceConn{memConn: newMemConn(data, len(data)), over: make(chan struct{})}
	ref.conns <- conn
	<-conn.over
	ref.mu.Lock()
	defer ref.mu.Unlock()
	got := ref.got
	ref.got = nil
	return got
}

type referenceConn struct {
	*memConn
	over chan struct{} // closed when the server is done with it
}

// memListener gives connections until its channel is closed.
type memListener struct{ conns chan net.Conn }

func (l *memListener) Accept() (net.Conn, error) {
	if conn, ok := <-l.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (l *memListener) Close() error   { return nil }
func (l *memListener) Addr() net.Addr { return memAddr }

// proxied gives what an upstream has to get of a request that net/http's server took: this is spec 6.2 and 6.4 a second time, in
// other words.
func proxiedWire(r *wireRequest) *wireRequest {
	out := &wireRequest{method: r.method, target: r.target, content: r.content, header: http.Header{}, trailer: http.Header{}}
	dropped := map[string]bool{
		"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
		"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
		"Authorization": true, "X-Api-Key": true, "Cookie": true, "Content-Length": true, "Host": true,
	}
	inTrailer := maps.Clone(dropped)
	for _, list := range r.header["Connection"] {
		for _, name := range strings.Split(list, ",") {
			dropped[textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t"))] = true
		}
	}
	for name, values := range r.header {
		if !dropped[name] {
			out.header[name] = values
		}
	}
	for name, values := range r.trailer {
		if !inTrailer[name] && values != nil {
			out.trailer[name] = values
		}
	}
	return out
}

// difference tells how what the upstream got differs from what it has to get, "" where it does not.
func difference(got, want *wireRequest) string {
	for _, name := range []string{"Authorization", "Host", "Content-Length", "Transfer-Encoding", "Trailer", "Connection", "Te", "Upgrade", fuzzTag} {
		delete(got.header, name) // checkInjectedWire and readWire look at those
	}
	switch {
	case got.method != want.method, got.target != want.target:
		return fmt.Sprintf("request line: %s %q, not %s %q", got.method, got.target, want.method, want.target)
	case got.content != want.content:
		return fmt.Sprintf("content: %q, not %q", got.content, want.content)
	case !equalFields(got.header, want.header):
		return fmt.Sprintf("header: %q, not %q", got.header, want.header)
	case !equalFields(got.trailer, want.trailer):
		return fmt.Sprintf("trailer: %q, not %q", got.trailer, want.trailer)
	}
	return ""
}

// equalFields compares sections; blanks around a value are no part of it (RFC 9110 §5.5), and the wire does not tell the case
// of names apart.
func equalFields(a, b http.Header) bool {
	plain := func(h http.Header) map[string][]string {
		out := map[string][]string{}
		for name, values := range h {
			for _, v := range values {
				name := textproto.CanonicalMIMEHeaderKey(name)
				out[name] = append(out[name], strings.Trim(v, " \t"))
			}
		}
		return out
	}
	return maps.EqualFunc(plain(a), plain(b), slices.Equal[[]string])
}

// FuzzRequests holds that the upstream gets of a client's bytes only requests that net/http's server would have taken, each as
// that would have read it, in whatever pieces they come: stricter is allowed, laxer is not.
func FuzzRequests(f *testing.F) {
	for _, c := range hostileCases() {
		f.Add([]byte(c.bytes), byte(255))
		f.Add([]byte(c.bytes), byte(1))
	}
	f.Add([]byte("CONNECT api.github.com:443 HTTP/1.1\r\nHost: api.\x82ithub.com\r\n\r\n"+hostileRequest("GET /next HTTP/1.1", "", "")), byte(255))
	p, ref := newFuzzProxy(f), newReference(f)
	judged := map[string]*wireRequest{} // by number: what net/http's server took
	f.Fuzz(func(t *testing.T, data []byte, step byte) {
		if bytes.Contains(bytes.ToLower(data), []byte("x-exchange-5e1f")) {
			return
		}
		want := ref.requests(data)
		first, end, output := p.run(data, int(step), false)
		for i := first; i < end; i++ {
			if i-first < len(want) {
				judged[fmt.Sprint(i)] = want[i-first]
			}
		}
		for _, got := range p.origin.takeWire(t) {
			number := got.header.Get(fuzzTag)
			checkInjectedWire(t, got)
			if judged[number] == nil {
				t.Errorf("the upstream got %s %s %q, exchange %s: net/http's server takes no such request", got.method, got.target, got.content, number)
			} else if d := difference(got, proxiedWire(judged[number])); d != "" {
				t.Errorf("the upstream got another %s", d)
			}
			delete(judged, number) // so that none comes twice
		}
		if n := len(hostileAnswers(output)); n > end-first+1 {
			t.Errorf("%d answers to %d requests", n, end-first)
		}
		if end%1000 == 0 {
			clear(judged)
		}
	})
}

// FuzzChunks holds that content arrives byte for byte, whatever chunks it is sent in and in whatever pieces those come: a
// client's at the upstream, and the upstream's at the client.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("hello"), []byte{1, 2}, byte(1), "X-Sum: 7")
	f.Add(bytes.Repeat([]byte("0\r\n\r\nGET / HTTP/1.1\r\n\r\n"), 300), []byte{255, 0, 1, 13}, byte(7), "")
	f.Add(make([]byte, 9000), []byte{0x80}, byte(200), "X-A: \xe9")
	p := newFuzzProxy(f)
	p.origin.answer = func(r *wireRequest) string {
		var b strings.Builder
		b.WriteString("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		writeChunks(&b, []byte(r.content), []byte(r.header.Get("X-Sizes")), "X-End: yes")
		return b.String()
	}
	f.Fuzz(func(t *testing.T, content, sizes []byte, step byte, trailer string) {
		hex := fmt.Sprintf("%x", sizes[:min(len(sizes), 100)])
		var b strings.Builder
		b.WriteString("POST /a HTTP/1.1\r\nHost: api.github.com\r\nConnection: close\r\nX-Sizes: " + hex + "\r\nTransfer-Encoding: chunked\r\n\r\n")
		if !wireField.MatchString(trailer) || len(trailer) > 1000 {
			trailer = ""
		}
		writeChunks(&b, content, sizes, trailer)
		if !readable(b.String()) {
			return // chunks that are far longer than what they hold, which the standard reader refuses
		}
		_, _, output := p.run([]byte(b.String()), int(step), true)
		got := p.origin.takeWire(t)
		if len(got) != 1 || got[0].content != string(content) {
			t.Fatalf("the upstream got %d requests", len(got))
		}
		if name, value, _ := strings.Cut(trailer, ": "); strings.HasPrefix(name, "X-S") && got[0].trailer.Get(name) != strings.Trim(value, " \t") {
			t.Errorf("the upstream got the trailer %q, not %q", got[0].trailer, trailer)
		}
		res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(output)), nil)
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(res.Body)
		if err != nil || !bytes.Equal(back, content) || res.Trailer.Get("X-End") != "yes" {
			t.Errorf("the client got %d bytes back of %d, trailer %v, %v", len(back), len(content), res.Trailer, err)
		}
	})
}

// readable tells whether the standard library reads the request's content to its end.
func readable(request string) bool {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err == nil
}

// writeChunks writes content in chunks of the sizes, round and round; each 0 makes the next chunk spell its size oddly.
func writeChunks(b *strings.Builder, content, sizes []byte, trailer string) {
	odd := false
	for i := 0; len(content) > 0; i++ {
		n := 1000
		if len(sizes) > 0 {
			n = int(sizes[i%len(sizes)]) * 5
		}
		if n == 0 {
			if odd || len(sizes) == 1 {
				n = 1
			} else {
				odd = true
				continue
			}
		}
		n = min(n, len(content))
		if odd {
			fmt.Fprintf(b, "00%X;a=\"b\"\r\n", n)
		} else {
			fmt.Fprintf(b, "%x\r\n", n)
		}
		odd = false
		b.Write(content[:n])
		b.WriteString("\r\n")
		content = content[n:]
	}
	b.WriteString("0\r\n")
	if trailer != "" {
		b.WriteString(trailer + "\r\n")
	}
	b.WriteString("\r\n")
}
