package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// maxTorn bounds the torn tail that is moved into a line of its own. It is more than a line is long but for one whose
// every field was cut.
const maxTorn = 16 << 10

// auditFile is the file that audit lines are appended to, opened with O_APPEND, so that the end is found anew by each
// write even if another program has truncated the file. The auditLog that has it guards it.
type auditFile struct {
	file    *os.File
	regular bool  // a device (/dev/full) has no size, tail or mode to look after
	size    int64 // bytes
	write   func([]byte) (int, error)
}

// openAuditFile opens or creates the file at path with mode 0600, its directory with 0700. A symbolic link is not
// followed: whoever planted it would choose what is written to. torn is the last line where it had no newline; it is
// cut out of the file, or, where that cannot be done, ended with a newline.
func openAuditFile(path string) (a *auditFile, torn string, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, "", fmt.Errorf("open audit log %q: %w", path, err)
	}
	// Neither a pipe without a reader nor a terminal may hold up the start: judge refuses the one and takes the other.
	const flags = os.O_RDWR | os.O_CREATE | os.O_APPEND | syscall.O_NOFOLLOW | syscall.O_NONBLOCK | syscall.O_NOCTTY
	file, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, "", fmt.Errorf("open audit log %q: is a symbolic link: set path in [audit] to the file it leads to", path)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open audit log %q: %w", path, bareError(err))
	}
	a = &auditFile{file: file, write: file.Write}
	if err = a.judge(); err == nil && a.regular {
		torn, err = a.takeTorn()
	}
	if err != nil {
		file.Close()
		return nil, "", fmt.Errorf("open audit log %q: %w", path, bareError(err))
	}
	return a, torn, nil
}

// judge looks at what was opened, and takes the rights of group and others from it.
func (a *auditFile) judge() error {
	info, err := a.file.Stat()
	if err != nil {
		return err
	}
	a.regular, a.size = info.Mode().IsRegular(), info.Size()
	switch {
	case !a.regular && info.Mode()&fs.ModeCharDevice == 0:
		return fmt.Errorf("is not a regular file but %v: set path in [audit] to a file", info.Mode().Type())
	case a.regular && info.Mode().Perm()&0o077 != 0 && a.file.Chmod(0o600) != nil:
		return fmt.Errorf("mode %04o: run sudo chmod 600 %s", info.Mode().Perm(), a.file.Name())
	}
	return nil
}

// takeTorn cuts out what follows the last newline and returns it.
func (a *auditFile) takeTorn() (string, error) {
	start, err := a.tailStart()
	if err != nil || start == a.size {
		return "", err
	}
	if a.size-start > maxTorn {
		return "", a.append([]byte("\n")) // no line of ours: perhaps the path is that of another file
	}
	torn := make([]byte, a.size-start)
	if _, err := a.file.ReadAt(torn, start); err != nil {
		return "", err
	}
	if a.file.Truncate(start) != nil { // an append-only file
		return "", a.append([]byte("\n"))
	}
	a.size = start
	return string(torn), nil
}

// tailStart gives the offset after the last newline, or one more than maxTorn before the end if there is none so far.
func (a *auditFile) tailStart() (int64, error) {
	block := make([]byte, min(a.size, 4<<10))
	for end := a.size; end > 0 && a.size-end <= maxTorn; {
		block = block[:min(end, int64(len(block)))]
		end -= int64(len(block))
		if _, err := a.file.ReadAt(block, end); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
			return end + int64(i) + 1, nil
		}
	}
	return max(0, a.size-maxTorn-1), nil
}

// fullWith tells whether n more bytes make the file larger than maxSize. An empty file takes any line; 0 is no limit.
func (a *auditFile) fullWith(n int, maxSize int64) bool {
	return a.regular && maxSize > 0 && a.size > 0 && a.size+int64(n) > maxSize
}

// append writes line, which ends in a newline, with one write call. If a part of it was written that is taken off
// again; should this fail too, opening the file again finds it as a torn tail.
func (a *auditFile) append(line []byte) error {
	n, err := a.write(line)
	a.size += int64(n)
	if err == nil || n == 0 || !a.regular {
		return err
	}
	if info, statErr := a.file.Stat(); statErr == nil && info.Size() >= int64(n) {
		a.file.Truncate(info.Size() - int64(n))
	}
	return err
}

// close gives the descriptor back. Lines are in the kernel's hands since their write: a kill loses none, a power cut may.
func (a *auditFile) close() error { return a.file.Close() }

// rotateFiles renames path to path.1, path.1 to path.2 and so on, so that keep of them are left; with keep 0 it is
// removed. Only as many are moved as it takes to make path.1 free: if the last rename fails, another try moves none.
func rotateFiles(path string, keep int) error {
	numbered := func(i int) string { return path + "." + strconv.Itoa(i) }
	for i := keep + 1; os.Remove(numbered(i)) == nil; i++ { // of a time when more were kept
	}
	if keep == 0 {
		return missingIsFine(os.Remove(path))
	}
	free := 1
	for free < keep {
		if _, err := os.Lstat(numbered(free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
		free++
	}
	for i := free; i > 1; i-- {
		if err := os.Rename(numbered(i-1), numbered(i)); err != nil {
			return err
		}
	}
	return missingIsFine(os.Rename(path, numbered(1)))
}

// missingIsFine drops the error of a file that somebody else has moved away.
func missingIsFine(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bareError gives the cause in an error of package os, whose path the caller has named already.
func bareError(err error) error {
	if cause, ok := errors.AsType[*fs.PathError](err); ok && err == error(cause) {
		return cause.Err
	}
	return err
}
