package fidelity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"muxproxy/e2e/testbed"
)

// leaving is an origin whose handlers wait for their client to go.
type leaving struct {
	arrived chan string // the path of a request that is now under way
	left    chan string // the path of one whose client is gone
}

func (l *leaving) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch path {
	case "/events":
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: first\n\n")
		_ = http.NewResponseController(w).Flush()
	case "/content":
		w.Header().Set("Content-Length", "1000000")
		_, _ = io.WriteString(w, "the first part")
		_ = http.NewResponseController(w).Flush()
	case "/websocket":
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		l.arrived <- path
		_, _, _ = conn.Read(context.Background())
		l.left <- path
		conn.CloseNow()
		return
	case "/upload":
		l.arrived <- path
		_, _ = io.Copy(io.Discard, r.Body)
		l.left <- path
		return
	}
	l.arrived <- path
	<-r.Context().Done()
	l.left <- path
}

// wait gives the time until path comes out of c.
func (l *leaving) wait(t *testing.T, c <-chan string, path string, limit time.Duration) {
	t.Helper()
	select {
	case got := <-c:
		if got != path {
			t.Fatalf("%s in the place of %s", got, path)
		}
	case <-time.After(limit):
		t.Errorf("%s: not within %s", path, limit)
		<-c // the next case must not find it
	}
}

// goodbyes are the ways in which a connection ends.
var goodbyes = []struct {
	name string
	end  func(*tls.Conn)
}{
	{"closed", func(c *tls.Conn) { c.Close() }},
	{"closed without a TLS alert", func(c *tls.Conn) { c.NetConn().Close() }},
	{"reset", func(c *tls.Conn) { _ = c.NetConn().(*net.TCPConn).SetLinger(0); c.NetConn().Close() }},
}

func TestAClientThatLeavesEndsTheUpstreamsRequestWithinASecond(t *testing.T) {
	ca := testbed.NewCA(t)
	l := &leaving{arrived: make(chan string), left: make(chan string, 1)}
	testbed.Serve(t, ca, "443", l)
	d := startDaemon(t, ca)
	config := &tls.Config{RootCAs: d.Pool(t)}
	for _, host := range routes {
		for _, path := range []string{"/think", "/events", "/content", "/upload"} {
			for _, bye := range goodbyes {
				t.Run(fmt.Sprintf("%s HTTP/1.1 %s %s", host, path, bye.name), func(t *testing.T) {
					conn, err := d.ConnectTLS(t.Context(), config, host, "http/1.1")
					if err != nil {
						t.Fatal(err)
					}
					request := "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n"
					if path == "/upload" {
						request = "POST" + request[3:] + "Content-Length: 1000\r\n\r\nsome"
					} else {
						request += "\r\n"
					}
					_, _ = io.WriteString(conn, request)
					l.wait(t, l.arrived, path, 10*time.Second)
					bye.end(conn)
					l.wait(t, l.left, path, time.Second)
				})
			}
			t.Run(fmt.Sprintf("%s HTTP/2 %s cancelled", host, path), func(t *testing.T) { leaveHTTP2(t, d, l, host, path) })
		}
	}
	for _, line := range d.Closing(t, func(l testbed.Line) bool { return l.Decision != "tunneled" }) {
		if !strings.Contains(line.Error, "client left") && !strings.Contains(line.Error, "broke off") {
			t.Errorf("audit line %+v", line)
		}
	}
}

// leaveHTTP2 cancels one stream; its connection goes on.
func leaveHTTP2(t *testing.T, d *testbed.Daemon, l *leaving, host, path string) {
	ctx, cancel := context.WithCancel(t.Context())
	method, body := "GET", io.Reader(nil)
	if path == "/upload" {
		in, out := io.Pipe()
		go func() { _, _ = io.WriteString(out, "some"); <-ctx.Done(); out.CloseWithError(ctx.Err()) }()
		method, body = "POST", in
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, body)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	client := d.Client(t, 2)
	go func() {
		res, err := client.Do(r)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		ended <- err
	}()
	l.wait(t, l.arrived, path, 10*time.Second)
	cancel()
	l.wait(t, l.left, path, time.Second)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the client saw %v", err)
	}
}

func TestAKilledClientEndsTheUpstreamsRequestWithinASecond(t *testing.T) {
	ca := testbed.NewCA(t)
	l := &leaving{arrived: make(chan string), left: make(chan string, 1)}
	testbed.Serve(t, ca, "443", l)
	d := startDaemon(t, ca)
	for _, version := range []string{"--http1.1", "--http2"} {
		for _, path := range []string{"/think", "/events"} {
			cmd := exec.Command("curl", "--disable", "--silent", version, "--proxy", "http://"+d.Proxy, "--cacert", d.Roots, "https://"+injectedHost+path)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			l.wait(t, l.arrived, path, 10*time.Second)
			_ = cmd.Process.Kill()
			l.wait(t, l.left, path, time.Second)
			_ = cmd.Wait()
		}
	}
}

func TestAWebSocketEndsAtBothEnds(t *testing.T) {
	ca := testbed.NewCA(t)
	l := &leaving{arrived: make(chan string), left: make(chan string, 1)}
	testbed.Serve(t, ca, "443", l)
	d := startDaemon(t, ca)
	for _, host := range routes {
		conn, _, err := websocket.Dial(t.Context(), "wss://"+host+"/websocket", &websocket.DialOptions{HTTPClient: d.Client(t, 1)})
		if err != nil {
			t.Fatal(err)
		}
		l.wait(t, l.arrived, "/websocket", 10*time.Second)
		conn.CloseNow()
		l.wait(t, l.left, "/websocket", time.Second)
	}
}
