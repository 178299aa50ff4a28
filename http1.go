package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	headLimit   = 64 << 10         // bytes of a request's header section
	headWait    = 10 * time.Second // for a whole header section, and for a TLS handshake
	idleWait    = 5 * time.Minute  // between two requests
	watchAfter  = 250 * time.Millisecond
	readBuffer  = 2 << 10   // bytes: an idle connection keeps it, and most heads fit; TLS has the rest of a record at hand
	lingerBytes = 256 << 10 // of a request's content that are read and dropped after an early answer
	lingerWait  = 500 * time.Millisecond
	leaveWait   = 2 * time.Second // for a client to take the last answer and to leave
	noBound     = math.MaxInt64
)

// http1Conn reads requests from a client's HTTP/1.1 connection and writes the answers: the server's half of RFC 9112 over
// the standard library's parsers. It is used for the proxy's own port and inside intercepted TLS connections. One
// goroutine uses it; the sender of a request's content reads from it while an exchange goes on.
type http1Conn struct {
	conn  net.Conn // the socket, or the TLS connection on it
	lim   limitedReader
	br    *bufio.Reader
	bw    *bufio.Writer // nil while the next request is awaited
	wait  time.Duration // for the next request's first byte: headWait before the first, then idleWait
	timed bool          // a read deadline is set

	watch clientWatch
}

func newHTTP1Conn(conn net.Conn) *http1Conn {
	c := &http1Conn{conn: conn, lim: limitedReader{conn: conn}, wait: headWait}
	c.br = bufio.NewReaderSize(&c.lim, readBuffer)
	return c
}

// writers holds the buffers that no exchange uses: most connections are idle, most of the time.
var writers = sync.Pool{New: func() any { return bufio.NewWriter(nil) }}

// badRequest is a request that HTTP does not allow, with the status that says so.
type badRequest struct {
	code int
	text string
}

func (e *badRequest) Error() string { return e.text }

// await waits for the first byte of the next request. Any error means that none will come.
func (c *http1Conn) await() error {
	c.lim.limit(headLimit)
	if c.br.Buffered() == 0 {
		c.conn.SetReadDeadline(time.Now().Add(c.wait))
		c.timed = true
	}
	if c.bw != nil { // the last answer has been flushed, or the connection is over
		c.bw.Reset(nil)
		writers.Put(c.bw)
		c.bw = nil
	}
	_, err := c.br.Peek(1)
	c.bw = writers.Get().(*bufio.Writer)
	c.bw.Reset(c.conn)
	return err
}

// read parses the request whose first byte is there. A *badRequest is to be answered, any other error ends the connection.
func (c *http1Conn) read() (*http.Request, error) {
	if head, _ := c.br.Peek(c.br.Buffered()); !bytes.Contains(head, []byte("\r\n\r\n")) {
		c.conn.SetReadDeadline(time.Now().Add(headWait))
		c.timed = true
	}
	c.wait = idleWait
	r, err := http.ReadRequest(c.br)
	if c.lim.over { // whatever the parser made of half a line
		err = errHeadTooLarge
	}
	if err != nil {
		return nil, headError(err)
	}
	c.lim.lift()
	if err := checkRequest(r); err != nil {
		return nil, err
	}
	if r.Body != http.NoBody && c.timed {
		c.conn.SetReadDeadline(time.Time{})
		c.timed = false
	}
	return r, nil
}

// headError tells what a parser's error means to the client.
func headError(err error) error {
	var netErr net.Error
	var target *url.Error // a net.Error by its methods alone
	switch {
	case errors.Is(err, errHeadTooLarge):
		return &badRequest{http.StatusRequestHeaderFieldsTooLarge, "the header section is larger than 64 KiB or has more than 500 lines"}
	case errors.As(err, &target):
		return &badRequest{http.StatusBadRequest, "the request target is malformed"}
	case errors.As(err, &netErr), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case strings.Contains(err.Error(), "unsupported transfer encoding"):
		return &badRequest{http.StatusNotImplemented, "the only transfer coding is chunked"}
	}
	return &badRequest{http.StatusBadRequest, "not an HTTP/1.1 request"}
}

// checkRequest refuses what http.ReadRequest lets pass and net/http's server does not (server.go, conn.readRequest).
func checkRequest(r *http.Request) error {
	if r.ProtoMajor != 1 {
		return &badRequest{http.StatusHTTPVersionNotSupported, "HTTP/1.1 is spoken here"}
	}
	if r.Host == "" && r.ProtoAtLeast(1, 1) {
		return &badRequest{http.StatusBadRequest, "an HTTP/1.1 request needs a Host field"}
	}
	if !httpguts.ValidHostHeader(r.Host) {
		return &badRequest{http.StatusBadRequest, "the Host field is malformed"}
	}
	if expect := r.Header["Expect"]; len(expect) > 0 && !httpguts.HeaderValuesContainsToken(expect[:1], "100-continue") {
		return &badRequest{http.StatusExpectationFailed, "the only expectation is 100-continue"}
	}
	return checkFields(r.Header)
}

