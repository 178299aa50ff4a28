package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Peer is one end of an HTTP/2 connection, made by hand of a Framer: it can break every rule. A goroutine reads what comes and
// gives each frame as a line of text: "HEADERS 1 end :status=200 grpc-status=0", "DATA 1 end 5", "SETTINGS 3=1000",
// "SETTINGS ack", "RST_STREAM 1 CANCEL", "WINDOW_UPDATE 0 10", "PING ack 12345678", "GOAWAY 1 NO_ERROR", and "closed".
type h2Peer struct {
	t      testing.TB
	conn   net.Conn
	framer *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
	lines  chan string
	data   func(p []byte) // is told content, if set
}

func newH2Peer(t testing.TB, conn net.Conn) *h2Peer {
	p := &h2Peer{t: t, conn: conn, framer: http2.NewFramer(conn, conn), lines: make(chan string, 1<<16)}
	p.framer.AllowIllegalWrites = true
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.framer.MaxHeaderListSize = 32 << 20
	p.enc = hpack.NewEncoder(&p.block)
	return p
}

// read gives lines until the connection ends.
func (p *h2Peer) read() {
	defer close(p.lines)
	for {
		f, err := p.framer.ReadFrame()
		if err != nil {
			if errors.As(err, new(http2.ConnectionError)) || errors.As(err, new(http2.StreamError)) {
				p.t.Errorf("the relay wrote what is not allowed: %v: %v", err, p.framer.ErrorDetail())
			}
			p.lines <- "closed"
			return
		}
		p.lines <- p.line(f)
	}
}

func (p *h2Peer) line(f http2.Frame) string {
	head := f.Header()
	line := fmt.Sprintf("%v %d", head.Type, head.StreamID)
	if head.Flags.Has(http2.FlagDataEndStream) && (head.Type == http2.FrameData || head.Type == http2.FrameHeaders) {
		line += " end"
	}
	switch f := f.(type) {
	case *http2.DataFrame:
		if p.data != nil {
			p.data(f.Data())
		}
		line += fmt.Sprintf(" %d", len(f.Data()))
	case *http2.MetaHeadersFrame:
		for _, field := range f.Fields {
			if len(field.Value) > 100 {
				field.Value = fmt.Sprint(len(field.Value))
			}
			line += " " + field.Name + "=" + field.Value
		}
	case *http2.SettingsFrame:
		line = "SETTINGS"
		if f.IsAck() {
			line += " ack"
		}
		for i := range f.NumSettings() {
			line += fmt.Sprintf(" %d=%d", f.Setting(i).ID, f.Setting(i).Val)
		}
	case *http2.PingFrame:
		line = "PING " + string(f.Data[:])
		if f.IsAck() {
			line = "PING ack " + string(f.Data[:])
		}
	case *http2.GoAwayFrame:
		line = fmt.Sprintf("GOAWAY %d %v %s", f.LastStreamID, f.ErrCode, f.DebugData())
	case *http2.RSTStreamFrame:
		line += " " + f.ErrCode.String()
	case *http2.WindowUpdateFrame:
		line += fmt.Sprint(" ", f.Increment)
	}
	return line
}

// wants reads one line after the other and compares its beginning with what is wanted.
func (p *h2Peer) wants(want ...string) {
	p.t.Helper()
	for _, w := range want {
		select {
		case got := <-p.lines:
			if !strings.HasPrefix(got, w) {
				p.t.Fatalf("got %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			p.t.Fatalf("nothing came, want %q", w)
		}
	}
}

// until reads on to the line that begins with want, and gives all lines before it.
func (p *h2Peer) until(want string) (before []string) {
	p.t.Helper()
	for {
		select {
		case got, ok := <-p.lines:
			if !ok && want != "closed" {
				p.t.Fatalf("%q never came; at last %q came", want, before[max(0, len(before)-5):])
			}
			if !ok || strings.HasPrefix(got, want) {
				return before
			}
			before = append(before, got)
		case <-time.After(10 * time.Second):
			p.t.Fatalf("%q never came; at last %q came", want, before[max(0, len(before)-5):])
		}
	}
}

// encode gives a header section: name, value, name, value.
func (p *h2Peer) encode(pairs ...string) []byte {
	p.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(p.block.Bytes())
}

// headers sends a header section in as many frames as it takes.
func (p *h2Peer) headers(stream uint32, end bool, pairs ...string) {
	p.section(stream, end, p.encode(pairs...))
}

// section sends an encoded header section in as many frames as it takes.
func (p *h2Peer) section(stream uint32, end bool, rest []byte) {
	first := rest[:min(len(rest), h2Piece)]
	rest = rest[len(first):]
	p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: first, EndStream: end, EndHeaders: len(rest) == 0})
	for len(rest) > 0 {
		first = rest[:min(len(rest), h2Piece)]
		rest = rest[len(first):]
		p.framer.WriteContinuation(stream, len(rest) == 0, first)
	}
}

