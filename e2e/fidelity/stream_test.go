package fidelity

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"muxproxy/e2e/testbed"
)

// routes are the ways of a request to an origin: with a credential, without one, and in a tunnel.
var routes = []string{injectedHost, passiveHost, tunnelHost}

func TestEachEventArrivesBeforeTheNextIsSent(t *testing.T) {
	const events = 100
	ca := testbed.NewCA(t)
	seen := make(chan struct{})
	testbed.Serve(t, ca, "443", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range events {
			fmt.Fprintf(w, "id: %d\ndata: event\n\n", i)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-seen:
			case <-r.Context().Done():
				return
			}
		}
	}))
	d := startDaemon(t, ca)
	for _, host := range routes {
		for _, version := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s HTTP/%d", host, version), func(t *testing.T) {
				res, err := d.Client(t, version).Get("https://" + host + "/events")
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				got := 0
				for lines := bufio.NewScanner(res.Body); lines.Scan(); {
					if lines.Text() != "data: event" {
						continue
					}
					got++
					if got == events/2 {
						<-time.After(600 * time.Millisecond) // a pause in which nothing comes cuts nothing
					}
					seen <- struct{}{}
				}
				if got != events {
					t.Errorf("%d events", got)
				}
			})
		}
	}
}

// echoWebSocket echoes messages of any size.
func echoWebSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1)
	for {
		kind, content, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, content) != nil {
			return
		}
	}
}

func TestWebSocketMessagesComeBack(t *testing.T) {
	ca := testbed.NewCA(t)
	testbed.Serve(t, ca, "443", http.HandlerFunc(echoWebSocket))
	d := startDaemon(t, ca)
	for _, host := range routes {
		t.Run(host, func(t *testing.T) {
			conn, _, err := websocket.Dial(t.Context(), "wss://"+host+"/echo", &websocket.DialOptions{HTTPClient: d.Client(t, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseNow()
			conn.SetReadLimit(-1)
			for _, c := range []struct {
				kind    websocket.MessageType
				content string
			}{
				{websocket.MessageText, "short"}, {websocket.MessageBinary, octets}, {websocket.MessageText, ""},
				{websocket.MessageBinary, mebibyte}, {websocket.MessageText, strings.Repeat("text ", 1<<20/5)},
			} {
				if err := conn.Write(t.Context(), c.kind, []byte(c.content)); err != nil {
					t.Fatal(err)
				}
				kind, content, err := conn.Read(t.Context())
				if err != nil || kind != c.kind || string(content) != c.content {
					t.Fatalf("%v of %d bytes came back as %v of %d, %v", c.kind, len(c.content), kind, len(content), err)
				}
			}
			if err := conn.Close(websocket.StatusNormalClosure, "done"); err != nil {
				t.Errorf("the end: %v", err)
			}
			line := testbedLine(t, d, host, "/echo")
			if host != tunnelHost && (line.Code != 101 || line.In < 1<<20 || line.Out < 1<<20) {
				t.Errorf("audit line %+v", line)
			}
		})
	}
}

// testbedLine waits for the last closing line of host and path.
func testbedLine(t *testing.T, d *testbed.Daemon, host, path string) testbed.Line {
	t.Helper()
	var last testbed.Line
	testbed.Eventually(t, "the audit line", 5*time.Second, func() error {
		found := d.Closing(t, func(l testbed.Line) bool {
			return strings.TrimSuffix(l.Host, ":443") == host && (l.Path == path || l.Decision == "tunneled")
		})
		if len(found) == 0 {
			return fmt.Errorf("none of %s", host)
		}
		last = found[len(found)-1]
		return nil
	})
	return last
}

func TestNodesOwnWebSocketIsEchoed(t *testing.T) {
	ca := testbed.NewCA(t)
	testbed.Serve(t, ca, "443", http.HandlerFunc(echoWebSocket))
	d := startDaemon(t, ca)
	for _, host := range []string{injectedHost, passiveHost} {
		cmd := exec.Command("node", "testdata/websocket.mjs", "wss://"+host+"/echo")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NODE_USE_ENV_PROXY=1", "HTTPS_PROXY=http://" + d.Proxy, "NODE_EXTRA_CA_CERTS=" + d.Roots}
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "echoed 3" {
			t.Errorf("node (24 or later is needed) said %q, %v", out, err)
		}
		if line := testbedLine(t, d, host, "/echo"); line.Code != 101 {
			t.Errorf("audit line %+v", line)
		}
	}
}