// checkFields refuses malformed field lines of a header or trailer section; http.ReadRequest lets "name : value" pass.
func checkFields(h http.Header) error {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return &badRequest{http.StatusBadRequest, "a field name is malformed"}
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return &badRequest{http.StatusBadRequest, "a field value is malformed"}
			}
		}
	}
	return nil
}

// requestBody is the content of a request as the client sends it. Read and Close may be called by the sender and the
// exchange at once.
type requestBody struct {
	io.Reader
	in       *http.Request     // as parsed: its trailer section is filled at the end of the content
	out      *http.Request     // as sent on
	buffered func() int        // content at hand
	cut      func()            // makes a Read that waits fail
	clean    func(http.Header) // the trailer section, before io.EOF is given; set before the first Read

	read atomic.Int64 // bytes
	done atomic.Bool  // read to its end
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read.Add(int64(n))
	if err == io.EOF && !b.done.Load() {
		if bad := checkFields(b.in.Trailer); bad != nil {
			return n, bad
		}
		b.clean(b.in.Trailer)
		b.out.Trailer = b.in.Trailer
		b.done.Store(true)
	}
	return n, err
}

func (b *requestBody) Buffered() int { return b.buffered() }

// Close says that no more is wanted.
func (b *requestBody) Close() error {
	if !b.done.Load() {
		b.cut()
	}
	return nil
}

// body puts a requestBody in the place of the content of out, a copy of in.
func (c *http1Conn) body(in, out *http.Request) *requestBody {
	b := &requestBody{Reader: in.Body, in: in, out: out, buffered: c.br.Buffered, clean: removeHopByHop}
	b.cut = func() { c.conn.SetReadDeadline(time.Unix(1, 0)) }
	if in.Body == http.NoBody {
		b.done.Store(true)
		return b
	}
	out.Body = b
	return b
}

// finish makes the connection ready for the next request after an answer that came before the content's end: it reads and
// drops a little. It tells whether that was enough.
func (c *http1Conn) finish(r *http.Request, b *requestBody) bool {
	if b.done.Load() {
		return true
	}
	if r.Header.Get("Expect") == "" {
		c.conn.SetReadDeadline(time.Now().Add(lingerWait))
		c.timed = true
		io.CopyN(io.Discard, b, lingerBytes)
	}
	return b.done.Load()
}

// linger lets the client read the last answer before the connection is closed: a close with unread bytes would reset it
// (RFC 9112 §9.6). It reads and drops no more than most bytes: noBound for the content of a request, since a client that sends
// fast looks for an answer no sooner than a slow one.
func (c *http1Conn) linger(most int64) {
	c.bw.Flush()
	if closeWrite(c.conn) == nil {
		c.conn.SetReadDeadline(time.Now().Add(leaveWait))
		io.CopyN(io.Discard, c.conn, most)
	}
}

// upgraded gives the connection as a stream, beginning with what the client sent early.
func (c *http1Conn) upgraded() stream {
	c.endWatch()
	c.conn.SetDeadline(time.Time{})
	return &upgradedConn{c}
}

type upgradedConn struct{ *http1Conn }

func (c *upgradedConn) Read(p []byte) (int, error)  { return c.br.Read(p) }
func (c *upgradedConn) Write(p []byte) (int, error) { return c.conn.Write(p) }
func (c *upgradedConn) CloseWrite() error           { return closeWrite(c.conn) }
func (c *upgradedConn) Close() error                { return c.conn.Close() }

// reply1 writes one answer to a client's HTTP/1.1 connection.
type reply1 struct {
	c       *http1Conn
	old     bool // an HTTP/1.0 client: no chunked coding, no 1xx
	close   bool // the connection ends after this answer
	chunked bool
	// expects is the content of a request with Expect, else nil. A client that gets an answer in the place of 100 may send
	// the content all the same or leave it out (RFC 9110 §10.1.1), so the connection cannot go on.
	expects *requestBody
}

func (p *reply1) inform(code int, h http.Header) error {
	if p.old {
		return nil
	}
	p.c.writeStatus(strconv.Itoa(code) + " " + http.StatusText(code))
	p.c.writeFields(h)
	p.c.bw.WriteString("\r\n")
	return p.c.bw.Flush()
}

