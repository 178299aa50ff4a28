package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram makes the test binary be muxproxy.
const asProgram = "MUXPROXY_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// host is a user's host as far as muxproxy sees it.
type host struct {
	home string
	env  []string
}

// newHost gives a host with an empty home, one public root, and none of the environment of this process.
func newHost(t *testing.T, env ...string) *host {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := filepath.Join(t.TempDir(), "roots.pem")
	write(t, roots, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})), 0o644)
	h := &host{home: t.TempDir()}
	h.env = append([]string{asProgram + "=1", "GORACE=atexit_sleep_ms=0", "HOME=" + h.home, "SSL_CERT_FILE=" + roots}, env...)
	return h
}

// configure writes the config; the http plane listens on a free port of loopback alone, which it returns. The port was
// free a moment ago: a daemon takes no port 0, since containers are told the port of the config.
func (h *host) configure(t *testing.T, toml string) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	h.writeConfig(t, fmt.Sprintf("http_proxy_port = %d\nbind = [\"127.0.0.1\"]\n%s", port, toml))
	return port
}

func (h *host) writeConfig(t *testing.T, toml string) {
	t.Helper()
	if err := os.MkdirAll(h.mux(), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, h.mux("proxy.toml"), toml, 0o600)
}

// mux is a path in the mux-dir.
func (h *host) mux(elem ...string) string {
	return filepath.Join(append([]string{h.home, ".mux"}, elem...)...)
}

// secret writes a secret file.
func (h *host) secret(t *testing.T, name, value string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(h.home, ".secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(h.home, ".secrets", name), value+"\n", mode)
}

func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// command makes muxproxy with args; when the test hangs, it ends and shows its goroutines.
func (h *host) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = h.env
	return cmd
}

// output is what a command left behind.
type output struct {
	stdout, stderr string
	code           int
}

// run runs a command to its end, in this process: as main does, but with the environment of h.
func (h *host) run(t *testing.T, args ...string) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := report(&stderr, run(t.Context(), args, h.getenv, nil, &stdout, &stderr))
	return output{stdout.String(), stderr.String(), code}
}

// getenv looks into the environment of h, in which the last value of a name holds.
func (h *host) getenv(name string) string {
	for _, e := range slices.Backward(h.env) {
		if value, ok := strings.CutPrefix(e, name+"="); ok {
			return value
		}
	}
	return ""
}

// exec runs the real program to its end.
func (h *host) exec(t *testing.T, args ...string) output {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := h.command(t, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// daemonProcess is a `muxproxy run` that runs.
type daemonProcess struct {
	cmd    *exec.Cmd
	log    io.Closer       // the reading end of stderr
	stderr *bufio.Reader   // reads it
	seen   strings.Builder // all of stderr so far
	stdout bytes.Buffer
	ended  bool
}

// start starts `muxproxy run` and waits until it serves.
func (h *host) start(t *testing.T, args ...string) *daemonProcess {
	t.Helper()
	d := h.launch(t, args...)
	d.await(t, "listening on ")
	return d
}

// launch starts `muxproxy run`.
func (h *host) launch(t *testing.T, args ...string) *daemonProcess {
	t.Helper()
	d := &daemonProcess{cmd: h.command(t, append([]string{"run"}, args...)...)}
	d.cmd.Stdout = &d.stdout
	pipe, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.log, d.stderr = pipe, bufio.NewReader(pipe)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !d.ended {
			d.cmd.Process.Kill()
			d.end(t)
		}
	})
	return d
}

// await reads stderr up to a line that holds text, and gives the line.
func (d *daemonProcess) await(t *testing.T, text string) string {
	t.Helper()
	for {
		line, err := d.stderr.ReadString('\n')
		d.seen.WriteString(line)
		if strings.Contains(line, text) {
			return line
		}
		if err != nil {
			t.Fatalf("ended without %q:\n%s", text, d.seen.String())
		}
	}
}

// signal sends a signal.
func (d *daemonProcess) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// end waits for the process to end by itself.
func (d *daemonProcess) end(t *testing.T) output {
	t.Helper()
	rest, _ := io.ReadAll(d.stderr)
	d.seen.Write(rest)
	d.cmd.Wait() // the exit code says it all
	d.ended = true
	return output{d.stdout.String(), d.seen.String(), d.cmd.ProcessState.ExitCode()}
}

// stop ends it as an operator does.
func (d *daemonProcess) stop(t *testing.T) output {
	t.Helper()
	d.signal(t, syscall.SIGTERM)
	o := d.end(t)
	if o.code != 0 {
		t.Errorf("exit code %d after SIGTERM:\n%s", o.code, o.stderr)
	}
	return o
}

// wants checks an output: the exit code, and texts that stderr has to hold.
func (o output) wants(t *testing.T, code int, texts ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d; stderr:\n%s", o.code, code, o.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(o.stderr, text) {
			t.Errorf("no %q in stderr:\n%s", text, o.stderr)
		}
	}
}

