package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// hostileCase is what an attacker writes on an intercepted connection to api.github.com, and what has to come of it.
type hostileCase struct {
	name  string
	bytes string
	// upstream is what the upstream may get, in order: "POST /a content".
	upstream []string
	codes    []int // of the answers, interim ones left out
}

// hostileRequest gives a request with fields, each ended by CRLF, and content.
func hostileRequest(line, fields, content string) string {
	return line + "\r\nHost: api.github.com\r\n" + fields + "\r\n" + content
}

// hostileCases are the ways in which two parsers have come to differ about where a request begins and ends.
func hostileCases() []hostileCase {
	post := func(fields, content string) string { return hostileRequest("POST /a HTTP/1.1", fields, content) }
	get := func(fields string) string { return hostileRequest("GET /a HTTP/1.1", fields, "") }
	next := hostileRequest("GET /next HTTP/1.1", "", "")
	chunked := "Transfer-Encoding: chunked\r\n"
	abc := "3\r\nabc\r\n0\r\n\r\n"
	cases := []hostileCase{
		// Which framing counts.
		{"both framings: chunked counts", post("Content-Length: 3\r\n"+chunked, abc+next), []string{"POST /a abc", "GET /next"}, []int{200, 200}},
		{"both framings, the other way round", post(chunked+"Content-Length: 6\r\n", "0\r\n\r\n"+next), []string{"POST /a", "GET /next"}, []int{200, 200}},
		{"two lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"+next), nil, []int{400}},
		{"two equal lengths are one", post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"+next), []string{"POST /a abc", "GET /next"}, []int{200, 200}},
		{"a list of lengths", post("Content-Length: 3, 3\r\n", "abc"+next), nil, []int{400}},
		{"chunked in HTTP/1.0", hostileRequest("POST /a HTTP/1.0", "Connection: keep-alive\r\n"+chunked, abc+next), []string{"POST /a"}, []int{200, 400}},
		{"a length announced as a trailer", post(chunked+"Trailer: Content-Length\r\n", abc), nil, []int{400}},

		// A request hidden in content.
		{"content that is a request", post(fmt.Sprintf("Content-Length: %d\r\n", len(next)), next), []string{"POST /a " + next}, []int{200}},
		{"a length that is too short", post("Content-Length: 1\r\n", "a"+next), []string{"POST /a a", "GET /next"}, []int{200, 200}},
		{"a length that is too long", post("Content-Length: 1000\r\n", next), nil, nil},
		{"content with GET", hostileRequest("GET /a HTTP/1.1", "Content-Length: 5\r\n", "12345"+next), []string{"GET /a 12345", "GET /next"}, []int{200, 200}},
		{"after an upgrade that the upstream refuses", get("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n") + next, []string{"GET /a", "GET /next"}, []int{200, 200}},
		{"after an upgrade to h2c", get("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n") + next, []string{"GET /a", "GET /next"}, []int{200, 200}},
		{"an expectation that nobody knows", post("Expect: 200-ok\r\nContent-Length: 3\r\n", "abc"), nil, []int{417}},

		// Line ends and blanks.
		{"bare LF", "GET /a HTTP/1.1\nHost: api.github.com\nX-A: b\n\n" + next, []string{"GET /a", "GET /next"}, []int{200, 200}},
		{"bare CR in a value", get("X-A: b\rTransfer-Encoding: chunked\r\n"), nil, []int{400}},
		{"bare CR as a line end", "GET /a HTTP/1.1\rHost: api.github.com\r\r\r\n\r\n", nil, []int{400}},
		{"CR CR LF", get("X-A: b\r\r\n"), nil, []int{400}},
		{"obs-fold", get("X-A: b\r\n\tc\r\n"), []string{"GET /a"}, []int{200}},
		{"obs-fold in the first field line", "GET /a HTTP/1.1\r\n Host: api.github.com\r\n\r\n", nil, []int{400}},
		{"a blank before the colon", post("Transfer-Encoding : chunked\r\n", abc), nil, []int{400}},
		{"a tab before the colon", post("Content-Length\t: 3\r\n", "abc"), nil, []int{400}},
		{"a blank in a name", get("X A: b\r\n"), nil, []int{400}},
		{"no name", get(": b\r\n"), nil, []int{400}},
		{"no colon", get("X-A\r\n"), nil, []int{400}},
		{"NUL in a value", get("X-A: b\x00c\r\n"), nil, []int{400}},
		{"NUL in a name", get("X\x00A: b\r\n"), nil, []int{400}},
		{"a high byte in a name", get("X-\xe9: b\r\n"), nil, []int{400}},
		{"high bytes in a value", get("X-A: \xe9\xff\r\n"), []string{"GET /a"}, []int{200}},
		{"an empty line first", "\r\n" + next, nil, []int{400}},

		// The request line.
		{"HTTP/0.9", "GET /a\r\n", nil, []int{400}},
		{"lower case http/1.1", hostileRequest("GET /a http/1.1", "", ""), nil, []int{400}},
		{"HTTP/1.10", hostileRequest("GET /a HTTP/1.10", "", ""), nil, []int{400}},
		{"HTTP/2.0", hostileRequest("GET /a HTTP/2.0", "", ""), nil, []int{505}},
		{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", nil, []int{505}},
		{"two blanks", hostileRequest("GET  /a HTTP/1.1", "", ""), nil, []int{400}},
		{"tabs for blanks", hostileRequest("GET\t/a\tHTTP/1.1", "", ""), nil, []int{400}},
		{"a blank in the target", hostileRequest("GET /a b HTTP/1.1", "", ""), nil, []int{400}},
		{"a blank at the end", hostileRequest("GET /a HTTP/1.1 ", "", ""), nil, []int{400}},
		{"NUL in the target", hostileRequest("GET /a\x00 HTTP/1.1", "", ""), nil, []int{400}},
		{"a fragment in the target", hostileRequest("GET /a#/../b HTTP/1.1", "", ""), nil, []int{400}},
		{"UTF-8 in the target", hostileRequest("GET /\xc3\xa9 HTTP/1.1", "", ""), []string{"GET /\xc3\xa9"}, []int{200}},
		{"a malformed method", hostileRequest("G(T /a HTTP/1.1", "", ""), nil, []int{400}},
		{"absolute-form inside", hostileRequest("GET https://api.github.com/a HTTP/1.1", "", ""), nil, []int{400}},
		{"CONNECT inside, with content", hostileRequest("CONNECT api.github.com:443 HTTP/1.1", "Content-Length: 3\r\n", "abc"+next), nil, []int{400}},
		{"authority-form", hostileRequest("GET api.github.com:443 HTTP/1.1", "", ""), nil, []int{400}},
		{"asterisk-form", hostileRequest("GET * HTTP/1.1", "", ""), nil, []int{400}},
		{"two Hosts", get("Host: evil.example\r\n"), nil, []int{400}},
		{"a Host with a path", "GET /a HTTP/1.1\r\nHost: api.github.com/evil\r\n\r\n", nil, []int{400}},
		{"a Host with userinfo", "GET /a HTTP/1.1\r\nHost: evil@api.github.com\r\n\r\n", nil, []int{400}},

		// What cannot be a second credential.
		{"auth fields in all spellings", get("AUTHORIZATION: a\r\nauthorization: b\r\nX-API-KEY: c\r\nProxy-Authorization: d\r\nCookie: e\r\n"), []string{"GET /a"}, []int{200}},
		{"auth fields in trailers", post(chunked+"Trailer: Authorization, X-Ok\r\n", "3\r\nabc\r\n0\r\nAuthorization: a\r\nX-Api-Key: b\r\nCookie: c\r\nHost: evil.example\r\nContent-Length: 7\r\nTransfer-Encoding: x\r\nX-Ok: yes\r\n\r\n"), []string{"POST /a abc"}, []int{200}},
		{"Connection names what the proxy sets", post("Connection: Authorization, Host, Content-Length, Transfer-Encoding\r\n"+chunked, abc), []string{"POST /a abc"}, []int{200}},
	}
	for _, value := range []string{"Chunked", "  chunked", "chunked\t", "\r\n chunked", "CHUNKED \t "} {
		cases = append(cases, hostileCase{fmt.Sprintf("coding %q is chunked", value), post("Transfer-Encoding:"+value+"\r\n", abc+next), []string{"POST /a abc", "GET /next"}, []int{200, 200}})
	}
	for _, value := range []string{"", "chunked, chunked", "chunked,", "identity", "gzip, chunked", "chunked;a=b", `"chunked"`, "xchunked", "chun\xe9ed"} {
		cases = append(cases, hostileCase{fmt.Sprintf("coding %q", value), post("Transfer-Encoding: "+value+"\r\nContent-Length: 3\r\n", abc+next), nil, []int{501}})
	}
	for _, value := range []string{"chunked\r\nTransfer-Encoding: identity", "\vchunked", "chunked\x7f", "chunked\x00"} {
		cases = append(cases, hostileCase{fmt.Sprintf("coding %q", value), post("Transfer-Encoding: "+value+"\r\n", abc+next), nil, []int{400}})
	}
	for _, value := range []string{"-3", "+3", "0x3", "3e0", "3 3", "3.0", "٣", "99999999999999999999", "9223372036854775808", "3;", "chunked"} {
		cases = append(cases, hostileCase{fmt.Sprintf("length %q", value), post("Content-Length: "+value+"\r\n", "abc"+next), nil, []int{400}})
	}
	for _, content := range []string{
		"ffffffffffffffff\r\nabc", "fffffffffffffffff\r\nabc", "7fffffffffffffff\r\nabc", "-3\r\nabc\r\n0\r\n\r\n", "+3\r\nabc\r\n0\r\n\r\n", "0x3\r\nabc\r\n0\r\n\r\n", "\r\n0\r\n\r\n",
		"3\nabc\n0\n\n", "3\r\nabcX\r\n0\r\n\r\n", "3\r\nabc0\r\n\r\n", "3\r\nabc\r\n0\r\nX : y\r\n\r\n", "3\r\nabc\r\n0\r\nX: y\x00\r\n\r\n", "3\r\nabc\r\n0\r\n\rX\r\n\r\n", "3;a=\n\r\nabc\r\n0\r\n\r\n", "3 3\r\nabc\r\n0\r\n\r\n",
		"3\r\nabc\r\n0\r\n" + strings.Repeat("X: y\r\n", 1000) + "\r\n", "3;" + strings.Repeat("a", 5000) + "\r\nabc\r\n0\r\n\r\n",
	} {
		cases = append(cases, hostileCase{fmt.Sprintf("chunks %.30q", content), post(chunked, content+next), nil, nil})
	}
	for _, content := range []string{"3;a=b;c\r\nabc\r\n0;d\r\n\r\n", "003\r\nabc\r\n000\r\n\r\n", "3  \r\nabc\r\n0\r\n\r\n", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\nX: y\r\n\r\n"} {
		cases = append(cases, hostileCase{fmt.Sprintf("chunks %q are content", content), post(chunked, content+next), []string{"POST /a abc", "GET /next"}, []int{200, 200}})
	}
	return cases
}

// hostileAnswers reads all answers until the connection ends.
func hostileAnswers(output []byte) (codes []int) {
	br := bufio.NewReader(bytes.NewReader(output))
	for {
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			return codes
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return codes
		}
		codes = append(codes, res.StatusCode)
	}
}

