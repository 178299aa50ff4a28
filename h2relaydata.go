package main

import (
	"golang.org/x/net/http2"
)

// clientData passes a DATA frame on, in pieces where it is large, without its padding.
func (c *h2Conn) clientData(head http2.FrameHeader) error {
	content, padding, err := c.reader.padding(head)
	if err != nil {
		return err
	}
	end := head.Flags.Has(http2.FlagDataEndStream)
	if content == 0 && !end {
		if err := c.spent(nil); err != nil {
			return err
		}
	}
	for first := true; first || content > 0; first = false {
		n := min(content, h2Piece)
		content -= n
		p, err := c.reader.buf.Peek(n)
		if err != nil {
			return err
		}
		if err := c.clientPiece(head.StreamID, p, end && content == 0); err != nil {
			return err
		}
		c.reader.buf.Discard(n)
	}
	if padding == 0 {
		return nil
	}
	return c.clientPadding(head.StreamID, padding, end)
}

// clientPiece passes content on, or holds it, or swallows what comes for a stream that is over.
func (c *h2Conn) clientPiece(stream uint32, p []byte, end bool) error {
	c.flow.Lock()
	defer c.flow.Unlock()
	if c.up == nil {
		if c.room -= int64(len(p)); c.room < 0 {
			return &h2ConnError{http2.ErrCodeFlowControl, "more content than the window allows"}
		}
	}
	s, err := c.find(stream)
	if s == nil {
		c.owed += uint32(len(p))
		return err
	}
	c.mu.Lock()
	closed := s.clientDone
	over := !closed && end && s.upstreamDone
	if !closed {
		s.in += int64(len(p))
		s.clientDone = end
	}
	c.mu.Unlock()
	switch {
	case len(p) == 0 && !end:
	case closed:
		c.owed += uint32(len(p))
		return c.breakClient(s, http2.ErrCodeStreamClosed)
	case !s.sent:
		c.hold(s, p)
	default:
		c.up.writer.data(stream, end, p)
		if over {
			c.drop(s)
		}
	}
	return nil
}

// clientPadding gives the window that padding took back to the client. flow control counts it (RFC 9113 §6.1).
func (c *h2Conn) clientPadding(stream uint32, n int, end bool) error {
	if err := c.reader.skip(n - 1); err != nil {
		return err
	}
	c.flow.Lock()
	defer c.flow.Unlock()
	if c.up == nil {
		if c.room -= int64(n); c.room < 0 {
			return &h2ConnError{http2.ErrCodeFlowControl, "more padding than the window allows"}
		}
	}
	c.owed += uint32(n)
	if s, _ := c.find(stream); s != nil && !end {
		c.client.window(stream, uint32(n))
	}
	return nil
}

// upstreamData passes a DATA frame on, in pieces where it is large, without its padding.
func (c *h2Conn) upstreamData(up *h2Upstream, head http2.FrameHeader) error {
	if head.StreamID == 0 {
		return &h2ConnError{http2.ErrCodeProtocol, "DATA on stream 0"}
	}
	content, padding, err := up.reader.padding(head)
	if err != nil {
		return err
	}
	end := head.Flags.Has(http2.FlagDataEndStream)
	for first := true; first || content > 0; first = false {
		n := min(content, h2Piece)
		content -= n
		p, err := up.reader.buf.Peek(n)
		if err != nil {
			return err
		}
		c.upstreamPiece(up, head.StreamID, p, end && content == 0)
		up.reader.buf.Discard(n)
	}
	if padding == 0 {
		return nil
	}
	up.owed += uint32(padding)
	if !end && c.awaited(head.StreamID) != nil {
		up.writer.window(head.StreamID, uint32(padding))
		up.wrote = true
	}
	return up.reader.skip(padding - 1)
}

// upstreamPiece passes content on, or swallows what comes for a stream that is over.
func (c *h2Conn) upstreamPiece(up *h2Upstream, stream uint32, p []byte, end bool) {
	c.mu.Lock()
	s := c.streams[stream]
	known := s != nil && s.sent && !s.upstreamDone
	fault := known && !s.answered
	if known && !fault {
		s.out += int64(len(p))
	}
	c.mu.Unlock()
	switch {
	case !known:
		up.owed += uint32(len(p))
	case fault:
		up.owed += uint32(len(p))
		c.breakUpstream(up, s)
	case len(p) > 0 || end:
		over := end && c.upstreamEnds(s, nil)
		c.client.data(stream, end, p)
		c.frames.earn(h2FramesEarned)
		if over {
			c.drop(s)
		}
	}
}