func TestHelpIsTheManualOnStdout(t *testing.T) {
	h := newHost(t)
	for _, args := range [][]string{{"-h"}, {"--help"}, {"--mux-dir", "/x", "-h"}, {"nonsense", "-h"}} {
		o := h.run(t, args...)
		o.wants(t, 0)
		for _, text := range []string{"run ", "print-docker-args ", "gen-configs ", "version ", "--config FILE", "--mux-dir DIR", "SIGHUP", "proxy.toml", "2 usage"} {
			if !strings.Contains(o.stdout, text) {
				t.Errorf("%q: no %q in:\n%s", args, text, o.stdout)
			}
		}
		if o.stderr != "" {
			t.Errorf("%q: stderr holds %q", args, o.stderr)
		}
	}
	for command, flag := range map[string]string{"run": "--log-level LEVEL", "print-docker-args": "--format FORMAT", "gen-configs": "--new-ca", "version": "--config FILE"} {
		for _, args := range [][]string{{command, "-h"}, {"-h", command}, {command, "--bogus", "--help"}} {
			o := h.run(t, args...)
			o.wants(t, 0)
			if !strings.Contains(o.stdout, flag) || !strings.Contains(o.stdout, "muxproxy "+command) {
				t.Errorf("%q gives:\n%s", args, o.stdout)
			}
		}
	}
}

func TestWrongCommandLinesExitWith2(t *testing.T) {
	h := newHost(t)
	for line, texts := range map[string][]string{
		"":                                {"muxproxy: no command given", "muxproxy -h"},
		"rnu":                             {`muxproxy: command "rnu": unknown`, "did you mean muxproxy run?"},
		"print-docker-arg":                {"did you mean muxproxy print-docker-args?"},
		"zzzzzzzzzz":                      {"muxproxy -h for the list"},
		"check":                           {`command "check": not in this version`},
		"run --bogus":                     {"-bogus", "muxproxy run -h"},
		"run extra":                       {`unexpected "extra"`},
		"--bogus run":                     {"-bogus", "muxproxy -h"},
		"run --config":                    {"needs an argument: -config"},
		"run --log-level loud":            {`--log-level "loud"`, "debug, info, warn, error"},
		"run --log-level INFO+1":          {`--log-level "INFO+1"`},
		"run --log-format xml":            {`--log-format "xml"`, "text, json"},
		"print-docker-args --format yaml": {`--format "yaml"`, "words, shell, lines, json"},
		"print-docker-args --no-http":     {"-no-http"},
		"version --format json":           {"-format"},
		"gen-configs --new-ca=maybe":      {"new-ca"},
	} {
		o := h.run(t, strings.Fields(line)...)
		o.wants(t, 2, texts...)
		if o.stdout != "" {
			t.Errorf("%q: stdout holds %q", line, o.stdout)
		}
		if n := strings.Count(o.stderr, "\n"); n != 2 {
			t.Errorf("%q: %d lines, want the error and the hint:\n%s", line, n, o.stderr)
		}
	}
	if entries, _ := os.ReadDir(h.home); len(entries) > 0 {
		t.Errorf("a wrong command line made %v", entries)
	}
}

func TestTheProgramHasTheExitCodesAndStreams(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for line, want := range map[string]output{
		"version -h": {stdout: "Usage: muxproxy version"},
		"rnu":        {stderr: `muxproxy: command "rnu": unknown`, code: 2},
		"gen-configs --config /nowhere/proxy.toml": {stderr: "muxproxy: ", code: 1},
	} {
		got := h.exec(t, strings.Fields(line)...)
		if got.code != want.code || !strings.HasPrefix(got.stdout, want.stdout) || !strings.HasPrefix(got.stderr, want.stderr) {
			t.Errorf("%q gives %+v", line, got)
		}
		if (want.stdout == "") != (got.stdout == "") || (want.stderr == "") != (got.stderr == "") {
			t.Errorf("%q writes to the wrong stream: %+v", line, got)
		}
	}
}

func TestVersionNamesGoAndThePlatform(t *testing.T) {
	o := newHost(t).run(t, "--config", "/nowhere", "version", "--mux-dir=/nowhere")
	o.wants(t, 0)
	if !strings.HasPrefix(o.stdout, "muxproxy ") || !strings.Contains(o.stdout, " go1.") || !strings.Contains(o.stdout, "/") {
		t.Errorf("got %q", o.stdout)
	}
}

func TestWithoutHomeTheMuxDirHasToBeNamed(t *testing.T) {
	h := newHost(t)
	h.env = append(h.env, "HOME=")
	for _, command := range []string{"run", "print-docker-args", "gen-configs"} {
		h.run(t, command).wants(t, 1, "HOME is not set", "--mux-dir")
	}
	h.run(t, "gen-configs", "--mux-dir", "~/x").wants(t, 1, `expand "~/x": HOME is not set`)
}

