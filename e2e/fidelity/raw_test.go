package fidelity

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// rawClient writes requests as the table has them, and in ways that no library has: chunk extensions, undeclared trailers.
func rawClient() client {
	return client{name: "raw", do: func(t *testing.T, w way, x *exchange, mark string) []*answers {
		var all []*answers
		var conn *tls.Conn
		var in *bufio.Reader
		for range max(x.times, 1) {
			a := &answers{}
			opened := 0
			if conn == nil {
				conn, in, opened = rawConnect(t, w), nil, 1
				defer conn.Close()
				in = bufio.NewReader(conn)
			}
			a = rawExchange(t, conn, in, w, x, mark)
			a.opened = opened
			all = append(all, a)
		}
		return all
	}}
}

// rawConnect opens a TLS connection to the host.
func rawConnect(t *testing.T, w way) *tls.Conn {
	t.Helper()
	addr := w.addr
	if w.proxy != "" {
		addr = w.proxy
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(exchangeLimit))
	if w.proxy != "" {
		_, _ = io.WriteString(conn, "CONNECT "+w.host+":443 HTTP/1.1\r\nHost: "+w.host+":443\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), &http.Request{Method: "CONNECT"})
		if err != nil || res.StatusCode != 200 {
			t.Fatalf("CONNECT %s: %v, %v", w.host, res, err)
		}
	}
	tc := tls.Client(conn, &tls.Config{ServerName: w.host, RootCAs: w.pool, NextProtos: []string{"http/1.1"}})
	if err := tc.HandshakeContext(context.Background()); err != nil {
		t.Fatalf("TLS %s: %v", w, err)
	}
	return tc
}

func rawExchange(t *testing.T, conn *tls.Conn, in *bufio.Reader, w way, x *exchange, mark string) *answers {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nhost: %s\r\n%s: %s\r\n", x.verb(), x.path(), w.host, markField, mark)
	expects := false
	for _, f := range x.fields {
		if (f.name == "User-Agent" || f.name == "Expect") && f.value == "" {
			continue
		}
		expects = expects || f.name == "Expect"
		fmt.Fprintf(&b, "%s:%s\r\n", f.name, f.value)
	}
	content := rawContent(&b, x)
	a := &answers{}
	var err error
	if expects {
		_, _ = io.WriteString(conn, b.String())
		var m *message
		if m, err = readHead(in, true); err == nil && m.code != 100 {
			a.final = m
			if err = m.readContent(in, true); err != nil {
				a.err = "broken"
			}
			return a
		}
		a.interim = append(a.interim, m)
		b.Reset()
	}
	sent := make(chan struct{})
	go func() { defer close(sent); _, _ = io.WriteString(conn, b.String()+content) }()
	rest, err := readAnswers(in, x.verb())
	a.interim, a.final = append(a.interim, rest.interim...), rest.final
	if err != nil {
		a.err = "broken"
		t.Logf("raw: %v", err)
	}
	if x.early {
		conn.Close()
	}
	<-sent
	return a
}

// rawContent writes the framing fields and the end of the head; content is what follows.
func rawContent(b *strings.Builder, x *exchange) (content string) {
	if !x.chunked {
		if x.content != "" {
			fmt.Fprintf(b, "content-length: %d\r\n", len(x.content))
		}
		b.WriteString("\r\n")
		return x.content
	}
	b.WriteString("transfer-encoding: chunked\r\n\r\n")
	var c strings.Builder
	for rest := x.content; rest != ""; {
		n := min(len(rest), 1+len(rest)/2)
		fmt.Fprintf(&c, "0%X;ext=\"a;b\"\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	c.WriteString("000;last\r\n")
	for _, f := range x.trailer {
		fmt.Fprintf(&c, "%s: %s\r\n", f.name, f.value)
	}
	c.WriteString("\r\n")
	return c.String()
}
