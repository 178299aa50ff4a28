package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frameConn is an HTTP/2 connection in the hands of an attacker, who writes frames.
type frameConn struct {
	*tls.Conn
	*http2.Framer
	out   *bufio.Writer // flushed before frames are read
	block bytes.Buffer
	enc   *hpack.Encoder
}

// frames opens an intercepted HTTP/2 connection to authority and sends the preface and settings.
func (p *testProxy) frames(t testing.TB, authority string, settings ...http2.Setting) *frameConn {
	t.Helper()
	conn, res := p.connect(t, authority)
	if res.StatusCode != 200 {
		t.Fatalf("CONNECT %s: %s", authority, res.Status)
	}
	host, _, _ := net.SplitHostPort(authority)
	tc := tls.Client(conn, &tls.Config{ServerName: host, RootCAs: p.ca, NextProtos: []string{"h2"}})
	if err := tc.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := &frameConn{Conn: tc, out: bufio.NewWriter(tc)}
	f.Framer = http2.NewFramer(f.out, tc)
	f.enc = hpack.NewEncoder(&f.block)
	f.out.WriteString(http2.ClientPreface)
	f.WriteSettings(settings...)
	f.out.Flush()
	return f
}

// fields gives a header block: name, value, name, value.
func (f *frameConn) fields(pairs ...string) []byte {
	f.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		f.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(f.block.Bytes())
}

// headers sends a header section in as many frames as it takes.
func (f *frameConn) headers(stream uint32, end bool, block []byte) error {
	first := block[:min(len(block), maxFrame)]
	rest := block[len(first):]
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0})
	for len(rest) > 0 && err == nil {
		part := rest[:min(len(rest), maxFrame)]
		rest = rest[len(part):]
		err = f.WriteContinuation(stream, len(rest) == 0, part)
	}
	return err
}

// answer reads frames until the stream has its answer: "200", "INTERNAL_ERROR" where it was reset, "closed" with the connection.
func (f *frameConn) answer(stream uint32) string {
	if f.ReadMetaHeaders == nil {
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	}
	f.out.Flush()
	for {
		frame, err := f.ReadFrame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "nothing"
		}
		if err != nil {
			return "closed"
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			if frame.StreamID == stream {
				return frame.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if frame.StreamID == stream {
				return frame.ErrCode.String()
			}
		case *http2.GoAwayFrame:
			if frame.ErrCode != http2.ErrCodeNo {
				return "closed"
			}
		}
	}
}

// ask sends a header section as the connection's first stream and gives its answer.
func (f *frameConn) ask(pairs []string) string {
	f.headers(1, true, f.fields(pairs...))
	return f.answer(1)
}

// hostileFields gives the fields of a GET with some replaced or, where their value is "-", left out, and more behind them.
func hostileFields(replace map[string]string, more ...string) []string {
	var pairs []string
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "api.github.com"}, {":path", "/a"}} {
		value, ok := replace[f[0]]
		if !ok {
			value = f[1]
		}
		if value != "-" {
			pairs = append(pairs, f[0], value)
		}
	}
	return append(pairs, more...)
}