func TestMuxDirIsTakenFromFlagThenVariableThenHome(t *testing.T) {
	h := newHost(t)
	h.env = append(h.env, "MUX_DIR="+filepath.Join(h.home, "variable"))
	h.run(t, "gen-configs", "--mux-dir", "~/flag").wants(t, 0)
	h.run(t, "gen-configs").wants(t, 0)
	for _, dir := range []string{"flag", "variable"} {
		info, err := os.Stat(filepath.Join(h.home, dir))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info, err)
		}
	}
	if _, err := os.Stat(h.mux()); err == nil {
		t.Error("~/.mux was made though another mux-dir was named")
	}
}

func TestMuxDirThatOthersCanReachIsRefused(t *testing.T) {
	h := newHost(t)
	h.writeConfig(t, "")
	for _, mode := range []os.FileMode{0o755, 0o750, 0o701, 0o720} {
		if err := os.Chmod(h.mux(), mode); err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"run", "print-docker-args", "gen-configs"} {
			h.run(t, command).wants(t, 1, fmt.Sprintf("mode %04o", mode), "chmod 700 "+h.mux())
		}
	}
	if os.Geteuid() == 0 { // nobody else can give a directory away
		if err := errors.Join(os.Chmod(h.mux(), 0o700), os.Chown(h.mux(), 12345, 0)); err != nil {
			t.Fatal(err)
		}
		h.run(t, "gen-configs").wants(t, 1, "belongs to uid 12345")
	}
	if entries, _ := os.ReadDir(h.mux()); len(entries) != 1 {
		t.Errorf("something was written there: %v", entries)
	}
}

func TestMuxDirTooLongForASocketSaysSo(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.home, strings.Repeat("long/", 30))
	h.run(t, "run", "--mux-dir", dir).wants(t, 1, "too long", "MUX_DIR")
	if _, err := os.Stat(filepath.Join(h.home, "long")); err == nil {
		t.Error("the directory was made all the same")
	}
}

func TestBadConfigIsToldAndNothingStarts(t *testing.T) {
	h := newHost(t)
	h.configure(t, "nonsense = 1\ndrain = \"soon\"\n")
	for _, command := range []string{"run", "print-docker-args", "gen-configs"} {
		o := h.run(t, command)
		o.wants(t, 1, "nonsense", "drain", "proxy.toml")
		if o.stdout != "" {
			t.Errorf("%s: stdout holds %q", command, o.stdout)
		}
	}
	h.run(t, "run", "--config", "~/other.toml").wants(t, 1, "other.toml", "leave --config out")
	if _, err := os.Stat(h.mux("proxy-ca-key.pem")); err == nil {
		t.Error("a CA was made all the same")
	}
}

