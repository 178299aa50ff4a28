package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Relay relays HTTP/2 connections frame by frame: one connection to an upstream for each of a client's, the same stream ids, flow
// control and SETTINGS from end to end, header sections decoded and encoded anew (RFC 9113, RFC 7541). What may pass, and
// where it goes, is decided by the h2Owner of each connection. The zero value is ready; all methods may be called at once.
type h2Relay struct {
	serving sync.WaitGroup
	large   h2LargeConns
	mu      sync.Mutex // guards what follows
	conns   map[*h2Conn]struct{}
	closed  bool // by shutdown
}

// h2Owner decides what becomes of one client's connection. Its functions are not called at once with one another, with two
// exceptions: open runs beside all others, and ended beside those for other streams. None may be nil but trailers.
type h2Owner struct {
	// judge is asked about each request, before any of it goes upstream and whether or not there is an upstream yet. It may set
	// s.data. After a verdict with hold it is asked once more, with s.content.
	judge func(s *h2Stream) h2Verdict

	// open is called when a request may pass and there is no upstream: it dials what s asks for, s being the first such
	// request, and calls greetH2 with hello on each connection that it tries, since only one that has sent its SETTINGS is up (with
	// TLS 1.3 a rejected client certificate shows no earlier). All requests wait meanwhile. If it fails, all that wait are
	// refused, and the next request opens anew. ctx ends when the client has gone. s.fields is not to be changed.
	open func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal)

	// forward gives the header section that goes upstream in the place of s.fields, and is called right before: the upstream is
	// known, an opening line can be written. It may change and return s.fields. Names are lower-case, pseudo-fields come first.
	forward func(s *h2Stream) []hpack.HeaderField

	// trailers is asked about the trailer section of a request and may return other fields, or false to reset the stream.
	// Where it is nil every stream with such trailers is reset: gRPC has none.
	trailers func(s *h2Stream, fields []hpack.HeaderField) ([]hpack.HeaderField, bool)

	// ended is called once for each stream that was judged, before the client is told (before END_STREAM or RST_STREAM is
	// written to it).
	ended func(s *h2Stream, end h2End)
}

// h2Verdict is what judge says: hold, or a refusal, or neither to forward.
type h2Verdict struct {
	// hold asks for judge to be called again when the first message of the request's content is whole (gRPC's five bytes of
	// prefix and what they announce). Until then nothing of the stream goes upstream, nor of later ones.
	hold    bool
	refusal *h2Refusal
	// leave, with a refusal, has the client open another connection for what comes next (GOAWAY); what is under way goes on.
	leave bool
}

// h2Refusal answers a request in the place of an upstream: a header section with END_STREAM, as gRPC's "Trailers-Only".
type h2Refusal struct {
	status  int    // gRPC's: 7 is PERMISSION_DENIED, 14 UNAVAILABLE
	message string // UTF-8 text; it is percent-encoded on the wire
}

// h2Stream is one request and its answer, as the owner sees it. Its fields and content are valid within judge, open and forward
// alone.
type h2Stream struct {
	id     uint32
	start  time.Time
	fields []hpack.HeaderField // the request's header section as it came, valid per RFC 9113 §8.3: pseudo-fields first

	// content is set for the second call of judge: the first bytes of content, among them the prefix and the first message. whole tells
	// whether that message is complete; it is not where the client ended the stream before, or where it is larger than
	// what is held (h2HeldBytes).
	content []byte
	whole   bool

	data any // the owner's own

	h2StreamState
}

// h2Cause says why a stream ended.
type h2Cause int

const (
	h2Answered      h2Cause = iota // the upstream ended the stream
	h2Refused                      // judge or open refused it
	h2ClientReset                  // RST_STREAM by the client: end.reset
	h2ClientGone                   // the client's connection ended
	h2UpstreamReset                // RST_STREAM by the upstream, or its GOAWAY left the stream out: end.reset
	h2UpstreamLost                 // the upstream's connection ended; the client is told UNAVAILABLE
	h2Malformed                    // the client or the upstream broke the protocol or a limit; the relay reset it: end.reset
	h2Cut                          // shutdown's time was over
)

// h2End is what is known of a stream when it ends.
type h2End struct {
	cause      h2Cause
	httpStatus int                 // of the answer; 0 where there was none
	grpcStatus int                 // as the client is told; -1 where it is told none
	fields     []hpack.HeaderField // the answer's last header section: trailers, or Trailers-Only
	reset      http2.ErrCode       // of the RST_STREAM, where cause says so
	in, out    int64               // bytes of content taken from the client and from the upstream, without padding
	duration   time.Duration
}

// errH2Shutdown is what serve returns for connections that shutdown closed or that came after it.
var errH2Shutdown = errors.New("shut down")

// serve relays client, on which TLS has been done and "h2" been chosen, until it is over, and closes it. It returns why it
// ended: nil when a side left with no stream open.
func (r *h2Relay) serve(client net.Conn, owner h2Owner) error {
	c := newH2Conn(client, owner, &r.large)
	if !r.add(c) {
		h2Close(client)
		return errH2Shutdown
	}
	defer r.remove(c)
	return c.run()
}

func (r *h2Relay) add(c *h2Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	if r.conns == nil {
		r.conns = map[*h2Conn]struct{}{}
	}
	r.conns[c] = struct{}{}
	r.serving.Add(1)
	return true
}

func (r *h2Relay) remove(c *h2Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	r.serving.Done()
}

// shutdown tells every client to open no more streams (GOAWAY), waits until those under way have ended, and when ctx ends
// closes what is left. serve returns at once for connections that come later.
func (r *h2Relay) shutdown(ctx context.Context) {
	r.mu.Lock()
	r.closed = true
	conns := slices.Collect(maps.Keys(r.conns))
	r.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.cut(h2Cut, errH2Shutdown)
		}
	})
	defer stop()
	for _, c := range conns {
		// Each by itself, for one that does not read would keep the others waiting. Its end, or cut, ends it.
		r.serving.Go(c.drain)
	}
	r.serving.Wait()
}

// begin starts the upstream's half of c, which run waits for.
func (c *h2Conn) begin(s *h2Stream, hello []byte) {
	c.running.Go(func() {
		if err := guarded(func() error { c.runUpstream(s, hello); return nil }); err != nil {
			c.cut(h2Malformed, err)
		}
	})
}

// h2Fault is a panic on a connection: a fault of the relay's or of its owner's. It ends that connection alone.
type h2Fault struct {
	value any
	stack []byte
}

func (f *h2Fault) Error() string { return fmt.Sprint("panic: ", f.value) }

// guarded makes an error of a panic in f, so that all streams of the connection still have their ends, and the process goes on.
func guarded(f func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &h2Fault{value, debug.Stack()}
		}
	}()
	return f()
}

// field gives the value of the first field of that name in s's request, "" where there is none.
func (s *h2Stream) field(name string) string {
	for _, f := range s.fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}
