package main

import (
	"context"
	"encoding/base64"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// age makes the file look as if it had been written long ago, so that a change shows in its state.
func (p *testTalos) age(t *testing.T) {
	t.Helper()
	v := *p.view.Load()
	v.settled = true
	p.view.Store(&v)
}

func TestAChangedTalosconfigIsTakenIntoUse(t *testing.T) {
	ca := newTestTalosCA(t)
	prod, dev := ca.context(t, "os:admin", "10.5.0.2"), ca.context(t, "os:admin", "10.6.0.2")
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": prod})
	p.age(t)
	if p.poll() {
		t.Error("a file that has not changed is read again")
	}
	p.write(t, talosconfigText(t, "dev", map[string]*talosContextYAML{"prod": prod, "dev": dev}))
	if !p.poll() || p.view.Load().file.names() != `"dev", "prod"` {
		t.Errorf("after a change: %s", p.view.Load().file.names())
	}
	if text := string(p.clientConfig([]byte("ROOTS"))); !strings.HasPrefix(text, "context: dev\n") || strings.Contains(text, "crt") || strings.Contains(text, "key") {
		t.Errorf("containers get %s", text)
	}

	p.write(t, []byte("context: dev\nconte"))
	if p.poll() || p.view.Load().file.names() != `"dev", "prod"` {
		t.Error("a broken file takes the contexts along")
	}
	if s := p.state(); s.State != "degraded" || !strings.Contains(s.Why, "line 2: not the YAML of a talosconfig") {
		t.Errorf("state %v", s)
	}
	p.announce()
	if p.poll() {
		t.Error("a broken file is taken into use")
	}
	if err := p.reload(talosPlaneConfig{talosconfig: p.file}); err == nil || !strings.Contains(err.Error(), "line 2") || p.view.Load().file == nil {
		t.Errorf("reload of a broken file: %v", err)
	}
	p.write(t, talosconfigText(t, "dev", map[string]*talosContextYAML{"dev": dev}))
	if !p.poll() || p.view.Load().file.names() != `"dev"` || p.state().State != "on" {
		t.Errorf("after it was mended: %v", p.state())
	}

	os.Remove(p.file)
	if !p.poll() || p.view.Load().file != nil {
		t.Error("a file that is gone leaves its contexts behind")
	}
	if s := p.state(); s.State != "off" || !strings.Contains(s.Why, "no such file") {
		t.Errorf("state %v", s)
	}
	if p.poll() {
		t.Error("a file that is gone is gone twice")
	}
	p.write(t, talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": prod}))
	if !p.poll() || p.state().State != "on" {
		t.Errorf("after it came back: %v", p.state())
	}
	if text := p.logs.String(); text == "" || strings.Contains(text, prod.Key) || !strings.Contains(text, "the contexts stay as they were") {
		t.Errorf("log: %s", text)
	}
}

func TestAFileThatWasJustWrittenIsReadOnceMore(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	v := *p.view.Load()
	v.settled, v.seen = false, time.Now().Add(-time.Hour)
	p.view.Store(&v)
	if !p.poll() || p.poll() {
		t.Error("a change within a tick of the file system's clock could be missed")
	}
}

func TestReloadChangesTheLevelOfTheNextRPC(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{access: accessFull}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	tr := p.client(t)
	if a := p.callOn(t, tr, kubeconfigRPC, nil); a.status != "0" {
		t.Errorf("before: %+v", a)
	}
	if err := p.reload(talosPlaneConfig{talosconfig: p.file, access: accessReadOnly}); err != nil {
		t.Fatal(err)
	}
	if a := p.callOn(t, tr, kubeconfigRPC, nil); a.status != "7" {
		t.Errorf("after: %+v", a)
	}
}

func TestAConnectionThatFoundNoEndpointFollowsAChangedTalosconfig(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", deadEndpoint(t))})
	tr := p.client(t)
	if a := p.callOn(t, tr, versionRPC, nil); a.status != "14" {
		t.Errorf("before: %+v", a)
	}
	p.write(t, talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)}))
	p.poll()
	for range 2 {
		if a := p.callOn(t, tr, versionRPC, nil); a.status != "0" {
			t.Errorf("after: %+v", a)
		}
	}
}

