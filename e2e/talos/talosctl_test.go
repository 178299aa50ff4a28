package talos

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
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

// versions are the talosctl that are tried, with the variable that names the program.
var versions = []struct{ name, variable string }{{"1.9", "E2E_TALOSCTL_1_9"}, {"1.13", "E2E_TALOSCTL_1_13"}}

// way is one way from talosctl to the cluster.
type way int

const (
	direct    way = iota // with the host's certificates
	gateway              // on the host through the gateway, with none
	container            // in a container that has print-docker-args and nothing else
)

func (w way) String() string { return []string{"direct", "gateway", "container"}[w] }

// answer is what one script did.
type answer struct {
	code           int
	stdout, stderr string
}

// talosctlOf is the program of a version.
func talosctlOf(t testing.TB, variable string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		t.Fatalf("%s names no talosctl: start this with e2e/run talos", variable)
	}
	return path
}

// program is what a script calls where it does not call talosctl: with exec, so that signals reach it.
func program(t testing.TB, by way, variable string) string {
	t.Helper()
	if by == container {
		return filepath.Base(talosctlOf(t, variable))
	}
	return talosctlOf(t, variable)
}

// batch is a script that runs all scripts one after the other and prints a line for each.
func batch(scripts []string) string {
	var b strings.Builder
	b.WriteString("cd $(mktemp -d)\n")
	for i, script := range scripts {
		fmt.Fprintf(&b, "code=0; ( set -euo pipefail\n%s\n) </dev/null >out%d 2>err%d || code=$?\necho \"answer $code $(base64 -w0 out%d) . $(base64 -w0 err%d) .\"\n", script, i, i, i, i)
	}
	return b.String()
}

// runAll runs scripts in which `talosctl` is the client of a version, and gives what each did.
func (w *world) runAll(t *testing.T, by way, variable string, scripts ...string) []answer {
	t.Helper()
	cmd := w.command(t, by, variable, batch(scripts))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s%s", by, err, stdout.String(), stderr.String())
	}
	var all []answer
	for line := range strings.Lines(stdout.String()) {
		f := strings.Fields(strings.TrimPrefix(line, "answer "))
		var a answer
		a.code, _ = strconv.Atoi(f[0])
		texts := strings.Split(strings.Join(f[1:], " ")+" ", ". ")
		a.stdout, a.stderr = decoded(t, texts[0]), decoded(t, texts[1])
		all = append(all, a)
		if by != direct {
			w.seen.add(fmt.Sprintf("%s by %s: %.60s", t.Name(), by, scripts[len(all)-1]), a.stdout+a.stderr)
		}
	}
	if len(all) != len(scripts) {
		t.Fatalf("%s: %d answers to %d scripts: %s", by, len(all), len(scripts), stderr.String())
	}
	return all
}

// run runs one script.
func (w *world) run(t *testing.T, by way, variable, script string) answer {
	t.Helper()
	return w.runAll(t, by, variable, script)[0]
}

func decoded(t testing.TB, text string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return string(b)
}

// command is bash with a script, on the host or in a container.
func (w *world) command(t testing.TB, by way, variable, script string) *exec.Cmd {
	t.Helper()
	script = "talosctl() { " + program(t, by, variable) + " \"$@\"; }\n" + script
	if by == container {
		args := append([]string{"run", "--rm", "-i"}, w.daemon.DockerArgs(t)...)
		args = append(args, w.image(t), "bash", "-c", script)
		return exec.CommandContext(t.Context(), "/usr/bin/docker", args...)
	}
	config := map[way]string{direct: w.direct, gateway: w.gateway}[by]
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.dir, "TMPDIR=" + t.TempDir(), "TALOSCONFIG=" + config}
	return cmd
}

var buildImage = sync.OnceValues(func() (string, error) {
	const name = "muxproxy-e2e-talos:1"
	docker := func(args ...string) (string, error) {
		out, err := exec.Command("/usr/bin/docker", args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("docker %s: %w: %s", args[0], err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	id, err := docker("create", os.Getenv("E2E_IMAGE"), "true")
	if err != nil {
		return "", err
	}
	for _, v := range versions {
		if path := os.Getenv(v.variable); path != "" {
			if _, err := docker("cp", path, id+":/usr/local/bin/"+filepath.Base(path)); err != nil {
				return "", err
			}
		}
	}
	if _, err := docker("commit", id, name); err != nil {
		return "", err
	}
	_, err = docker("rm", id)
	return name, err
})

// image is the suite's image with the clients in it, so that containers need no argument but print-docker-args.
func (w *world) image(t testing.TB) string {
	t.Helper()
	name, err := buildImage()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// process is a talosctl that goes on until it is told to end.
type process struct {
	cmd   *exec.Cmd
	lines chan string // of stdout; closed at its end
	err   *syncBuffer
	ended chan struct{}
}

// start runs a script in the background. It is killed when the test ends.
func (w *world) start(t *testing.T, by way, variable, script string) *process {
	t.Helper()
	p := &process{cmd: w.command(t, by, variable, script), lines: make(chan string, 10000), err: new(syncBuffer), ended: make(chan struct{})}
	p.cmd.Stderr = p.err
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%s by %s: %s", t.Name(), by, script)
	go func() {
		p.scan(stdout, func(line string) { w.seen.add(name, line) })
		_ = p.cmd.Wait()
		w.seen.add(name, p.err.String())
		close(p.ended)
	}()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.ended })
	return p
}

func (p *process) scan(out io.Reader, see func(string)) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		see(in.Text())
		p.lines <- in.Text()
	}
	close(p.lines)
}

// expect reads lines until one holds the word.
func (p *process) expect(t *testing.T, word string) {
	t.Helper()
	limit := time.NewTimer(answerLimit)
	defer limit.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("ended without %q: %s", word, p.err.String())
			}
			if strings.Contains(line, word) {
				return
			}
		case <-limit.C:
			t.Fatalf("no %q within %s: %s", word, answerLimit, p.err.String())
		}
	}
}

// answerLimit is how long a test waits for what should come at once.
const answerLimit = 20 * time.Second

// interrupt is Ctrl-C; it gives what the process said when it had ended.
func (p *process) interrupt(t *testing.T) string {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	return p.err.String()
}

func (p *process) wait(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(answerLimit):
		t.Fatalf("does not end: %s", p.err.String())
	}
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
