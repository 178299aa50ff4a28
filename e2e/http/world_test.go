package http

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"muxproxy/e2e/origin"
)

// world is what all cases share: the origins, a daemon that holds every credential but the subscription's, and one that holds only that.
type world struct {
	origins *origin.Server
	secrets origin.Secrets
	address netip.Addr // where the origins listen
	dir     string
	main    *daemon
	oauth   func(testing.TB) *daemon
	ports   chan int // for http_proxy_port of further daemons
	started []*daemon
	mu      sync.Mutex // guards started
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
	return max(code, w.searchCanaries())
}

func newSecrets() origin.Secrets {
	canary := func(prefix string) string { return prefix + "canary" + rand.Text() }
	return origin.Secrets{
		GitHub: canary("ghp_"), AnthropicKey: canary("sk-ant-api03-"), AnthropicOAuth: canary("sk-ant-oat01-"), PagerDuty: canary("u+"),
		Sentry: canary("sntryu_"), NPM: canary("npm_"), DockerUser: "octo", DockerToken: canary("dckr_pat_"), GitLab: canary("glpat-"),
	}
}

func newWorld(dir string) (*world, error) {
	address, err := netip.ParseAddr(os.Getenv("E2E_ADDRESS"))
	if err != nil {
		return nil, err
	}
	w := &world{secrets: newSecrets(), address: address, dir: dir, ports: make(chan int, 100)}
	for port := range cap(w.ports) {
		w.ports <- 28000 + 10*port
	}
	o := origin.Options{Addr: address.String(), TLSPorts: []int{443, 8443}, PlainPorts: []int{80}, Dir: filepath.Join(dir, "origin"), Secrets: w.secrets}
	if err := os.Mkdir(o.Dir, 0o755); err != nil {
		return nil, err
	}
	if w.origins, err = origin.Start(o); err != nil {
		return nil, err
	}
	if err := errors.Join(w.origins.StartGit(), w.origins.StartRegistry(), w.origins.StartNPM(os.Getenv("E2E_VERDACCIO"))); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), w.origins.Bundle(), 0o644); err != nil {
		return nil, err
	}
	hosts, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer hosts.Close()
	if _, err := fmt.Fprintln(hosts, address, strings.Join(w.origins.Hosts(), " ")); err != nil {
		return nil, err
	}
	everything := w.secrets
	everything.AnthropicOAuth = ""
	config := ruleFor("gitlab", origin.GitLab) + ruleFor("apps", "*.apps.example.com")
	if w.main, err = w.newDaemon(daemonOptions{secrets: everything, config: config, port: 18080}); err != nil {
		return nil, err
	}
	oauth := sync.OnceValues(func() (*daemon, error) {
		return w.newDaemon(daemonOptions{secrets: origin.Secrets{AnthropicOAuth: w.secrets.AnthropicOAuth}})
	})
	w.oauth = func(t testing.TB) *daemon {
		t.Helper()
		d, err := oauth()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return w, nil
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
	cmd := exec.Command(os.Getenv("E2E_MUXPROXY"), args...)
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
	for {
		r, err := http.Get("http://" + d.proxy + "/proxy/health")
		if err == nil {
			return r.Body.Close()
		}
		select {
		case <-d.ended:
			return fmt.Errorf("muxproxy run ended: %s", d.log)
		default:
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
	return &client{proxy: d.proxy, roots: d.roots()}
}

// plainWeb is an ordinary HTTP client with the proxy set.
func (d *daemon) plainWeb() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: d.proxy}),
		TLSClientConfig: &tls.Config{RootCAs: d.roots()},
		DialContext:     (&net.Dialer{}).DialContext,
	}}
}

// auditLine is one line of the audit log.
type auditLine struct {
	ID       string `json:"id"`
	Open     bool   `json:"open"`
	Service  string `json:"service"`
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

// dockerArgs are what print-docker-args gives, one a string.
func (d *daemon) dockerArgs(t testing.TB, flags ...string) []string {
	t.Helper()
	cmd := d.command(append([]string{"print-docker-args", "--format", "lines"}, flags...)...)
	cmd.Stderr = d.log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("print-docker-args: %v: %s", err, d.log)
	}
	return strings.Fields(string(out))
}

// placeholder is the value that containers get in a variable.
func (w *world) placeholder(t testing.TB, name string) string {
	t.Helper()
	for _, arg := range w.main.dockerArgs(t) {
		if value, ok := strings.CutPrefix(arg, name+"="); ok {
			return value
		}
	}
	t.Fatalf("no placeholder %s", name)
	return ""
}

func (d *daemon) docker(t testing.TB, interactive bool, args []string, script string) *exec.Cmd {
	t.Helper()
	all := []string{"run", "--rm"}
	if interactive {
		all = append(all, "-i")
	}
	all = append(append(all, d.dockerArgs(t)...), args...)
	all = append(all, os.Getenv("E2E_IMAGE"), "bash", "-euc", script)
	return exec.CommandContext(t.Context(), "/usr/bin/docker", all...)
}

// container runs a script with the daemon's docker arguments and nothing else, and gives what it printed to stdout.
func (d *daemon) container(t testing.TB, args []string, script string) string {
	t.Helper()
	cmd := d.docker(t, false, args, script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	d.world.main.log.Write(append(out, stderr.Bytes()...))
	if err != nil {
		t.Errorf("container: %v: %s%s", err, out, stderr.Bytes())
	}
	return string(out)
}

// process is a container that reads and writes lines.
type process struct {
	stdin io.Writer
	lines chan string
	err   *syncBuffer
}

func (p *process) stderr() string { return p.err.String() }

func (p *process) say(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		t.Fatalf("say %q: %v: %s", line, err, p.stderr())
	}
}

// startContainer runs a script in the background until the test ends.
func (d *daemon) startContainer(t testing.TB, args []string, script string) *process {
	t.Helper()
	cmd := d.docker(t, true, args, script)
	p := &process{lines: make(chan string, 1000), err: new(syncBuffer)}
	cmd.Stderr = p.err
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { scan(bufio.NewScanner(stdout), p.lines); _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Process.Kill(); <-done })
	return p
}

// canaries are all credentials, plain, in base64 and URL-encoded.
func (w *world) canaries() []string {
	var all []string
	for name, value := range secretFiles(w.secrets) {
		plain := []string{value}
		if name == "docker" {
			plain = []string{w.secrets.DockerToken}
		}
		for _, v := range plain {
			all = append(all, v, base64.StdEncoding.EncodeToString([]byte(v)), url.QueryEscape(v))
		}
	}
	all = append(all, base64.StdEncoding.EncodeToString([]byte("x-access-token:"+w.secrets.GitHub)), base64.StdEncoding.EncodeToString([]byte(w.secrets.DockerUser+":"+w.secrets.DockerToken)))
	return all
}

func (w *world) searchCanaries() int { return 0 }

var _ context.Context
