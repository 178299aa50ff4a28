package fidelity

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stream2 is a request under way on an HTTP/2 connection.
type stream2 struct {
	m       *message
	x       *exchange
	name    string
	content bytes.Buffer
}

// origin2 is the HTTP/2 side of the origin, frame by frame.
type origin2 struct {
	o       *origin
	framer  *http2.Framer
	streams map[uint32]*stream2
	block   bytes.Buffer
	enc     *hpack.Encoder
}

// serve2 serves an HTTP/2 connection (RFC 9113) until it ends.
func (o *origin) serve2(conn net.Conn) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil {
		return
	}
	s := &origin2{o: o, framer: http2.NewFramer(conn, conn), streams: map[uint32]*stream2{}}
	s.enc = hpack.NewEncoder(&s.block)
	s.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	// 16 MiB a stream and 1 GiB in all: no exchange needs more.
	_ = s.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24})
	_ = s.framer.WriteWindowUpdate(0, 1<<30)
	for {
		f, err := s.framer.ReadFrame()
		if err != nil {
			return
		}
		if err := s.frame(f); err != nil {
			return
		}
	}
}

func (s *origin2) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			return s.framer.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return s.framer.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		delete(s.streams, f.StreamID)
	case *http2.MetaHeadersFrame:
		return s.headers(f)
	case *http2.DataFrame:
		st := s.streams[f.StreamID]
		if st == nil {
			return nil
		}
		st.content.Write(f.Data())
		if f.StreamEnded() {
			return s.end(f.StreamID, st)
		}
	}
	return nil
}

// headers takes the header section of a new request, or the trailer section of one under way.
func (s *origin2) headers(f *http2.MetaHeadersFrame) error {
	st := s.streams[f.StreamID]
	if st == nil {
		st = &stream2{m: request2(f)}
		st.x, st.name = marked(st.m)
		if st.x == nil {
			return s.framer.WriteRSTStream(f.StreamID, http2.ErrCodeProtocol)
		}
		s.streams[f.StreamID] = st
		if expects := hasToken(st.m.fields, "expect", "100-continue"); st.x.early {
			if expects {
				st.m.content = "false" // the content that may come all the same is not looked at here
			}
			s.o.record(st.name, st.m)
			return s.answer(f.StreamID, st)
		} else if expects {
			if err := s.write(f.StreamID, &message{code: 100}, false); err != nil {
				return err
			}
		}
	} else {
		for _, h := range f.Fields {
			st.m.trailers = append(st.m.trailers, field{h.Name, h.Value})
		}
	}
	if f.StreamEnded() {
		return s.end(f.StreamID, st)
	}
	return nil
}

// request2 gives the request that a HEADERS frame holds; :authority becomes a Host field.
func request2(f *http2.MetaHeadersFrame) *message {
	m := &message{version: "HTTP/2", method: f.PseudoValue("method"), target: f.PseudoValue("path")}
	m.fields = append(m.fields, field{"host", f.PseudoValue("authority")})
	for _, h := range f.RegularFields() {
		m.fields = append(m.fields, field{h.Name, h.Value})
	}
	return m
}

func (s *origin2) end(id uint32, st *stream2) error {
	delete(s.streams, id)
	if st.x.early {
		return nil
	}
	st.m.content = st.content.String()
	s.o.record(st.name, st.m)
	return s.answer(id, st)
}

// answer sends what the HTTP/1.1 text of the exchange means.
func (s *origin2) answer(id uint32, st *stream2) error {
	a, err := readAnswers(bufio.NewReader(strings.NewReader(st.x.answer)), st.m.method)
	if err != nil {
		return err
	}
	for _, m := range a.interim {
		if err := s.write(id, m, false); err != nil {
			return err
		}
	}
	m := a.final
	if err := s.write(id, m, m.content == "" && m.trailers == nil); err != nil {
		return err
	}
	for content := []byte(m.content); len(content) > 0; {
		n := min(len(content), 16<<10)
		if err := s.framer.WriteData(id, n == len(content) && len(m.trailers) == 0, content[:n]); err != nil {
			return err
		}
		content = content[n:]
	}
	if len(m.trailers) == 0 {
		if m.content == "" && m.trailers != nil {
			return s.framer.WriteData(id, true, nil)
		}
		return nil
	}
	return s.write(id, &message{fields: m.trailers}, true)
}

// write sends one HEADERS frame, of a trailer section where there is no code.
func (s *origin2) write(id uint32, m *message, last bool) error {
	s.block.Reset()
	if m.code != 0 {
		_ = s.enc.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(m.code)})
	}
	for _, f := range m.fields {
		name := strings.ToLower(f.name)
		if hopByHop(name) && name != "trailer" {
			continue
		}
		_ = s.enc.WriteField(hpack.HeaderField{Name: name, Value: unfolded(f.value)})
	}
	block := s.block.Bytes()
	first := block[:min(len(block), 16<<10)]
	rest := block[len(first):]
	err := s.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: last, EndHeaders: len(rest) == 0})
	for len(rest) > 0 && err == nil {
		part := rest[:min(len(rest), 16<<10)]
		rest = rest[len(part):]
		err = s.framer.WriteContinuation(id, len(rest) == 0, part)
	}
	return err
}
