package main

import (
	"io"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2FieldsLimit bounds a header section, in bytes as RFC 9113 §6.5.2 counts them (32 are added for each field). The encoded
// section may have twice as many, in h2Fragments frames: past that the connection ends (CVE-2024-27316).
const (
	h2FieldsLimit = 1 << 20
	h2Fragments   = 256
)

// h2PseudoFields is how many kinds of pseudo-field a request can have: :protocol is the fifth (RFC 8441 §4).
const h2PseudoFields = 5

// h2FieldReader decodes header sections. It decodes each to its end, for the state of the compression, keeps no more
// than h2FieldsLimit, and tells what is wrong with it.
type h2FieldReader struct {
	decoder *hpack.Decoder
	grow    func() bool         // asked about a section of more than h2Buffer bytes; nil for an upstream's, which are bounded by the requests
	fields  []hpack.HeaderField // valid until the next section
	size    uint32
	large   bool   // more than h2FieldsLimit; fields is incomplete
	fault   string // why the section is malformed (RFC 9113 §8.1.1), "" where it is not
	regular bool   // a field that is no pseudo-field has come
}

// h2Section is a decoded header section.
type h2Section struct {
	stream uint32
	end    bool // END_STREAM
	fields []hpack.HeaderField
	large  bool   // it was larger than h2FieldsLimit: fields is incomplete
	fault  string // why it is malformed, ""
	parts  bool   // it took more than one frame: next has a deadline
}

// section reads the HEADERS frame of head and the CONTINUATION frames that follow (RFC 9113 §4.3), which have h2PrefaceWait, since
// nothing else can come meanwhile. All errors concern the connection.
func (r *h2Reader) section(head http2.FrameHeader) (h2Section, error) {
	f := &r.fields
	f.fields, f.size, f.large, f.fault, f.regular = f.fields[:0], 0, false, "", false
	frame, err := r.rest(head)
	if err != nil {
		return h2Section{}, headerError(err)
	}
	first, ok := frame.(*http2.HeadersFrame)
	if !ok {
		return h2Section{}, &h2ConnError{http2.ErrCodeProtocol, "no HEADERS frame"}
	}
	s := h2Section{stream: head.StreamID, end: first.StreamEnded()}
	encoded := 0
	fragment, whole := first.HeaderBlockFragment(), first.HeadersEnded()
	for n := 1; ; n++ {
		encoded += len(fragment)
		if encoded > 2*h2FieldsLimit || n > h2Fragments {
			return s, &h2ConnError{http2.ErrCodeEnhanceYourCalm, "a header section without an end"}
		}
		// The decoder keeps what it has of a field that is not whole.
		if encoded > h2Buffer && !f.mayGrow() {
			return s, &h2ConnError{http2.ErrCodeEnhanceYourCalm, "a large header section, beside those of too many other connections"}
		}
		if _, err := f.decoder.Write(fragment); err != nil {
			return s, &h2ConnError{http2.ErrCodeCompression, "a header section that cannot be decoded"}
		}
		if whole {
			break
		}
		if !s.parts {
			s.parts = true
			r.conn.SetReadDeadline(time.Now().Add(h2PrefaceWait))
		}
		if fragment, whole, err = r.continuation(); err != nil {
			return s, err
		}
	}
	if err := f.decoder.Close(); err != nil {
		return s, &h2ConnError{http2.ErrCodeCompression, "a header section that is cut off"}
	}
	s.fields, s.large, s.fault = f.fields, f.large, f.fault
	return s, nil
}

// headerError is for errors of reading a HEADERS frame: those of one stream are the connection's too, since the section has
// not been decoded (RFC 9113 §4.3).
func headerError(err error) error {
	if e, ok := err.(http2.StreamError); ok {
		return &h2ConnError{e.Code, "a malformed HEADERS frame"}
	}
	if err == io.ErrUnexpectedEOF {
		return &h2ConnError{http2.ErrCodeFrameSize, "a HEADERS frame that is too short"}
	}
	return err
}

// continuation reads a CONTINUATION frame; the Framer refuses any other.
func (r *h2Reader) continuation() (fragment []byte, whole bool, err error) {
	head, err := r.next()
	if err != nil {
		return nil, false, err
	}
	frame, err := r.rest(head)
	if err != nil {
		return nil, false, err
	}
	c, ok := frame.(*http2.ContinuationFrame)
	if !ok {
		return nil, false, &h2ConnError{http2.ErrCodeProtocol, "no CONTINUATION frame"}
	}
	return c.HeaderBlockFragment(), c.HeadersEnded(), nil
}

// add is told each field by the decoder.
func (f *h2FieldReader) add(field hpack.HeaderField) {
	f.size += field.Size()
	if f.large = f.large || f.size > h2FieldsLimit || f.size > h2Buffer && !f.mayGrow(); f.large || f.fault != "" {
		return
	}
	pseudo := strings.HasPrefix(field.Name, ":")
	switch {
	case pseudo && f.regular:
		f.fault = "a pseudo-field behind another field"
	case pseudo && len(f.fields) == h2PseudoFields:
		f.fault = "more pseudo-fields than there are"
	case pseudo && f.has(field.Name):
		f.fault = "a pseudo-field twice"
	case !pseudo && !validH2Name(field.Name):
		f.fault = "a field name that is not allowed"
	case !httpguts.ValidHeaderFieldValue(field.Value):
		f.fault = "a field value that is not allowed"
	case field.Name == "te" && field.Value != "trailers":
		f.fault = "a te field that is not \"trailers\""
	}
	f.regular = f.regular || !pseudo
	f.fields = append(f.fields, field)
}

func (f *h2FieldReader) mayGrow() bool { return f.grow == nil || f.grow() }

// shed lets go of a section that was large, so that a connection that is idle holds little.
func (f *h2FieldReader) shed() {
	if f.size > h2Buffer {
		f.fields = nil
	}
}

func (f *h2FieldReader) has(name string) bool {
	for _, g := range f.fields {
		if g.Name == name {
			return true
		}
	}
	return false
}

// validH2Name tells whether name is a token in lower case (RFC 9113 §8.2.1) and not that of a field that concerns one connection
// (§8.2.2).
func validH2Name(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' || !httpguts.IsTokenRune(rune(c)) {
			return false
		}
	}
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return false
	}
	return true
}