func TestGenConfigsWritesTheTree(t *testing.T) {
	h := newHost(t)
	o := h.run(t, "gen-configs")
	o.wants(t, 0, "client/ca-bundle.pem", "client/npmrc")
	if o.stdout != "" {
		t.Errorf("stdout holds %q", o.stdout)
	}
	golden(t, "gen-configs.golden", tree(t, h.mux()))
	defer syscall.Umask(syscall.Umask(0o077))
	strict := newHost(t)
	strict.run(t, "gen-configs").wants(t, 0)
	golden(t, "gen-configs.golden", tree(t, strict.mux())) // a container's user reads them whatever the umask
	bundle, err := os.ReadFile(h.mux("client", "ca-bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := os.ReadFile(h.mux("proxy-ca.pem"))
	if err != nil || !bytes.HasPrefix(bundle, roots) || bytes.Count(bundle, []byte("BEGIN CERT")) != bytes.Count(roots, []byte("BEGIN CERT"))+1 {
		t.Errorf("the bundle is not the CA's roots and then the host's (%v):\n%s", err, bundle)
	}

	h.run(t, "gen-configs").wants(t, 0, "up to date")
	again, _ := os.ReadFile(h.mux("proxy-ca.pem"))
	if !bytes.Equal(again, roots) {
		t.Error("the second run made another CA")
	}
	h.run(t, "gen-configs", "--new-ca").wants(t, 0, "client/ca-bundle.pem")
	again, _ = os.ReadFile(h.mux("proxy-ca.pem"))
	if bytes.Equal(again, roots) {
		t.Error("--new-ca kept the CA")
	}
	if err := os.Remove(h.mux("client", "npmrc")); err != nil {
		t.Fatal(err)
	}
	h.run(t, "print-docker-args").wants(t, 0)
	if got, _ := os.ReadFile(h.mux("client", "npmrc")); !bytes.Contains(got, []byte("muxproxy-placeholder")) {
		t.Errorf("npmrc holds %q", got)
	}
}

func TestDockerArgsOfAHost(t *testing.T) {
	h := newHost(t, "GH_TOKEN=canary", "CLAUDE_CODE_OAUTH_TOKEN=canary")
	h.secret(t, "npm", "canary", 0o600)
	h.secret(t, "sentry", "canary", 0o644)
	h.configure(t, "docker_host = \"host.example\"\nno_proxy = [\"db.internal\"]\n")
	o := h.run(t, "print-docker-args")
	o.wants(t, 0, "no muxproxy runs: judged by the config")
	words := strings.Fields(o.stdout)
	if strings.Count(o.stdout, "\n") != 1 || strings.Contains(o.stdout, "canary") {
		t.Errorf("got %q", o.stdout)
	}
	if words[0] != "--add-host=host.example:host-gateway" {
		t.Errorf("begins with %q", words[0])
	}
	for name, want := range map[string]string{
		"GH_TOKEN":                "ghp_muxproxy-placeholder",
		"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-muxproxy-placeholder",
		"NPM_CONFIG_GLOBALCONFIG": "/etc/mux/client/npmrc",
		"ANTHROPIC_API_KEY":       "",
		"SENTRY_AUTH_TOKEN":       "", // its file is open to others
		"PAGERDUTY_TOKEN":         "",
	} {
		if got := envOf(words, name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		got := envOf(words, name)
		if !strings.HasPrefix(got, "localhost,127.0.0.1,::1,host.example") || !strings.HasSuffix(got, ",db.internal") {
			t.Errorf("%s = %q", name, got)
		}
	}

	o = h.run(t, "print-docker-args", "--no-proxy", "--format=json")
	if want := `["--add-host=host.example:host-gateway"]` + "\n"; o.stdout != want {
		t.Errorf("--no-proxy prints %q", o.stdout)
	}
	var args []string
	if err := json.Unmarshal([]byte(h.run(t, "print-docker-args", "--format", "json").stdout), &args); err != nil || !slices.Equal(args, words) {
		t.Errorf("json differs from words: %q, %v", args, err)
	}
	if lines := h.run(t, "--mux-dir", h.mux(), "print-docker-args", "--format", "lines").stdout; lines != strings.Join(words, "\n")+"\n" {
		t.Errorf("lines differ from words: %q", lines)
	}
}

// envOf gives the value of "-e name=value" among words, "" where there is none.
func envOf(words []string, name string) string {
	for i, w := range words {
		if value, ok := strings.CutPrefix(w, name+"="); ok && words[i-1] == "-e" {
			return value
		}
	}
	return ""
}

func TestMuxDirThatDockerCannotMountIsRefused(t *testing.T) {
	h := newHost(t)
	h.run(t, "print-docker-args", "--mux-dir", filepath.Join(h.home, "a:b")).wants(t, 1, "colon", "--mux-dir")
	o := h.run(t, "print-docker-args", "--mux-dir", filepath.Join(h.home, "a b"))
	o.wants(t, 1, "words", "--format shell, lines or json")
	if o.stdout != "" {
		t.Errorf("stdout holds %q", o.stdout)
	}
	h.run(t, "print-docker-args", "--format", "shell", "--mux-dir", filepath.Join(h.home, "a b")).wants(t, 0)
}

func TestRunWithNothingServesAtOnceAndSaysWhy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.launch(t)
	first := d.await(t, "")
	if strings.Contains(first, "listen on") { // another program has the default port: then that is what it says
		d.end(t).wants(t, 1, "127.0.0.1:18080", "http_proxy_port")
		return
	}
	d.await(t, "listening on 127.0.0.1:18080")
	o := d.stop(t)
	o.wants(t, 0, "none, all defaults", "plane http: on", "plane kube: off: no kubeconfig", "plane talos: off: no talosconfig",
		"service github: passive, no credential: to turn it on, write ~/.secrets/github with mode 0600",
		"service anthropic: passive", "service npm: passive", "audit log: "+h.mux("audit.jsonl"), h.mux("proxy-ca.pem"), "stopping", "stopped")
	if o.stdout != "" {
		t.Errorf("stdout holds %q", o.stdout)
	}
}

func TestRunSaysWhereCredentialsCameFrom(t *testing.T) {
	t.Parallel()
	h := newHost(t, "GITHUB_TOKEN=ghp_canary")
	h.secret(t, "pagerduty", "canary", 0o600)
	h.secret(t, "sentry", "canary", 0o640)
	h.configure(t, "[[rule]]\nservice = \"gitlab\"\nhosts = [\"gitlab.example.com\"]\nheader = \"PRIVATE-TOKEN\"\nenv = \"GITLAB_TOKEN\"\n")
	h.start(t, "--no-kube", "--no-talos", "--log-format", "json").stop(t).wants(t, 0,
		"service github: credential from GITHUB_TOKEN in the environment",
		"service pagerduty: credential from ~/.secrets/pagerduty",
		"service sentry: its requests are refused", "chmod 600",
		`rule \"gitlab\" (proxy.toml line 3): its requests are refused, no credential`, "GITLAB_TOKEN",
		"plane kube: off: --no-kube", "plane talos: off: --no-talos", `"level":"WARN"`)
}

func TestSecondRunNamesTheFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(t, "")
	d := h.start(t)
	pid := strconv.Itoa(d.cmd.Process.Pid)
	h.run(t, "run").wants(t, 1, "with pid "+pid, h.mux(), "kill -HUP "+pid)
	h.run(t, "gen-configs", "--new-ca").wants(t, 1, pid)
	if b, err := os.ReadFile(h.mux("run.lock")); err != nil || strings.TrimSpace(string(b)) != pid {
		t.Errorf("run.lock holds %q, %v", b, err)
	}
	d.stop(t)
	h.start(t).stop(t)
}

func TestPortInUseIsNamed(t *testing.T) {
	h := newHost(t)
	port := h.configure(t, "")
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.run(t, "run").wants(t, 1, fmt.Sprintf("127.0.0.1:%d", port), "http_proxy_port")
	if _, err := os.Stat(h.mux("control.sock")); err == nil {
		t.Error("the control socket was left behind")
	}
}

func TestCommandsAskTheRunningDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t, "GITHUB_TOKEN=canary")
	port := h.configure(t, "")
	d := h.start(t)
	pid := strconv.Itoa(d.cmd.Process.Pid)
	if info, err := os.Stat(h.mux("control.sock")); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("control.sock: %v, %v", info.Mode(), err)
	}

	asker := *h
	asker.env = append(slices.Clone(h.env), "GITHUB_TOKEN=", "SENTRY_AUTH_TOKEN=canary")
	h.writeConfig(t, "http_proxy_port = 1\n") // not what the daemon has
	o := asker.run(t, "print-docker-args")
	o.wants(t, 0, "asked the running muxproxy (pid "+pid+")")
	words := strings.Fields(o.stdout)
	if got, want := envOf(words, "HTTPS_PROXY"), fmt.Sprintf("http://host.docker.internal:%d", port); got != want {
		t.Errorf("HTTPS_PROXY=%q, want %q", got, want)
	}
	if envOf(words, "GH_TOKEN") == "" || envOf(words, "SENTRY_AUTH_TOKEN") != "" {
		t.Errorf("the placeholders are not those of the daemon: %q", words)
	}

	h.writeConfig(t, fmt.Sprintf("http_proxy_port = %d\nbind = [\"127.0.0.1\"]\n%s", port, newHostRule))
	for _, name := range []string{"proxy-ca.pem", "client/npmrc"} {
		if err := os.Remove(h.mux(name)); err != nil {
			t.Fatal(err)
		}
		asker.run(t, "print-docker-args").wants(t, 1, "kill -HUP "+pid) // the file's new host waits for a reload
	}
	asker.run(t, "gen-configs").wants(t, 1, "new.example.com", "kill -HUP "+pid)
	d.signal(t, syscall.SIGHUP)
	d.await(t, "reloaded")
	asker.run(t, "print-docker-args").wants(t, 0)
	if !exists(h.mux("proxy-ca.pem")) || !exists(h.mux("client/npmrc")) {
		t.Error("what was missing was not made again")
	}
	d.stop(t)
	if _, err := os.Stat(h.mux("control.sock")); err == nil {
		t.Error("the control socket outlived the daemon")
	}
	h.run(t, "print-docker-args").wants(t, 0, "no muxproxy runs")
}

