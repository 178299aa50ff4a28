package kube

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"muxproxy/e2e/kube/cluster"
	"muxproxy/e2e/testbed"
)

// answers waits until a context answers 200.
func (d *door) answers(t testing.TB, context string, limit time.Duration) {
	t.Helper()
	testbed.Eventually(t, "context "+context, limit, func() error {
		if a := d.get(t, context, "/version"); a.code != http.StatusOK {
			return errors.New(a.String())
		}
		return nil
	})
}

// who waits until a request through a context arrives as user.
func (d *door) who(t testing.TB, context, user string, limit time.Duration) {
	t.Helper()
	testbed.Eventually(t, "context "+context+" as "+user, limit, func() error {
		path, marker := mark("/api/v1/namespaces")
		if a := d.get(t, context, path); a.code != http.StatusOK {
			return errors.New(a.String())
		}
		if got := arrivals(t, marker, 1)[0].Who(); got != user {
			return fmt.Errorf("arrived as %q", got)
		}
		return nil
	})
}

// watcher reads a watch.
type watcher struct {
	events chan string // the n of each object, closed when the watch ends
	cancel context.CancelFunc
	end    error // why it ended; read after events is closed
}

// watch opens a watch of the configmaps of a namespace until the test ends.
func (d *door) watch(t testing.TB, context_, namespace string) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", d.url(context_, "/api/v1/namespaces/"+namespace+"/configmaps?watch=1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Fatalf("watch: %s", res.Status)
	}
	w := &watcher{events: make(chan string, 1000), cancel: cancel}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer res.Body.Close()
		defer close(w.events)
		in := json.NewDecoder(res.Body)
		for {
			var event struct {
				Type   string
				Object struct {
					Data    struct{ N string }
					Message string
				}
			}
			if w.end = in.Decode(&event); w.end == nil && event.Type == "ERROR" {
				w.end = errors.New(event.Object.Message)
			}
			if w.end != nil {
				return
			}
			w.events <- event.Object.Data.N
		}
	})
	t.Cleanup(func() { cancel(); reading.Wait() })
	return w
}

// next waits for an event; "" is the watch's end.
func (w *watcher) next(t testing.TB, limit time.Duration) string {
	t.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case n := <-w.events:
		return n
	case <-timer.C:
		t.Fatalf("the watch says nothing within %s", limit)
		return ""
	}
}

// create makes a configmap directly.
func create(t testing.TB, namespace, name, n string) {
	t.Helper()
	body := fmt.Sprintf(`{"metadata":{"name":%q},"data":{"n":%q}}`, name, n)
	if err := shared.Do(t.Context(), "POST", "/api/v1/namespaces/"+namespace+"/configmaps", "application/json", body); err != nil {
		t.Fatal(err)
	}
}

// newNamespace makes a namespace directly.
func newNamespace(t testing.TB) string {
	t.Helper()
	r := newRun(t, "", "", "", "")
	if err := shared.Do(t.Context(), "POST", "/api/v1/namespaces", "application/json", fmt.Sprintf(`{"metadata":{"name":%q}}`, r.namespace)); err != nil {
		t.Fatal(err)
	}
	return r.namespace
}

func TestAnAPIServerThatIsKilledAndComesBackIsServedAgain(t *testing.T) {
	d := openDoor(t, nil, "")
	namespace := newNamespace(t)
	d.answers(t, "cert", answerLimit)
	d.answers(t, "exec-token", answerLimit)
	w := d.watch(t, "cert", namespace)
	shared.StopAPIServer()
	if n := w.next(t, answerLimit); n != "" {
		t.Errorf("event %q of an API server that is dead", n)
	}
	for _, context := range []string{"cert", "exec-token", "basic"} {
		started := time.Now()
		a := d.get(t, context, "/version")
		if _, ok := a.status(); context != "basic" && (!ok || a.code != http.StatusBadGateway) {
			t.Errorf("%s: %v", context, a)
		}
		if took := time.Since(started); took > 10*time.Second {
			t.Errorf("%s: an answer after %s", context, took)
		}
	}
	if err := shared.StartAPIServer(); err != nil {
		t.Fatal(err)
	}
	for _, context := range []string{"cert", "exec-token", "basic"} {
		d.answers(t, context, 5*time.Second)
	}
	w = d.watch(t, "exec-token", namespace)
	create(t, namespace, "after", "1")
	if n := w.next(t, answerLimit); n != "1" {
		t.Errorf("event %q: %v", n, w.end)
	}
}

func TestAFrozenConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	relay, err := shared.NewRelay()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Close() })
	d := openDoor(t, map[string]string{"relay": relay.Address}, "")
	d.answers(t, "relay", answerLimit)
	w := d.watch(t, "relay", newNamespace(t))
	relay.Freeze()
	started := time.Now()
	if a := d.get(t, "relay", "/version"); a.code != http.StatusOK {
		t.Errorf("the first answer after the freeze: %v", a)
	}
	t.Logf("the first answer after the freeze came in %s", time.Since(started).Round(100*time.Millisecond))
	if took := time.Since(started); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	if n := w.next(t, answerLimit); n != "" {
		t.Errorf("event %q on a frozen connection", n)
	}
	t.Logf("the watch ended %s after the freeze", time.Since(started).Round(100*time.Millisecond))
}

func TestARotatedTokenFileIsRead(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	write := func(token string) {
		if err := d.host.WriteToken(token); err != nil {
			t.Fatal(err)
		}
	}
	d.who(t, "token-file", cluster.FileUser, answerLimit)
	write(shared.Tokens().Rotated)
	d.who(t, "token-file", cluster.RotatedUser, 5*time.Second)
	write("wrong")
	testbed.Eventually(t, "a wrong token's refusal", 5*time.Second, func() error {
		if a := d.get(t, "token-file", "/api/v1/namespaces"); a.code != http.StatusUnauthorized {
			return errors.New(a.String())
		}
		return nil
	})
	write(shared.Tokens().File)
	d.who(t, "token-file", cluster.FileUser, 5*time.Second)
}

func TestAPluginThatDoesNotWorkIsNotRunAgainAndAgain(t *testing.T) {
	for mode, codes := range map[string][]int{
		"fail": {502}, "junk": {502}, "expired": {401, 502}, "refused": {401, 502},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			d := openDoor(t, nil, "")
			if err := d.host.SetPlugin(mode); err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			var asking sync.WaitGroup
			for range 10 {
				asking.Go(func() {
					for range 5 {
						a := d.get(t, "exec-token", "/api/v1/namespaces")
						if _, ok := a.status(); !ok || !slices.Contains(codes, a.code) {
							t.Errorf("answer %v", a)
						}
					}
				})
			}
			asking.Wait()
			// One run, and a second one that a 401 or an expiry asks for; the pause between two runs doubles from a second on.
			most := 3 + int(time.Since(started)/time.Second)
			if n := d.host.PluginRuns(); n == 0 || n > most {
				t.Errorf("%d runs for 50 requests in %s, at most %d", n, time.Since(started), most)
			}
			if mode == "fail" && !strings.Contains(d.Stderr(), "the plugin says: log in first") {
				t.Error("the operator is not told what the plugin said")
			}
			if a := d.get(t, "cert", "/version"); a.code != http.StatusOK {
				t.Errorf("another context: %v", a)
			}
			if err := d.host.SetPlugin("work"); err != nil {
				t.Fatal(err)
			}
			d.who(t, "exec-token", cluster.ExecUser, 40*time.Second)
		})
	}
}

func TestAPluginThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	if err := d.host.SetPlugin("hang"); err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	for range 10 {
		asking.Go(func() {
			a := d.get(t, "exec-token", "/version")
			if _, ok := a.status(); !ok || a.code != http.StatusBadGateway && a.code != http.StatusGatewayTimeout {
				t.Errorf("answer %v", a)
			}
		})
	}
	if a := d.get(t, "token", "/version"); a.code != http.StatusOK {
		t.Errorf("another context meanwhile: %v", a)
	}
	asking.Wait()
	if n := d.host.PluginRuns(); n > 2 {
		t.Errorf("%d runs", n)
	}
	if err := d.host.SetPlugin("work"); err != nil {
		t.Fatal(err)
	}
	d.who(t, "exec-token", cluster.ExecUser, 40*time.Second)
}

