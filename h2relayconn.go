package main

import (
	"context"
	"io"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2HeldBytes bounds the content that waits for a verdict on a connection whose upstream is up, in bytes. It is a quarter of the
// smallest window of a connection: what is held is not acknowledged by the upstream, and must not use up the window that the rest
// of a message needs. (While there is no upstream yet, the window itself is the bound.)
const h2HeldBytes = 16 << 10

// h2HeldFields bounds the header sections that wait, in bytes.
const h2HeldFields = 2 * h2FieldsLimit

// h2HeldWait is how long a request may wait for its first message to be whole. A client sends both at once.
const h2HeldWait = 10 * time.Second

// h2IdleWait is how long a connection may be without a stream.
const h2IdleWait = 5 * time.Minute

// h2Linger is how long a client has to take what is left for it and to leave, once it has been told to.
const h2Linger = 5 * time.Second

// h2Conn is one client's connection, with its upstream's. Two pumps move frames, one each way; each writes to its own peer too:
// what the relay itself answers. Lock order: flow, mu, then a writer's.
type h2Conn struct {
	owner   h2Owner
	reader  *h2Reader // the client's; for its pump
	client  *h2Writer
	ctx     context.Context // of open
	cancel  context.CancelFunc
	running sync.WaitGroup // of the upstream's half

	// flow orders what goes upstream: it is held while a frame of the client is dealt with, and while what has waited is sent.
	flow       sync.Mutex
	up         *h2Upstream // nil until it is up; never changed afterwards
	opening    bool
	queue      []*h2Stream // those that wait for a verdict, for the upstream, or for one before them, by id
	held       int         // bytes of content in queue
	heldFields int         // and of header sections
	settings   h2Settings  // the client's
	window     int64       // what the client added to its connection's window before the upstream was up
	told       int64       // what of window the upstream's hello had
	changed    bool        // settings changed since that hello
	room       int64       // what the client may send before the upstream is up, in bytes
	owed       uint32      // window to give back to the client: content that was not passed on
	wrote      bool        // to the client, by its own pump, and not flushed
	early      bool        // the client has acknowledged earlySettings
	frames     *h2Budget   // of the client's frames that carry nothing
	resets     *h2Budget   // of streams that ended without an answer
	large      h2Large

	mu      sync.Mutex // guards what follows
	streams map[uint32]*h2Stream
	last    uint32 // the highest id that the client has used
	above   uint32 // streams beyond it are refused: GOAWAY has been sent
	leaving bool   // the connection ends with its last stream
	gone    bool   // the client has
	cause   h2Cause
	why     error // the connection ends for
	idle    *time.Timer
	quiet   time.Time // when the last stream ended

	acks atomic.Int32 // of the client, that the upstream waits for
}

// h2StreamState is what the relay keeps of a stream.
type h2StreamState struct {
	// guarded by flow
	waits   bool        // for judge's second verdict
	timer   *time.Timer // of overdue
	trailer []hpack.HeaderField
	window  uint32 // what the client added to its window while it waited
	size    int    // of its header section while that waits
	grpc    bool   // its content-type is gRPC's

	// guarded by the connection's mu
	judged       bool // the owner knows of it
	over         bool // ended has been called
	sent         bool // the header section has gone upstream
	answered     bool // the answer's header section has come
	clientDone   bool // END_STREAM of the client has come
	upstreamDone bool
	status       int
	in, out      int64
}

func newH2Conn(client net.Conn, owner h2Owner, large *h2LargeConns) *h2Conn {
	from, _ := netip.ParseAddrPort(client.RemoteAddr().String())
	c := &h2Conn{
		owner: owner, reader: newH2Reader(client), client: newH2Writer(client),
		room: h2Window, streams: map[uint32]*h2Stream{}, above: math.MaxUint32, cause: h2ClientGone,
		frames: newH2Budget(h2FrameRate), resets: newH2Budget(h2ResetRate), large: h2Large{conns: large, addr: from.Addr()},
	}
	c.reader.fields.grow = c.large.grow
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// run relays until the connection is over.
func (c *h2Conn) run() error {
	keepH2Alive(c.reader.conn, false)
	c.watchIdle()
	defer c.idle.Stop()
	defer c.large.end()
	err := guarded(c.relayClient)
	fault, broken := err.(*h2ConnError)
	if _, failed := err.(*h2Fault); failed {
		c.cut(h2Malformed, err)
	}
	if broken {
		c.stop(h2Malformed, err)
		// The upstream's half may be writing to it.
		c.reader.conn.SetDeadline(time.Now().Add(h2Linger))
	} else {
		c.stop(h2ClientGone, err)
		h2Close(c.reader.conn)
	}
	c.running.Wait()
	c.endAll()
	if broken {
		c.client.goAway(c.last, fault.code, []byte(fault.reason))
		c.client.flush()
		c.reader.discard()
		h2Close(c.reader.conn)
	}
	c.reader.release()
	return c.why
}

// relayClient deals with what the client sends, until it leaves or breaks the protocol.
func (c *h2Conn) relayClient() error {
	if err := c.greetClient(); err != nil {
		return err
	}
	return c.pumpClient()
}

// stop ends the upstream's half. The first cause counts.
func (c *h2Conn) stop(cause h2Cause, why error) {
	c.mu.Lock()
	up := c.up
	if !c.gone {
		c.gone = true
		if c.cause == h2ClientGone {
			c.cause = cause
		}
		if clean := len(c.streams) == 0 && (c.leaving || why == io.EOF); c.why == nil && !clean {
			c.why = why
		}
	}
	c.mu.Unlock()
	c.cancel()
	if up != nil {
		up.close()
	}
}

// endAll tells the owner of the streams that the connection's end has ended.
func (c *h2Conn) endAll() {
	for _, s := range c.take(0) {
		c.end(s, h2End{cause: c.cause, grpcStatus: -1})
	}
}

// take removes the streams beyond last and gives them, by id.
func (c *h2Conn) take(last uint32) []*h2Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*h2Stream
	for id, s := range c.streams {
		if id > last {
			out = append(out, s)
			delete(c.streams, id)
		}
	}
	c.rest()
	slices.SortFunc(out, func(a, b *h2Stream) int { return int(a.id) - int(b.id) })
	return out
}

// cut ends the connection at once, both ways: the client's pump may be waiting for an upstream that does not read.
func (c *h2Conn) cut(cause h2Cause, why error) {
	c.mu.Lock()
	if !c.gone {
		c.cause, c.why = cause, why
	}
	c.mu.Unlock()
	c.stop(cause, why)
	h2Close(c.reader.conn)
}

// drain tells the client to open no more streams; the connection ends with those that are open.
func (c *h2Conn) drain() {
	c.leaveIf(true)
	c.client.flush()
}

// leaveIf is drain where leave says so, but for the flush.
func (c *h2Conn) leaveIf(leave bool) {
	if !leave {
		return
	}
	c.mu.Lock()
	last := min(c.last, c.above)
	c.above = last
	c.mu.Unlock()
	c.client.goAway(last, http2.ErrCodeNo, nil)
	c.leave()
}

// leave has the connection end with its last stream.
func (c *h2Conn) leave() {
	c.mu.Lock()
	c.leaving = true
	c.mu.Unlock()
	c.lingerIfIdle()
}

// lingerIfIdle ends a connection that is to end with its last stream if there is none left, when the client has had time to
// take what was written.
func (c *h2Conn) lingerIfIdle() {
	c.mu.Lock()
	over := c.leaving && len(c.streams) == 0
	c.mu.Unlock()
	if over {
		c.client.flush()
		c.reader.conn.SetReadDeadline(time.Now().Add(h2Linger))
	}
}

// end tells the owner that s has ended; once, and if the owner has heard of it.
func (c *h2Conn) end(s *h2Stream, e h2End) {
	c.mu.Lock()
	told := s.over || !s.judged
	s.over = true
	e.httpStatus, e.in, e.out = s.status, s.in, s.out
	c.mu.Unlock()
	if !told {
		e.duration = time.Since(s.start)
		c.owner.ended(s, e)
	}
}

// drop forgets s: what still comes for it is swallowed.
func (c *h2Conn) drop(s *h2Stream) {
	c.mu.Lock()
	delete(c.streams, s.id)
	c.rest()
	c.mu.Unlock()
	c.lingerIfIdle()
}

// enter counts a goroutine in that run is to wait for; false where the connection is over.
func (c *h2Conn) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.running.Add(1)
	}
	return !c.gone
}

// watchIdle has a connection end that has been without a stream for h2IdleWait. run stops the timer.
func (c *h2Conn) watchIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.quiet = time.Now()
	c.idle = time.AfterFunc(h2IdleWait, c.endIdle)
}

// rest notes when the last stream ended. mu is held.
func (c *h2Conn) rest() {
	if len(c.streams) == 0 {
		c.quiet = time.Now()
	}
}

// endIdle drains a connection that has been without a stream for h2IdleWait. A client that does not read is not waited for.
func (c *h2Conn) endIdle() {
	c.mu.Lock()
	left := h2IdleWait - time.Since(c.quiet)
	if len(c.streams) > 0 {
		left = h2IdleWait
	}
	if left > 0 {
		c.idle.Reset(left)
	}
	c.mu.Unlock()
	if left > 0 || !c.enter() {
		return
	}
	defer c.running.Done()
	c.reader.conn.SetWriteDeadline(time.Now().Add(h2Linger))
	c.drain()
}