const newHostRule = "[[rule]]\nservice = \"new\"\nhosts = [\"new.example.com\"]\nheader = \"X-Token\"\nenv = \"NEW_TOKEN\"\n"

func TestKilledDaemonLeavesNothingInTheWay(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(t, "")
	d := h.start(t)
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	if _, err := os.Stat(h.mux("control.sock")); err != nil {
		t.Fatal("the test needs a socket that was left behind")
	}
	h.run(t, "print-docker-args").wants(t, 0, "no muxproxy runs")
	h.start(t).stop(t)
}

func TestReloadTakesAGoodConfigAndRefusesABadOne(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "")
	d := h.start(t)
	pid := d.cmd.Process.Pid

	h.writeConfig(t, "nonsense = 1\n")
	d.signal(t, syscall.SIGHUP)
	d.await(t, "reload failed: the old config stays in force")
	d.await(t, "proxy.toml:1: nonsense: unknown key")
	getHealth(t, port)

	h.env = append(h.env, "NEW_TOKEN=canary")
	h.writeConfig(t, fmt.Sprintf("http_proxy_port = %d\nbind = [\"127.0.0.1\", \"::1\"]\ndocker_host = \"other.example\"\n%s", port+1, newHostRule))
	d.signal(t, syscall.SIGHUP)
	if line := d.await(t, "restart"); !strings.Contains(line, "new.example.com") || strings.Contains(line, "api.github.com") {
		t.Errorf("the host that is new to running processes is not told: %s", line)
	}
	d.await(t, "reloaded")
	if line := d.await(t, "needs a restart"); !strings.Contains(line, "http_proxy_port") || !strings.Contains(line, "bind") || strings.Contains(line, "ca") {
		t.Errorf("the keys that need a restart are not told: %s", line)
	}
	d.await(t, `rule \"new\"`)
	a, err := askDaemon(t.Context(), h.mux())
	if err != nil || a == nil || a.PID != pid || a.Containers.HTTPPort != uint16(port) || a.Containers.DockerHost != "other.example" {
		t.Errorf("the daemon answers %+v, %v", a, err)
	}
	roots, _ := os.ReadFile(h.mux("proxy-ca.pem"))
	bundle, _ := os.ReadFile(h.mux("client", "ca-bundle.pem"))
	if n := bytes.Count(roots, []byte("BEGIN CERT")); n != 2 || !bytes.HasPrefix(bundle, roots) {
		t.Errorf("%d roots; the bundle begins with them: %v", n, bytes.HasPrefix(bundle, roots))
	}
	d.stop(t)
}

