package http

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"muxproxy/e2e/origin"
)

// world is what all cases share: the origins, a daemon that holds every credential but the subscription's, and one that holds only that.
type world struct {
	origins      *origin.Server
	secrets      origin.Secrets
	address      netip.Addr // where the origins listen
	dir          string
	main         *daemon
	subscription func() (*daemon, error)
	ports        chan int      // for http_proxy_port of further daemons
	clients      atomic.Uint32 // how many hostile ones there were
	seen         transcript
	mu           sync.Mutex
	started      []*daemon // guarded by mu
}

var shared *world

// theWorld gives what TestMain made.
func theWorld(t testing.TB) *world {
	t.Helper()
	return shared
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "e2e-http")
	if err != nil {
		panic(err)
	}
	os.Exit(runAll(m, dir))
}

func runAll(m *testing.M, dir string) int {
	defer os.RemoveAll(dir)
	w, err := newWorld(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = w
	defer w.end()
	code := m.Run()
	for _, found := range w.searchEverything() {
		fmt.Println("--- FAIL: canary:", found)
		code = 1
	}
	return code
}

func newSecrets() origin.Secrets {
	canary := func(prefix string) string { return prefix + "canary" + rand.Text() }
	return origin.Secrets{
		GitHub: canary("ghp_"), AnthropicKey: canary("sk-ant-api03-"), AnthropicOAuth: canary("sk-ant-oat01-"), PagerDuty: canary("u+"),
		Sentry: canary("sntryu_"), NPM: canary("npm_"), DockerUser: "octo", DockerToken: canary("dckr_pat_"), GitLab: canary("glpat-"),
	}
}

// newWorld starts the origins and the main daemon. The environment comes from e2e/run.
func newWorld(dir string) (*world, error) {
	address, err := netip.ParseAddr(os.Getenv("E2E_ADDRESS"))
	if err != nil {
		return nil, fmt.Errorf("E2E_ADDRESS: %w: start this with e2e/run http", err)
	}
	w := &world{secrets: newSecrets(), address: address, dir: dir, ports: make(chan int, 100)}
	for n := range cap(w.ports) {
		w.ports <- 28000 + 10*n
	}
	if err := w.startOrigins(); err != nil {
		return nil, err
	}
	everything := w.secrets
	everything.AnthropicOAuth = ""
	config := ruleFor("gitlab", origin.GitLab) + ruleFor("apps", "*.apps.example.com")
	if w.main, err = w.newDaemon(daemonOptions{secrets: everything, config: config, port: 18080}); err != nil {
		return nil, err
	}
	w.subscription = sync.OnceValues(func() (*daemon, error) {
		return w.newDaemon(daemonOptions{secrets: origin.Secrets{AnthropicOAuth: w.secrets.AnthropicOAuth}})
	})
	return w, nil
}

func (w *world) startOrigins() error {
	o := origin.Options{Addr: w.address.String(), TLSPorts: []int{443, 8443}, PlainPorts: []int{80}, Dir: filepath.Join(w.dir, "origin"), Secrets: w.secrets}
	if err := os.Mkdir(o.Dir, 0o755); err != nil {
		return err
	}
	var err error
	if w.origins, err = origin.Start(o); err != nil {
		return err
	}
	if err := errors.Join(w.origins.StartGit(), w.origins.StartRegistry(), w.origins.StartNPM(os.Getenv("E2E_VERDACCIO"))); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(w.dir, "roots.pem"), w.origins.Bundle(), 0o644); err != nil {
		return err
	}
	// The namespace has a hosts file of its own: the daemon finds the origins there.
	hosts, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer hosts.Close()
	_, err = fmt.Fprintln(hosts, w.address, strings.Join(w.origins.Hosts(), " "))
	return err
}

// oauth gives the daemon that holds the subscription's token and nothing else, started at its first use.
func (w *world) oauth(t testing.TB) *daemon {
	t.Helper()
	d, err := w.subscription()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) end() {
	for _, d := range w.started {
		d.kill()
	}
	_ = w.origins.Close()
}

// ruleFor is a [[rule]] with GitLab's field.
func ruleFor(service, host string) string {
	return fmt.Sprintf("[[rule]]\nservice = %q\nhosts = [%q]\nheader = \"PRIVATE-TOKEN\"\nformat = \"{}\"\nfile = \"gitlab\"\n\n", service, host)
}
