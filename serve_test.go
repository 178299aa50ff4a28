package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// open opens a daemon in this process.
func (h *host) open(t *testing.T, args ...string) (*daemon, *logBuffer) {
	t.Helper()
	log := &logBuffer{}
	i := invocation{getenv: h.getenv, stdout: log, stderr: log}
	if err := newFlagSet("run", &i.options, runFlags).Parse(args); err != nil {
		t.Fatal(err)
	}
	var err error
	if i.place, err = i.locate(h.getenv); err != nil {
		t.Fatal(err)
	}
	d, err := openDaemon(t.Context(), i, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.close)
	return d, log
}

// goroutines lists the goroutines that run the daemon's code, but the caller's own.
func goroutines() (running []string) {
	buf := make([]byte, 1<<20)
	all := string(buf[:runtime.Stack(buf, true)])
	for i, g := range strings.Split(all, "\n\n") {
		if i > 0 && (strings.Contains(g, "muxproxy.(*") || strings.Contains(g, "muxproxy.watch")) && !strings.Contains(g, "testing.(*T).Parallel") {
			running = append(running, g)
		}
	}
	return running
}

func TestDrainLeavesNoGoroutine(t *testing.T) {
	before := len(goroutines())
	h := newHost(t)
	port := h.configure(t, "allowed_networks = [\"127.0.0.0/8\"]\n")
	d, log := h.open(t)
	stop := make(chan os.Signal, 2)
	served := make(chan error, 1)
	go func() { served <- d.serve(t.Context(), signals{stop: stop, reload: nil}) }()
	getHealth(t, port)
	finish := slowRequest(t, port)
	stop <- syscall.SIGTERM
	waitRefused(t, port)
	if resp, err := finish(); err != nil || resp.StatusCode != 200 {
		t.Errorf("the request under way got %v, %v", resp, err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	d.close()
	var left []string
	for range 1000 { // what AfterFunc started may be on its last lines
		if left = goroutines(); len(left) <= before {
			break
		}
		runtime.Gosched()
	}
	if len(left) > before {
		t.Errorf("%d goroutines more than before:\n%s\nlog:\n%s", len(left)-before, strings.Join(left, "\n\n"), log.b.String())
	}
}

func TestTheEndOfTheContextDrains(t *testing.T) {
	h := newHost(t)
	h.configure(t, "")
	d, log := h.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.serve(ctx, signals{}); err != nil {
		t.Errorf("serve: %v", err)
	}
	if log.count("msg=stopped") != 1 {
		t.Errorf("log:\n%s", log.b.String())
	}
}

func TestOnlyOwnNamesAreLocal(t *testing.T) {
	h := newHost(t)
	h.configure(t, "docker_host = \"host.example\"\n")
	d, _ := h.open(t)
	for host, want := range map[string]bool{
		"localhost": true, "LOCALHOST:18080": true, "127.0.0.1": true, "127.0.0.1:1": true, "127.9.9.9": true, "[::1]:18080": true, "::1": true,
		"host.example": true, "Host.Example:18080": true,
		"": false, "evil.example": false, "localhost.evil.example": false, "host.example.evil": false, "10.0.0.1": false, "172.17.0.1:18080": false,
		"[fe80::1%lo]": false, "0.0.0.0": false, "host.docker.internal": false, "127.0.0.1.evil.example": false, "a:b:c": false,
	} {
		if got := d.isLocal(host); got != want {
			t.Errorf("%q: got %v", host, got)
		}
	}
}

func TestHealthTellsContainersNoMoreThanStates(t *testing.T) {
	h := newHost(t)
	h.configure(t, "")
	h.secret(t, "github", "canary", 0o644)
	d, _ := h.open(t)
	code, body := d.answerHealth(false)
	if want := `{"planes":{"http":{"state":"degraded"},"kube":{"state":"off"},"talos":{"state":"off"}}}` + "\n"; code != 200 || string(body) != want {
		t.Errorf("%d %s", code, body)
	}
	if _, body := d.answerHealth(true); !strings.Contains(string(body), "chmod 600") {
		t.Errorf("loopback is told %s", body)
	}
}

func TestHealthIs503WhileTheAuditLogCannotBeWritten(t *testing.T) {
	h := newHost(t)
	h.configure(t, "[audit]\npath = \"/dev/full\"\n")
	d, log := h.open(t)
	if code, _ := d.answerHealth(true); code != 200 {
		t.Errorf("%d before the first line", code)
	}
	d.audit.write(&event{id: "1", decision: decisionDenied})
	code, body := d.answerHealth(true)
	var r healthReport
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatal(err)
	}
	if code != 503 || r.Audit == "" || r.Planes["http"].String() != "degraded: the audit log cannot be written" {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := d.answerHealth(false); code != 503 {
		t.Errorf("a container gets %d", code)
	}
	d.close()
	if log.count("close audit log") != 1 {
		t.Errorf("the lost line is not told:\n%s", log.b.String())
	}
}

func TestHealthIs503WhileStopping(t *testing.T) {
	h := newHost(t)
	h.configure(t, "")
	d, _ := h.open(t)
	d.stopping.Store(true)
	if code, body := d.answerHealth(true); code != 503 || !strings.Contains(string(body), "stopping") {
		t.Errorf("%d %s", code, body)
	}
}

func TestHealthIsDegradedWhereNetworksAreNotFollowed(t *testing.T) {
	d := &daemon{}
	d.unwatched.Store(true)
	if got := d.judgeHTTP(healthReport{NotListen: []string{"172.17.0.1:18080: in use"}}).String(); got != "degraded: a container network is not served; new container networks are not noticed" {
		t.Errorf("got %q", got)
	}
}

func TestSinceIsWhenTheStateBegan(t *testing.T) {
	var h planeHistory
	start := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	first := h.see("http", planeState{State: "on"}, start).Since
	same := h.see("http", planeState{State: "on", Why: "x"}, start.Add(time.Hour)).Since
	next := h.see("http", planeState{State: "degraded"}, start.Add(2*time.Hour)).Since
	other := h.see("kube", planeState{State: "degraded"}, start.Add(3*time.Hour)).Since
	if !first.Equal(start.Truncate(time.Second)) || !same.Equal(first) || next.Sub(first) != 2*time.Hour || other.Sub(first) != 3*time.Hour {
		t.Errorf("%v, %v, %v, %v", first, same, next, other)
	}
}

func TestNoProxyHoldsTheHostAndTheNamesOfTheConfig(t *testing.T) {
	c := &config{dockerHost: "host.example", noProxy: []string{"db.internal", "localhost"}}
	n := &networks{bridges: []bridge{
		{name: "br-0123456789ab", prefixes: []netip.Prefix{netip.MustParsePrefix("172.18.0.1/16")}},
		{name: "docker0", prefixes: []netip.Prefix{netip.MustParsePrefix("fd00::1/64"), netip.MustParsePrefix("172.17.0.1/16")}},
	}}
	want := []string{"localhost", "127.0.0.1", "::1", "host.example", "172.17.0.1", "db.internal"}
	if runtime.GOOS != "linux" {
		want = slices.Insert(want, 4, desktopGateway)
	}
	if got := directNames(c, n); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := directNames(c, &networks{}); slices.Contains(got, "172.17.0.1") {
		t.Errorf("a host without docker0 has %q", got)
	}
}

func TestAClientIsAcceptedByTheNetworksOfNow(t *testing.T) {
	d := &daemon{}
	d.config.Store(&config{clientNetworks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}})
	d.networks.Store(&networks{})
	guest, extra := netip.MustParseAddr("172.18.0.2"), netip.MustParseAddr("10.1.2.3")
	if d.accepts(guest) || !d.accepts(extra) {
		t.Error("with no bridge: want client_networks alone")
	}
	d.networks.Store(&networks{bridges: []bridge{{name: "docker0", prefixes: []netip.Prefix{netip.MustParsePrefix("172.18.0.1/16")}}}})
	d.config.Store(&config{})
	if !d.accepts(guest) || d.accepts(extra) {
		t.Error("with a bridge and another config: want the bridge alone")
	}
}

func TestANewNetworkIsServed(t *testing.T) {
	h := newHost(t)
	port := h.configure(t, "")
	h.writeConfig(t, fmt.Sprintf("http_proxy_port = %d\n", port)) // bind = "auto"
	d, _ := h.open(t)
	guest := netip.MustParseAddr("10.77.0.2")
	gateway := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), uint16(port)) // an address that this host can bind
	if d.accepts(guest) || slices.Contains(d.listeners.addrs(), gateway) {
		t.Fatal("served before it is there")
	}
	d.follow(&networks{bridges: []bridge{{name: "docker0", prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/8"), netip.MustParsePrefix("10.77.0.1/16")}}}})
	if !d.accepts(guest) || !slices.Contains(d.listeners.addrs(), gateway) {
		t.Errorf("accepted: %v; listening on %v", d.accepts(guest), d.listeners.addrs())
	}
	if names := d.controlAnswer().Containers.NoProxy; !slices.Contains(names, "127.0.0.9") {
		t.Errorf("commands are told of %q", names)
	}
}

func TestUpstreamProxyIsRefusedWhereItIsThisDaemon(t *testing.T) {
	c := &config{httpPort: 18080, kubePort: 18081, talosPort: 18082, dockerHost: "host.example"}
	own := netip.MustParseAddr("192.0.2.7")
	n := &networks{own: map[netip.Addr]bool{own: true, netip.MustParseAddr("127.0.0.1"): true}}
	for value, want := range map[string]string{
		"http://127.0.0.1:18080":          "itself",
		"127.0.0.1:18081":                 "itself",
		"http://LOCALHOST:18082":          "itself",
		"https://host.example:18080/":     "itself",
		"http://192.0.2.7:18080":          "itself",
		"http://[::ffff:127.0.0.1]:18080": "itself",
		"http://0.0.0.0:18080":            "itself",
		"http://127.0.0.1:3128":           "",
		"http://192.0.2.8:18080":          "",
		"http://proxy.corp.example":       "",
		"socks5://127.0.0.1:1080":         "",
		"":                                "",
		"ftp://proxy":                     `scheme "ftp"`,
		"http://":                         "not the URL",
		"http://proxy:99999":              "out of range",
		"http://user:canary@pro xy":       "not the URL",
	} {
		env := proxyEnvironment(func(name string) string {
			if name == "https_proxy" {
				return value
			}
			return ""
		})
		err := checkUpstreamProxies(t.Context(), env, c, n)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", value, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("the password is told: %v", err)
		}
	}
}

func TestUpperCaseProxyVariablesComeFirst(t *testing.T) {
	env := proxyEnvironment(func(name string) string {
		return map[string]string{"HTTP_PROXY": "a", "http_proxy": "b", "https_proxy": "c", "no_proxy": "d"}[name]
	})
	if env.HTTPProxy != "a" || env.HTTPSProxy != "c" || env.NoProxy != "d" {
		t.Errorf("got %+v", env)
	}
}

func TestReloadKeepsWhatOnlyARestartChanges(t *testing.T) {
	old := &config{httpPort: 1, kubePort: 2, talosPort: 3, caConstraints: true}
	c := &config{httpPort: 4, kubePort: 5, talosPort: 6, caEphemeral: true, bind: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, dockerHost: "new.example"}
	want := []string{"http_proxy_port", "k8s_proxy_port", "talos_gateway_port", "bind", "ca", "ca_constraints"}
	if got := keepFixed(c, old); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if c.httpPort != 1 || c.kubePort != 2 || c.talosPort != 3 || c.bind != nil || c.caEphemeral || !c.caConstraints || c.dockerHost != "new.example" {
		t.Errorf("kept %+v", c)
	}
	if got := keepFixed(c, old); len(got) > 0 {
		t.Errorf("nothing differs, got %q", got)
	}
}

func TestLockHolderIsNamed(t *testing.T) {
	dir := t.TempDir()
	first, err := lockRun(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRun(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("got %v", err)
	}
	if err := first.file.Truncate(0); err != nil { // as it is before the holder signs
		t.Fatal(err)
	}
	if _, err := lockRun(dir); err == nil || !strings.Contains(err.Error(), "just starting") {
		t.Errorf("got %v", err)
	}
	first.release()
	again, err := lockRun(dir)
	if err != nil {
		t.Fatal(err)
	}
	again.release()
	if info, err := os.Stat(dir + "/run.lock"); err != nil || info.Size() != 0 || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestLockIsNotTakenThroughALink(t *testing.T) {
	dir := t.TempDir()
	victim := dir + "/victim"
	write(t, victim, "mine", 0o600)
	if err := os.Symlink(victim, dir+"/run.lock"); err != nil {
		t.Fatal(err)
	}
	if _, err := lockRun(dir); err == nil {
		t.Error("the link was followed")
	}
	if b, _ := os.ReadFile(victim); string(b) != "mine" {
		t.Errorf("the link's target holds %q", b)
	}
}

func TestControlAnswersEachClientOnce(t *testing.T) {
	dir := t.TempDir()
	c, err := openControl(dir, func() controlAnswer { return controlAnswer{PID: 7, Containers: containerView{HTTPPort: 9}} })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- c.serve(ctx) }()
	idle, err := net.Dial("unix", socketPath(dir)) // reads nothing, and holds up nobody
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	for range 3 {
		if a, err := askDaemon(t.Context(), dir); err != nil || a == nil || a.PID != 7 || a.Containers.HTTPPort != 9 {
			t.Errorf("got %+v, %v", a, err)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if a, err := askDaemon(t.Context(), dir); a != nil || err != nil {
		t.Errorf("after the end: %+v, %v", a, err)
	}
}

func TestADaemonThatDoesNotAnswerIsAnError(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", socketPath(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			err = conn.Close()
		}
		closed <- err
	}()
	if a, err := askDaemon(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "control.sock") {
		t.Errorf("got %+v, %v", a, err)
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
}

func TestErrorsAreOneLineAndAHint(t *testing.T) {
	for _, test := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{os.ErrNotExist, 1, "muxproxy: file does not exist\n"},
		{fmt.Errorf("open: %w", &hintError{os.ErrNotExist, "make it"}), 1, "muxproxy: open: file does not exist\nmuxproxy: hint: make it\n"},
		{&usageError{os.ErrNotExist, "type -h"}, 2, "muxproxy: file does not exist\nmuxproxy: hint: type -h\n"},
	} {
		var b strings.Builder
		if code := report(&b, test.err); code != test.code || b.String() != test.want {
			t.Errorf("%v: %d, %q", test.err, code, b.String())
		}
	}
}