func TestReloadFindsANewCredential(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(t, "")
	d := h.start(t)
	h.secret(t, "github", "canary", 0o600)
	d.signal(t, syscall.SIGHUP)
	d.await(t, "service github: credential from ~/.secrets/github")
	if envOf(strings.Fields(h.run(t, "print-docker-args").stdout), "GH_TOKEN") == "" {
		t.Error("no placeholder for it")
	}
	d.stop(t)
}

func TestReloadDoesNotForgetThatACredentialWasThere(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "")
	h.secret(t, "github", "canary", 0o600)
	d := h.start(t)
	if err := os.Remove(filepath.Join(h.home, ".secrets", "github")); err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	d.await(t, "service github: its requests are refused")
	if _, r := getHealth(t, port); len(r.Credentials) != 1 {
		t.Errorf("health tells %+v", r)
	}
	d.stop(t)
}

func TestReloadChangesWhatIsRefused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "allowed_networks = [\"127.0.0.0/8\"]\n")
	d := h.start(t)
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	if code := proxied(t, port, s.URL); code != 404 {
		t.Errorf("%d before", code)
	}
	h.writeConfig(t, fmt.Sprintf("http_proxy_port = %d\nbind = [\"127.0.0.1\"]\nunmatched = \"deny\"\n", port))
	d.signal(t, syscall.SIGHUP)
	d.await(t, "reloaded")
	if code := proxied(t, port, s.URL); code != 403 {
		t.Errorf("%d after", code)
	}
	d.stop(t)
}

// proxied asks for url through the daemon, and gives the status code.
func proxied(t *testing.T, port int, url string) int {
	t.Helper()
	resp, err := httpClient(fmt.Sprintf("127.0.0.1:%d", port)).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

func TestOwnPortsAreNeverDialed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "allowed_networks = [\"127.0.0.0/8\"]\n")
	d := h.start(t)
	for _, own := range []int{port, 18081, 18082} {
		if code := proxied(t, port, fmt.Sprintf("http://127.0.0.2:%d/", own)); code != 403 {
			t.Errorf("port %d: %d", own, code)
		}
	}
	d.stop(t)
}

func TestTheOperatorsProxyIsTaken(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() == "http://example.com/x" {
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer upstream.Close()
	h := newHost(t, "http_proxy="+upstream.URL)
	port := h.configure(t, "")
	d := h.start(t)
	if code := proxied(t, port, "http://example.com/x"); code != http.StatusTeapot {
		t.Errorf("got %d", code)
	}
	d.stop(t)
}

func TestUnconstrainedCAIsWarnedOf(t *testing.T) {
	h := newHost(t)
	h.configure(t, "ca_constraints = false\n")
	h.run(t, "gen-configs").wants(t, 0, "ca_constraints = false")
}

func TestReloadReopensTheAuditLog(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(t, "")
	d := h.start(t)
	if err := os.Rename(h.mux("audit.jsonl"), h.mux("audit.jsonl.old")); err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	d.await(t, "reloaded")
	if !exists(h.mux("audit.jsonl")) {
		t.Error("no new audit log")
	}
	d.stop(t)
}

// httpClient is a client of the daemon's port, which keeps no connections.
func httpClient(proxy string) *http.Client {
	tr := &http.Transport{DisableKeepAlives: true}
	if proxy != "" {
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})
	}
	return &http.Client{Transport: tr, Timeout: 10 * time.Second}
}

// get asks for /proxy/health.
func getHealth(t *testing.T, port int) (code int, r healthReport) {
	t.Helper()
	resp, err := httpClient("").Get(fmt.Sprintf("http://127.0.0.1:%d/proxy/health", port))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, r
}

