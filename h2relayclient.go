package main

import (
	"io"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2PrefaceWait is how long a client has for its preface and SETTINGS, and a peer for the rest of a header section.
const h2PrefaceWait = 10 * time.Second

// greetClient answers the client's preface before there is an upstream: a client that waits for SETTINGS can then send the request
// by which the upstream is chosen.
func (c *h2Conn) greetClient() error {
	c.reader.conn.SetReadDeadline(time.Now().Add(h2PrefaceWait))
	c.client.settings(earlySettings)
	c.client.flush()
	if err := c.reader.wait(); err != nil {
		return err
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.reader, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return &h2ConnError{http2.ErrCodeProtocol, "no HTTP/2 preface"}
	}
	head, err := c.reader.next()
	if err != nil {
		return err
	}
	if head.Type != http2.FrameSettings || head.Flags.Has(http2.FlagSettingsAck) {
		return &h2ConnError{http2.ErrCodeProtocol, "a preface without SETTINGS"}
	}
	if err := c.clientFrame(head); err != nil {
		return err
	}
	c.reader.conn.SetReadDeadline(time.Time{})
	c.lingerIfIdle() // drain may have set a deadline too
	return nil
}

// pumpClient deals with the client's frames until it leaves or breaks the protocol.
func (c *h2Conn) pumpClient() error {
	for {
		if !c.reader.ready() {
			c.flushClient()
		}
		head, err := c.reader.next()
		if err == nil {
			err = c.clientFrame(head)
		}
		if err != nil {
			return err
		}
	}
}

// flushClient sends what the client's frames have led to.
func (c *h2Conn) flushClient() {
	c.flow.Lock()
	owed, up, wrote := c.owed, c.up, c.wrote
	c.owed, c.wrote = 0, false
	if up == nil {
		c.room += int64(owed)
	}
	c.flow.Unlock()
	c.client.window(0, owed)
	if owed > 0 || wrote {
		c.client.flush()
	}
	if up != nil {
		up.writer.flush()
	}
}

// clientFrame deals with the frame that head begins.
func (c *h2Conn) clientFrame(head http2.FrameHeader) error {
	switch head.Type {
	case http2.FrameData:
		return c.clientData(head)
	case http2.FrameHeaders:
		section, err := c.reader.section(head)
		if err != nil {
			return err
		}
		if section.parts {
			c.reader.conn.SetReadDeadline(time.Time{})
			c.lingerIfIdle() // which may have set one too
		}
		c.flow.Lock()
		defer c.flow.Unlock()
		err = c.clientSection(section)
		c.reader.fields.shed()
		return err
	case http2.FramePushPromise:
		return &h2ConnError{http2.ErrCodeProtocol, "a client's PUSH_PROMISE"}
	case http2.FrameSettings, http2.FramePing, http2.FrameGoAway, http2.FrameRSTStream, http2.FrameWindowUpdate, http2.FramePriority:
	default:
		// Extensions are between the two ends of a connection (RFC 9113 §5.5).
		return c.spent(c.reader.skip(int(head.Length)))
	}
	frame, err := c.reader.rest(head)
	if e, ok := err.(http2.StreamError); ok {
		return c.clientError(e)
	}
	if err != nil {
		return err
	}
	c.flow.Lock()
	defer c.flow.Unlock()
	return c.clientControl(frame)
}

// spent counts a frame that carries nothing.
func (c *h2Conn) spent(err error) error {
	if err == nil && !c.frames.take() {
		return &h2ConnError{http2.ErrCodeEnhanceYourCalm, "too many frames that carry nothing"}
	}
	return err
}

// clientControl deals with a frame that is neither DATA nor HEADERS. flow is held.
func (c *h2Conn) clientControl(frame http2.Frame) error {
	if err := c.spent(nil); err != nil {
		return err
	}
	switch f := frame.(type) {
	case *http2.SettingsFrame:
		return c.clientSettings(f)
	case *http2.PingFrame:
		// Answered here: an upstream may take offence at a client's (gRPC's "too_many_pings").
		if !f.IsAck() {
			c.client.pingAck(f.Data)
			c.wrote = true
		}
	case *http2.GoAwayFrame:
		if c.up != nil {
			c.up.writer.goAway(f.LastStreamID, f.ErrCode, nil)
		}
		c.leave()
	case *http2.RSTStreamFrame:
		return c.clientReset(f)
	case *http2.WindowUpdateFrame:
		return c.clientWindow(f)
	}
	return nil
}

// clientSettings takes over the client's SETTINGS. Until the upstream is up they are acknowledged here: the upstream will have
// had them before any request. flow is held.
func (c *h2Conn) clientSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		c.clientSettingsAck()
		return nil
	}
	var now h2Settings
	if err := now.set(f); err != nil {
		return err
	}
	if now.known[http2.SettingHeaderTableSize] {
		c.client.tableSize(now.value[http2.SettingHeaderTableSize])
	}
	if c.up != nil {
		c.up.settings.Add(1)
		c.up.reader.allow(now)
		c.up.writer.settings(now.passed())
		return nil
	}
	if err := c.settings.set(f); err != nil {
		return err
	}
	c.changed = true
	c.client.settingsAck()
	c.wrote = true
	return nil
}