func TestTheUpstreamGetsOneFramingOrNothing(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	injected := 0
	for _, c := range hostileCases() {
		t.Run(c.name, func(t *testing.T) {
			conn := p.intercepted(t, "api.github.com:443", "api.github.com")
			io.WriteString(conn, c.bytes) // a reset is one of the ends, and may come before all is written
			conn.CloseWrite()
			output, _ := io.ReadAll(conn)
			if codes := hostileAnswers(output); !slices.Equal(codes, c.codes) {
				t.Errorf("answers %v, want %v", codes, c.codes)
			}
			var got []string
			for _, r := range o.takeWire(t) {
				got = append(got, strings.TrimSpace(r.method+" "+r.target+" "+r.content))
				checkInjectedWire(t, r)
			}
			if want := trimAll(c.upstream); !slices.Equal(got, want) {
				t.Errorf("the upstream got %q, want %q", got, want)
			}
			injected += len(got)
		})
	}
	// Every whole request has its line, by count and by what it says; more lines than that are requests that broke off.
	whole := 0
	for _, l := range p.lines(t) {
		if l.Injected && l.Code == 200 {
			whole++
		}
	}
	if whole != injected {
		t.Errorf("%d requests reached the upstream, %d have a line", injected, whole)
	}
}

func trimAll(list []string) (out []string) {
	for _, s := range list {
		out = append(out, strings.TrimSpace(s))
	}
	return out
}