// requestFault tells what is wrong with a request's header section (RFC 9113 §8.3.1), "" if nothing is. CONNECT is refused,
// extended or not: a tunnel is none of the relay's.
func requestFault(fields []hpack.HeaderField) string {
	var method, scheme, path, authority, host string
	for _, f := range fields {
		switch f.Name {
		case ":method":
			method = f.Value
		case ":scheme":
			scheme = f.Value
		case ":path":
			path = f.Value
		case ":authority":
			authority = f.Value
		case "host":
			if host != "" && host != f.Value {
				return "two host fields"
			}
			host = f.Value
		default:
			if f.Name[0] == ':' {
				return "a pseudo-field that is not a request's"
			}
		}
	}
	switch {
	case method == "" || scheme == "" || path == "":
		return "a request without :method, :scheme or :path"
	case method == "CONNECT":
		return "a CONNECT request"
	case path[0] != '/' && path != "*":
		return "a :path that is none"
	case host != "" && authority != "" && host != authority:
		return "a host field that differs from :authority"
	}
	return ""
}

// answerFault tells what is wrong with the header section of an answer (RFC 9113 §8.3.2), and gives its status.
func answerFault(s h2Section) (status int, fault string) {
	if len(s.fields) == 0 || s.fields[0].Name != ":status" || len(s.fields[0].Value) != 3 {
		return 0, "an answer without :status"
	}
	for _, c := range []byte(s.fields[0].Value) {
		if c < '0' || c > '9' {
			return 0, "a :status that is no number"
		}
		status = 10*status + int(c-'0')
	}
	if len(s.fields) > 1 && s.fields[1].Name[0] == ':' {
		return 0, "a pseudo-field that is not an answer's"
	}
	if status == 101 || status < 200 && s.end {
		return 0, "an interim answer that ends the stream"
	}
	return status, ""
}

// trailerFault tells what is wrong with a trailer section (RFC 9113 §8.1): no pseudo-field, and nothing follows.
func trailerFault(s h2Section) string {
	switch {
	case !s.end:
		return "a second header section that does not end the stream"
	case len(s.fields) > 0 && s.fields[0].Name[0] == ':':
		return "a pseudo-field in a trailer section"
	}
	return ""
}

// grpcMessage is message as the grpc-message field has it: bytes but printable ASCII, and "%", as "%XX" (gRPC's
// PROTOCOL-HTTP2.md, "Percent-Encoded").
func grpcMessage(message string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(message) {
		if c < ' ' || c > '~' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
