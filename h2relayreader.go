package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What is read and written at a time. A TLS record holds 16 KiB at most (RFC 8446 §5.1), and so does a DATA frame to a peer that
// has not asked for larger ones (RFC 9113 §4.2): larger ones are passed on in pieces of that size.
const (
	h2Buffer = 64 << 10
	h2Piece  = 16 << 10
)

// h2MaxFrame is the largest frame that a peer is allowed, in bytes, whatever the other one announces.
const h2MaxFrame = 1 << 20

var h2ReadBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, h2Buffer) }}

// h2ConnError is an error of a whole connection (RFC 9113 §5.4.1), which the peer is told by GOAWAY.
type h2ConnError struct {
	code   http2.ErrCode
	reason string
}

func (e *h2ConnError) Error() string { return fmt.Sprintf("%s (%v)", e.reason, e.code) }

// h2Reader reads the frames of one peer. While it waits for one it holds no buffer. One goroutine uses it.
type h2Reader struct {
	conn   net.Conn
	buf    *bufio.Reader // nil while there is nothing in it
	first  [1]byte       // read while waiting
	early  bool          // first is yet to be handed on
	framer *http2.Framer
	// largest is what the peer may send, in bytes: it follows what the other one announces.
	largest atomic.Uint32
	fields  h2FieldReader
}

func newH2Reader(conn net.Conn) *h2Reader {
	r := &h2Reader{conn: conn}
	r.framer = http2.NewFramer(nil, r)
	r.largest.Store(h2Piece)
	r.fields.decoder = hpack.NewDecoder(4096, r.fields.add)
	r.fields.decoder.SetMaxStringLength(h2FieldsLimit)
	return r
}

// next reads the header of the next frame, and refuses one that is larger than the peer was told, or within a header section.
func (r *h2Reader) next() (http2.FrameHeader, error) {
	if err := r.wait(); err != nil {
		return http2.FrameHeader{}, err
	}
	head, err := r.framer.ReadFrameHeader()
	if err != nil {
		return head, r.explain(err)
	}
	if head.Length > r.largest.Load() {
		return head, &h2ConnError{http2.ErrCodeFrameSize, fmt.Sprintf("a frame of %d bytes", head.Length)}
	}
	return head, nil
}

// rest reads what belongs to a header other than DATA's. The frame is valid until the next is read.
func (r *h2Reader) rest(head http2.FrameHeader) (http2.Frame, error) {
	frame, err := r.framer.ReadFrameForHeader(head)
	return frame, r.explain(err)
}

// explain makes an h2ConnError of what the Framer says. A StreamError stays one only for WINDOW_UPDATE: a header section
// whose padding is wrong has not been decoded, so nothing after it can be.
func (r *h2Reader) explain(err error) error {
	switch err := err.(type) {
	case http2.ConnectionError:
		reason := "a malformed frame"
		if detail := r.framer.ErrorDetail(); detail != nil {
			reason = detail.Error()
		}
		return &h2ConnError{http2.ErrCode(err), reason}
	}
	return err
}

// wait returns when there is something to read.
func (r *h2Reader) wait() error {
	if r.buf != nil && r.buf.Buffered() > 0 {
		return nil
	}
	r.release()
	if _, err := r.conn.Read(r.first[:]); err != nil {
		return err
	}
	r.early = true
	r.buf = h2ReadBuffers.Get().(*bufio.Reader)
	r.buf.Reset((*h2Source)(r))
	return nil
}

// release gives the buffer back, with what is in it.
func (r *h2Reader) release() {
	if r.buf != nil {
		r.buf.Reset(nil)
		h2ReadBuffers.Put(r.buf)
		r.buf = nil
	}
}

// ready tells whether a whole frame can be read without waiting. Where it is false, what was written is to be flushed.
func (r *h2Reader) ready() bool {
	if r.buf == nil || r.buf.Buffered() < 9 {
		return false
	}
	head, _ := r.buf.Peek(3)
	return r.buf.Buffered()-9 >= int(head[0])<<16|int(head[1])<<8|int(head[2])
}

// Read is for the Framer, within a frame.
func (r *h2Reader) Read(p []byte) (int, error) { return r.buf.Read(p) }

// h2Source is where an h2Reader's buffer is filled from.
type h2Source h2Reader

func (s *h2Source) Read(p []byte) (int, error) {
	if !s.early {
		return s.conn.Read(p)
	}
	s.early = false
	p[0] = s.first[0]
	if len(p) == 1 {
		return 1, nil
	}
	n, err := s.conn.Read(p[1:])
	return 1 + n, err
}

// padding reads the pad length of a DATA frame and gives how many bytes of content there are, and how many of padding with that
// length's own: those count in flow control (RFC 9113 §6.1).
func (r *h2Reader) padding(head http2.FrameHeader) (content, padding int, err error) {
	content = int(head.Length)
	if !head.Flags.Has(http2.FlagDataPadded) {
		return content, 0, nil
	}
	if content == 0 {
		return 0, 0, &h2ConnError{http2.ErrCodeFrameSize, "a padded DATA frame without a pad length"}
	}
	length, err := r.buf.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	padding = 1 + int(length)
	if padding > content {
		return 0, 0, &h2ConnError{http2.ErrCodeProtocol, "a DATA frame with more padding than content"}
	}
	return content - padding, padding, nil
}

// discard reads on until the client leaves or its deadline is over: closing a connection with bytes that have not been read
// makes TCP throw away what was last written (RFC 9293 §3.6.1; RFC 1122 §4.2.2.13).
func (r *h2Reader) discard() {
	r.release()
	io.Copy(io.Discard, io.LimitReader(r.conn, 16*h2MaxFrame))
}

// skip reads n bytes of a frame over.
func (r *h2Reader) skip(n int) error {
	_, err := r.buf.Discard(n)
	return err
}