// checkInjectedWire fails unless r is for api.github.com and has its credential, and no other.
func checkInjectedWire(t testing.TB, r *wireRequest) {
	t.Helper()
	if h := r.header["Host"]; len(h) != 1 || h[0] != "api.github.com" {
		t.Errorf("the upstream got Host %q", h)
	}
	if a := r.header["Authorization"]; len(a) != 1 || a[0] != "Bearer "+canary {
		t.Errorf("the upstream got Authorization %q", a)
	}
	for _, name := range []string{"X-Api-Key", "Proxy-Authorization", "Cookie"} {
		if r.header[name] != nil {
			t.Errorf("the upstream got %s %q", name, r.header[name])
		}
	}
	for name := range r.trailer {
		switch name {
		case "Authorization", "X-Api-Key", "Proxy-Authorization", "Cookie", "Host", "Content-Length", "Transfer-Encoding":
			t.Errorf("the upstream got the trailer %s", name)
		}
	}
}

func TestContentThatWasNotAskedForIsNoRequest(t *testing.T) {
	o := newWireOrigin(t)
	o.hasty = true
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	hidden := hostileRequest("GET /hidden HTTP/1.1", "", "")
	for _, framed := range []string{
		fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(hidden), hidden),
		fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(hidden), hidden),
	} {
		res, _ := exchangeRaw(t, p.intercepted(t, "api.github.com:443", "api.github.com"), "POST /a HTTP/1.1\r\nHost: api.github.com\r\nExpect: 100-continue\r\n"+framed)
		if res.StatusCode != 417 {
			t.Errorf("answer %s", res.Status)
		}
		res, content := exchangeRaw(t, p.intercepted(t, "api.github.com:443", "api.github.com"), hostileRequest("GET /next HTTP/1.1", "", ""))
		if res.StatusCode != 200 || content != "ok" {
			t.Errorf("the next request got %s %q", res.Status, content)
		}
		if got := o.takeWire(t); len(got) != 1 || got[0].target != "/next" {
			t.Errorf("the upstream got %d requests, the first for %s", len(got), got[0].target)
		}
	}
}