func TestHTTP2FieldsSmuggleNothing(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	type replace = map[string]string
	for _, c := range []struct {
		name   string
		fields []string
		answer string
	}{
		{"a plain request", hostileFields(nil), "200"},
		{"Host like :authority", hostileFields(nil, "host", "API.github.com:443"), "200"},
		{"Host instead of :authority", hostileFields(replace{":authority": "-"}, "host", "api.github.com"), "200"},
		{"Host differs from :authority", hostileFields(nil, "host", "evil.example"), "421"},
		{"two Hosts", hostileFields(nil, "host", "api.github.com", "host", "evil.example"), "421"},
		{"neither Host nor :authority", hostileFields(replace{":authority": "-"}), "421"},
		{"another :authority", hostileFields(replace{":authority": "api.anthropic.com"}), "421"},
		{"another port", hostileFields(replace{":authority": "api.github.com:80"}), "421"},
		{"userinfo in :authority", hostileFields(replace{":authority": "evil@api.github.com"}), "PROTOCOL_ERROR"},
		{"a path in :authority", hostileFields(replace{":authority": "api.github.com/evil"}), "421"},
		{"CRLF in a value", hostileFields(nil, "x-a", "b\r\nauthorization: c"), "PROTOCOL_ERROR"},
		{"LF in a value", hostileFields(nil, "x-a", "b\nc"), "PROTOCOL_ERROR"},
		{"NUL in a value", hostileFields(nil, "x-a", "b\x00c"), "PROTOCOL_ERROR"},
		{"CRLF in a name", hostileFields(nil, "x-a\r\nx-b", "c"), "PROTOCOL_ERROR"},
		{"a colon in a name", hostileFields(nil, "x-a: b\r\nx", "c"), "PROTOCOL_ERROR"},
		{"a blank in a name", hostileFields(nil, "x a", "c"), "PROTOCOL_ERROR"},
		{"an upper case name", hostileFields(nil, "X-A", "c"), "PROTOCOL_ERROR"},
		{"an empty name", hostileFields(nil, "", "c"), "PROTOCOL_ERROR"},
		{"transfer-encoding", hostileFields(nil, "transfer-encoding", "chunked"), "400"},
		{"connection", hostileFields(nil, "connection", "authorization"), "400"},
		{"keep-alive", hostileFields(nil, "keep-alive", "1"), "400"},
		{"proxy-connection", hostileFields(nil, "proxy-connection", "close"), "400"},
		{"upgrade", hostileFields(nil, "upgrade", "websocket"), "400"},
		{"te other than trailers", hostileFields(nil, "te", "gzip"), "400"},
		{"te trailers", hostileFields(nil, "te", "trailers"), "200"},
		{"a path without a slash", hostileFields(replace{":path": "a"}), "PROTOCOL_ERROR"},
		{"an empty path", hostileFields(replace{":path": ""}), "PROTOCOL_ERROR"},
		{"no path", hostileFields(replace{":path": "-"}), "PROTOCOL_ERROR"},
		{"a URL as path", hostileFields(replace{":path": "https://evil.example/"}), "400"},
		{"* for GET", hostileFields(replace{":path": "*"}), "400"},
		{"CRLF in the path", hostileFields(replace{":path": "/a HTTP/1.1\r\nx: y"}), "PROTOCOL_ERROR"},
		{"a blank in the path", hostileFields(replace{":path": "/a HTTP/1.1"}), "400"},
		{"a fragment in the path", hostileFields(replace{":path": "/a#b"}), "400"},
		{"a path that begins with two slashes", hostileFields(replace{":path": "//evil.example/a"}), "200"},
		{"a blank in the method", hostileFields(replace{":method": "GET /evil"}), "400"},
		{"CRLF in the method", hostileFields(replace{":method": "GET / HTTP/1.1\r\n"}), "PROTOCOL_ERROR"},
		{"an empty method", hostileFields(replace{":method": ""}), "PROTOCOL_ERROR"},
		{"CONNECT", hostileFields(replace{":method": "CONNECT", ":path": "-", ":scheme": "-"}), "400"},
		{"extended CONNECT", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "api.github.com", ":path", "/a"}, "PROTOCOL_ERROR"},
		{"another scheme", hostileFields(replace{":scheme": "ftp"}), "PROTOCOL_ERROR"},
		{"a pseudo field after a regular one", []string{":method", "GET", "x-a", "b", ":scheme", "https", ":path", "/", ":authority", "api.github.com"}, "PROTOCOL_ERROR"},
		{"a pseudo field twice", hostileFields(nil, ":path", "/b"), "PROTOCOL_ERROR"},
		{"an unknown pseudo field", hostileFields(nil, ":evil", "b"), "PROTOCOL_ERROR"},
		{"a length without content", hostileFields(nil, "content-length", "5"), "400"},
		{"two lengths without content", hostileFields(nil, "content-length", "5", "content-length", "6"), "400"},
		{"auth in every way", hostileFields(nil, "authorization", "a", "authorization", "b", "x-api-key", "c", "proxy-authorization", "d", "cookie", "e", "cookie", "f"), "200"},
		{"TRACE", hostileFields(replace{":method": "TRACE"}), "403"},
		{"600 fields", hostileFields(nil, slices.Repeat([]string{"x-a", "b"}, 600)...), "431"},
		{"a section over 64 KiB", hostileFields(nil, slices.Repeat([]string{"x-a", strings.Repeat("b", 1000)}, 70)...), "431"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := p.frames(t, "api.github.com:443").ask(c.fields); got != c.answer && got != "closed" {
				t.Errorf("answer %s, want %s", got, c.answer)
			}
			got := o.takeWire(t)
			if len(got) > 1 || (len(got) == 1) != (c.answer == "200") {
				t.Errorf("%d requests reached the upstream, answer %s", len(got), c.answer)
			}
			for _, r := range got {
				checkInjectedWire(t, r)
				if l := p.lastLine(t); !l.Injected || l.Method != r.method || l.Path != r.target {
					t.Errorf("the upstream got %s %s, audit line %+v", r.method, r.target, l)
				}
			}
		})
	}
}

