package main

import (
	"slices"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What the relay itself refuses requests for; 8 is RESOURCE_EXHAUSTED, 13 INTERNAL, 14 UNAVAILABLE.
var (
	errLargeFields = &h2Refusal{8, "muxproxy: the header section is larger than 1 MiB, or than 64 KiB while many connections have had such"}
	errManyFields  = &h2Refusal{8, "muxproxy: too many header sections wait for the upstream"}
	errUndecided   = &h2Refusal{13, "muxproxy: no decision"}
	errLost        = &h2Refusal{14, "muxproxy: the connection to the upstream is lost"}
)

// consider has a new request judged, and sent or kept. flow is held.
func (c *h2Conn) consider(s *h2Stream) {
	c.mu.Lock()
	s.judged = true
	c.mu.Unlock()
	v := c.owner.judge(s)
	if v.refusal != nil {
		c.refuse(s, v.refusal)
		c.leaveIf(v.leave)
		return
	}
	if s.waits = v.hold; s.waits {
		s.timer = time.AfterFunc(h2HeldWait, func() { c.overdue(s) })
	}
	if !s.waits && c.up != nil && len(c.queue) == 0 {
		c.send(s)
		return
	}
	for _, f := range s.fields {
		s.size += int(f.Size())
	}
	c.heldFields += s.size
	s.fields = slices.Clone(s.fields)
	c.queue = append(c.queue, s)
	if c.heldFields > h2HeldFields || c.heldFields > h2Buffer && !c.large.grow() {
		c.refuse(s, errManyFields)
		return
	}
	c.settle(s)
	c.openFor(s)
}

// openFor has the upstream opened, if s may pass and there is none. flow is held.
func (c *h2Conn) openFor(s *h2Stream) {
	if s.waits || c.up != nil || c.opening || !slices.Contains(c.queue, s) {
		return
	}
	c.opening, c.changed, c.told = true, false, c.window
	first := *s // what becomes of s meanwhile is none of open's
	c.begin(&first, helloFrames(c.settings, uint32(c.window)))
}

// settle has s judged again if it waits and its first message is whole, or will not be. flow is held.
func (c *h2Conn) settle(s *h2Stream) {
	n := announcedMessage(s.content)
	s.whole = n > 0 && int64(len(s.content)) >= n
	if !s.waits || !s.whole && !s.clientDone && n <= h2HeldBytes {
		return
	}
	c.decide(s)
}

// decide has s, which waits, judged again with what there is of its content. flow is held.
func (c *h2Conn) decide(s *h2Stream) {
	s.waits = false
	v := c.owner.judge(s)
	if v.hold {
		v.refusal = errUndecided
	}
	if v.refusal != nil {
		c.refuse(s, v.refusal)
	}
	c.leaveIf(v.leave)
	c.openFor(s)
	c.advance()
}

// overdue has s judged by what there is, since it keeps all behind it waiting.
func (c *h2Conn) overdue(s *h2Stream) {
	if !c.enter() {
		return
	}
	defer c.running.Done()
	c.flow.Lock()
	if s.waits {
		c.decide(s)
	}
	c.flow.Unlock()
	c.flushClient()
}

// advance sends what need not wait any more: ids of streams that the upstream sees first must rise (RFC 9113 §5.1.1), so each
// waits for those before it. flow is held.
func (c *h2Conn) advance() {
	for c.up != nil && len(c.queue) > 0 && !c.queue[0].waits {
		s := c.queue[0]
		c.queue = slices.Delete(c.queue, 0, 1)
		c.send(s)
	}
}

// send passes a request on, with what was held of it. flow is held.
func (c *h2Conn) send(s *h2Stream) {
	c.mu.Lock()
	refused := s.id > c.above
	s.sent = !refused
	c.mu.Unlock()
	if window := c.up.window(); refused || len(s.content) > window {
		// It may be tried again (RFC 9113 §8.7): by now the client has been told that window.
		c.end(s, h2End{cause: h2UpstreamReset, grpcStatus: -1, reset: http2.ErrCodeRefusedStream})
		c.client.reset(s.id, http2.ErrCodeRefusedStream)
		c.wrote = true
		c.forget(s)
		return
	}
	w := c.up.writer
	fields := c.owner.forward(s)
	done := s.clientDone && s.trailer == nil
	w.headers(s.id, done && len(s.content) == 0, fields)
	w.window(s.id, s.window)
	for rest := s.content; len(rest) > 0; {
		part := rest[:min(len(rest), h2Piece)]
		rest = rest[len(part):]
		w.data(s.id, done && len(rest) == 0, part)
	}
	if s.trailer != nil {
		w.headers(s.id, true, s.trailer)
	}
	c.release(s)
}

// hold keeps content of a stream that waits, and has it judged when there is enough. flow is held.
func (c *h2Conn) hold(s *h2Stream, p []byte) {
	s.content = append(s.content, p...)
	c.held += len(p)
	c.settle(s)
	// The first in the queue keeps all others waiting: it is judged by what there is.
	for c.up != nil && c.held > h2HeldBytes && len(c.queue) > 0 {
		c.decide(c.queue[0])
	}
}

// refuse answers s in the place of an upstream ("Trailers-Only" in gRPC's PROTOCOL-HTTP2.md). A client that still sends is
// asked to stop (RFC 9113 §8.1). flow is held.
func (c *h2Conn) refuse(s *h2Stream, r *h2Refusal) {
	c.end(s, h2End{cause: h2Refused, grpcStatus: r.status})
	c.wrote = true
	c.client.headers(s.id, true, append([]hpack.HeaderField{
		{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"},
	}, grpcStatusFields(r)...))
	if !s.clientDone {
		c.client.reset(s.id, http2.ErrCodeNo)
	}
	c.forget(s)
}

// grpcStatusFields are what gRPC's trailers say of r.
func grpcStatusFields(r *h2Refusal) []hpack.HeaderField {
	return []hpack.HeaderField{
		{Name: "grpc-status", Value: strconv.Itoa(r.status)},
		{Name: "grpc-message", Value: grpcMessage(r.message)},
	}
}

// forget takes s out of the queue, if it is in it, and drops it. The client gets back the window of what was held. flow is held.
func (c *h2Conn) forget(s *h2Stream) {
	if i := slices.Index(c.queue, s); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
	}
	c.owed += uint32(len(s.content))
	c.release(s)
	c.drop(s)
}

// release lets go of what s held. flow is held.
func (c *h2Conn) release(s *h2Stream) {
	c.held -= len(s.content)
	c.heldFields -= s.size
	s.content, s.fields, s.trailer, s.size, s.waits = nil, nil, nil, 0, false
	if s.timer != nil {
		s.timer.Stop()
	}
}