// TestNothingOfAnAnswerIsLeftForTheNext has an upstream send more than its answer, at every place where the rest could hide: in
// our buffer, behind it in the TLS connection's, and in the socket.
func TestNothingOfAnAnswerIsLeftForTheNext(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	for _, c := range []struct{ method, answer string }{
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("a", 9000)},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 14000\r\nX-A: " + strings.Repeat("a", 1000) + "\r\n\r\n" + strings.Repeat("a", 14000)},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n" + strings.Repeat("a", 0x2000) + "\r\n0\r\n\r\n"},
		{"GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"},
		{"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"},
		{"HEAD", "HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("a", 4096-len("HTTP/1.1 200 OK\r\nX-A: \r\n\r\n")) + "\r\n\r\n"},
	} {
		first := c.answer
		o.answer = func(r *wireRequest) string {
			if r.target == "/first" {
				return first + poison
			}
			return "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnext!"
		}
		conn := p.intercepted(t, "api.github.com:443", "api.github.com")
		exchangeRaw(t, conn, c.method+" /first HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 0\r\n\r\n")
		res, content := exchangeRaw(t, conn, "GET /next HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
		if res.StatusCode != 200 || content != "next!" {
			t.Errorf("after %s %.60q the next answer is %s %.20q", c.method, first, res.Status, content)
		}
	}
}

func TestAHeaderWithoutEndIsRefusedAfterALittle(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	const huge = 1 << 30
	for name, piece := range map[string]string{
		"one field": strings.Repeat("a", 16<<10),
		"fields":    strings.Repeat("X-A: b\r\n", 2<<10),
		"a line":    strings.Repeat("/", 16<<10),
		"folds":     strings.Repeat(" a\r\n", 4<<10),
		"LF":        strings.Repeat("a:\n", 5<<10),
	} {
		head := "GET / HTTP/1.1\r\nHost: api.github.com\r\nX-B: "
		if name == "a line" {
			head = "GET /"
		}
		for _, port := range []bool{true, false} {
			var conn net.Conn = p.intercepted(t, "api.github.com:443", "api.github.com")
			if port {
				conn, _ = dialProxy(p)
			}
			sent, err := io.WriteString(conn, head)
			for err == nil && sent < huge {
				var n int
				n, err = io.WriteString(conn, piece)
				sent += n
			}
			if err == nil || sent > 16<<20 { // what the sockets and linger take included
				t.Errorf("%s: %d MiB were taken", name, sent>>20)
			}
			output, _ := io.ReadAll(conn)
			if codes := hostileAnswers(output); len(codes) > 1 || len(codes) == 1 && codes[0] != 431 {
				t.Errorf("%s: answers %v", name, codes)
			}
			conn.Close()
		}
	}
	for _, n := range []int{400, 10_000} {
		res, _ := exchangeRaw(t, p.intercepted(t, "api.github.com:443", "api.github.com"), hostileRequest("GET /a HTTP/1.1", strings.Repeat("X:\r\n", n), ""))
		if want := map[int]int{400: 200, 10_000: 431}[n]; res.StatusCode != want {
			t.Errorf("%d fields: %s", n, res.Status)
		}
	}
	if n := len(o.takeWire(t)); n != 1 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

func TestPipelinedRequestsAreAnsweredInOrderAndAudited(t *testing.T) {
	o := newWireOrigin(t)
	o.answer = func(r *wireRequest) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.target), r.target)
	}
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	const n = 500
	var b strings.Builder
	for i := range n {
		b.WriteString(hostileRequest(fmt.Sprintf("POST /%d HTTP/1.1", i), "Content-Length: 34\r\n", "GET /hidden HTTP/1.1\r\nHost: evil\r\n"))
	}
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	go io.WriteString(conn, b.String())
	br := bufio.NewReader(conn)
	for i := range n {
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(res.Body)
		if string(content) != fmt.Sprintf("/%d", i) {
			t.Fatalf("answer %d is %q", i, content)
		}
	}
	got, lines := o.takeWire(t), p.lines(t)
	if len(got) != n || len(lines) != n {
		t.Fatalf("%d requests at the upstream, %d lines, of %d", len(got), len(lines), n)
	}
	for i, r := range got {
		checkInjectedWire(t, r)
		if lines[i].Path != r.target || !lines[i].Injected || lines[i].In != 34 {
			t.Errorf("the upstream got %s, line %+v", r.target, lines[i])
		}
	}
}

