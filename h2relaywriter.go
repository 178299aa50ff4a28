package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

var h2WriteBuffers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, h2Buffer) }}

// h2Writer writes frames to one peer; they leave with flush, or when the buffer is full. Both pumps use it. No method returns an
// error: the first one closes the connection, which ends its reader. While there is nothing to flush it holds no buffer.
type h2Writer struct {
	conn net.Conn

	mu      sync.Mutex // guards what follows
	buf     *bufio.Writer
	framer  *http2.Framer
	encoder *hpack.Encoder
	block   bytes.Buffer // a header section while it is encoded
	head    [9]byte      // a frame header while it is written
	failed  bool
}

func newH2Writer(conn net.Conn) *h2Writer {
	w := &h2Writer{conn: conn}
	w.framer = http2.NewFramer((*h2Sink)(w), nil)
	w.encoder = hpack.NewEncoder(&w.block)
	return w
}

// h2Sink is where an h2Writer's frames go. mu is held.
type h2Sink h2Writer

func (s *h2Sink) Write(p []byte) (int, error) {
	if s.failed {
		return len(p), nil
	}
	if s.buf == nil {
		s.buf = h2WriteBuffers.Get().(*bufio.Writer)
		s.buf.Reset(s.conn)
	}
	if _, err := s.buf.Write(p); err != nil {
		(*h2Writer)(s).fail()
	}
	return len(p), nil
}

// fail gives up on the peer. mu is held.
func (w *h2Writer) fail() {
	w.failed = true
	h2Close(w.conn)
	w.release()
}

func (w *h2Writer) release() {
	w.buf.Reset(nil)
	h2WriteBuffers.Put(w.buf)
	w.buf = nil
}

// flush sends what has been written.
func (w *h2Writer) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.buf == nil {
		return
	}
	if err := w.buf.Flush(); err != nil {
		w.fail()
		return
	}
	w.release()
}

// data writes a DATA frame of at most h2Piece bytes.
func (w *h2Writer) data(stream uint32, end bool, p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	binary.BigEndian.PutUint32(w.head[:], uint32(len(p))<<8) // the type, DATA, is 0
	w.head[4] = 0
	if end {
		w.head[4] = byte(http2.FlagDataEndStream)
	}
	binary.BigEndian.PutUint32(w.head[5:], stream)
	(*h2Sink)(w).Write(w.head[:])
	(*h2Sink)(w).Write(p)
}

// headers encodes and writes a header section in frames of at most h2Piece bytes, which every peer takes, so that what they
// announce as SETTINGS_MAX_FRAME_SIZE need not be followed here. Nothing comes between them (RFC 9113 §4.3).
func (w *h2Writer) headers(stream uint32, end bool, fields []hpack.HeaderField) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.block.Reset()
	for _, f := range fields {
		w.encoder.WriteField(f)
	}
	rest := w.block.Bytes()
	part := rest[:min(len(rest), h2Piece)]
	rest = rest[len(part):]
	w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndStream: end, EndHeaders: len(rest) == 0})
	for len(rest) > 0 {
		part = rest[:min(len(rest), h2Piece)]
		rest = rest[len(part):]
		w.framer.WriteContinuation(stream, len(rest) == 0, part)
	}
	if w.block.Cap() > h2Buffer {
		w.block = bytes.Buffer{}
	}
}

// reset writes RST_STREAM.
func (w *h2Writer) reset(stream uint32, code http2.ErrCode) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.framer.WriteRSTStream(stream, code)
}

// window writes WINDOW_UPDATE, unless n is 0; the connection is stream 0.
func (w *h2Writer) window(stream, n uint32) {
	if n == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.framer.WriteWindowUpdate(stream, n)
}

func (w *h2Writer) settings(settings []http2.Setting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.framer.WriteSettings(settings...)
}

func (w *h2Writer) settingsAck() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.framer.WriteSettingsAck()
}

// tableSize takes over the peer's SETTINGS_HEADER_TABLE_SIZE. The encoder uses no more than 4096 bytes in any case.
func (w *h2Writer) tableSize(v uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.encoder.SetMaxDynamicTableSize(v)
}

func (w *h2Writer) pingAck(data [8]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.framer.WritePing(true, data)
}

// goAway writes GOAWAY. reason is debug data.
func (w *h2Writer) goAway(last uint32, code http2.ErrCode, reason []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.framer.WriteGoAway(last, code, reason)
}
