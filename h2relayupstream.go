package main

import (
	"context"
	"io"
	"math"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Upstream is a connection to an upstream that is up. It is made by greetH2 and belongs to the relay once open has returned
// it; an owner that has no use for it closes it.
type h2Upstream struct {
	reader   *h2Reader
	writer   *h2Writer
	first    h2Settings   // that it began with
	settings atomic.Int32 // of the client, that it has yet to acknowledge
	own      atomic.Int32 // of the relay, the hello's among them: it has yet to acknowledge these first
	owed     uint32       // window to give back: content that was not passed on
	wrote    bool         // to it, by its own pump, and not flushed
}

// greetH2 says hello to an upstream on conn, on which TLS has been done and "h2" been chosen, and waits for its SETTINGS. Where it
// fails conn is closed. It may be called at once for several connections with the same hello. A spare connection, on
// which nothing has been written yet, can be dialed long before.
func greetH2(ctx context.Context, conn net.Conn, hello []byte) (*h2Upstream, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	u := &h2Upstream{reader: newH2Reader(conn), writer: newH2Writer(conn)}
	u.own.Store(1)
	err := u.greet(hello)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		u.close()
		return nil, err
	}
	keepH2Alive(conn, true)
	return u, nil
}

// greet reads the first frame, which must be SETTINGS (RFC 9113 §3.4).
func (u *h2Upstream) greet(hello []byte) error {
	if _, err := u.reader.conn.Write(hello); err != nil {
		return err
	}
	head, err := u.reader.next()
	if err != nil {
		return err
	}
	frame, err := u.reader.rest(head)
	if err != nil {
		return err
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok || settings.IsAck() {
		return &h2ConnError{http2.ErrCodeProtocol, "the upstream does not begin with SETTINGS"}
	}
	return u.first.set(settings)
}

// close closes the connection at once.
func (u *h2Upstream) close() { h2Close(u.reader.conn) }

// window gives how much content a stream may hold before the upstream grants more, in bytes.
func (u *h2Upstream) window() int {
	if u.first.known[http2.SettingInitialWindowSize] {
		return int(u.first.value[http2.SettingInitialWindowSize])
	}
	return h2Window
}

// runUpstream opens the upstream for s and relays what it sends until it is lost.
func (c *h2Conn) runUpstream(s *h2Stream, hello []byte) {
	up, refusal := c.owner.open(c.ctx, s, hello)
	if up == nil {
		c.unopened(refusal)
		return
	}
	if !c.opened(up) {
		up.close()
		return
	}
	err := c.pumpUpstream(up)
	up.close()
	c.lost(err)
	up.reader.release()
}

// unopened refuses all that waits for an upstream; the next request opens anew.
func (c *h2Conn) unopened(refusal *h2Refusal) {
	if refusal == nil {
		refusal = errLost
	}
	c.flow.Lock()
	defer c.flow.Unlock()
	c.opening = false
	if c.hasGone() {
		return
	}
	for len(c.queue) > 0 {
		c.refuse(c.queue[0], refusal)
	}
	c.room += int64(c.owed)
	c.client.window(0, c.owed)
	c.owed = 0
	c.client.flush()
}

func (c *h2Conn) hasGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// opened passes on what has waited for the upstream. It is false if the client has gone.
func (c *h2Conn) opened(up *h2Upstream) bool {
	c.flow.Lock()
	defer c.flow.Unlock()
	c.mu.Lock()
	gone := c.gone
	if !gone {
		c.up, c.opening = up, false
	}
	c.mu.Unlock()
	if gone {
		return false
	}
	c.upstreamSettings(up, up.first)
	up.reader.allow(c.settings)
	if c.changed {
		up.own.Add(1)
		up.writer.settings(c.settings.passed())
	}
	up.writer.window(0, uint32(c.window-c.told))
	c.advance()
	up.writer.flush()
	return true
}

// upstreamSettings passes SETTINGS of the upstream on to the client.
func (c *h2Conn) upstreamSettings(up *h2Upstream, s h2Settings) {
	if s.known[http2.SettingHeaderTableSize] {
		up.writer.tableSize(s.value[http2.SettingHeaderTableSize])
	}
	c.acks.Add(1)
	c.reader.allow(s)
	c.client.settings(s.passed())
}

// allow lets a peer send frames as large as s, which it is told, announces.
func (r *h2Reader) allow(s h2Settings) {
	if size := min(s.value[http2.SettingMaxFrameSize], h2MaxFrame); size > r.largest.Load() {
		r.largest.Store(size)
	}
}

// pumpUpstream deals with the upstream's frames until its connection ends.
func (c *h2Conn) pumpUpstream(up *h2Upstream) error {
	for {
		if !up.reader.ready() {
			c.client.flush()
			up.writer.window(0, up.owed)
			if up.owed > 0 || up.wrote {
				up.writer.flush()
			}
			up.owed, up.wrote = 0, false
		}
		head, err := up.reader.next()
		if err == nil {
			err = c.upstreamFrame(up, head)
		}
		if err != nil {
			return err
		}
	}
}

// upstreamFrame deals with the frame that head begins.
func (c *h2Conn) upstreamFrame(up *h2Upstream, head http2.FrameHeader) error {
	switch head.Type {
	case http2.FrameData:
		return c.upstreamData(up, head)
	case http2.FrameHeaders:
		section, err := up.reader.section(head)
		if err != nil {
			return err
		}
		if section.parts {
			up.reader.conn.SetReadDeadline(time.Time{})
		}
		c.upstreamSection(up, section)
		up.reader.fields.shed()
		return nil
	case http2.FramePushPromise:
		return &h2ConnError{http2.ErrCodeProtocol, "PUSH_PROMISE from the upstream"}
	case http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FrameRSTStream, http2.FrameWindowUpdate:
	default:
		return up.reader.skip(int(head.Length))
	}
	frame, err := up.reader.rest(head)
	if e, ok := err.(http2.StreamError); ok {
		if s := c.awaited(e.StreamID); s != nil {
			c.breakUpstream(up, s)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return c.upstreamControl(up, frame)
}

// upstreamControl deals with a frame that is neither DATA nor HEADERS.
func (c *h2Conn) upstreamControl(up *h2Upstream, frame http2.Frame) error {
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			c.upstreamSettingsAck(up)
			return nil
		}
		var s h2Settings
		if err := s.set(f); err != nil {
			return err
		}
		c.upstreamSettings(up, s)
	case *http2.PingFrame:
		// The answer says that all before it has been passed on: a graceful GOAWAY waits for that.
		if !f.IsAck() {
			c.client.flush()
			up.writer.pingAck(f.Data)
			up.wrote = true
		}
	case *http2.GoAwayFrame:
		c.upstreamGoAway(f)
	case *http2.RSTStreamFrame:
		if s := c.awaited(f.StreamID); s != nil {
			c.end(s, h2End{cause: h2UpstreamReset, grpcStatus: -1, reset: f.ErrCode})
			c.client.reset(s.id, f.ErrCode)
			c.drop(s)
		}
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 || c.awaited(f.StreamID) != nil {
			c.client.window(f.StreamID, f.Increment)
		}
	}
	return nil
}

// upstreamSettingsAck passes an acknowledgement on to the client, unless it is of the relay's own or nothing waits for it.
func (c *h2Conn) upstreamSettingsAck(up *h2Upstream) {
	switch {
	case up.own.Load() > 0:
		up.own.Add(-1)
	case up.settings.Load() > 0:
		up.settings.Add(-1)
		c.client.settingsAck()
	}
}

// awaited gives a stream of which the upstream knows and that is not over, or nil.
func (c *h2Conn) awaited(stream uint32) *h2Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[stream]; s != nil && s.sent {
		return s
	}
	return nil
}