func TestACredentialThatIsRefusedIsRefreshedBeforeTheClientSees(t *testing.T) {
	t.Parallel()
	path := "/api/v1/namespaces/default/configmaps"
	for name, c := range map[string]struct {
		q    question
		code int
	}{
		"GET":     {question{method: "GET", target: path}, http.StatusOK},
		"POST":    {question{method: "POST", target: path, fields: []string{"Content-Type: application/json"}, body: `{"metadata":{"generateName":"x-"}}`}, http.StatusCreated},
		"upgrade": {question{method: "GET", target: path + "?watch=1", fields: append([]string{"Sec-WebSocket-Protocol: base64.binary.k8s.io"}, watchUpgrade...)}, http.StatusSwitchingProtocols},
	} {
		t.Run(name, func(t *testing.T) {
			d := openDoor(t, nil, "")
			if err := d.host.SetPlugin("stale"); err != nil {
				t.Fatal(err)
			}
			c.q.target = "/contexts/exec-token" + c.q.target
			if a := d.ask(t, c.q); a.code != c.code {
				t.Errorf("answer %v", a)
			}
			if n := d.host.PluginRuns(); n != 2 {
				t.Errorf("%d runs", n)
			}
		})
	}
}

func TestOneRunOfThePluginServesManyRequests(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	var asking sync.WaitGroup
	for range 20 {
		asking.Go(func() {
			for range 10 {
				if a := d.get(t, "exec-token", "/version"); a.code != http.StatusOK {
					t.Errorf("answer %v", a)
				}
			}
		})
	}
	asking.Wait()
	if n := d.host.PluginRuns(); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestAKubeconfigThatChangesIsReadAndOpenWatchesStay(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	namespace := newNamespace(t)
	w := d.watch(t, "cert", namespace)
	has := func(context string) bool {
		text, err := os.ReadFile(d.kubeconfig())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(text), context)
	}
	if err := d.host.WriteConfig(map[string]string{"added-later": shared.Server}); err != nil {
		t.Fatal(err)
	}
	d.answers(t, "added-later", 10*time.Second)
	testbed.Eventually(t, "the containers' kubeconfig", 10*time.Second, func() error {
		if !has("added-later") {
			return errors.New("the new context is missing")
		}
		return nil
	})
	if err := d.host.WriteConfig(nil); err != nil {
		t.Fatal(err)
	}
	testbed.Eventually(t, "the context's end", 10*time.Second, func() error {
		if a := d.get(t, "added-later", "/version"); a.code != http.StatusNotFound || has("added-later") {
			return fmt.Errorf("%v, in the containers' kubeconfig: %v", a, has("added-later"))
		}
		return nil
	})
	create(t, namespace, "seen", "1")
	if n := w.next(t, answerLimit); n != "1" {
		t.Errorf("event %q: %v", n, w.end)
	}
}

func TestWhoLeavesEndsTheRequestAtTheAPIServer(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	namespace := newNamespace(t)
	body := `{"metadata":{"name":"ticker"},"spec":{"nodeName":"node","containers":[{"name":"main","image":"e2e"}]}}`
	if err := shared.Do(t.Context(), "POST", "/api/v1/namespaces/"+namespace+"/pods", "application/json", body); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, context := range []string{"cert", "exec-token"} {
		var res *http.Response
		testbed.Eventually(t, "a log", answerLimit, func() (err error) {
			req, _ := http.NewRequestWithContext(ctx, "GET", d.url(context, "/api/v1/namespaces/"+namespace+"/pods/ticker/log?follow=true"), nil)
			if res, err = http.DefaultClient.Do(req); err == nil && res.StatusCode != http.StatusOK {
				res.Body.Close()
				err = errors.New(res.Status)
			}
			return err
		})
		defer res.Body.Close()
		if _, err := bufio.NewReader(io.LimitReader(res.Body, 1000)).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if n := shared.Node.Followers(namespace); n != 2 {
		t.Errorf("%d followers", n)
	}
	cancel()
	testbed.Eventually(t, "the end of the followers", 5*time.Second, func() error {
		if n := shared.Node.Followers(namespace); n > 0 {
			return fmt.Errorf("%d followers are left", n)
		}
		return nil
	})
}
