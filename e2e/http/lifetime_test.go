package http

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muxproxy/e2e/origin"
)

func TestKillLosesNoLineOfAWholeResponse(t *testing.T) {
	w := theWorld(t)
	d := w.start(t, daemonOptions{secrets: w.secrets})
	const total, parallel, killAt = 1000, 16, 500
	paths := make(chan string, total)
	for i := range total {
		paths <- fmt.Sprintf("/lab/kill/%d", i)
	}
	close(paths)
	whole := make(chan string, total)
	var clients sync.WaitGroup
	for range parallel {
		clients.Go(func() { d.askUntilCut(paths, whole) })
	}
	var got []string
	for len(got) < killAt {
		got = append(got, receive(t, "a response", whole))
	}
	d.signal(t, syscall.SIGKILL)
	clients.Wait()
	close(whole)
	for path := range whole {
		got = append(got, path)
	}
	if len(got) == total {
		t.Fatal("all requests were answered before the kill: nothing is shown")
	}
	d = w.restart(t, d)
	lines := map[string]bool{}
	for _, line := range d.audit(t) {
		lines[line.Path] = true
	}
	for _, path := range got {
		if !lines[path] {
			t.Errorf("%s was answered whole and has no line", path)
		}
	}
}

// askUntilCut asks for paths over one connection and reports each that was answered whole, until the connection breaks.
func (d *daemon) askUntilCut(paths <-chan string, whole chan<- string) {
	web := d.plainWeb()
	defer web.CloseIdleConnections()
	for path := range paths {
		r, err := web.Get("https://api.github.com" + path)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK || len(body) == 0 {
			return
		}
		whole <- path
	}
}

// drainTime is the default of the key drain.
const drainTime = 10 * time.Second

func TestDrainFinishesWhatIsUnderWayAndTakesNothingNew(t *testing.T) {
	w := theWorld(t)
	d := w.start(t, daemonOptions{secrets: w.secrets})
	gate := w.origins.Gate("drain")
	const parallel = 16
	results := make(chan error, 2*parallel)
	ask := func(url string) {
		web := d.plainWeb()
		r, err := web.Get(url)
		if err == nil {
			var body []byte
			body, err = io.ReadAll(r.Body)
			_ = r.Body.Close()
			if err == nil && string(body) != "through the gate\n" {
				err = fmt.Errorf("status %d: %q", r.StatusCode, body)
			}
		}
		if strings.Contains(url, origin.Tunnel) {
			// What idles inside a tunnel only its ends can know. On intercepted connections the daemon itself must see it.
			web.CloseIdleConnections()
		}
		results <- err
	}
	for i := range parallel {
		go ask(fmt.Sprintf("https://api.github.com/lab/gate/drain?%d", i))
		go ask(fmt.Sprintf("https://%s/gate/drain?%d", origin.Tunnel, i))
	}
	for range 2 * parallel {
		receive(t, "a request at the gate", gate.Arrived())
	}
	d.signal(t, syscall.SIGTERM)
	eventually(t, "new connections are refused", func() error {
		conn, err := net.Dial("tcp", d.proxy)
		if err != nil {
			return nil
		}
		return fmt.Errorf("still accepted: %w", conn.Close())
	})
	gate.Open()
	opened := time.Now()
	for range 2 * parallel {
		if err := receive(t, "an answer", results); err != nil {
			t.Errorf("a request under way: %v", err)
		}
	}
	if code := d.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0:\n%s", code, d.stderr())
	}
	if took := time.Since(opened); took > drainTime/2 {
		t.Errorf("the end came %s after the last answer, as if something were still under way", took)
	}
}

func TestASecretWrittenLaterWorksFromTheNextRequestOnAndIsMissedWhenGone(t *testing.T) {
	w := theWorld(t)
	d := w.start(t, daemonOptions{})
	web := d.client(t).web(t, "http/1.1")
	get := func(fields http.Header) answer {
		t.Helper()
		got, err := do(t, web, request(t, http.MethodGet, "https://api.github.com/user", "", fields))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := get(nil); got.code != http.StatusUnauthorized || !strings.Contains(got.body, "Requires authentication") {
		t.Errorf("passive: status %d: %s", got.code, got.body)
	}
	own := http.Header{"Authorization": {"Bearer " + w.secrets.GitHub}}
	if got := get(own); got.code != http.StatusOK {
		t.Errorf("the client's own field: status %d: %s", got.code, got.body)
	}
	for _, value := range []string{"token ghp_muxproxy-placeholder", "Basic eDptdXhwcm94eS1wbGFjZWhvbGRlcg=="} {
		got := get(http.Header{"Authorization": {value}})
		if got.code != http.StatusBadGateway || !strings.Contains(got.body, "secrets/github") {
			t.Errorf("placeholder %q: status %d: %s", value, got.code, got.body)
		}
	}
	d.writeSecret(t, "github", w.secrets.GitHub)
	if got := get(nil); got.code != http.StatusOK {
		t.Errorf("with the secret: status %d: %s", got.code, got.body)
	}
	d.removeSecret(t, "github")
	if got := get(own); got.code != http.StatusBadGateway {
		t.Errorf("the secret is gone: status %d: %s", got.code, got.body)
	}
}
