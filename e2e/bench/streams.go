package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// windowSize is the flow-control window that the client opens, in bytes: none of its streams ever waits.
const windowSize = 1 << 30

// streams asks for /small on one HTTP/2 connection, with as many streams at once as Connections says.
func (c *client) streams() error {
	config := c.tls.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := c.dial(config)
	if err != nil {
		return err
	}
	defer conn.Close()
	s := newStreams(c, conn)
	if err := s.begin(); err != nil {
		return err
	}
	if err := s.until(time.Now()); err != nil { // one request on each stream, unmeasured
		return err
	}
	s.count = 0
	err = c.measured(func() error { return s.until(time.Now().Add(c.job.Time)) })
	c.Count = s.count
	return err
}

// streamSet is a client's side of an HTTP/2 connection (RFC 9113): one goroutine, and requests that are the same bytes.
type streamSet struct {
	*http2.Framer
	bw    *bufio.Writer
	br    *bufio.Reader
	first []byte // the header block of the first request, which fills the dynamic table
	again []byte // that of all others
	width int
	next  uint32         // stream
	got   map[uint32]int // bytes of content of the open streams
	used  int            // of the connection's window
	count int64
}

func newStreams(c *client, conn io.ReadWriter) *streamSet {
	s := &streamSet{br: bufio.NewReaderSize(conn, 32<<10), bw: bufio.NewWriter(conn), width: c.Connections, next: 1, got: make(map[uint32]int)}
	s.Framer = http2.NewFramer(s.bw, s.br)
	s.SetReuseFrames()
	s.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fields := [][2]string{
		{":method", "GET"}, {":scheme", "https"}, {":authority", c.Target}, {":path", "/small"},
		{"user-agent", "bench/1.0 (linux; x86-64)"}, {"accept", "application/json"}, {"accept-encoding", "gzip, br"}, {"x-api-version", "2022-11-28"},
	}
	if c.Token != "" {
		fields = append(fields, [2]string{"authorization", "Bearer " + c.Token})
	}
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	encode := func() []byte {
		block.Reset()
		for _, f := range fields {
			e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		return bytes.Clone(block.Bytes())
	}
	s.first, s.again = encode(), encode()
	return s
}

func (s *streamSet) begin() error {
	if _, err := s.bw.WriteString(http2.ClientPreface); err != nil {
		return err
	}
	err := s.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: windowSize})
	if err != nil {
		return err
	}
	return s.WriteWindowUpdate(0, windowSize)
}

// ask opens a stream.
func (s *streamSet) ask() error {
	block := s.again
	if s.next == 1 {
		block = s.first
	}
	err := s.WriteHeaders(http2.HeadersFrameParam{StreamID: s.next, BlockFragment: block, EndStream: true, EndHeaders: true})
	s.got[s.next] = 0
	s.next += 2
	return err
}

// until keeps the streams busy until end, and returns when all are answered.
func (s *streamSet) until(end time.Time) error {
	for range s.width {
		if err := s.ask(); err != nil {
			return err
		}
	}
	for len(s.got) > 0 {
		if s.br.Buffered() == 0 {
			if err := s.bw.Flush(); err != nil {
				return err
			}
		}
		f, err := s.ReadFrame()
		if err != nil {
			return err
		}
		ended, err := s.take(f)
		if err != nil {
			return err
		}
		if ended && time.Now().Before(end) {
			if err := s.ask(); err != nil {
				return err
			}
		}
	}
	return nil
}

// take handles one frame and tells whether it ended a stream.
func (s *streamSet) take(f http2.Frame) (ended bool, err error) {
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		if f.PseudoValue("status") != "200" || f.StreamEnded() {
			return false, fmt.Errorf("stream %d: status %s", id, f.PseudoValue("status"))
		}
	case *http2.DataFrame:
		s.got[id] += len(f.Data())
		s.used += int(f.Length)
		if f.StreamEnded() {
			if s.got[id] != smallBytes {
				return false, fmt.Errorf("stream %d: %d bytes of content", id, s.got[id])
			}
			delete(s.got, id)
			s.count++
			ended = true
		}
		if s.used > windowSize/2 {
			err = s.WriteWindowUpdate(0, uint32(s.used))
			s.used = 0
		}
	case *http2.SettingsFrame:
		if !f.IsAck() {
			err = s.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			err = s.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		err = fmt.Errorf("stream %d: reset: %v", id, f.ErrCode)
	case *http2.GoAwayFrame:
		err = fmt.Errorf("the connection ends: %v", f.ErrCode)
	}
	return ended, err
}
