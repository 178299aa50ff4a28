package http

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

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
	d.world.seen.add("container of "+t.Name(), string(out)+stderr.String())
	if err != nil {
		t.Errorf("container: %v: %s%s", err, tail(out), tail(stderr.Bytes()))
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

// expect reads lines until one holds all words.
func (p *process) expect(t *testing.T, words ...string) {
	t.Helper()
	for {
		line := receive(t, strings.Join(words, " … ")+", stderr: "+p.stderr(), p.lines)
		all := true
		for _, word := range words {
			all = all && strings.Contains(line, word)
		}
		if all {
			return
		}
		if strings.HasPrefix(line, "failed ") {
			t.Fatal(line)
		}
	}
}

// scan hands on each line that the process prints; a line of Claude Code may be long.
func (p *process) scan(out io.Reader, see func(string)) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, 4<<20)
	for in.Scan() {
		see(in.Text())
		p.lines <- in.Text()
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
	go func() {
		p.scan(stdout, func(line string) { d.world.seen.add("container of "+t.Name(), line) })
		_ = cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Process.Kill(); <-done })
	return p
}

// tail is the end of a long output.
func tail(out []byte) []byte { return out[max(0, len(out)-4000):] }
