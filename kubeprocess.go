package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	pluginWait   = 60 * time.Second // for a plugin; a person may have to touch a key meanwhile
	pluginKill   = 2 * time.Second  // for its pipes to close once it has ended
	pluginOutput = 1 << 20          // bytes that it may print
	pluginLine   = 1 << 10          // bytes of a line of its standard error that are logged
	pluginLines  = 50               // lines that are logged in one run
)

// process runs the plugin once and gives what it printed. It has no standard input and no terminal, and its standard error goes to
// the log as it comes, since it may ask for something ("open https://… and enter ABCD"). It and what it started are killed when
// ctx ends. No error shows what it printed or its arguments, which may be secrets.
func (e *kubeExec) process(ctx context.Context) ([]byte, error) {
	path, err := findExecutable(e.plugin.command, e.path)
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, installHint(e.plugin.hint))
	}
	output := &boundedBuffer{left: pluginOutput}
	messages := &lineLogger{log: e.log, command: e.plugin.command}
	cmd := exec.CommandContext(ctx, path, e.plugin.args...)
	cmd.Args[0] = e.plugin.command
	cmd.Env, cmd.Stdout, cmd.Stderr = e.environ, output, messages
	// A session of its own: it cannot take the terminal from the daemon, and all that it starts can be killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pluginKill
	err = cmd.Run()
	messages.flush()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("did not end within %s: run it by hand to see what it waits for", pluginWait)
	case errors.As(err, &exit):
		return nil, fmt.Errorf("%s: its messages are in the log", exit.ProcessState) // "exit status 1"
	case output.over:
		return nil, fmt.Errorf("printed more than %d KiB", pluginOutput>>10)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay): // something that it left behind still holds a pipe
		return nil, bareCause(err)
	}
	return output.kept, nil
}

// findExecutable finds a command in path, a list of directories; one with a slash is a path already. Directories that are not
// absolute are passed over, as os/exec does.
func findExecutable(command, path string) (string, error) {
	if strings.Contains(command, "/") {
		return command, executable(command)
	}
	for _, dir := range filepath.SplitList(path) {
		if file := filepath.Join(dir, command); filepath.IsAbs(dir) && executable(file) == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("not found in PATH %q: install it, or set plugin_path in [kube]", path)
}

// executable tells whether file can be run.
func executable(file string) error {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("not found")
	case err != nil:
		return bareCause(err)
	case info.IsDir() || info.Mode()&0o111 == 0:
		return fmt.Errorf("not executable: run chmod +x %s", typedPath(file, ""))
	}
	return nil
}

// installHint makes one line of a plugin's hint.
func installHint(hint string) string {
	hint = strings.Join(strings.FieldsFunc(hint, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if hint == "" {
		return ""
	}
	return ": " + strings.ToValidUTF8(hint[:min(len(hint), 500)], "")
}

// boundedBuffer keeps what is written up to a bound. It embeds no bytes.Buffer, whose ReadFrom knows no bound.
type boundedBuffer struct {
	kept []byte
	left int
	over bool
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	b.over = b.over || n < len(p)
	b.kept = append(b.kept, p[:n]...)
	return len(p), nil
}

// lineLogger writes each line to the log when it is whole.
type lineLogger struct {
	log     *slog.Logger
	command string
	line    []byte
	lines   int
}

func (l *lineLogger) Write(p []byte) (int, error) {
	for _, b := range p {
		switch {
		case b == '\n' || b == '\r':
			l.flush()
		case len(l.line) < pluginLine:
			l.line = append(l.line, b)
		}
	}
	return len(p), nil
}

// flush writes what there is of a line.
func (l *lineLogger) flush() {
	if len(l.line) == 0 {
		return
	}
	switch l.lines++; {
	case l.lines <= pluginLines:
		l.log.Warn("exec plugin "+l.command+" says", "line", strings.ToValidUTF8(string(l.line), "\ufffd"))
	case l.lines == pluginLines+1:
		l.log.Warn("exec plugin " + l.command + " says more than is shown")
	}
	l.line = l.line[:0]
}
