// Package testbed runs the real program on loopback for the suites that need no container: in a mount namespace in which
// the names of the origins resolve to an address of the test's own.
package testbed

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Options say how a daemon is set up.
type Options struct {
	Hosts   []string          // names that resolve to Address()
	Roots   []byte            // PEM, what the daemon trusts
	Secrets map[string]string // files in secrets_dir
	Config  string            // further lines of proxy.toml: rules
	// Networks are those of allowed_networks, besides Address(): "198.51.100.10/32".
	Networks []string
}

// Daemon is a running muxproxy. Its methods may be called at once.
type Daemon struct {
	// Proxy is the http plane's address, "127.0.0.1:40001".
	Proxy string
	// Kube is the kube plane's address.
	Kube string
	// Home is the daemon's home directory.
	Home string
	// Roots is a file of what its clients trust, the origins' roots included.
	Roots string

	cmd   *exec.Cmd
	ended chan struct{}
	log   syncBuffer
}

// Address is the loopback address on which this process's origins listen: no other process has the same.
func Address() string {
	return fmt.Sprintf("127.77.%d.%d", os.Getpid()>>7&0xff, os.Getpid()&0x7f+1)
}

// Start runs a daemon until the test ends.
func Start(t testing.TB, o Options) *Daemon {
	t.Helper()
	d := &Daemon{Home: home(t), ended: make(chan struct{})}
	ports := freePorts(t, 3)
	d.Proxy, d.Kube = net.JoinHostPort("127.0.0.1", ports[0]), net.JoinHostPort("127.0.0.1", ports[1])
	d.write(t, "roots.pem", o.Roots)
	d.write(t, "hosts", []byte("127.0.0.1 localhost\n"+Address()+" "+strings.Join(o.Hosts, " ")+"\n"))
	d.write(t, "resolv.conf", []byte("nameserver "+Address()+"\noptions attempts:1 timeout:3\n"))
	d.write(t, ".mux/proxy.toml", fmt.Appendf(nil, "allowed_networks = [\"%s\"]\nhttp_proxy_port = %s\nk8s_proxy_port = %s\ntalos_gateway_port = %s\n\n%s",
		strings.Join(append([]string{Address() + "/32"}, o.Networks...), "\", \""), ports[0], ports[1], ports[2], o.Config))
	for name, value := range o.Secrets {
		d.write(t, ".secrets/"+name, []byte(value+"\n"))
	}
	d.run(t)
	bundle, err := os.ReadFile(filepath.Join(d.Home, ".mux/client/ca-bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	d.Roots = d.write(t, "trusted.pem", append(append(bundle, '\n'), o.Roots...))
	return d
}

// home makes a directory that lasts as long as the test. Unlike t.TempDir it does not bear the test's name, with which the path of
// the control socket grew too long.
func home(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "home")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// write writes a file below the daemon's home.
func (d *Daemon) write(t testing.TB, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(d.Home, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// freePorts gives ports that nobody listens on.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	ports := make([]string, n)
	for i := range ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, ports[i], _ = net.SplitHostPort(ln.Addr().String())
	}
	return ports
}

// run starts the process and waits until it answers.
func (d *Daemon) run(t testing.TB) {
	t.Helper()
	program := os.Getenv("MUXPROXY_BIN")
	if program == "" {
		t.Fatal("MUXPROXY_BIN names no program: set it to a muxproxy binary")
	}
	d.cmd = exec.Command("unshare", "--mount", "sh", "-c", `mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/resolv.conf" /etc/resolv.conf && exec "$0" run`, program, d.Home)
	d.cmd.Env = d.Environ()
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.ended) }()
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.ended:
		case <-time.After(15 * time.Second):
			_ = d.cmd.Process.Kill()
			<-d.ended
			t.Errorf("the daemon does not end on SIGTERM")
		}
		if said := d.log.String(); t.Failed() {
			t.Logf("what muxproxy said:\n%s", said[:min(len(said), 5000)])
		}
	})
	Eventually(t, "the daemon", 20*time.Second, func() error {
		r, err := http.Get("http://" + d.Proxy + "/proxy/health")
		if err == nil {
			return r.Body.Close()
		}
		select {
		case <-d.ended:
			t.Fatalf("muxproxy run ended: %s", d.log.String())
		default:
		}
		return err
	})
}