func TestHealthTellsTheStateOfEachPlane(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "")
	d := h.start(t)
	code, r := getHealth(t, port)
	if code != 200 || r.Planes["http"].State != "on" || !strings.HasPrefix(r.Planes["kube"].String(), "off: no kubeconfig") || r.Planes["talos"].State != "off" {
		t.Errorf("%d, %+v", code, r)
	}
	if time.Since(r.Planes["http"].Since) > time.Minute || !slices.Equal(r.Listen, []string{fmt.Sprintf("127.0.0.1:%d", port)}) {
		t.Errorf("since %v, listening on %q", r.Planes["http"].Since, r.Listen)
	}
	h.secret(t, "github", "canary", 0o644)
	d.signal(t, syscall.SIGHUP)
	d.await(t, "reloaded")
	code, r = getHealth(t, port)
	if code != 200 || r.Planes["http"].State != "degraded" || len(r.Credentials) != 1 || !strings.Contains(r.Credentials[0], "chmod 600") {
		t.Errorf("%d, %+v", code, r)
	}
	d.stop(t)
}

func TestPlaneThatIsOffLeavesHealthAlone(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--no-http", "--no-proxy"} {
		h := newHost(t)
		port := h.configure(t, "")
		d := h.start(t, flag)
		code, r := getHealth(t, port)
		if code != 200 || r.Planes["http"].String() != "off: "+flag {
			t.Errorf("%s: %d, %+v", flag, code, r)
		}
		if kube := r.Planes["kube"].Why; (flag == "--no-proxy") != (kube == flag) {
			t.Errorf("%s: kube is off because of %q", flag, kube)
		}
		if code := proxied(t, port, "http://example.invalid/"); code != 403 {
			t.Errorf("%s: a proxied request gets %d", flag, code)
		}
		o := h.run(t, "print-docker-args")
		o.wants(t, 0, "the http plane is off")
		if strings.Contains(o.stdout, "PROXY") {
			t.Errorf("%s: got %q", flag, o.stdout)
		}
		d.stop(t)
	}
}

func TestSignalsStopIt(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		h := newHost(t)
		h.configure(t, "")
		d := h.start(t)
		d.signal(t, s)
		d.end(t).wants(t, 0, "stopping", s.String(), "stopped")
	}
}

// slowRequest starts an upload to a server whose answer waits: the daemon has something under way. finish lets the server
// answer, and gives what the client got.
func slowRequest(t *testing.T, port int) (finish func() (*http.Response, error)) {
	t.Helper()
	begun, release := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
	}))
	t.Cleanup(s.Close)
	type result struct {
		resp *http.Response
		err  error
	}
	done := make(chan result, 1)
	go func() {
		resp, err := httpClient(fmt.Sprintf("127.0.0.1:%d", port)).Get(s.URL)
		done <- result{resp, err}
	}()
	select {
	case <-begun:
	case r := <-done:
		t.Fatalf("the request did not reach the server: %v, %v", r.resp, r.err)
	}
	return func() (*http.Response, error) {
		close(release)
		r := <-done
		if r.err == nil {
			r.resp.Body.Close()
		}
		return r.resp, r.err
	}
}

func TestTheEndOfTheLogsReaderEndsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "")
	d := h.start(t)
	if err := d.log.Close(); err != nil {
		t.Fatal(err)
	}
	h.secret(t, "github", "canary", 0o600)
	d.signal(t, syscall.SIGHUP) // writes many lines
	for {
		a, err := askDaemon(t.Context(), h.mux())
		if err != nil || a == nil {
			t.Fatalf("the daemon is gone: %+v, %v", a, err)
		}
		if len(a.Containers.Services) > 0 {
			break
		}
	}
	getHealth(t, port)
	d.stop(t)
}

func TestDrainLetsRequestsFinishAndTakesNoNewOnes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "allowed_networks = [\"127.0.0.0/8\"]\ndrain = \"15s\"\n")
	d := h.start(t)
	finish := slowRequest(t, port)
	d.signal(t, syscall.SIGTERM)
	d.await(t, "stopping")
	waitRefused(t, port)
	if resp, err := finish(); err != nil || resp.StatusCode != 200 {
		t.Errorf("the request under way got %v, %v", resp, err)
	}
	d.end(t).wants(t, 0, "stopped")
}

// waitRefused waits until nothing listens on the port.
func waitRefused(t *testing.T, port int) {
	t.Helper()
	for range 2000 {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return
		}
		c.Read(make([]byte, 1)) // until the daemon closes it
		c.Close()
	}
	t.Error("new connections are still taken")
}

