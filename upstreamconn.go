package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// upstreamConn is one HTTP/1.1 connection to a server, used by one request at a time.
type upstreamConn struct {
	u    *upstream
	key  upstreamKey
	conn net.Conn
	sock net.Conn        // the socket below conn
	raw  syscall.RawConn // its descriptor; nil where there is none to look at
	via  *url.URL        // the upstream proxy that wants absolute-form, or nil
	lim  limitedReader
	br   *bufio.Reader
	bw   *bufio.Writer

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
	}
	if s, ok := c.sock.(syscall.Conn); ok {
		c.raw, _ = s.SyscallConn()
	}
	return c
}

// quiet tells whether an idle connection can take a request: the server has neither closed it nor sent anything
// unasked. It looks at the socket without waiting and without reading.
func (c *upstreamConn) quiet() bool {
	if c.raw == nil {
		return true
	}
	quiet := false
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN
		return true
	})
	return err == nil && quiet
}

// empty tells whether nothing that was read behind an answer is left, in the buffer or in the TLS connection, which reads
// whole records: it would be taken for the next request's answer. What the socket holds is quiet's to see.
func (c *upstreamConn) empty() bool {
	if c.br.Buffered() > 0 {
		return false
	}
	if c.conn == c.sock {
		return true
	}
	c.conn.SetReadDeadline(time.Unix(1, 0)) // TLS gives what it has before it asks the socket
	_, err := c.conn.Read(make([]byte, 1))
	c.conn.SetReadDeadline(time.Time{})
	return errors.Is(err, os.ErrDeadlineExceeded)
}

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
	c.conn.SetReadDeadline(time.Now().Add(c.u.wait))
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
			c.conn.SetReadDeadline(time.Time{})
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

// upstreamBody is the content of one answer, and what the exchange still owes: the sending of the request's content, and
// the connection's return to the pool.
type upstreamBody struct {
	io.ReadCloser
	c    *upstreamConn
	r    *http.Request
	stop func() bool // ends the watch on the request's context
	keep bool        // the server keeps the connection open
	eof  bool        // the content has been read to its end
	done bool        // Close was called

	sent chan error  // holds the sender's result; nil where there is no sender
	left atomic.Bool // the client's content broke off: the sender has closed the connection

	ahead     chan bool // tells a sender that awaits 100 whether to send; nil where it does not
	continued bool      // 100 came
}

// send writes the request: all of it where its content is at hand or there is none, else its head, and starts the sender.
func (b *upstreamBody) send() error {
	c, r := b.c, b.r
	c.writeHead(r)
	if !hasBody(r) {
		return c.bw.Flush()
	}
	if r.Header["Expect"] != nil {
		b.ahead = make(chan bool, 1)
	} else if r.ContentLength > 0 && r.ContentLength <= int64(buffered(r.Body)) {
		return c.writeContent(r)
	}
	if err := c.bw.Flush(); err != nil {
		return err
	}
	b.sent = make(chan error, 1)
	// Close and abandon wait for it, after they have cut both of its ends.
	go func() {
		err := b.awaitContinue()
		if err == nil {
			err = c.writeContent(r)
		}
		if errors.Is(err, errClientContent) {
			b.left.Store(true)
			c.abort()
		}
		b.sent <- err
	}()
	return nil
}

// errNotContinued is the sender's result where the server answered for good instead of with 100.
var errNotContinued = errors.New("answered before 100")

// awaitContinue holds content back until the server has asked for it or time is up: a server that answers for good without
// reading it could take it for the next request on the connection (RFC 9110 §10.1.1).
func (b *upstreamBody) awaitContinue() error {
	if b.ahead == nil {
		return nil
	}
	t := time.NewTimer(continueWait)
	defer t.Stop()
	select {
	case ahead := <-b.ahead:
		if !ahead {
			return errNotContinued
		}
	case <-t.C:
	}
	return nil
}

// goAhead tells the sender that awaits 100, if there is one, whether to send. The first word counts.
func (b *upstreamBody) goAhead(ahead bool) {
	select {
	case b.ahead <- ahead:
	default:
	}
}

// errClientContent marks an error in reading the request's content, in contrast to one in sending it.
var errClientContent = errors.New("request content broke off")

// buffered tells how many bytes of content can be read from body without waiting.
func buffered(body io.Reader) int {
	if b, ok := body.(interface{ Buffered() int }); ok {
		return b.Buffered()
	}
	return 0
}

// writeContent copies r's content and trailer section in the framing that writeFraming announced; each piece is sent
// when it comes.
func (c *upstreamConn) writeContent(r *http.Request) error {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	chunked, left := chunkedRequest(r), r.ContentLength
	for {
		n, err := r.Body.Read(buf[:])
		if n > 0 {
			if chunked {
				writeChunk(c.bw, buf[:n])
			} else if left -= int64(n); left < 0 {
				return fmt.Errorf("%w: longer than its Content-Length", errClientContent)
			} else {
				c.bw.Write(buf[:n])
			}
			if err := c.bw.Flush(); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errClientContent, err)
		}
	}
	if chunked {
		writeLastChunk(c.bw, r.Trailer)
	} else if left > 0 {
		return fmt.Errorf("%w: %w", errClientContent, io.ErrUnexpectedEOF)
	}
	return c.bw.Flush()
}

// Read gives the answer's content. An error that is not io.EOF is a truncated answer.
func (b *upstreamBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.eof = true
	}
	return n, err
}

// Buffered tells how much can be read without waiting, or 0.
func (b *upstreamBody) Buffered() int { return b.c.br.Buffered() }

// Close ends the exchange: the connection goes back to the pool if both sides have said all, else it is closed.
func (b *upstreamBody) Close() error {
	if b.done {
		return nil
	}
	b.done = true
	undisturbed := b.stop()
	if b.eof && b.keep && undisturbed && b.sentAll() && b.c.empty() {
		b.c.u.put(b.c)
		return nil
	}
	b.abandon()
	return nil
}

// sentAll waits a moment for a sender that is about to be done.
func (b *upstreamBody) sentAll() bool {
	if b.sent == nil {
		return true
	}
	t := time.NewTimer(50 * time.Millisecond)
	defer t.Stop()
	select {
	case err := <-b.sent:
		b.sent = nil
		return err == nil
	case <-t.C:
		return false
	}
}

// abandon closes the connection, cuts the sender off and waits for it.
func (b *upstreamBody) abandon() {
	b.stop()
	b.goAhead(false)
	b.c.abort()
	if b.r.Body != nil {
		b.r.Body.Close()
	}
	if b.sent != nil {
		<-b.sent
		b.sent = nil
	}
}

// upgradedBody is the Body of an answer 101: the connection itself, beginning with what the server sent early.
type upgradedBody struct{ *upstreamBody }

func (b *upgradedBody) Read(p []byte) (int, error)  { return b.c.br.Read(p) }
func (b *upgradedBody) Write(p []byte) (int, error) { return b.c.conn.Write(p) }

// CloseWrite passes a half-close on.
func (b *upgradedBody) CloseWrite() error {
	if w, ok := b.c.conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

func (b *upgradedBody) Close() error {
	if !b.done {
		b.done = true
		b.abandon()
	}
	return nil
}