func TestStateTellsWhatNeedsTheOperator(t *testing.T) {
	ca := newTestTalosCA(t)
	of := func(left time.Duration) *talosContextYAML {
		y := ca.context(t, "os:admin", "10.5.0.2")
		crt, key := ca.issue(t, time.Now().Add(left), "os:admin")
		y.Crt, y.Key = base64.StdEncoding.EncodeToString(crt), base64.StdEncoding.EncodeToString(key)
		return y
	}
	day := 24 * time.Hour
	p := openTestTalos(t, talosPlaneConfig{access: accessNoSecrets, context: map[string]talosContextConfig{"good": {access: accessReadOnly, role: "os:reader"}}}, "good",
		map[string]*talosContextYAML{"good": of(31 * day), "soon": of(29 * day), "over": of(-time.Minute), "bare": {Endpoints: []string{"10.0.0.1"}}})
	want := map[string]string{"good": "on", "soon": "degraded", "over": "off", "bare": "off"}
	for _, s := range p.contexts() {
		if s.State != want[s.Name] || (s.Why == "") != (s.State == "on") {
			t.Errorf("%+v, want %s", s, want[s.Name])
		}
		if s.Name == "good" && (s.Access != "read-only" || s.Role != "os:reader" || s.Expires.IsZero()) || s.Name == "soon" && s.Access != "no-secrets" {
			t.Errorf("%+v", s)
		}
	}
	s := p.state()
	for _, text := range []string{`context "soon": the client certificate ends on `, `context "over": crt: the client certificate ended on `, `context "bare": crt: no client certificate`} {
		if s.State != "degraded" || !strings.Contains(s.Why, text) {
			t.Errorf("state %v lacks %q", s, text)
		}
	}
	p.announce()
	p.announce()
	log := p.logs.String()
	for _, text := range []string{`level=INFO msg="talos context \"good\": on, access read-only, client certificate until `, `level=WARN msg="talos context \"soon\": degraded, access no-secrets, client certificate until `, `level=WARN msg="talos context \"over\": off: crt: `} {
		if strings.Count(log, text) != 1 {
			t.Errorf("%d times %s in %s", strings.Count(log, text), text, log)
		}
	}
	p = openTestTalos(t, talosPlaneConfig{}, "bare", map[string]*talosContextYAML{"bare": {}})
	if s := p.state(); s.State != "off" || !strings.HasPrefix(s.Why, `context "bare": crt: `) {
		t.Errorf("with no context on: %v", s)
	}
}

func TestAPlaneWithoutATalosconfigIsOffUntilOneComes(t *testing.T) {
	home := t.TempDir()
	o := talosPlaneOptions{getenv: func(string) string { return "" }, home: home, now: time.Now}
	p, err := openTalosPlane(o)
	if err != nil {
		t.Fatal(err)
	}
	if s := p.state(); s.State != "off" || !strings.HasPrefix(s.Why, "no talosconfig found: looked for "+home+"/.talos/config") {
		t.Errorf("state %v", s)
	}
	if p.poll() || p.contexts() != nil {
		t.Error("something is there")
	}
	ca := newTestTalosCA(t)
	if err := os.Mkdir(home+"/.talos", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(home+"/.talos/config", talosconfigText(t, "a", map[string]*talosContextYAML{"a": ca.context(t, "os:admin", "10.0.0.1")}), 0o600); err != nil {
		t.Fatal(err)
	}
	if !p.poll() || p.state().State != "on" {
		t.Errorf("state %v", p.state())
	}
	o.config.talosconfig = home + "/none"
	if _, err := openTalosPlane(o); err == nil || !strings.HasPrefix(err.Error(), `load talosconfig "`+home+`/none": `) {
		t.Errorf("one that the config names and that is not there: %v", err)
	}
}

func TestTheTalosconfigIsLookedAtEveryTwoSeconds(t *testing.T) {
	ca := newTestTalosCA(t)
	text := talosconfigText(t, "dev", map[string]*talosContextYAML{"dev": ca.context(t, "os:admin", "10.6.0.2")})
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	p.age(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var changes atomic.Int32
		done := make(chan struct{})
		go func() { defer close(done); p.watch(ctx, func() { changes.Add(1) }) }()
		p.write(t, text)
		time.Sleep(watchEvery - 1)
		synctest.Wait()
		if changes.Load() != 0 {
			t.Error("it is looked at sooner")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if changes.Load() != 1 || p.view.Load().file.names() != `"dev"` {
			t.Errorf("%d changes", changes.Load())
		}
		cancel()
		<-done
	})
}