func TestDrainEndsWithItsTime(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "allowed_networks = [\"127.0.0.0/8\"]\ndrain = \"50ms\"\n")
	d := h.start(t)
	finish := slowRequest(t, port)
	d.signal(t, syscall.SIGINT)
	d.end(t).wants(t, 0, "stopped")
	if resp, err := finish(); err == nil && resp.StatusCode == 200 {
		t.Error("the request finished after the drain")
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "allowed_networks = [\"127.0.0.0/8\"]\ndrain = \"1h\"\n")
	d := h.start(t)
	finish := slowRequest(t, port)
	d.signal(t, syscall.SIGINT)
	d.await(t, "stopping")
	d.signal(t, syscall.SIGINT)
	d.end(t).wants(t, 1, "second signal")
	finish()
	if _, err := os.Stat(h.mux("control.sock")); err == nil {
		t.Error("the control socket was left behind")
	}
}

func TestOwnPortAsUpstreamProxyIsAStartError(t *testing.T) {
	h := newHost(t)
	port := h.configure(t, "")
	for _, env := range []string{"HTTPS_PROXY=http://127.0.0.1:%d", "https_proxy=localhost:%d", "http_proxy=http://user:canary@host.docker.internal:%d", "HTTP_PROXY=http://[::1]:%d"} {
		guest := *h
		guest.env = append(slices.Clone(h.env), fmt.Sprintf(env, port))
		o := guest.run(t, "run")
		o.wants(t, 1, "is muxproxy itself", "env -u HTTPS_PROXY")
		if strings.Contains(o.stderr, "canary") {
			t.Errorf("the proxy's password is told: %s", o.stderr)
		}
	}
	guest := *h
	guest.env = append(slices.Clone(h.env), "HTTPS_PROXY=http://user:canary@%zz")
	o := guest.run(t, "run")
	o.wants(t, 1, "HTTPS_PROXY")
	if strings.Contains(o.stderr, "canary") {
		t.Errorf("the proxy's password is told: %s", o.stderr)
	}
}

func TestEphemeralCAIsLeftToTheDaemon(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.configure(t, "ca = \"ephemeral\"\n")
	h.run(t, "gen-configs").wants(t, 1, "start muxproxy run first")
	h.run(t, "print-docker-args").wants(t, 1, "start muxproxy run first")
	h.run(t, "gen-configs", "--new-ca").wants(t, 1, "restart muxproxy run")
	d := h.start(t)
	before, _ := os.ReadFile(h.mux("proxy-ca.pem"))
	h.run(t, "gen-configs").wants(t, 0)
	h.run(t, "print-docker-args").wants(t, 0)
	d.stop(t)
	after, _ := os.ReadFile(h.mux("proxy-ca.pem"))
	if len(before) == 0 || !bytes.Equal(before, after) || exists(h.mux("proxy-ca-key.pem")) {
		t.Error("the CA is not the daemon's alone")
	}
}

func TestTheSoftLimitOfOpenFilesIsTheHardOne(t *testing.T) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	if l.Cur != l.Max {
		t.Errorf("%d of %d", l.Cur, l.Max)
	}
}

// TestNoCredentialIsWrittenAnywhere runs every command with credentials in files and variables and looks for them, plain
// and encoded, in all that is left behind.
func TestNoCredentialIsWrittenAnywhere(t *testing.T) {
	t.Parallel()
	const fromEnv, fromFile, badFile = "ghp/canary+in=environment", "canary?in/file", "canary:in&bad=file"
	h := newHost(t, "GITHUB_TOKEN="+fromEnv, "NEW_TOKEN="+fromEnv, "DOCKER_USERNAME=me", "DOCKER_TOKEN="+fromEnv)
	h.secret(t, "anthropic", fromFile, 0o600)
	h.secret(t, "sentry", badFile, 0o644)
	h.secret(t, "pagerduty", badFile+"\n"+badFile, 0o600)
	port := h.configure(t, newHostRule)
	var all strings.Builder
	d := h.start(t, "--log-level", "debug")
	for _, args := range [][]string{{"print-docker-args"}, {"print-docker-args", "--format", "json"}, {"gen-configs"}, {"run"}, {"version"}} {
		o := h.exec(t, args...)
		all.WriteString(o.stdout + o.stderr)
	}
	_, report := getHealth(t, port)
	fmt.Fprintf(&all, "%+v", report)
	d.signal(t, syscall.SIGHUP)
	d.await(t, "reloaded")
	o := d.stop(t)
	all.WriteString(o.stdout + o.stderr)
	for _, args := range [][]string{{"print-docker-args"}, {"gen-configs", "--new-ca"}} {
		o := h.exec(t, args...)
		all.WriteString(o.stdout + o.stderr)
	}
	err := filepath.WalkDir(h.mux(), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		all.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, canary := range []string{fromEnv, fromFile, badFile} {
		for _, form := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary)), base64.RawURLEncoding.EncodeToString([]byte(canary)), url.QueryEscape(canary), url.PathEscape(canary)} {
			if strings.Contains(all.String(), form) {
				t.Errorf("%q is there", form)
			}
		}
	}
	if !strings.Contains(all.String(), "muxproxy-placeholder") {
		t.Error("the search looked at nothing")
	}
}