// clientSettingsAck passes an acknowledgement on, unless it is the one of earlySettings or nothing waits for it. flow is held.
func (c *h2Conn) clientSettingsAck() {
	if !c.early {
		c.early = true
		return
	}
	if c.up != nil && c.acks.Load() > 0 {
		c.acks.Add(-1)
		c.up.writer.settingsAck()
	}
}

// clientSection deals with a header section: a request's, or the trailers of one. flow is held.
func (c *h2Conn) clientSection(h h2Section) error {
	if h.stream%2 == 0 {
		return &h2ConnError{http2.ErrCodeProtocol, "an even stream id of a client"}
	}
	c.mu.Lock()
	s, old := c.streams[h.stream], h.stream <= c.last
	c.last = max(c.last, h.stream)
	full := h.stream > c.above || len(c.streams) >= h2Streams
	c.mu.Unlock()
	c.frames.earn(1)
	switch {
	case s != nil:
		return c.clientTrailers(s, h)
	case old && (len(h.fields) == 0 || !strings.HasPrefix(h.fields[0].Name, ":")):
		// The trailers of a stream that was reset meanwhile.
		return c.spent(nil)
	case old:
		return &h2ConnError{http2.ErrCodeProtocol, "a request on a stream that has been used"}
	case full:
		return c.resetClient(h.stream, http2.ErrCodeRefusedStream)
	}
	fault := h.fault
	if fault == "" && !h.large {
		fault = requestFault(h.fields)
	}
	if fault != "" {
		return c.resetClient(h.stream, http2.ErrCodeProtocol)
	}
	s = &h2Stream{id: h.stream, start: time.Now(), fields: h.fields}
	s.clientDone = h.end
	s.grpc = strings.HasPrefix(s.field("content-type"), "application/grpc")
	c.mu.Lock()
	c.streams[s.id] = s
	c.mu.Unlock()
	if h.large {
		c.refuse(s, errLargeFields)
		return nil
	}
	c.consider(s)
	return nil
}

// resetClient resets a stream that has no part in the relay. Each counts as one that the client resets: it can have it done
// (CVE-2025-8671). flow is held.
func (c *h2Conn) resetClient(stream uint32, code http2.ErrCode) error {
	c.client.reset(stream, code)
	c.wrote = true
	return c.hasty()
}

// hasty counts a stream that is reset before it is answered.
func (c *h2Conn) hasty() error {
	if !c.resets.take() {
		return &h2ConnError{http2.ErrCodeEnhanceYourCalm, "too many streams that are reset"}
	}
	return nil
}