// upstreamGoAway passes GOAWAY on. The streams that it leaves out are over, and may be tried again (RFC 9113 §6.8).
func (c *h2Conn) upstreamGoAway(f *http2.GoAwayFrame) {
	c.mu.Lock()
	c.above = min(c.above, f.LastStreamID)
	c.mu.Unlock()
	for _, s := range c.take(f.LastStreamID) {
		c.end(s, h2End{cause: h2UpstreamReset, grpcStatus: -1, reset: http2.ErrCodeRefusedStream})
	}
	debug := f.DebugData()
	c.client.goAway(f.LastStreamID, f.ErrCode, debug[:min(len(debug), 1024)])
	if f.LastStreamID < math.MaxInt32 {
		c.leave()
	}
}

// upstreamSection passes on the header section of an answer, or its trailers.
func (c *h2Conn) upstreamSection(up *h2Upstream, h h2Section) {
	s := c.awaited(h.stream)
	if s == nil || s.upstreamDone {
		return
	}
	status, fault := s.status, h.fault
	switch {
	case fault != "":
	case h.large:
		fault = "a header section that is too large"
	case s.answered:
		fault = trailerFault(h)
	default:
		status, fault = answerFault(h)
	}
	if fault != "" {
		c.breakUpstream(up, s)
		return
	}
	c.mu.Lock()
	s.status = status
	s.answered = status >= 200
	c.mu.Unlock()
	over := h.end && c.upstreamEnds(s, h.fields)
	c.client.headers(s.id, h.end, h.fields)
	if over {
		c.drop(s)
	}
}

