package http

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"muxproxy/e2e/origin"
)

// daemonOptions say how a daemon differs from one that holds nothing.
type daemonOptions struct {
	secrets origin.Secrets
	config  string // the rules
	flags   []string
	port    int // 0 takes the next free one
}

// daemon is a running muxproxy with a home of its own.
type daemon struct {
	world *world
	home  string
	o     daemonOptions
	proxy string // "127.0.0.1:18080"
	cmd   *exec.Cmd
	ended chan struct{}
	log   *syncBuffer
}

// syncBuffer is a bytes.Buffer that may be read while it grows.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a further daemon until the test ends.
func (w *world) start(t testing.TB, o daemonOptions) *daemon {
	t.Helper()
	d, err := w.newDaemon(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.kill)
	return d
}

// restart runs a daemon again in the home of one that has ended.
func (w *world) restart(t testing.TB, old *daemon) *daemon {
	t.Helper()
	<-old.ended
	d := &daemon{world: w, home: old.home, o: old.o, proxy: old.proxy, log: old.log}
	if err := d.run(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.kill)
	return d
}

func (w *world) newDaemon(o daemonOptions) (*daemon, error) {
	if o.port == 0 {
		o.port = <-w.ports
	}
	home, err := os.MkdirTemp(w.dir, "home")
	if err != nil {
		return nil, err
	}
	d := &daemon{world: w, home: home, o: o, proxy: fmt.Sprintf("127.0.0.1:%d", o.port), log: new(syncBuffer)}
	for _, dir := range []string{".mux", ".secrets"} {
		if err := os.Mkdir(filepath.Join(home, dir), 0o700); err != nil {
			return nil, err
		}
	}
	for name, value := range secretFiles(o.secrets) {
		if err := os.WriteFile(filepath.Join(home, ".secrets", name), []byte(value+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	if err := d.writeConfig(o.config); err != nil {
		return nil, err
	}
	return d, d.run()
}

func secretFiles(s origin.Secrets) map[string]string {
	files := map[string]string{}
	add := func(name, value string) {
		if value != "" {
			files[name] = value
		}
	}
	add("github", s.GitHub)
	add("anthropic", s.AnthropicKey)
	add("anthropic-oauth", s.AnthropicOAuth)
	add("pagerduty", s.PagerDuty)
	add("sentry", s.Sentry)
	add("npm", s.NPM)
	add("gitlab", s.GitLab)
	if s.DockerToken != "" {
		add("docker", s.DockerUser+":"+s.DockerToken)
	}
	return files
}

func (d *daemon) writeConfig(rules string) error {
	p := d.o.port
	text := fmt.Sprintf("allowed_networks = [\"%s/32\"]\nhttp_proxy_port = %d\nk8s_proxy_port = %d\ntalos_gateway_port = %d\n\n%s", d.world.address, p, p+1, p+2, rules)
	return os.WriteFile(filepath.Join(d.home, ".mux", "proxy.toml"), []byte(text), 0o600)
}

// command is muxproxy with the daemon's environment and nothing else.
func (d *daemon) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Getenv("MUXPROXY_BIN"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.home, "SSL_CERT_FILE=" + filepath.Join(d.world.dir, "roots.pem"), "SSL_CERT_DIR=/nonexistent"}
	return cmd
}

// run starts the process and waits until it answers.
func (d *daemon) run() error {
	d.cmd = d.command(append([]string{"run"}, d.o.flags...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.ended = make(chan struct{})
	go func() { _ = d.cmd.Wait(); close(d.ended) }()
	d.world.mu.Lock()
	d.world.started = append(d.world.started, d)
	d.world.mu.Unlock()
	return d.awaitHealth()
}

// awaitHealth returns when the daemon answers.
func (d *daemon) awaitHealth() error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(answerLimit)
	defer deadline.Stop()
	for {
		if r, err := http.Get("http://" + d.proxy + "/proxy/health"); err == nil {
			return r.Body.Close()
		}
		select {
		case <-tick.C:
		case <-d.ended:
			return fmt.Errorf("muxproxy run ended: %s", d.log)
		case <-deadline.C:
			return fmt.Errorf("muxproxy run does not answer: %s", d.log)
		}
	}
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}

func (d *daemon) signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait gives the exit code once the process has ended.
func (d *daemon) wait(t testing.TB) int {
	t.Helper()
	receive(t, "the daemon's end", d.ended)
	return d.cmd.ProcessState.ExitCode()
}

func (d *daemon) stderr() string { return d.log.String() }

// reconfigure replaces the rules and reloads; it returns when the daemon has said so.
func (d *daemon) reconfigure(t testing.TB, rules string) {
	t.Helper()
	if err := d.writeConfig(rules); err != nil {
		t.Fatal(err)
	}
	before := strings.Count(d.stderr(), "reload")
	d.signal(t, syscall.SIGHUP)
	eventually(t, "reload", func() error {
		if strings.Count(d.stderr(), "reload") == before {
			return errors.New(d.stderr())
		}
		return nil
	})
}

func (d *daemon) writeSecret(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.home, ".secrets", name), []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (d *daemon) removeSecret(t testing.TB, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(d.home, ".secrets", name)); err != nil {
		t.Fatal(err)
	}
}

// roots are what the daemon's containers trust.
func (d *daemon) roots() *x509.CertPool {
	text, _ := os.ReadFile(filepath.Join(d.home, ".mux", "client", "ca-bundle.pem"))
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(text)
	return p
}

func (d *daemon) client(t testing.TB) *client {
	t.Helper()
	n := d.world.clients.Add(1)
	return &client{proxy: d.proxy, roots: d.roots(), from: &net.TCPAddr{IP: net.IPv4(127, 1, byte(n>>8), byte(n))}}
}

// plainWeb is an ordinary HTTP client with the proxy set.
func (d *daemon) plainWeb() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: d.proxy}),
		TLSClientConfig: &tls.Config{RootCAs: d.roots()},
	}}
}