func TestHTTP2ContentSmugglesNothing(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	hidden := hostileRequest("GET /hidden HTTP/1.1", "", "")
	chunks := "0\r\n\r\n" + hidden
	for _, c := range []struct {
		name     string
		fields   []string
		data     string
		trailers []string
		answer   string
		content  string // what the upstream gets where the answer is 200
	}{
		{"a request as content", nil, hidden, nil, "200", hidden},
		{"chunks as content", nil, chunks, nil, "200", chunks},
		{"chunks as content, te: trailers, and an upstream without HTTP/2", []string{"te", "trailers"}, chunks, nil, "200", chunks},
		{"a length that is right", []string{"content-length", fmt.Sprint(len(chunks))}, chunks, nil, "200", chunks},
		{"a length that is too short", []string{"content-length", "5"}, chunks, nil, "PROTOCOL_ERROR", ""},
		{"a length that is too long", []string{"content-length", "5000"}, chunks, nil, "INTERNAL_ERROR", ""},
		{"two lengths", []string{"content-length", fmt.Sprint(len(chunks)), "content-length", "5"}, chunks, nil, "400", ""},
		{"a length with a sign", []string{"content-length", "+5"}, chunks, nil, "400", ""},
		{"an API key in trailers", []string{"trailer", "x-api-key, x-ok"}, "abc", []string{"x-api-key", "a", "cookie", "b", "x-ok", "yes"}, "200", "abc"},
		{"auth in trailers", []string{"trailer", "authorization"}, "abc", []string{"authorization", "a"}, "PROTOCOL_ERROR", ""},
		{"framing in trailers", []string{"trailer", "content-length"}, "abc", []string{"content-length", "7"}, "200", "abc"},
		{"CRLF in trailers", []string{"trailer", "x-ok"}, "abc", []string{"x-ok", "a\r\n\r\n" + hidden}, "PROTOCOL_ERROR", ""},
		{"a pseudo field in trailers", []string{"trailer", "x-ok"}, "abc", []string{":path", "/hidden"}, "PROTOCOL_ERROR", ""},
		{"a malformed name of a trailer", []string{"trailer", "x-ok: a"}, "abc", nil, "INTERNAL_ERROR", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := p.frames(t, "api.github.com:443")
			f.headers(1, false, f.fields(hostileFields(map[string]string{":method": "POST"}, c.fields...)...))
			f.WriteData(1, c.trailers == nil, []byte(c.data))
			if c.trailers != nil {
				f.headers(1, true, f.fields(c.trailers...))
			}
			got := f.answer(1)
			reset := got == "closed" || c.answer == "400" && got == "PROTOCOL_ERROR" // the server may be faster than we are
			if got != c.answer && !reset {
				t.Errorf("answer %s, want %s", got, c.answer)
			}
			wire := o.takeWire(t)
			if (len(wire) == 1) != (c.answer == "200") || len(wire) == 1 && wire[0].content != c.content {
				t.Errorf("%d requests reached the upstream: %+v", len(wire), wire)
			}
			for _, r := range wire {
				checkInjectedWire(t, r)
			}
		})
	}
}