// request sends the header section of a gRPC request, with further fields.
func (p *h2Peer) request(stream uint32, end bool, path string, pairs ...string) {
	p.headers(stream, end, append([]string{":method", "POST", ":scheme", "https", ":path", path, ":authority", "door", "content-type", "application/grpc"}, pairs...)...)
}

func (p *h2Peer) content(stream uint32, end bool, content string) {
	p.framer.WriteData(stream, end, []byte(content))
}

// grpcFramed is a gRPC message.
func grpcFramed(content string) string {
	return string([]byte{0, 0, 0, byte(len(content) >> 8), byte(len(content))}) + content
}

// h2Test is a relay between a client and its upstreams, both h2Peers.
type h2Test struct {
	t         testing.TB
	client    *h2Peer
	upstreams chan *h2Peer // each that open has greeted
	relay     *h2Relay
	served    chan error
	judged    chan string // the path of each request, as it is judged
	ended     chan string // "/path cause grpcStatus in out"
	dials     int
	refusal   *h2Refusal // open fails with it
	owner     h2Owner
	pipe      func() (net.Conn, net.Conn)
	greeting  []http2.Setting
}

// newH2Test makes the parts; start starts them. Requests to "/refused" are refused, those to "/held…" judged by their first
// message, which must be "good".
func newH2Test(t testing.TB) *h2Test {
	h := &h2Test{t: t, upstreams: make(chan *h2Peer, 10), relay: &h2Relay{}, served: make(chan error, 1), judged: make(chan string, 1<<16), ended: make(chan string, 1<<16)}
	h.pipe = func() (net.Conn, net.Conn) { return tcpPair(t) }
	h.owner = h2Owner{
		judge: func(s *h2Stream) h2Verdict {
			path := s.field(":path")
			h.judged <- path
			switch {
			case path == "/refused":
				return h2Verdict{refusal: &h2Refusal{7, "100% refused"}}
			case strings.HasPrefix(path, "/held") && s.data == nil:
				s.data = path
				return h2Verdict{hold: true}
			case strings.HasPrefix(path, "/held") && (!s.whole || !strings.HasPrefix(string(s.content[5:]), "good")):
				return h2Verdict{refusal: &h2Refusal{7, "not good"}}
			}
			s.data = path
			return h2Verdict{}
		},
		open: h.open,
		forward: func(s *h2Stream) []hpack.HeaderField {
			for i := range s.fields {
				if s.fields[i].Name == ":authority" {
					s.fields[i].Value = "upstream"
				}
			}
			return s.fields
		},
		ended: func(s *h2Stream, e h2End) {
			h.ended <- fmt.Sprintf("%v %d %d %d %d", s.data, e.cause, e.grpcStatus, e.in, e.out)
		},
	}
	return h
}

// open greets one more upstream, which has sent h.greeting.
func (h *h2Test) open(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
	h.dials++
	if h.refusal != nil {
		return nil, h.refusal
	}
	near, far := h.pipe()
	p := newH2Peer(h.t, far)
	go func() {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := far.Read(preface); err != nil || string(preface) != http2.ClientPreface {
			h.t.Errorf("preface %q, %v", preface, err)
		}
		p.framer.WriteSettings(h.greeting...)
		p.read()
	}()
	up, err := greetH2(ctx, near, hello)
	if err != nil {
		return nil, &h2Refusal{14, err.Error()}
	}
	h.upstreams <- p
	return up, nil
}

// start has the client's connection relayed, and the client say its preface with settings.
func (h *h2Test) start(settings ...http2.Setting) *h2Test {
	h.t.Helper()
	near, far := h.pipe()
	h.client = newH2Peer(h.t, near)
	go func() { h.served <- h.relay.serve(far, h.owner) }()
	go h.client.read()
	h.client.conn.Write([]byte(http2.ClientPreface))
	h.client.framer.WriteSettings(settings...)
	h.client.wants("SETTINGS 3=1000 6=1048576", "SETTINGS ack")
	h.client.framer.WriteSettingsAck()
	h.t.Cleanup(func() {
		h.client.conn.Close()
		select {
		case <-h.served:
		case <-time.After(10 * time.Second):
			h.t.Error("the relay does not end")
		}
	})
	return h
}

