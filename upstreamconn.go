package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// upstreamConn is one HTTP/1.1 connection to a server, used by one request at a time.
type upstreamConn struct {
	u     *upstream
	key   upstreamKey
	conn  net.Conn
	sock  net.Conn        // the socket below conn
	below *belowTLS       // nil without TLS
	raw   syscall.RawConn // its descriptor; nil where there is none to look at
	look  func(uintptr)   // c.peek, and its answer
	gone  bool
	via   *url.URL // the upstream proxy that wants absolute-form, or nil
	lim   limitedReader
	br    *bufio.Reader
	bw    *bufio.Writer

	spare     [1]byte // for empty
	reused    bool
	idleSince time.Time // guarded by u.mu
}

func newUpstreamConn(u *upstream, key upstreamKey, conn net.Conn, via *url.URL) *upstreamConn {
	c := &upstreamConn{u: u, key: key, conn: conn, via: via, lim: limitedReader{conn: conn}}
	c.br = bufio.NewReader(&c.lim)
	c.bw = bufio.NewWriter(conn)
	c.sock = conn
	for {
		below, ok := c.sock.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		c.sock = below.NetConn()
		if b, ok := c.sock.(*belowTLS); ok {
			c.below = b
		}
	}
	if s, ok := c.sock.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
		c.look = c.peek
	}
	return c
}

// quiet tells whether an idle connection can take a request: the server has neither closed it nor sent anything
// unasked. It looks at the socket without waiting and without reading.
func (c *upstreamConn) quiet() bool {
	if c.raw == nil {
		return true
	}
	return c.raw.Control(c.look) == nil && !c.gone
}

// peek tells by c.gone whether the socket has something to read, or an error. Every request asks it: quiet makes no closure.
func (c *upstreamConn) peek(fd uintptr) {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	c.gone = err != syscall.EAGAIN
}

// empty tells whether nothing that was read behind an answer is left, in the buffer or in the TLS connection, which reads
// whole records: it would be taken for the next request's answer. What the socket holds is quiet's to see.
func (c *upstreamConn) empty() bool {
	if c.br.Buffered() > 0 {
		return false
	}
	if c.below == nil {
		return true
	}
	c.below.shut = true
	_, err := c.conn.Read(c.spare[:]) // TLS gives what it has before it asks below
	c.below.shut = false
	return errors.Is(err, errShut)
}

// belowTLS is what a TLS connection to an upstream runs on. While it is shut, reads fail at once and without harm to TLS, so that a
// Read of the TLS connection gives only what that has already; a deadline in the past would do the same at ten times the cost.
type belowTLS struct {
	net.Conn
	shut bool // used by the goroutine that reads
}

func (c *belowTLS) Read(p []byte) (int, error) {
	if c.shut {
		return 0, errShut
	}
	return c.Conn.Read(p)
}

// NetConn is the connection below.
func (c *belowTLS) NetConn() net.Conn { return c.Conn }

// errShut is a time-out to crypto/tls, which goes on after those alone.
var errShut net.Error = shutError{}

type shutError struct{}

func (shutError) Error() string   { return "nothing more is read" }
func (shutError) Timeout() bool   { return true }
func (shutError) Temporary() bool { return true }

// errNothingBack marks an error that came before the first byte of an answer.
var errNothingBack = errors.New("no answer")

// stale tells whether err may only mean that the server closed an idle connection just as the request was sent.
func (c *upstreamConn) stale(err error) bool {
	return c.reused && errors.Is(err, errNothingBack)
}

// roundTrip sends r and reads the head of its answer. The connection is closed on any error.
func (c *upstreamConn) roundTrip(r *http.Request) (*http.Response, error) {
	b := &upstreamBody{c: c, r: r}
	b.stop = context.AfterFunc(r.Context(), c.abort)
	if err := b.send(); err != nil {
		return nil, b.fail(fmt.Errorf("%w: %w", errNothingBack, err))
	}
	res, err := c.readHead(b)
	b.goAhead(false)
	if err == nil && res.StatusCode == http.StatusSwitchingProtocols && hasBody(r) {
		err = errors.New("switched protocols in the middle of a request")
	}
	if err != nil {
		return nil, b.fail(err)
	}
	b.keep = !res.Close && res.ProtoAtLeast(1, 1) && (b.ahead == nil || b.continued)
	if res.StatusCode == http.StatusSwitchingProtocols {
		res.Body = &upgradedBody{upstreamBody: b}
		return res, nil
	}
	b.ReadCloser = res.Body
	res.Body = b
	return res, nil
}