// A request with a length of 0 is whole as its head says: whether it goes out, and is answered, before the content comes that it
// must not have, is a race.
func TestHTTP2ContentBehindALengthOfZeroIsNoRequest(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	f := p.frames(t, "api.github.com:443")
	f.headers(1, false, f.fields(hostileFields(map[string]string{":method": "POST"}, "content-length", "0")...))
	f.WriteData(1, true, []byte(hostileRequest("GET /hidden HTTP/1.1", "", "")))
	if got := f.answer(1); got != "200" && got != "PROTOCOL_ERROR" && got != "closed" {
		t.Errorf("answer %s", got)
	}
	p.quiesce()
	wire := o.takeWire(t)
	if len(wire) > 1 {
		t.Errorf("%d requests reached the upstream", len(wire))
	}
	for _, r := range wire {
		checkInjectedWire(t, r)
		if r.method != "POST" || r.content != "" {
			t.Errorf("the upstream got %s %s %q", r.method, r.target, r.content)
		}
	}
}

// othersGoOn fails unless another client's requests are answered.
func othersGoOn(t *testing.T, p *testProxy) {
	t.Helper()
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	for range 5 {
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if res, content := exchangeRaw(t, conn, hostileRequest("GET /other HTTP/1.1", "", "")); res.StatusCode != 200 || content != "ok" {
			t.Fatalf("another client got %s %q", res.Status, content)
		}
	}
	conn.Close()
}

func TestHTTP2FloodsCostLittleAndHarmNobodyElse(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	othersGoOn(t, p)
	get := hostileFields(nil)
	const rounds = 2000
	for _, c := range []struct {
		name  string
		ends  bool // muxproxy closes the connection within the rounds
		flood func(f *frameConn, i uint32) error
	}{
		{"rapid reset", false, func(f *frameConn, i uint32) error {
			f.headers(2*i+1, true, f.fields(get...))
			return f.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
		}},
		{"rapid reset by a flow control error", false, func(f *frameConn, i uint32) error {
			f.headers(2*i+1, true, f.fields(get...))
			return f.WriteRawFrame(http2.FrameWindowUpdate, 0, 2*i+1, []byte{0, 0, 0, 0})
		}},
		{"streams that never end", false, func(f *frameConn, i uint32) error {
			return f.headers(2*i+1, false, f.fields(hostileFields(map[string]string{":method": "POST"})...))
		}},
		{"CONTINUATION without end", true, func(f *frameConn, i uint32) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields(get...)})
			}
			return f.WriteContinuation(1, false, f.fields("x-a", strings.Repeat("b", 100)))
		}},
		{"empty CONTINUATION without end", false, func(f *frameConn, i uint32) error {
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields(get...)})
			}
			return f.WriteContinuation(1, false, nil)
		}},
		{"a field of 4 KiB, named again and again by one byte", true, func(f *frameConn, i uint32) error {
			f.enc.SetMaxDynamicTableSizeLimit(4096)
			if i == 0 {
				return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: f.fields(append(get, "x-a", strings.Repeat("b", 4000))...)})
			}
			return f.WriteContinuation(1, false, bytes.Repeat([]byte{0x80 | 62}, 1000))
		}},
		{"SETTINGS, with nothing read", false, func(f *frameConn, i uint32) error { return f.WriteSettings() }},
		{"PING, with nothing read", false, func(f *frameConn, i uint32) error { return f.WritePing(false, [8]byte{}) }},
		{"PRIORITY", false, func(f *frameConn, i uint32) error {
			return f.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2*i + 3})
		}},
		{"WINDOW_UPDATE", true, func(f *frameConn, i uint32) error { return f.WriteWindowUpdate(0, 1<<30) }},
		{"empty DATA", false, func(f *frameConn, i uint32) error {
			if i == 0 {
				return f.headers(1, false, f.fields(hostileFields(map[string]string{":method": "POST"})...))
			}
			return f.WriteData(1, false, nil)
		}},
		{"frames of an unknown type", false, func(f *frameConn, i uint32) error { return f.WriteRawFrame(0xbe, 0xff, 2*i, []byte("evil")) }},
		{"frames over the size", true, func(f *frameConn, i uint32) error {
			return f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, maxFrame+1))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := takeFootprint()
			f := p.frames(t, "api.github.com:443")
			var err error // nothing is read meanwhile, so that answers pile up
			for i := uint32(0); err == nil && i < rounds; i++ {
				err = c.flood(f, i)
			}
			f.out.Flush()
			othersGoOn(t, p)
			peak := takeFootprint()
			if grown := peak.memory - before.memory; grown > 32<<20 || peak.goroutines-before.goroutines > 5*maxStreams {
				t.Errorf("it takes %d MiB and %d goroutines", grown>>20, peak.goroutines-before.goroutines)
			}
			if c.ends && err == nil {
				f.SetReadDeadline(time.Now().Add(10 * time.Second))
				if got := f.answer(1<<31 - 1); got != "closed" {
					t.Errorf("the connection goes on: %s", got)
				}
			}
			f.NetConn().Close()
		})
	}
	p.quiesce()
	checkAllAudited(t, p, o)
}

