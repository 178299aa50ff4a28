// Package h2spec runs the conformance tests of github.com/summerwind/h2spec against muxproxy's intercepted HTTP/2 and against a
// plain net/http server, each behind the same relay.
package h2spec

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"muxproxy/e2e/testbed"
)

// The name that h2spec asks for: in this process it leads to the relay, and in the daemon's names to the origin too.
const host = "localhost"

func TestInterceptedHTTP2ConformsAsNetHTTPDoes(t *testing.T) {
	ca := testbed.NewCA(t)
	direct, intercepted := newRelay(t), newRelay(t)
	d := testbed.Start(t, testbed.Options{
		Hosts: []string{host}, Roots: ca.PEM, Secrets: map[string]string{"h2spec": "canary-h2spec"},
		Config: fmt.Sprintf("[[rule]]\nservice = \"h2spec\"\nhosts = [\"%s:%d\"]\nheader = \"Authorization\"\nformat = \"Bearer {}\"\nfile = \"h2spec\"\n", host, intercepted.port()),
	})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "an answer of some length")
	})
	for _, r := range []*relay{direct, intercepted} {
		testbed.Serve(t, ca, strconv.Itoa(r.port()), handler)
		r.serve(t, d)
	}
	want := conformance(t, direct, "net-http")
	got := conformance(t, intercepted, "muxproxy")
	if len(got) != len(want) || len(got) < 140 {
		t.Errorf("%d and %d cases", len(got), len(want))
	}
	ours, theirs := 0, 0
	for name, direct := range want {
		if direct != nil {
			theirs++
		}
		if got[name] == nil {
			continue
		}
		ours++
		t.Logf("fails: %s", name)
		if direct == nil {
			t.Errorf("%s: passes with net/http, and with muxproxy: %v", name, got[name])
		}
	}
	t.Logf("%d cases: muxproxy fails %d, net/http %d", len(got), ours, theirs)
	injected := d.Closing(t, func(l testbed.Line) bool { return l.Injected })
	if len(injected) == 0 {
		t.Error("no request was intercepted")
	}
}

// conformance runs all cases through a relay and gives the error of each, nil where it passes, by "http2/5.1/3 description".
// What h2spec prints goes to a file.
func conformance(t *testing.T, r *relay, name string) map[string]error {
	t.Helper()
	file, err := os.Create(filepath.Join(outDir(t), "h2spec-"+name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdout := os.Stdout
	os.Stdout = file
	defer func() { os.Stdout = stdout }()
	c := &config.Config{Host: host, Port: r.port(), Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true, TLS: true, Insecure: true}
	cases := map[string]error{}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		collect(group, cases)
	}
	return cases
}

func collect(group *spec.TestGroup, cases map[string]error) {
	for i, c := range append(group.Tests, group.StrictTests...) {
		if r := c.Result; r != nil && !r.Skipped {
			cases[fmt.Sprintf("%s/%d %s", group.ID(), i+1, c.Desc)] = r.Error
		}
	}
	for _, g := range group.Groups {
		collect(g, cases)
	}
}

// outDir is where a suite leaves what is to be read.
func outDir(t *testing.T) string {
	if dir := os.Getenv("E2E_OUT"); dir != "" {
		return dir
	}
	return t.TempDir()
}

// relay is a port of loopback whose connections go through a CONNECT to the same port of host: h2spec knows no proxy.
type relay struct{ ln net.Listener }

func newRelay(t *testing.T) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return &relay{ln}
}

func (r *relay) port() int { return r.ln.Addr().(*net.TCPAddr).Port }

// serve relays through d until the test ends.
func (r *relay) serve(t *testing.T, d *testbed.Daemon) {
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := r.ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { r.carry(t, d, conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { r.ln.Close(); conns.Wait() })
}

func (r *relay) carry(t *testing.T, d *testbed.Daemon, conn *net.TCPConn) {
	defer conn.Close()
	upstream, err := d.Connect(t.Context(), net.JoinHostPort(host, strconv.Itoa(r.port())))
	if err != nil {
		t.Error(err)
		return
	}
	defer upstream.Close()
	var there sync.WaitGroup
	there.Go(func() {
		_, _ = io.Copy(upstream, conn)
		_ = upstream.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(conn, upstream)
	conn.Close()
	there.Wait()
}
