package soak

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"muxproxy/e2e/testbed"
)

// crowd is many clients at once and what became of their requests.
type crowd struct {
	t      *testing.T
	d      *testbed.Daemon
	config *tls.Config
	tick   time.Duration // a slow client sends or reads a byte as often
	next   atomic.Int64  // numbers requests

	mu      sync.Mutex
	whole   map[string]int // the status of each request that was answered whole, by path
	tunnels int            // CONNECT to the tunnel's host that were answered 200
	errors  []string       // of the well-behaved
	longest time.Duration  // that a well-behaved one waited
}

// pause waits for d or the end of ctx, and tells whether to go on.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// run has n clients go on for d: a third behave well, a third are slow, a third break off.
func (c *crowd) run(n int, d time.Duration) {
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	defer cancel()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			for k := i / 3; ctx.Err() == nil; {
				switch i % 3 {
				case 0:
					c.good(ctx, k)
				case 1:
					c.slow(ctx, k)
				case 2:
					c.broken(ctx)
				}
			}
		})
	}
	all.Wait()
}

var hosts = []string{injectedHost, passiveHost, tunnelHost}

func (c *crowd) path(kind string) string { return fmt.Sprintf("/%s/%d", kind, c.next.Add(1)) }

// good sends requests one after the other, each of which must succeed.
func (c *crowd) good(ctx context.Context, k int) {
	client, leave := c.client(1 + k%2)
	defer leave()
	for i := 0; ctx.Err() == nil; i++ {
		host := hosts[(k+i)%len(hosts)]
		started := time.Now()
		// A request goes on when the time is over: it has been promised an answer.
		if err := c.request(context.WithoutCancel(ctx), client, host, i); err != nil {
			c.mu.Lock()
			c.errors = append(c.errors, fmt.Sprintf("%s after %s: %v", host, time.Since(started), err))
			c.mu.Unlock()
		}
		c.mu.Lock()
		c.longest = max(c.longest, time.Since(started))
		c.mu.Unlock()
		if k%4 == 0 {
			client.CloseIdleConnections()
		}
		pause(ctx, time.Duration(rand.IntN(300))*time.Millisecond)
	}
}

// client gives net/http's client; leave closes all its connections, whatever they are at.
func (c *crowd) client(version int) (client *http.Client, leave func()) {
	client = c.d.Client(c.t, version)
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.t.Context()))
	client.Transport.(*http.Transport).DialContext = func(dial context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(dial, network, address)
		if err == nil {
			context.AfterFunc(ctx, func() { conn.Close() })
		}
		return conn, err
	}
	return client, cancel
}

