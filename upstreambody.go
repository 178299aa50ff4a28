package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

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

	timing sync.Mutex // guards begun and the connection's read deadline
	begun  bool       // the answer's head is there

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
		b.timeAnswer()
		if errors.Is(err, errClientContent) {
			b.left.Store(true)
			c.abort()
		}
		b.sent <- err
	}()
	return nil
}

// timeAnswer gives the server time for the head of its answer, from now on.
func (b *upstreamBody) timeAnswer() {
	b.timing.Lock()
	defer b.timing.Unlock()
	if !b.begun {
		b.c.conn.SetReadDeadline(time.Now().Add(b.c.u.wait))
	}
}

// answered ends the time that timeAnswer gave.
func (b *upstreamBody) answered() {
	b.timing.Lock()
	defer b.timing.Unlock()
	b.begun = true
	b.c.conn.SetReadDeadline(time.Time{})
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