// begin writes the head of res in the framing that its content needs: as it came where the length is known.
func (p *reply1) begin(res *http.Response) {
	c := p.c
	if p.expects != nil && !p.expects.done.Load() {
		p.close = true
	}
	c.writeStatus(res.Status)
	c.writeFields(res.Header)
	if bodyless(res) {
		p.chunked = false
	} else if res.ContentLength < 0 {
		if p.chunked = !p.old; p.chunked {
			writeField(c.bw, "Transfer-Encoding", "chunked")
		} else {
			p.close = true
		}
	}
	if names := trailerNames(res.Trailer); names != "" && p.chunked {
		writeField(c.bw, "Trailer", names)
	}
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
	case p.close:
		writeField(c.bw, "Connection", "close")
	case p.old:
		writeField(c.bw, "Connection", "keep-alive")
	}
	c.bw.WriteString("\r\n")
}

func (p *reply1) Write(b []byte) (int, error) {
	if !p.chunked {
		return p.c.bw.Write(b)
	}
	return writeChunk(p.c.bw, b)
}

func (p *reply1) flush() error { return p.c.bw.Flush() }

// end writes what follows the content.
func (p *reply1) end(trailer http.Header) error {
	if p.chunked {
		writeLastChunk(p.c.bw, trailer)
	}
	return p.c.bw.Flush()
}

// bodyless tells whether res has no content whatever its fields say (RFC 9112 §6.3).
func bodyless(res *http.Response) bool {
	return res.Request.Method == "HEAD" || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified || res.StatusCode < 200
}

func (c *http1Conn) writeStatus(status string) {
	c.bw.WriteString("HTTP/1.1 ")
	c.bw.WriteString(newlineToSpace.Replace(status))
	c.bw.WriteString("\r\n")
}

func (c *http1Conn) writeFields(h http.Header) {
	for name, values := range h {
		for _, v := range values {
			writeField(c.bw, name, v)
		}
	}
}

// writeChunk writes one chunk (RFC 9112 §7.1); an empty one would be the end.
func writeChunk(w *bufio.Writer, p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var size [16]byte
	w.Write(strconv.AppendInt(size[:0], int64(len(p)), 16))
	w.WriteString("\r\n")
	n, err := w.Write(p)
	w.WriteString("\r\n")
	return n, err
}

// writeLastChunk writes the end of chunked content with its trailer section.
func writeLastChunk(w *bufio.Writer, trailer http.Header) {
	w.WriteString("0\r\n")
	for name, values := range trailer {
		for _, v := range values {
			writeField(w, name, v)
		}
	}
	w.WriteString("\r\n")
}

// clientWatch notices a client that leaves while its answer is awaited: nobody reads the connection then. It starts a
// reader only when the wait is long.
type clientWatch struct {
	timer *time.Timer
	mu    sync.Mutex
	body  *requestBody // of the exchange that goes on; nil while there is none
	leave context.CancelFunc
	gone  chan struct{} // closed when the reader has ended; nil while there is none
}

// begin watches over an exchange; leave is called when the client has gone.
func (c *http1Conn) beginWatch(b *requestBody, leave context.CancelFunc) {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	w.body, w.leave = b, leave
	if w.timer == nil {
		w.timer = time.AfterFunc(watchAfter, c.watchNow)
	} else {
		w.timer.Reset(watchAfter)
	}
}

// watchNow starts the reader once the request's content has been read.
func (c *http1Conn) watchNow() {
	w := &c.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.body == nil || w.gone != nil {
		return
	}
	if !w.body.done.Load() {
		w.timer.Reset(watchAfter)
		return
	}
	c.conn.SetReadDeadline(time.Time{})
	gone, leave := make(chan struct{}), w.leave
	w.gone = gone
	// endWatch waits for it, after it has cut its read.
	go func() {
		defer close(gone)
		// A client may have sent its next request already: as much of that is read as there is room for.
		var err error
		for err == nil {
			_, err = c.br.Peek(c.br.Buffered() + 1)
		}
		var timeout net.Error
		if err != bufio.ErrBufferFull && !(errors.As(err, &timeout) && timeout.Timeout()) {
			leave()
		}
	}()
}

// endWatch stops the watch: from then on the connection may be read again.
func (c *http1Conn) endWatch() {
	w := &c.watch
	w.mu.Lock()
	w.body = nil
	gone := w.gone
	w.gone = nil
	w.mu.Unlock()
	w.timer.Stop()
	if gone != nil {
		c.conn.SetReadDeadline(time.Unix(1, 0))
		<-gone
		c.conn.SetReadDeadline(time.Time{})
		c.timed = false
	}
}
