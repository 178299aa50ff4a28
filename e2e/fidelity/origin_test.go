package fidelity

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"muxproxy/e2e/testbed"
)

// markField tells the origin which exchange a request belongs to and under which name to record it: "17 curl-h1-direct".
const markField = "X-Exchange"

// origin is a TLS server that writes answers byte for byte as the table of exchanges has them, and keeps what it received.
type origin struct {
	ln      net.Listener
	serving sync.WaitGroup

	mu    sync.Mutex
	got   map[string][]*message // by mark
	conns map[net.Conn]struct{}
}

// newOrigin serves on port 443 of the test's address until the test ends.
func newOrigin(t *testing.T, ca *testbed.CA) *origin {
	t.Helper()
	ln, err := tls.Listen("tcp", net.JoinHostPort(testbed.Address(), "443"), &tls.Config{GetCertificate: ca.Leaf, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{ln: ln, got: map[string][]*message{}, conns: map[net.Conn]struct{}{}}
	o.serving.Go(o.accept)
	t.Cleanup(o.close)
	return o
}

func (o *origin) accept() {
	for {
		conn, err := o.ln.Accept()
		if err != nil {
			return
		}
		o.mu.Lock()
		o.conns[conn] = struct{}{}
		o.mu.Unlock()
		o.serving.Go(func() { o.serve(conn.(*tls.Conn)) })
	}
}

func (o *origin) close() {
	o.ln.Close()
	o.mu.Lock()
	for c := range o.conns {
		c.Close()
	}
	o.mu.Unlock()
	o.serving.Wait()
}

func (o *origin) serve(conn *tls.Conn) {
	defer func() {
		conn.Close()
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.conns, conn)
	}()
	if conn.HandshakeContext(context.Background()) != nil {
		return
	}
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		o.serve2(conn)
		return
	}
	in := bufio.NewReader(conn)
	for o.exchange(conn, in) == nil {
	}
}

var errLast = errors.New("the connection ends")

// exchange reads one request and answers it as its exchange says.
func (o *origin) exchange(conn net.Conn, in *bufio.Reader) error {
	m, err := readHead(in, false)
	if err != nil {
		return err
	}
	x, name := marked(m)
	if x == nil {
		_, _ = io.WriteString(conn, "HTTP/1.1 500 Unmarked\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return errLast
	}
	expects := hasToken(m.fields, "expect", "100-continue")
	if expects && !x.early {
		_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	if x.early {
		return o.refuse(conn, in, m, name, x, expects)
	}
	if err := m.readContent(in, false); err != nil {
		m.method = "BROKEN " + m.method
		o.record(name, m)
		return err
	}
	o.record(name, m)
	return x.write(conn)
}

// refuse answers before the content is read, and ends the connection as servers do (RFC 9112 §9.6).
func (o *origin) refuse(conn net.Conn, in *bufio.Reader, m *message, name string, x *exchange, expects bool) error {
	if !expects {
		o.record(name, m)
	}
	if err := x.write(conn); err != nil && err != errLast {
		return err
	}
	_ = conn.(*tls.Conn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _ := io.Copy(io.Discard, in)
	if expects {
		m.content = fmt.Sprintf("%t", n > 0) // whether content came all the same
		o.record(name, m)
	}
	return errLast
}

// write writes the answer; errLast says that it ends the connection.
func (x *exchange) write(conn net.Conn) error {
	pieces := []string{x.answer}
	if x.slow {
		n := len(x.answer) / 3
		pieces = []string{x.answer[:n], x.answer[n : 2*n], x.answer[2*n:]}
	}
	for i, p := range pieces {
		if i > 0 {
			<-time.After(30 * time.Millisecond)
		}
		if _, err := io.WriteString(conn, p); err != nil {
			return err
		}
	}
	if x.ends {
		return errLast
	}
	return nil
}

// marked finds the exchange that a request names, and takes the mark out.
func marked(m *message) (x *exchange, name string) {
	mark := get(m.fields, markField)
	if len(mark) != 1 {
		return nil, ""
	}
	for i, f := range m.fields {
		if strings.EqualFold(f.name, markField) {
			m.fields = append(m.fields[:i:i], m.fields[i+1:]...)
			break
		}
	}
	number, _, _ := strings.Cut(mark[0], " ")
	i, err := strconv.Atoi(number)
	if err != nil || i >= len(exchanges) {
		return nil, ""
	}
	return &exchanges[i], mark[0]
}

func (o *origin) record(name string, m *message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got[name] = append(o.got[name], m)
}

// take gives what was received under mark, n messages, waited for; more if there are more.
func (o *origin) take(t *testing.T, mark string, n int) []*message {
	t.Helper()
	var got []*message
	testbed.Eventually(t, "the request at the origin", 5*time.Second, func() error {
		o.mu.Lock()
		defer o.mu.Unlock()
		if got = o.got[mark]; len(got) < n {
			return fmt.Errorf("%d of %d", len(got), n)
		}
		return nil
	})
	return got
}