// Environ is the environment of the daemon, and of muxproxy's other commands beside it.
func (d *Daemon) Environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.Home, "SSL_CERT_FILE=" + filepath.Join(d.Home, "roots.pem"), "SSL_CERT_DIR=/nonexistent"}
}

// DockerArgs are what print-docker-args gives, split as a shell splits $(…).
func (d *Daemon) DockerArgs(t testing.TB) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Getenv("MUXPROXY_BIN"), "print-docker-args")
	cmd.Env = d.Environ()
	cmd.Stderr = &d.log
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("print-docker-args: %v: %s", err, d.log.String())
	}
	return strings.Fields(string(out))
}

// Signal sends the daemon a signal. SIGQUIT has it print the stacks of all goroutines and end.
func (d *Daemon) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Ended is closed when the daemon has ended.
func (d *Daemon) Ended() <-chan struct{} { return d.ended }

// Stderr is what the daemon has said so far.
func (d *Daemon) Stderr() string { return d.log.String() }

// Pool is Roots as a pool.
func (d *Daemon) Pool(t testing.TB) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(d.Roots)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(text)
	return p
}

// Line is one line of the audit log.
type Line struct {
	ID, Plane, Service, Method, Host, Path, Decision, Error string
	// Of the kube plane alone.
	Context, Verb, Resource, Namespace string
	Injected                           bool  `json:"auth_injected"`
	Code                               int   `json:"response_code"`
	In                                 int64 `json:"bytes_in"`
	Out                                int64 `json:"bytes_out"`
	Open                               bool
}

// Audit reads the log; a line that is not whole JSON fails the test.
func (d *Daemon) Audit(t testing.TB) []Line {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(d.Home, ".mux/audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all []Line
	for line := range bytes.Lines(text) {
		var l Line
		if err := json.Unmarshal(line, &l); err != nil {
			t.Errorf("audit line %q: %v", line, err)
		}
		all = append(all, l)
	}
	return all
}

// Closing gives the lines of the log that match and are not opening lines.
func (d *Daemon) Closing(t testing.TB, match func(Line) bool) []Line {
	t.Helper()
	var found []Line
	for _, l := range d.Audit(t) {
		if !l.Open && match(l) {
			found = append(found, l)
		}
	}
	return found
}

// Usage is what a process holds.
type Usage struct {
	RSS         int64 // bytes
	Peak        int64 // bytes of RSS, the most since ResetPeak
	Descriptors int   // but pipes
	Pipes       int   // descriptors of pipes: Go keeps those through which it has spliced until the second garbage collection
	Threads     int
}

// Usage reads /proc.
func (d *Daemon) Usage(t testing.TB) Usage {
	t.Helper()
	proc := "/proc/" + strconv.Itoa(d.cmd.Process.Pid)
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	descriptors, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	u := Usage{}
	for _, fd := range descriptors {
		if to, _ := os.Readlink(proc + "/fd/" + fd.Name()); strings.HasPrefix(to, "pipe:") {
			u.Pipes++
		} else {
			u.Descriptors++
		}
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			u.RSS = n << 10
		case "VmHWM:":
			u.Peak = n << 10
		case "Threads:":
			u.Threads = int(n)
		}
	}
	return u
}

// ResetPeak makes Peak begin at the RSS of now (proc(5), clear_refs).
func (d *Daemon) ResetPeak(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/"+strconv.Itoa(d.cmd.Process.Pid)+"/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// Eventually calls check until it gives nil, at most for limit.
func Eventually(t testing.TB, what string, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
	}
}

// syncBuffer is a bytes.Buffer that may be read while it grows.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

var _ io.Writer = (*syncBuffer)(nil)

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