// upstreamEnds notes that the upstream has sent its last of s, fields being the last header section if that is the end, and
// tells whether the client has too.
func (c *h2Conn) upstreamEnds(s *h2Stream, fields []hpack.HeaderField) bool {
	c.mu.Lock()
	s.upstreamDone = true
	over := s.clientDone
	c.mu.Unlock()
	c.end(s, h2End{cause: h2Answered, grpcStatus: grpcStatusOf(fields), fields: fields})
	return over
}

// grpcStatusOf gives what the field of that name says, -1 where there is none.
func grpcStatusOf(fields []hpack.HeaderField) int {
	for _, f := range fields {
		if f.Name == "grpc-status" {
			if n, err := strconv.ParseUint(f.Value, 10, 31); err == nil {
				return int(n)
			}
		}
	}
	return -1
}

// breakUpstream resets a stream on which the upstream broke the protocol, both ways.
func (c *h2Conn) breakUpstream(up *h2Upstream, s *h2Stream) {
	up.writer.reset(s.id, http2.ErrCodeProtocol)
	up.wrote = true
	c.end(s, h2End{cause: h2Malformed, grpcStatus: -1, reset: http2.ErrCodeInternal})
	c.client.reset(s.id, http2.ErrCodeInternal)
	c.drop(s)
}

// lost ends all streams of an upstream whose connection has ended, and has the client open a new one.
func (c *h2Conn) lost(err error) {
	c.reader.conn.SetDeadline(time.Now().Add(h2Linger))
	c.flow.Lock()
	c.mu.Lock()
	gone, last := c.gone, min(c.last, c.above)
	if !gone {
		c.above = last
		if clean := len(c.streams) == 0 && (c.leaving || err == io.EOF); c.why == nil && !clean {
			c.why = err
		}
	}
	c.mu.Unlock()
	if !gone {
		for _, s := range c.take(0) {
			c.lose(s)
		}
		c.queue = nil
	}
	c.flow.Unlock()
	if !gone {
		c.client.goAway(last, http2.ErrCodeNo, nil)
		c.client.flush()
		c.leave()
	}
}

// lose ends a stream whose upstream is lost: one that the upstream has not seen may be tried again, one of gRPC has a status, any
// other is reset. flow is held.
func (c *h2Conn) lose(s *h2Stream) {
	switch {
	case s.over:
		c.client.reset(s.id, http2.ErrCodeNo)
	case !s.sent:
		c.end(s, h2End{cause: h2UpstreamLost, grpcStatus: -1, reset: http2.ErrCodeRefusedStream})
		c.client.reset(s.id, http2.ErrCodeRefusedStream)
	case s.grpc:
		c.end(s, h2End{cause: h2UpstreamLost, grpcStatus: errLost.status})
		fields := grpcStatusFields(errLost)
		if !s.answered {
			fields = append([]hpack.HeaderField{{Name: ":status", Value: "200"}, {Name: "content-type", Value: "application/grpc"}}, fields...)
		}
		c.client.headers(s.id, true, fields)
		if !s.clientDone {
			c.client.reset(s.id, http2.ErrCodeNo)
		}
	default:
		c.end(s, h2End{cause: h2UpstreamLost, grpcStatus: -1, reset: http2.ErrCodeInternal})
		c.client.reset(s.id, http2.ErrCodeInternal)
	}
	c.release(s)
}