// up starts, sends a first request "/1" on stream 1 and gives the upstream, which has seen it.
func (h *h2Test) up() *h2Peer {
	h.t.Helper()
	h.start()
	h.client.request(1, false, "/1")
	u := h.upstream()
	h.client.wants("SETTINGS")
	h.client.framer.WriteSettingsAck()
	u.wants("HEADERS 1 :method=POST", "SETTINGS ack")
	return u
}

// upstream gives the one that has been opened, behind the SETTINGS it was sent.
func (h *h2Test) upstream() *h2Peer {
	h.t.Helper()
	select {
	case u := <-h.upstreams:
		u.wants("SETTINGS 2=0")
		u.framer.WriteSettingsAck()
		h.t.Cleanup(func() { u.conn.Close(); u.until("closed") })
		return u
	case <-time.After(10 * time.Second):
		h.t.Fatal("no upstream was opened")
		return nil
	}
}

// ends compares the next streams that the owner was told have ended.
func (h *h2Test) ends(want ...string) {
	h.t.Helper()
	for _, w := range want {
		select {
		case got := <-h.ended:
			if got != w {
				h.t.Fatalf("ended %q, want %q", got, w)
			}
		case <-time.After(10 * time.Second):
			h.t.Fatalf("nothing ended, want %q", w)
		}
	}
}

// tcpPair gives both ends of a connection over loopback.
func tcpPair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

func TestRelayPassesARequestAndItsAnswerOn(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.content(1, true, grpcFramed("hello"))
	u.wants("DATA 1 end 10")
	u.headers(1, false, ":status", "200", "content-type", "application/grpc")
	u.content(1, false, grpcFramed("answer"))
	u.headers(1, true, "grpc-status", "0", "grpc-message", "")
	h.client.wants("HEADERS 1 :status=200", "DATA 1 11", "HEADERS 1 end grpc-status=0 grpc-message=")
	h.ends("/1 0 0 10 11")
}

func TestRelayRefusesWithTrailersOnly(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.start()
	h.client.request(1, true, "/refused")
	h.client.wants("HEADERS 1 end :status=200 content-type=application/grpc grpc-status=7 grpc-message=100%25 refused")
	h.client.request(3, false, "/refused")
	h.client.wants("HEADERS 3 end :status=200", "RST_STREAM 3 NO_ERROR")
	if h.dials > 0 {
		t.Error("an upstream was opened for a refused request")
	}
}

// bufferedPipe gives both ends of a connection in memory that holds what has been written, for use in a synctest bubble.
func bufferedPipe() (net.Conn, net.Conn) {
	a, b := newPipeHalf(), newPipeHalf()
	return &pipeEnd{in: a, out: b}, &pipeEnd{in: b, out: a}
}

// pipeHalf is what is under way in one direction.
type pipeHalf struct {
	mu       sync.Mutex
	more     *sync.Cond
	buf      []byte
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

func newPipeHalf() *pipeHalf {
	p := &pipeHalf{}
	p.more = sync.NewCond(&p.mu)
	return p
}

// pipeEnd is a net.Conn.
type pipeEnd struct {
	net.Conn
	in, out *pipeHalf
}

func (e *pipeEnd) Read(p []byte) (int, error) {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	for {
		switch {
		case len(e.in.buf) > 0:
			n := copy(p, e.in.buf)
			e.in.buf = e.in.buf[n:]
			return n, nil
		case e.in.closed:
			return 0, io.EOF
		case !e.in.deadline.IsZero() && !time.Now().Before(e.in.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		e.in.more.Wait()
	}
}

func (e *pipeEnd) Write(p []byte) (int, error) {
	e.out.mu.Lock()
	defer e.out.mu.Unlock()
	if e.out.closed {
		return 0, io.ErrClosedPipe
	}
	e.out.buf = append(e.out.buf, p...)
	e.out.more.Broadcast()
	return len(p), nil
}

func (e *pipeEnd) Close() error {
	for _, half := range []*pipeHalf{e.in, e.out} {
		half.mu.Lock()
		half.closed = true
		half.more.Broadcast()
		half.mu.Unlock()
	}
	return nil
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	e.in.deadline = t
	if e.in.timer != nil {
		e.in.timer.Stop()
	}
	if !t.IsZero() {
		e.in.timer = time.AfterFunc(time.Until(t), e.in.more.Broadcast)
	}
	return nil
}

func (e *pipeEnd) LocalAddr() net.Addr { return &net.TCPAddr{} }

func (e *pipeEnd) RemoteAddr() net.Addr { return &net.TCPAddr{} }

func (e *pipeEnd) SetWriteDeadline(time.Time) error { return nil }

func (e *pipeEnd) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }
