package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// wireRequest is a request as it stood on the wire to an upstream.
type wireRequest struct {
	method, target string
	header         http.Header // Host and framing included
	content        string
	trailer        http.Header
}

// errTruncated is a request that broke off: no server takes it for a whole one.
var errTruncated = errors.New("request broke off")

var (
	wireLine  = regexp.MustCompile(`^([!#$%&'*+.^_` + "`" + `|~0-9A-Za-z-]+) ([^\x00-\x20#\x7f]+) HTTP/1\.1$`)
	wireField = regexp.MustCompile(`^([!#$%&'*+.^_` + "`" + `|~0-9A-Za-z-]+): ([^\x00-\x08\x0a-\x1f\x7f]*)$`)
	wireChunk = regexp.MustCompile(`^[0-9a-f]{1,15}$`)
)

// readWireHead reads the head of one request in the one form that every server reads alike, far stricter than RFC 9112 allows:
// CRLF and no other line end, no blank but those of the grammar, one Host, one framing. io.EOF is the end between two
// requests, errTruncated one within; any other error means that servers may differ about what they got.
func readWireHead(br *bufio.Reader) (*wireRequest, error) {
	line, err := readWireLine(br)
	if err != nil {
		return nil, err
	}
	m := wireLine.FindStringSubmatch(line)
	if m == nil {
		return nil, fmt.Errorf("request line %q", line)
	}
	r := &wireRequest{method: m[1], target: m[2]}
	if r.header, err = readWireFields(br); err != nil {
		return nil, err
	}
	length, chunked := r.header["Content-Length"], r.header["Transfer-Encoding"]
	if len(r.header["Host"]) != 1 || len(length) > 1 || len(chunked) > 1 || len(length) == 1 && len(chunked) == 1 {
		return nil, fmt.Errorf("host and framing of %v", r.header)
	}
	return r, nil
}

// readContent reads the content in the framing that the head names.
func (r *wireRequest) readContent(br *bufio.Reader) error {
	if length := r.header["Content-Length"]; length != nil {
		n, err := strconv.ParseUint(length[0], 10, 63)
		if err != nil || strconv.FormatUint(n, 10) != length[0] {
			return fmt.Errorf("length %q", length[0])
		}
		content, err := io.ReadAll(io.LimitReader(br, int64(n)))
		if err != nil || len(content) < int(n) {
			return errTruncated
		}
		r.content = string(content)
	}
	if coding := r.header["Transfer-Encoding"]; coding != nil {
		if coding[0] != "chunked" {
			return fmt.Errorf("transfer coding %q", coding[0])
		}
		return r.readChunks(br)
	}
	return nil
}

// readChunks reads chunked content and the trailer section.
func (r *wireRequest) readChunks(br *bufio.Reader) error {
	for {
		line, err := readWireLine(br)
		if err != nil {
			return within(err)
		}
		if !wireChunk.MatchString(line) {
			return fmt.Errorf("chunk size %q", line)
		}
		n, _ := strconv.ParseInt(line, 16, 64)
		if n == 0 {
			r.trailer, err = readWireFields(br)
			return err
		}
		content, err := io.ReadAll(io.LimitReader(br, n))
		if err != nil || len(content) < int(n) {
			return errTruncated
		}
		r.content += string(content)
		if end, err := readWireLine(br); err != nil || end != "" {
			return within(cmpError(err, fmt.Errorf("%q behind a chunk", end)))
		}
	}
}

func readWireFields(br *bufio.Reader) (http.Header, error) {
	h := http.Header{}
	for {
		line, err := readWireLine(br)
		if err != nil {
			return nil, within(err)
		}
		if line == "" {
			return h, nil
		}
		m := wireField.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("field line %q", line)
		}
		h.Add(m[1], m[2])
	}
}

// readWireLine reads to CRLF; a CR or LF of its own is an error.
func readWireLine(br *bufio.Reader) (string, error) {
	line, err := br.ReadString('\n')
	switch {
	case err != nil && line == "":
		return "", io.EOF
	case err != nil:
		return "", errTruncated
	}
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsRune(text, '\r') {
		return "", fmt.Errorf("line end of %q", line)
	}
	return text, nil
}

// within makes the end of the connection what it is inside a request.
func within(err error) error {
	if err == io.EOF {
		return errTruncated
	}
	return err
}

func cmpError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// wireOrigin is an origin that reads by readWire, so that whatever reaches it is either a request that every server
// understands alike, or a finding. Every name leads to it.
type wireOrigin struct {
	testOrigin
	// answer gives the bytes of the answer to a request; nil is a plain 200 with "ok".
	answer func(*wireRequest) string
	// hasty makes it answer 417 to an expectation and take the content, should it come, for the next request.
	hasty bool

	mu     sync.Mutex
	conns  map[net.Conn]bool
	whole  []*wireRequest
	errs   []error // what was neither whole nor just broken off
	broken int     // requests that broke off
}

// newWireOrigin starts one that ends with the test.
func newWireOrigin(t testing.TB) *wireOrigin {
	t.Helper()
	o := &wireOrigin{testOrigin: testOrigin{roots: x509.NewCertPool()}, conns: map[net.Conn]bool{}}
	var issue func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	o.root, issue = originIssuer(t)
	o.roots.AddCert(o.root)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"http/1.1"}, GetCertificate: issue})
	if err != nil {
		t.Fatal(err)
	}
	o.addr = ln.Addr().String()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns[conn] = true
			o.mu.Unlock()
			all.Go(func() { o.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); o.hangUp(); all.Wait() })
	return o
}

// hangUp closes all connections.
func (o *wireOrigin) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for conn := range o.conns {
		conn.Close()
	}
}

// serve records and answers the requests of one connection.
func (o *wireOrigin) serve(conn net.Conn) {
	br := bufio.NewReader(conn)
	for {
		r, err := readWireHead(br)
		if err == nil && o.hasty && r.header["Expect"] != nil {
			io.WriteString(conn, "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")
			continue
		}
		if err == nil {
			err = r.readContent(br)
		}
		if err != nil {
			o.mu.Lock()
			defer o.mu.Unlock()
			delete(o.conns, conn)
			conn.Close()
			switch err {
			case io.EOF:
			case errTruncated:
				o.broken++
			default:
				o.errs = append(o.errs, err)
			}
			return
		}
		o.mu.Lock()
		o.whole = append(o.whole, r)
		o.mu.Unlock()
		text := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		if o.answer != nil {
			text = o.answer(r)
		}
		io.WriteString(conn, text) // the next read tells of an error
	}
}

// takeWire gives the whole requests since the last call; anything that servers could differ about fails the test.
func (o *wireOrigin) takeWire(t testing.TB) []*wireRequest {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, err := range o.errs {
		t.Errorf("the upstream got what servers read in different ways: %v", err)
	}
	got := o.whole
	o.whole, o.errs = nil, nil
	return got
}

// memConn is the proxy's end of a connection whose other end has sent data, and then waits: it takes what is written. Reads
// give at most step bytes.
type memConn struct {
	step int

	mu       sync.Mutex
	hold     bool // wait for more behind data, instead of the end of the connection
	data     []byte
	sent     bytes.Buffer // what the proxy wrote
	closed   bool
	deadline time.Time
	change   chan struct{} // closed and made anew when deadline or closed changes
}

func newMemConn(data []byte, step int) *memConn {
	return &memConn{step: max(step, 1), data: data, change: make(chan struct{})}
}

func (c *memConn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		n := copy(p[:min(len(p), c.step)], c.data)
		c.data = c.data[n:]
		closed, hold, left, change := c.closed, c.hold, time.Until(c.deadline), c.change
		timed := !c.deadline.IsZero()
		c.mu.Unlock()
		switch {
		case closed:
			return 0, net.ErrClosed
		case n > 0:
			return n, nil
		case timed && left <= 0:
			return 0, os.ErrDeadlineExceeded
		case !hold:
			return 0, io.EOF
		case !timed:
			left = time.Hour
		}
		timer := time.NewTimer(left)
		select {
		case <-change:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (c *memConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.sent.Write(p)
}

func (c *memConn) Close() error {
	c.changed(func() { c.closed = true })
	return nil
}

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.changed(func() { c.deadline = t })
	return nil
}

// CloseWrite makes the other end close the connection.
func (c *memConn) CloseWrite() error {
	c.changed(func() { c.hold = false })
	return nil
}

func (c *memConn) changed(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(c.change)
	c.change = make(chan struct{})
}

func (c *memConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memConn) LocalAddr() net.Addr              { return memAddr }
func (c *memConn) RemoteAddr() net.Addr             { return memAddr }

var memAddr = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}

// output gives all that the proxy wrote.
func (c *memConn) output() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.sent.Bytes())
}
