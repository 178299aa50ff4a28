package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// controlAnswer is what a running daemon tells the other commands: the one JSON document that a connection to
// control.sock gets before it is closed.
type controlAnswer struct {
	PID        int                   `json:"pid"`
	Version    string                `json:"version"`
	Planes     map[string]planeState `json:"planes"`     // "http", "kube", "talos"
	Containers containerView         `json:"containers"` // what docker arguments depend on
}

// control is the control socket of a daemon. Its directory lets nobody else in, so who can connect is the operator.
type control struct {
	listener *net.UnixListener
	answer   func() controlAnswer // may be called at any time
}

// openControl opens the socket of muxDir. The caller holds run.lock: a socket that is there is one that a killed daemon
// left. answer is called for each connection, from the goroutine of serve. The caller closes the control.
func openControl(muxDir string, answer func() controlAnswer) (*control, error) {
	path := socketPath(muxDir)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old control socket %q: %w", path, pathCause(err))
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("open control socket %q: %w", path, pathCause(err))
	}
	return &control{l, answer}, nil
}

// serve answers one connection after the other until ctx is done; the answer fits into the socket's buffer, so nobody
// holds up the next.
func (c *control) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	for {
		conn, err := c.listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on control socket: %w", err)
		}
		if err != nil { // out of files: the operator has to wait, the planes do not
			if !wait(ctx, 100*time.Millisecond) {
				return nil
			}
			continue
		}
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		json.NewEncoder(conn).Encode(c.answer()) // whoever left before the end needs no answer
		conn.Close()
	}
}

// close removes the socket (net unlinks what it has bound). It may be called more than once.
func (c *control) close() { c.listener.Close() }

// askDaemon asks the daemon of muxDir; nil where none runs: there is no socket, or a killed one left it. An error means
// that one runs and does not answer within five seconds, so that nobody may take its place.
func askDaemon(ctx context.Context, muxDir string) (*controlAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socketPath(muxDir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the running muxproxy: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	var a controlAnswer
	if err := json.NewDecoder(io.LimitReader(conn, 1<<20)).Decode(&a); err != nil {
		return nil, fmt.Errorf("ask the running muxproxy over %q: %w", socketPath(muxDir), err)
	}
	return &a, nil
}

// wait pauses for d; false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
