package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// runLock is run.lock in the mux-dir: a flock that one `muxproxy run` holds for life, and `gen-configs --new-ca` while it
// works. The file holds the holder's pid in decimal and is never removed, since a removed file can be locked twice.
type runLock struct{ file *os.File }

// lockRun takes the lock of muxDir; the error of a held one names its holder. The caller releases it.
func lockRun(muxDir string) (*runLock, error) {
	path := filepath.Join(muxDir, "run.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open run lock %q: %w", path, pathCause(err))
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = heldError(muxDir, lockHolder(f))
	} else if err != nil {
		err = fmt.Errorf("lock %q: %w", path, err)
	} else {
		err = (&runLock{f}).sign()
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &runLock{f}, nil
}

// sign writes the pid of this process into the file.
func (l *runLock) sign() error {
	if err := l.file.Truncate(0); err != nil {
		return fmt.Errorf("write run lock %q: %w", l.file.Name(), err)
	}
	if _, err := l.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write run lock %q: %w", l.file.Name(), err)
	}
	return nil
}

// release empties the file and gives the lock up. Another call does nothing.
func (l *runLock) release() {
	l.file.Truncate(0) // a reader that still finds the pid is only told of a process that has gone
	l.file.Close()
}

// lockHolder reads the pid in a lock file; 0 where the holder has not signed yet.
func lockHolder(f *os.File) int {
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0) // io.EOF is the rule here, and any other error leaves the pid unknown
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid
}

// heldError says that another process works on muxDir.
func heldError(muxDir string, pid int) error {
	if pid == 0 {
		return &hintError{fmt.Errorf("lock mux-dir %q: another muxproxy is just starting there", muxDir), "try again, or give another --mux-dir"}
	}
	return &hintError{fmt.Errorf("lock mux-dir %q: muxproxy runs there already with pid %d", muxDir, pid),
		fmt.Sprintf("run kill -HUP %d to reload it, kill %d to stop it, or give another --mux-dir", pid, pid)}
}

// openMuxDir makes the mux-dir where there is none, with mode 0700. One that others can reach is refused, since keys are
// written into it, and never repaired: who opened it up may have put something there. A link to a directory will do.
func openMuxDir(dir string) error {
	if err := checkSocketPath(socketPath(dir)); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make mux-dir %q: %w", dir, pathCause(err))
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("open mux-dir %q: %w", dir, pathCause(err))
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Geteuid() {
		return &hintError{fmt.Errorf("open mux-dir %q: it belongs to uid %d, not to you", dir, owner), "give another directory with --mux-dir or MUX_DIR"}
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return &hintError{fmt.Errorf("open mux-dir %q: mode %04o lets others in", dir, mode), "run chmod 700 " + shellQuote(dir)}
	}
	return nil
}

// socketPath is the control socket of a mux-dir.
func socketPath(muxDir string) string { return filepath.Join(muxDir, "control.sock") }

// checkSocketPath refuses a path that does not fit into sockaddr_un with its final NUL: 108 bytes on Linux (unix(7)), 104
// on the BSDs and macOS. The kernel's own words for it are "invalid argument".
func checkSocketPath(path string) error {
	limit := 103
	if runtime.GOOS == "linux" {
		limit = 107
	}
	if len(path) <= limit {
		return nil
	}
	return &hintError{fmt.Errorf("use control socket %q: %d bytes are too long for a socket's path, which has at most %d", path, len(path), limit),
		"give a shorter directory with --mux-dir or MUX_DIR"}
}

// pathCause is the cause of a file error without the paths, which the message around it names already.
func pathCause(err error) error {
	var p *fs.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &l):
		return l.Err
	}
	return err
}
