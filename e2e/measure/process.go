// Package measure has what benchmarks share: the other processes of a benchmark and what they use, and tables of values
// that are judged by the ratios of interleaved rounds.
package measure

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Roles are the processes that a benchmark is besides the one that measures. Each gets its parameters as JSON, writes
// one line to stdout when it serves, and ends when its stdin does.
type Roles map[string]func(parameters []byte) error

// Role gives a role whose parameters are of type P.
func Role[P any](serve func(P) error) func([]byte) error {
	return func(text []byte) error {
		var p P
		if err := json.Unmarshal(text, &p); err != nil {
			return err
		}
		return serve(p)
	}
}

// Run is this process in a role: its arguments were "role NAME PARAMETERS".
func (r Roles) Run(name, parameters string) error {
	serve, ok := r[name]
	if !ok {
		return fmt.Errorf("no role %q", name)
	}
	if err := serve([]byte(parameters)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// Enter is for the first line of main and of TestMain: where the arguments are "role NAME PARAMETERS" this process is that role,
// and never returns from here.
func (r Roles) Enter() {
	if len(os.Args) != 4 || os.Args[1] != "role" {
		return
	}
	if err := r.Run(os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Main is the rest of a benchmark's main: it runs until done or interrupted, and exits with 1 after an error.
func Main(name string, run func(ctx context.Context, args []string, stdout, stderr io.Writer) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// UntilEOF says that the role serves at the addresses, and returns when the program that started it is gone.
func UntilEOF(addresses ...string) error {
	fmt.Println(strings.Join(addresses, " "))
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// Process is a process that the benchmark started.
type Process struct {
	Out       *bufio.Reader
	Addresses []string // what a role's first line says

	cmd *exec.Cmd
	in  io.WriteCloser
}

// StartRole starts this program again in a role and waits until it serves.
func StartRole(ctx context.Context, name string, parameters any) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(parameters)
	if err != nil {
		return nil, err
	}
	p, err := Start(exec.CommandContext(ctx, self, "role", name, string(text)))
	if err != nil {
		return nil, err
	}
	line, err := p.Out.ReadString('\n')
	if err != nil {
		p.Stop()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.Addresses = strings.Fields(line)
	return p, nil
}

// Start starts cmd, which ends with this program at the latest. What it says is shown unless cmd has a place for it.
func Start(cmd *exec.Cmd) (*Process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	p := &Process{cmd: cmd}
	var err error
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.Out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return p, nil
}

// StartListening starts a program that tells nobody when it listens, and waits until something does at the address. What it prints is
// shown only where it fails.
func StartListening(ctx context.Context, cmd *exec.Cmd, address string) (*Process, error) {
	var log bytes.Buffer
	cmd.Stderr = &log
	p, err := Start(cmd)
	if err != nil {
		return nil, err
	}
	go io.Copy(io.Discard, p.Out) // ends with the process
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if conn, err := net.Dial("tcp", address); err == nil {
			return p, conn.Close()
		}
		time.Sleep(20 * time.Millisecond) // there is nothing else to wait for
	}
	p.Stop()
	return nil, fmt.Errorf("%s does not listen on %s: %s", cmd.Path, address, bytes.TrimSpace(log.Bytes()))
}

// Ask has the process read a line of JSON and answer one.
func (p *Process) Ask(question, answer any) error {
	text, err := json.Marshal(question)
	if err != nil {
		return err
	}
	if _, err := p.in.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("ask %s: %w", p.cmd, err)
	}
	line, err := p.Out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("ask %s: %w", p.cmd, err)
	}
	return json.Unmarshal(line, answer)
}

// PID is the process's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Stop ends the process, by force: nothing that it would still write is wanted.
func (p *Process) Stop() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// clockTick is the unit of the times in /proc/PID/stat: the kernel's USER_HZ, 100 on every architecture that Go has but Alpha.
const clockTick = 10 * time.Millisecond

// CPUTime gives what a process has used so far, as the kernel's utime and stime (proc(5)). A pid of 0 has used none.
func CPUTime(pid int) time.Duration {
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

// RSS gives the resident set of a process in bytes.
func RSS(pid int) (int64, error) {
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

// settle is how long a process gets to finish with what it was asked before its RSS is read. No event tells that a garbage collector
// of another process has nothing more to do.
const settle = 300 * time.Millisecond

// SettledRSS is RSS of a process that was left alone for a moment.
func SettledRSS(pid int) (int64, error) {
	time.Sleep(settle)
	return RSS(pid)
}
