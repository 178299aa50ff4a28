package soak

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muxproxy/e2e/testbed"
)

const clients = 200

// arrivals is the origin: it keeps what it was asked for.
type arrivals struct {
	mu    sync.Mutex
	paths map[string]string // by path: the host
}

func (a *arrivals) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.paths[r.URL.Path] = r.Host
	a.mu.Unlock()
	kind, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch kind {
	case "small":
		_, _ = io.WriteString(w, "small")
	case "large":
		w.Header().Set("Content-Length", fmt.Sprint(len(large)))
		_, _ = w.Write(large)
	case "echo":
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	case "wait":
		_, _ = io.Copy(io.Discard, r.Body) // until then net/http does not see a client leave
		<-r.Context().Done()
	case "events":
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			_, _ = io.WriteString(w, "data: event\n\n")
			_ = http.NewResponseController(w).Flush()
			if !pause(r.Context(), 50*time.Millisecond) {
				return
			}
		}
	}
}

// duration is how long the crowd is at it: E2E_SOAK, "5m" for a run by hand.
func duration(t *testing.T) time.Duration {
	t.Helper()
	if !byHand() {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(os.Getenv("E2E_SOAK"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTheWellBehavedSeeNothingOfTheOthersAndNothingStays(t *testing.T) {
	ca := testbed.NewCA(t)
	origin := &arrivals{paths: map[string]string{}}
	testbed.Serve(t, ca, "443", origin)
	d := startDaemon(t, ca)
	c := &crowd{t: t, d: d, config: &tls.Config{RootCAs: d.Pool(t), ClientSessionCache: tls.NewLRUClientSessionCache(10)}, tick: time.Second, whole: map[string]int{}}
	idle := d.Usage(t)
	c.run(clients, 5*time.Second) // warms the heap: what it needs is no leak
	base := settle(t, d, idle)
	c.run(clients, duration(t))
	busy := d.Usage(t)
	after := settle(t, d, idle)
	t.Logf("%d requests answered whole, %d in all; the longest wait of the well-behaved %s", len(c.whole), c.next.Load(), c.longest)
	t.Logf("idle %+v, base %+v, busy %+v, after %+v", idle, base, busy, after)
	if after.RSS > base.RSS+mayGrow {
		t.Errorf("RSS grew by %d KiB", (after.RSS-base.RSS)>>10)
	}
	if byHand() {
		rest(t, d, idle, base)
	}
	for i, e := range c.errors {
		if i < 10 {
			t.Errorf("a well-behaved client saw %s", e)
		}
	}
	if len(c.errors) > 0 {
		t.Errorf("%d errors in all", len(c.errors))
	}
	checkAudit(t, d, c, origin)
	checkGoroutines(t, d)
}

// settle waits until the descriptors are what they were when nothing had happened yet. A reload closes what is idle.
func settle(t *testing.T, d *testbed.Daemon, idle testbed.Usage) testbed.Usage {
	t.Helper()
	d.Signal(t, syscall.SIGHUP)
	var now testbed.Usage
	testbed.Eventually(t, "the descriptors", 20*time.Second, func() error {
		if now = d.Usage(t); now.Descriptors > idle.Descriptors+2 {
			return fmt.Errorf("%d, %d before", now.Descriptors, idle.Descriptors)
		}
		return nil
	})
	return now
}

// rest waits until an idle daemon has given back what Go keeps for a while: the runtime collects garbage every two minutes.
func rest(t *testing.T, d *testbed.Daemon, idle, base testbed.Usage) {
	t.Helper()
	var now testbed.Usage
	testbed.Eventually(t, "RSS and pipes", 6*time.Minute, func() error {
		if now = d.Usage(t); now.RSS > base.RSS || now.Pipes > idle.Pipes {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	t.Logf("at rest %+v", now)
}

// byHand tells whether E2E_SOAK asks for a longer run.
func byHand() bool { return os.Getenv("E2E_SOAK") != "" }

// checkAudit compares the log with what clients and origin saw.
func checkAudit(t *testing.T, d *testbed.Daemon, c *crowd, origin *arrivals) {
	t.Helper()
	lines := map[string]testbed.Line{}
	tunnels := 0
	for _, l := range d.Closing(t, func(testbed.Line) bool { return true }) {
		if l.Decision == "tunneled" {
			tunnels++
			continue
		}
		if _, twice := lines[l.Path]; twice && strings.Count(l.Path, "/") == 2 {
			t.Errorf("two lines for %s", l.Path)
		}
		lines[l.Path] = l
	}
	missing := 0
	for path, code := range c.whole {
		if l := lines[path]; l.Code != code || l.Error != "" {
			missing++
			t.Logf("%s was answered %d, its line is %+v", path, code, l)
		}
	}
	origin.mu.Lock()
	defer origin.mu.Unlock()
	for path, host := range origin.paths {
		if _, ok := lines[path]; !ok && host != tunnelHost {
			missing++
			t.Logf("%s arrived at %s and has no line", path, host)
		}
	}
	if missing > 0 {
		t.Errorf("%d requests have no line, or a wrong one", missing)
	}
	if tunnels < c.tunnels {
		t.Errorf("%d lines of tunnels; %d were opened by hand alone", tunnels, c.tunnels)
	}
	t.Logf("%d lines of requests, %d of tunnels", len(lines), tunnels)
}

// ownGoroutine finds the goroutines of connections in a dump.
var ownGoroutine = regexp.MustCompile(`main\.(\(\*(clientConn|http1Conn|upstreamBody|upstreamConn|intercepted)\)|relay|pump)`)

// checkGoroutines ends the daemon by SIGQUIT, upon which the runtime prints all goroutines.
func checkGoroutines(t *testing.T, d *testbed.Daemon) {
	t.Helper()
	d.Signal(t, syscall.SIGQUIT)
	<-d.Ended()
	n := 0
	for stack := range strings.SplitSeq(d.Stderr(), "\n\n") {
		if !strings.HasPrefix(strings.TrimSpace(stack), "goroutine ") {
			continue
		}
		n++
		if ownGoroutine.MatchString(stack) {
			t.Errorf("a goroutine is left:\n%s", stack)
		}
	}
	if n == 0 || n > 40 {
		t.Errorf("%d goroutines are left", n)
	}
	t.Logf("%d goroutines are left", n)
}