func (c *crowd) request(ctx context.Context, client *http.Client, host string, i int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	method, path, body, want := "GET", c.path("small"), []byte(nil), []byte("small")
	switch i % 5 {
	case 1:
		path, want = c.path("large"), large
	case 3:
		method, path, body = "POST", c.path("echo"), large[:1+rand.IntN(20000)]
		want = body
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	content, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != 200 || !bytes.Equal(content, want) {
		return fmt.Errorf("%s, %d bytes, %v", res.Status, len(content), err)
	}
	if host != tunnelHost {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.whole[path] = res.StatusCode
	}
	return nil
}

// large is the content of a large answer.
var large = bytes.Repeat([]byte("a quarter of a MiB. "), 13107)

// slow is at work on one connection, byte by byte, in the part of it that k says, until the connection or the time ends.
func (c *crowd) slow(ctx context.Context, k int) {
	head := "GET " + c.path("small") + " HTTP/1.1\r\nHost: " + injectedHost + "\r\n\r\n"
	var conn net.Conn
	var err error
	switch k % 5 {
	case 0: // in the CONNECT
		if conn, err = net.Dial("tcp", c.d.Proxy); err == nil {
			c.drip(ctx, conn, "CONNECT "+injectedHost+":443 HTTP/1.1\r\nHost: "+injectedHost+":443\r\nX-Long: "+string(large[:100])+"\r\n\r\n")
		}
	case 1: // in the handshake
		if conn, err = c.d.Connect(ctx, injectedHost+":443"); err == nil {
			c.drip(ctx, conn, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"+string(large[:500]))
		}
	case 2: // in the head
		if conn, err = c.connect(ctx, injectedHost); err == nil {
			c.drip(ctx, conn, head)
		}
	case 3: // in the content
		if conn, err = c.connect(ctx, injectedHost); err == nil {
			_, _ = io.WriteString(conn, "POST "+c.path("echo")+" HTTP/1.1\r\nHost: "+injectedHost+"\r\nContent-Length: 100000\r\n\r\n")
			c.drip(ctx, conn, string(large[:100000]))
		}
	case 4: // in reading
		if conn, err = c.connect(ctx, injectedHost); err == nil {
			_, _ = io.WriteString(conn, "GET "+c.path("large")+" HTTP/1.1\r\nHost: "+injectedHost+"\r\n\r\n")
			for b := make([]byte, 1); err == nil && pause(ctx, c.tick); {
				_, err = conn.Read(b)
			}
		}
	}
	if conn != nil {
		conn.Close()
	}
	pause(ctx, c.tick)
}

// drip writes text byte by byte, and ends when the proxy ends the connection.
func (c *crowd) drip(ctx context.Context, conn net.Conn, text string) {
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = io.Copy(io.Discard, conn) }()
	defer func() { conn.Close(); <-ended }()
	for i := range len(text) {
		select {
		case <-ended:
			return
		case <-ctx.Done():
			return
		case <-time.After(c.tick):
		}
		if _, err := io.WriteString(conn, text[i:i+1]); err != nil {
			return
		}
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
}

func (c *crowd) connect(ctx context.Context, host string) (net.Conn, error) {
	conn, err := c.d.ConnectTLS(ctx, c.config, host, "http/1.1")
	if err != nil {
		return nil, err // not a nil *tls.Conn
	}
	if host == tunnelHost {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tunnels++
	}
	return conn, nil
}

// broken begins something and breaks it off at a random moment.
func (c *crowd) broken(ctx context.Context) {
	host := hosts[rand.IntN(len(hosts))]
	if rand.IntN(4) == 0 {
		c.brokenHTTP2(ctx, host)
		return
	}
	conn, err := c.connect(ctx, host)
	if err != nil {
		return
	}
	path, method, framing := c.path([]string{"small", "large", "wait", "events", "echo"}[rand.IntN(5)]), "GET", ""
	if rand.IntN(2) == 0 {
		method, framing = "POST", []string{"Content-Length: 50000\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\nContent-Length: 5\r\n"}[rand.IntN(3)]
	}
	text := method + " " + path + " HTTP/1.1\r\nHost: " + host + "\r\n" + framing + "\r\n"
	if method == "POST" {
		text += "3e8\r\n" + string(large[:1000])
	}
	if rand.IntN(3) == 0 {
		text = text[:rand.IntN(len(text))]
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(rand.IntN(500)) * time.Millisecond))
	_, _ = io.CopyN(io.Discard, conn, int64(rand.IntN(2*len(large))))
	switch socket := conn.(*tls.Conn).NetConn(); rand.IntN(3) {
	case 0:
		_ = socket.(*net.TCPConn).SetLinger(0)
		socket.Close()
	case 1:
		socket.Close()
	default:
		conn.Close()
	}
}

func (c *crowd) brokenHTTP2(ctx context.Context, host string) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(500))*time.Millisecond)
	defer cancel()
	client, leave := c.client(2)
	defer leave()
	r, err := http.NewRequestWithContext(ctx, "GET", "https://"+host+c.path([]string{"large", "wait", "events"}[rand.IntN(3)]), nil)
	if err != nil {
		return
	}
	if res, err := client.Do(r); err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}