// TestChunksThatAreMostlyFramingAreRefused: CVE-2023-39326.
func TestChunksThatAreMostlyFramingAreRefused(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	chunk := "1;" + strings.Repeat("x", 4000) + "\r\na\r\n"
	sent, err := io.WriteString(conn, hostileRequest("POST /a HTTP/1.1", "Transfer-Encoding: chunked\r\n", ""))
	for err == nil && sent < 64<<20 {
		var n int
		n, err = io.WriteString(conn, chunk)
		sent += n
	}
	if err == nil {
		t.Errorf("%d MiB of chunk extensions were taken", sent>>20)
	}
	if n := len(o.takeWire(t)); n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

func TestThePortTakesRequestsAsStrictly(t *testing.T) {
	o := newPlainOrigin(t)
	p := newTestProxy(t, o, testProxyOptions{deny: true, env: map[string]string{"GITHUB_TOKEN": canary}, rules: []*rule{
		{service: "open", hosts: []hostPattern{{host: "open.example", port: 443}, {host: "open.example", port: 80}}},
	}})
	plain := func(target string) string { return "GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n" }
	for _, c := range []struct {
		bytes string
		codes []int
		paths string // at the upstream
	}{
		{plain("http://open.example/a") + plain("http://open.example/b"), []int{200, 200}, "/a /b"},
		{plain("http://open.example/a#b"), []int{400}, ""},
		{plain("http://open.example#@evil.example/"), []int{400}, ""},
		{plain("http://evil@open.example/"), []int{400}, ""},
		{plain("http://open.example\\@evil.example/"), []int{400}, ""},
		{plain("http://open.example:80:80/"), []int{400}, ""},
		{plain("http://open.example%2eevil/"), []int{400}, ""},
		{plain("http://evil.example/?http://open.example/"), []int{403}, ""},
		{plain("http:open.example/"), []int{404}, ""},
		{plain("http:///a"), []int{404}, ""},
		{plain("ftp://open.example/"), []int{400}, ""},
		{plain("//open.example/"), []int{404}, ""},
		{"CONNECT evil.example:443 HTTP/1.1\r\nHost: open.example:443\r\n\r\n", []int{403}, ""},
		{"CONNECT /a HTTP/1.1\r\nHost: open.example:443\r\n\r\n", []int{400}, ""},
		{"CONNECT http://open.example:443/ HTTP/1.1\r\nHost: open.example:443\r\n\r\n", []int{400}, ""},
		{"CONNECT open.example:443#evil HTTP/1.1\r\nHost: x\r\n\r\n", []int{400}, ""},
		{"CONNECT open.example:443 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde", []int{400}, ""},
		{"CONNECT open.example:443 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []int{400}, ""},
		{"POST http://open.example/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + plain("http://evil.example/"), []int{200, 403}, "/a"},
		{"GET http://open.example/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n", []int{400}, ""},
	} {
		conn, err := dialProxy(p)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, c.bytes)
		closeWrite(conn)
		output, _ := io.ReadAll(conn)
		conn.Close()
		var paths []string
		for _, r := range o.take() {
			paths = append(paths, r.RequestURI)
		}
		if codes := hostileAnswers(output); !slices.Equal(codes, c.codes) || strings.Join(paths, " ") != c.paths {
			t.Errorf("%q: answers %v, want %v; the upstream got %q, want %q", c.bytes, codes, c.codes, paths, c.paths)
		}
	}
}