// fail abandons the exchange and puts what the client did in the place of what came of it on the connection. That is looked at
// first: abandon cuts the client's content off too.
func (b *upstreamBody) fail(err error) error {
	defer b.abandon()
	if ctxErr := b.r.Context().Err(); ctxErr != nil {
		return ctxErr
	}
	if b.left.Load() {
		return errClientContent
	}
	return err
}

// abort makes every read and write on the connection fail. It closes the socket, since a deadline could be overwritten by
// the one that readHead sets, and since closing a TLS connection may wait for a writer.
func (c *upstreamConn) abort() { c.sock.Close() }

// readHead reads the answer's head; 1xx but 101 go to httptrace's Got1xxResponse.
func (c *upstreamConn) readHead(b *upstreamBody) (*http.Response, error) {
	r := b.r
	if b.sent == nil { // else the sender does, once it is done: content may take as long as it likes
		b.timeAnswer()
	}
	c.lim.limit(upstreamHead)
	if _, err := c.br.Peek(1); err != nil {
		return nil, fmt.Errorf("%w: %w", errNothingBack, err)
	}
	for {
		res, err := http.ReadResponse(c.br, r)
		if err == nil && res.StatusCode < 100 {
			err = fmt.Errorf("status %q", res.Status)
		}
		if err != nil {
			return nil, err
		}
		if res.StatusCode >= 200 || res.StatusCode == http.StatusSwitchingProtocols {
			c.lim.lift()
			b.answered()
			return res, nil
		}
		if res.StatusCode == http.StatusContinue {
			b.continued = true
			b.goAhead(true)
		}
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.Got1xxResponse != nil {
			if err := trace.Got1xxResponse(res.StatusCode, textproto.MIMEHeader(res.Header)); err != nil {
				return nil, err
			}
		}
	}
}

// writeHead writes the request line and the header section of r: its fields as they stand, but the framing (RFC 9112 §6)
// and Host, which are made from r.
func (c *upstreamConn) writeHead(r *http.Request) {
	w := c.bw
	w.WriteString(r.Method)
	w.WriteByte(' ')
	if c.via != nil {
		w.WriteString("http://")
		w.WriteString(r.URL.Host)
	}
	// RFC 9112 §3.2.4: in absolute-form the asterisk of OPTIONS is no path at all.
	if target := requestTarget(r.URL); c.via == nil || target != "*" {
		w.WriteString(target)
	}
	w.WriteString(" HTTP/1.1\r\n")
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	writeField(w, "Host", host)
	for name, values := range r.Header {
		switch name {
		case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
			continue
		}
		for _, v := range values {
			writeField(w, name, v)
		}
	}
	if c.via != nil && c.via.User != nil {
		writeField(w, "Proxy-Authorization", proxyAuthorization(c.via))
	}
	c.writeFraming(r)
	w.WriteString("\r\n")
}

func (c *upstreamConn) writeFraming(r *http.Request) {
	switch {
	case chunkedRequest(r):
		writeField(c.bw, "Transfer-Encoding", "chunked")
		if names := trailerNames(r.Trailer); names != "" {
			writeField(c.bw, "Trailer", names)
		}
	case r.ContentLength > 0:
		writeField(c.bw, "Content-Length", strconv.FormatInt(r.ContentLength, 10))
	case r.Header["Content-Length"] != nil, r.Method == "POST", r.Method == "PUT", r.Method == "PATCH":
		// RFC 9110 §8.6: a method that gives content a meaning says so when there is none.
		writeField(c.bw, "Content-Length", "0")
	}
}

// chunkedRequest tells whether r's content has no known length.
func chunkedRequest(r *http.Request) bool {
	return hasBody(r) && r.ContentLength <= 0
}

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// trailerNames gives "A, B" for a Trailer field.
func trailerNames(h http.Header) string {
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// writeField writes one field line. A CR or LF inside a value, which the standard parser lets through from an upstream,
// becomes a blank (RFC 9110 §5.5).
func writeField(w *bufio.Writer, name, value string) {
	w.WriteString(name)
	w.WriteString(": ")
	if strings.IndexByte(value, '\r') >= 0 || strings.IndexByte(value, '\n') >= 0 {
		value = newlineToSpace.Replace(value)
	}
	w.WriteString(value)
	w.WriteString("\r\n")
}

var newlineToSpace = strings.NewReplacer("\r", " ", "\n", " ")
