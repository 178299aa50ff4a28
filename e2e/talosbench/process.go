package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// roles are the processes that this program is besides the one that measures. Each gets its parameters as JSON, writes its address
// to stdout when it serves, and ends when its stdin does.
var roles = map[string]func(parameters) error{"node": serveNode, "copy": serveCopy, "grpc-proxy": serveGRPCProxy}

func runRole(name, text string) error {
	serve, ok := roles[name]
	if !ok {
		return fmt.Errorf("no role %q", name)
	}
	var p parameters
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	if err := serve(p); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// untilEOF says that the role serves at an address, and returns when the program that started it is gone.
func untilEOF(address string) error {
	fmt.Println(address)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// process is a process that the benchmark started.
type process struct {
	cmd     *exec.Cmd
	out     *bufio.Reader
	address string
}

// startRole starts this program again in a role and waits until it serves.
func startRole(ctx context.Context, name string, p parameters) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	started, err := startProcess(exec.CommandContext(ctx, self, "role", name, string(text)))
	if err != nil {
		return nil, err
	}
	line, err := started.out.ReadString('\n')
	if err != nil {
		started.stop()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	started.address = strings.TrimSpace(line)
	return started, nil
}

// startProcess starts cmd, which ends with this program at the latest.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{cmd: cmd, out: bufio.NewReader(out)}, nil
}

// stop ends the process, by force: nothing that it would still write is wanted.
func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// clockTick is the unit of the times in /proc/PID/stat: the kernel's USER_HZ.
const clockTick = 10 * time.Millisecond

// cpuTime gives what a process has used so far, as the kernel's utime and stime (proc(5)). No process has used none.
func (p *process) cpuTime() time.Duration {
	if p == nil {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// The second field, the program's name in parentheses, may hold blanks.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * clockTick
}

// rss gives the resident set of a process in bytes.
func (p *process) rss() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", p.cmd.Process.Pid)
}