// auditLine is one line of the audit log.
type auditLine struct {
	ID       string `json:"id"`
	Open     bool   `json:"open"`
	Service  string `json:"service"`
	Client   string `json:"client"`
	Host     string `json:"host"`
	Method   string `json:"method"`
	Path     string `json:"path"`
	Injected bool   `json:"auth_injected"`
	Decision string `json:"decision"`
	Code     int    `json:"response_code"`
	Error    string `json:"error"`
}

// audit reads the log; a line that is not whole JSON fails the test.
func (d *daemon) audit(t testing.TB) []auditLine {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.home, ".mux", "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		t.Errorf("the log ends in the middle of a line")
	}
	var all []auditLine
	for line := range bytes.Lines(text) {
		var a auditLine
		if err := json.Unmarshal(line, &a); err != nil {
			t.Errorf("torn line %q: %v", line, err)
		}
		all = append(all, a)
	}
	return all
}

// lastLine is the newest line of a host, waited for.
func (d *daemon) lastLine(t testing.TB, host string) auditLine {
	t.Helper()
	var last auditLine
	eventually(t, "audit line of "+host, func() error {
		for _, line := range d.audit(t) {
			if line.Host == host || strings.HasPrefix(line.Host, host+":") {
				last = line
			}
		}
		if last.ID == "" {
			return errors.New("none")
		}
		return nil
	})
	return last
}

// newLine is the one line of a host that what writes: opening lines left aside.
func (d *daemon) newLine(t testing.TB, host string, what func()) auditLine {
	t.Helper()
	before := map[string]bool{}
	for _, line := range d.audit(t) {
		before[line.ID] = !line.Open
	}
	what()
	var found []auditLine
	eventually(t, "one audit line of "+host, func() error {
		found = nil
		for _, line := range d.audit(t) {
			if !before[line.ID] && !line.Open && (line.Host == host || strings.HasPrefix(line.Host, host+":")) {
				found = append(found, line)
			}
		}
		if len(found) != 1 {
			return fmt.Errorf("%d lines: %+v", len(found), found)
		}
		return nil
	})
	return found[0]
}

// count is how many requests to a host are in the log: opening lines do not count.
func (d *daemon) count(t testing.TB, host string) int {
	t.Helper()
	n := 0
	for _, line := range d.audit(t) {
		if line.Host == host && !line.Open && line.Method != http.MethodConnect {
			n++
		}
	}
	return n
}

// dockerArgs are what print-docker-args gives, split as a shell splits $(…).
func (d *daemon) dockerArgs(t testing.TB, flags ...string) []string {
	t.Helper()
	cmd := d.command(append([]string{"print-docker-args"}, flags...)...)
	cmd.Stderr = d.log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("print-docker-args: %v: %s", err, d.log)
	}
	return strings.Fields(string(out))
}