// clientTrailers deals with the trailer section of a request. flow is held.
func (c *h2Conn) clientTrailers(s *h2Stream, h h2Section) error {
	c.mu.Lock()
	closed := s.clientDone
	c.mu.Unlock()
	fields, ok := h.fields, true
	switch {
	case closed:
		return c.breakClient(s, http2.ErrCodeStreamClosed)
	case h.large || h.fault != "" || trailerFault(h) != "" || c.owner.trailers == nil:
		ok = false
	default:
		fields, ok = c.owner.trailers(s, fields)
	}
	if !ok {
		return c.breakClient(s, http2.ErrCodeProtocol)
	}
	over := c.clientEnds(s)
	if s.sent {
		c.up.writer.headers(s.id, true, fields)
		if over {
			c.drop(s)
		}
		return nil
	}
	s.trailer = append([]hpack.HeaderField{}, fields...)
	c.settle(s)
	return nil
}

// clientEnds notes that the client has sent its last of s, and tells whether the upstream has too.
func (c *h2Conn) clientEnds(s *h2Stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.clientDone = true
	return s.upstreamDone
}

// breakClient resets a stream on which the client broke the protocol, both ways. flow is held.
func (c *h2Conn) breakClient(s *h2Stream, code http2.ErrCode) error {
	c.end(s, h2End{cause: h2Malformed, grpcStatus: -1, reset: code})
	if s.sent {
		c.up.writer.reset(s.id, http2.ErrCodeCancel)
	}
	c.forget(s)
	err := c.resetClient(s.id, code)
	c.advance()
	return err
}

// clientError deals with a frame that is wrong for its stream alone: WINDOW_UPDATE by 0 (RFC 9113 §6.9).
func (c *h2Conn) clientError(e http2.StreamError) error {
	c.flow.Lock()
	defer c.flow.Unlock()
	s, err := c.find(e.StreamID)
	if s == nil {
		return c.spent(err)
	}
	return c.breakClient(s, e.Code)
}

// find gives a stream, nil for one that is over. A frame other than HEADERS must not be the first of a stream (RFC 9113 §5.1).
func (c *h2Conn) find(stream uint32) (*h2Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if stream > c.last || stream%2 == 0 {
		return nil, &h2ConnError{http2.ErrCodeProtocol, "a frame on an idle stream"}
	}
	return c.streams[stream], nil
}

// clientReset passes RST_STREAM on. flow is held.
func (c *h2Conn) clientReset(f *http2.RSTStreamFrame) error {
	s, err := c.find(f.StreamID)
	if s == nil {
		return err
	}
	c.mu.Lock()
	hasty := !s.answered
	c.mu.Unlock()
	c.end(s, h2End{cause: h2ClientReset, grpcStatus: -1, reset: f.ErrCode})
	if s.sent {
		c.up.writer.reset(s.id, f.ErrCode)
	}
	c.forget(s)
	c.advance()
	if hasty {
		return c.hasty()
	}
	return nil
}

// clientWindow passes WINDOW_UPDATE on. flow is held.
func (c *h2Conn) clientWindow(f *http2.WindowUpdateFrame) error {
	const most = 1<<31 - 1 // RFC 9113 §6.9.1
	if f.StreamID == 0 {
		if c.up != nil {
			c.up.writer.window(0, f.Increment)
			return nil
		}
		if c.window += int64(f.Increment); c.window > most-h2Window {
			return &h2ConnError{http2.ErrCodeFlowControl, "a window beyond 2^31-1"}
		}
		return nil
	}
	s, err := c.find(f.StreamID)
	if s == nil {
		return err
	}
	if s.sent {
		c.up.writer.window(s.id, f.Increment)
		return nil
	}
	if int64(s.window)+int64(f.Increment) > most {
		return c.breakClient(s, http2.ErrCodeFlowControl)
	}
	s.window += f.Increment
	return nil
}
