package main

import (
	"golang.org/x/net/http2"
)

// clientData passes a DATA frame on (RFC 9113 §6.1), in pieces of at most h2Piece bytes where it is larger, and without its padding,
// whose window the client gets back. It waits for the rest of the frame with no lock held. All errors are the connection's; those of
// one stream have been dealt with.
func (c *h2Conn) clientData(head http2.FrameHeader) error {
	content, padding, err := c.reader.padding(head)
	if err != nil {
		return err
	}
	end := head.Flags.Has(http2.FlagDataEndStream)
	if content == 0 && !end {
		// An empty frame that ends nothing is free for the client (CVE-2019-9518).
		if err := c.spent(nil); err != nil {
			return err
		}
	}
	// An empty frame with END_STREAM is one piece too.
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

// clientPiece passes content on, or holds it while its stream waits, or swallows what comes for a stream that is over: the
// client may have sent it before it heard of that (RFC 9113 §5.1, "closed"), and gets its window back. end is END_STREAM.
func (c *h2Conn) clientPiece(stream uint32, p []byte, end bool) error {
	c.flow.Lock()
	defer c.flow.Unlock()
	if c.up == nil {
		// Nobody else would notice: afterwards the upstream does.
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
		// More content behind END_STREAM (RFC 9113 §5.1, "half-closed (remote)").
		c.owed += uint32(len(p))
		return c.breakClient(s, http2.ErrCodeStreamClosed)
	case !s.sent:
		// Its verdict, or the upstream, is yet to come.
		c.hold(s, p)
	default:
		c.up.writer.data(stream, end, p)
		if over {
			c.drop(s)
		}
	}
	return nil
}

// clientPadding skips padding of n bytes, its length's own byte among them, and gives the window that it took back to the client, since
// flow control counts it (RFC 9113 §6.1): the connection's, and the stream's unless it is over.
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

// upstreamData is clientData the other way. The upstream gets back the window of padding, and of content that the client will not
// see; all other WINDOW_UPDATE come from the client.
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
	// pumpUpstream gives the connection's back when there is nothing more to read.
	up.owed += uint32(padding)
	if !end && c.awaited(head.StreamID) != nil {
		up.writer.window(head.StreamID, uint32(padding))
		up.wrote = true
	}
	return up.reader.skip(padding - 1)
}

// upstreamPiece passes content on, or swallows what comes for a stream that is over, as one that the client has reset. Content
// before a header section is malformed (RFC 9113 §8.1). The owner is told of the end before the client is.
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
		// The client has been told of its end, and counts this no more.
		up.owed += uint32(len(p))
	case fault:
		up.owed += uint32(len(p))
		c.breakUpstream(up, s)
	case len(p) > 0 || end:
		over := end && c.upstreamEnds(s, nil)
		c.client.data(stream, end, p)
		// A client that takes content has reason to send WINDOW_UPDATE and PING.
		c.frames.earn(h2FramesEarned)
		if over {
			c.drop(s)
		}
	}
}