// checkAllAudited fails unless every whole request at the upstream has its line and its credential.
func checkAllAudited(t *testing.T, p *testProxy, o *wireOrigin) {
	t.Helper()
	got := o.takeWire(t)
	injected := 0
	for _, l := range p.lines(t) {
		if l.Injected {
			injected++
		}
	}
	if len(got) > injected {
		t.Errorf("%d requests reached the upstream, %d have a line", len(got), injected)
	}
	for _, r := range got {
		checkInjectedWire(t, r)
	}
}

func TestAClientThatNeverOpensItsWindowHoldsOnlyItsOwnStreams(t *testing.T) {
	o := newWireOrigin(t)
	large := "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("a", 100_000)
	o.answer = func(r *wireRequest) string {
		if r.target == "/a" {
			return large
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	}
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	othersGoOn(t, p)
	before := takeFootprint()
	f := p.frames(t, "api.github.com:443", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const streams = 20
	for i := range uint32(streams) {
		f.headers(2*i+1, true, f.fields(hostileFields(nil)...))
	}
	f.out.Flush()
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for heads := 0; heads < streams; { // they are not under flow control
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := frame.(*http2.MetaHeadersFrame); ok {
			heads++
		}
	}
	othersGoOn(t, p)
	after := takeFootprint()
	if memory := (after.memory - before.memory) / streams; memory > 512<<10 || after.goroutines-before.goroutines > 5*streams {
		t.Errorf("a stream takes %d KiB; %d goroutines in all", memory>>10, after.goroutines-before.goroutines)
	}
	f.NetConn().Close()
	p.quiesce()
	checkAllAudited(t, p, o)
}

// lateReply fails the test when it is used.
type lateReply struct {
	reply
	t *testing.T
}

func (r lateReply) inform(int, http.Header) error {
	r.t.Error("an interim answer was passed on")
	return nil
}

func TestAnInterimAnswerThatComesTooLateIsNotPassedOn(t *testing.T) {
	x := &exchange{reply: lateReply{t: t}}
	x.endInterim()
	if err := x.got1xx(103, textproto.MIMEHeader{}); !errors.Is(err, errDecided) {
		t.Errorf("got1xx: %v", err)
	}
}
