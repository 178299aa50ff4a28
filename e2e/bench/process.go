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

// roles are the processes that this program is besides the one that measures. Each gets its parameters as JSON, writes
// one line to stdout when it serves, and ends when its stdin does.
var roles = map[string]func(parameters []byte) error{
	"origin":  role(serveOrigin),
	"relay":   role(serveRelay),
	"load":    role(serveLoad),
	"goproxy": role(serveGoproxy),
	"reverse": role(serveReverse),
}

// role gives a role whose parameters are of type P.
func role[P any](serve func(P) error) func([]byte) error {
	return func(text []byte) error {
		var p P
		if err := json.Unmarshal(text, &p); err != nil {
			return err
		}
		return serve(p)
	}
}

func runRole(name, parameters string) error {
	serve, ok := roles[name]
	if !ok {
		return fmt.Errorf("no role %q", name)
	}
	if err := serve([]byte(parameters)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// untilEOF says that the role serves at the addresses, and returns when the program that started it is gone.
func untilEOF(addresses ...string) error {
	fmt.Println(strings.Join(addresses, " "))
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// process is a process that the benchmark started.
type process struct {
	cmd       *exec.Cmd
	in        io.WriteCloser
	out       *bufio.Reader
	addresses []string // what a role's first line says
}

// startRole starts this program again in a role and waits until it serves.
func startRole(ctx context.Context, name string, parameters any) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(parameters)
	if err != nil {
		return nil, err
	}
	p, err := startProcess(exec.CommandContext(ctx, self, "role", name, string(text)))
	if err != nil {
		return nil, err
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.addresses = strings.Fields(line)
	return p, nil
}

// startProcess starts cmd, which ends with this program at the latest. What it says is shown unless cmd has a place for it.
func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	p := &process{cmd: cmd}
	var err error
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process, by force: nothing that it would still write is wanted.
func (p *process) stop() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// clockTick is the unit of the times in /proc/PID/stat: the kernel's USER_HZ, 100 on every architecture that Go has but Alpha.
const clockTick = 10 * time.Millisecond

// cpuTime gives what a process has used so far, as the kernel's utime and stime (proc(5)). A pid of 0 has used none.
func cpuTime(pid int) time.Duration {
	if pid == 0 {
		return 0
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
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
func rss(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
