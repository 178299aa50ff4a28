package origin

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// child is a registry that runs as a process of its own on a loopback port.
type child struct {
	cmd    *exec.Cmd
	exited chan struct{}
	log    *os.File
}

// startLimit is how long a child may take until its port answers.
const startLimit = 60 * time.Second

// startChild runs a program, its output going to a file in the server's directory, and waits until addr accepts. Close ends it.
func (s *Server) startChild(addr, name string, args ...string) error {
	out, err := os.Create(filepath.Join(s.dir, filepath.Base(name)+".log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// Its own group, for it may start workers; and it must not outlive a test that dies.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		_ = out.Close()
		return fmt.Errorf("start %q: %w", name, err)
	}
	c := &child{cmd: cmd, exited: make(chan struct{}), log: out}
	go func() { _ = cmd.Wait(); close(c.exited) }()
	s.childMu.Lock()
	s.children = append(s.children, c)
	s.childMu.Unlock()
	return s.awaitPort(c, addr)
}

func (s *Server) awaitPort(c *child, addr string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(startLimit)
	defer deadline.Stop()
	for {
		if conn, err := net.Dial("tcp", addr); err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-c.exited:
			return fmt.Errorf("start %q: it ended: %s", c.cmd.Path, c.output())
		case <-deadline.C:
			return fmt.Errorf("start %q: nothing listens on %s: %s", c.cmd.Path, addr, c.output())
		}
	}
}

// output is the tail of what the child printed.
func (c *child) output() []byte {
	text, err := os.ReadFile(c.log.Name())
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(text[max(0, len(text)-2000):])
}

// end kills the child's process group and waits for it.
func (c *child) end() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	<-c.exited
	_ = c.log.Close()
}

// freePort gives a loopback address that was free a moment ago.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// run runs a command in dir with stdin and gives its output.
func run(dir string, stdin io.Reader, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, stdin
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return out, nil
}
