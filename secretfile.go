package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// secretFile is one file that holds a credential. It is read when a stat differs from that of the last reading, never
// watched. Safe for concurrent use, and without a lock: two requests that find the file changed both read it, and
// whichever is stored last, a later stat tells whether it still holds.
type secretFile struct {
	// Set once, shapes while newCredentials runs.
	path   string   // "/home/u/.secrets/github"
	shown  string   // "~/.secrets/github"
	dirs   []string // the directories that nobody else may write, from the file's own up to secrets_dir
	home   string
	uid    uint32   // the effective user of this process
	shapes []source // the fields that are made of the file: "Bearer {}" and Basic for the two rules of github

	used *atomic.Bool // a credential of it has been used in this run
	last atomic.Pointer[reading]
}

// reading is what one reading of a secret file gave. It never changes.
type reading struct {
	id         fileID
	first      time.Time   // when a reading with this id began first
	settled    bool        // a change after this reading shows in the id: see settled
	renderings []rendering // for each of the file's shapes
}

// rendering is a credential made of a file's value, or why this value cannot be one.
type rendering struct {
	cred *credential
	err  error
}

// fileID is the identity and state of a file as stat gives it. Two equal ones are the same content, if settled.
type fileID struct {
	dev, ino     uint64
	size         int64
	mode, uid    uint32 // mode with the type bits: 0o100600
	mtime, ctime int64  // nanoseconds since 1970
}

// newSecretFile describes the file at path; top is the highest directory that is judged: its parent or secrets_dir.
func newSecretFile(path, top, home string, used *atomic.Bool) *secretFile {
	f := &secretFile{path: path, shown: showPath(path, home), home: home, uid: uint32(os.Geteuid()), used: used}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		f.dirs = append(f.dirs, dir)
		if dir == top || len(dir) <= len(top) {
			return f
		}
	}
}

// find gives the credential in the shape of that index. errNoCredential means that the file is not there and was not
// in this run; any other error says why it cannot be used, and the way out.
func (f *secretFile) find(shape int) (*credential, error) {
	id, err := statID(f.path)
	if err != nil {
		return nil, f.explain(err, id)
	}
	last := f.last.Load()
	if last == nil || !last.settled || last.id != id {
		if last, err = f.read(last, id); err != nil {
			return nil, err
		}
	}
	return last.renderings[shape].cred, last.renderings[shape].err
}

// read takes a new reading and keeps it. What cannot be read at all is not kept, so that it is judged anew by the next
// request: the cause may be mended without a trace in the file's own stat (a directory's mode). id is for messages.
func (f *secretFile) read(before *reading, id fileID) (*reading, error) {
	began := time.Now()
	value, id, err := f.load(id)
	if err != nil {
		return nil, f.explain(err, id)
	}
	r := &reading{id: id, first: began}
	if before != nil && before.id == id {
		r.first = before.first
	}
	r.settled = settled(id, r.first, began)
	for _, s := range f.shapes {
		cred, err := newCredential(s, value)
		if err != nil {
			err = fmt.Errorf("load secret %q: %w", f.shown, err)
		} else {
			f.used.Store(true)
		}
		r.renderings = append(r.renderings, rendering{cred, err})
	}
	f.last.Store(r)
	return r, nil
}

// settled tells whether a change of the file after a reading that began at that time must show in its id. A file
// system stamps changes with a clock that ticks every few milliseconds (every two seconds at worst, where stamps are
// whole seconds), so two changes within one tick can leave the same id, and what was read between them is not to be
// trusted. first is when a reading saw the id first: it decides where a server's clock runs ahead of ours.
func settled(id fileID, first, began time.Time) bool {
	tick := 50 * time.Millisecond
	if id.ctime%int64(time.Second) == 0 {
		tick = 2 * time.Second
	}
	return began.Sub(time.Unix(0, id.ctime)) > tick || began.Sub(first) > tick
}

// load reads and judges the file on one descriptor: its id is the same before and after the reading. Opening does not
// block on a pipe, and takes no terminal.
func (f *secretFile) load(id fileID) (string, fileID, error) {
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return "", id, err
	}
	defer file.Close()
	for range 3 { // a writer that rewrites in place is done soon
		if id, err = f.judge(file); err != nil {
			return "", id, err
		}
		data, err := io.ReadAll(io.NewSectionReader(file, 0, maxSecret+3))
		if err != nil {
			return "", id, err
		}
		after, err := fstatID(file)
		if err != nil {
			return "", id, err
		}
		if after == id {
			value, err := checkSecret(string(data))
			if err != nil {
				err = fmt.Errorf("%w: write the credential to %s again", err, f.typed())
			}
			return value, id, err
		}
	}
	return "", id, errors.New("changes while it is read: try again")
}

// judge holds the opened file, and the directories it is in, against the rules of secret files.
func (f *secretFile) judge(file *os.File) (fileID, error) {
	id, err := fstatID(file)
	if err != nil {
		return id, err
	}
	if err := judgeFile(id, f.uid, f.typed()); err != nil {
		return id, err
	}
	for _, dir := range f.dirs {
		dirID, err := statID(dir)
		if err != nil {
			return id, err
		}
		if err := judgeDir(dirID, f.uid, typedPath(dir, f.home)); err != nil {
			return id, fmt.Errorf("directory %q: %w", showPath(dir, f.home), err)
		}
	}
	return id, nil
}

// judgeFile refuses what may not hold a secret of the user uid: anything but a regular file, a file of another user
// than uid and root, and one that group or others may touch. typed is the path as in the command to type.
func judgeFile(id fileID, uid uint32, typed string) error {
	switch {
	case id.mode&syscall.S_IFMT != syscall.S_IFREG:
		return fmt.Errorf("is a %s, not a regular file: write the credential to a file %s", fileKind(id.mode), typed)
	case id.uid != uid && id.uid != 0:
		return fmt.Errorf("owned by user %d: run sudo chown %d %s", id.uid, uid, typed)
	case id.mode&0o077 != 0:
		return fmt.Errorf("mode %04o: run chmod 600 %s", id.mode&0o7777, typed)
	}
	return nil
}

// judgeDir refuses a directory in which another user than uid and root may exchange files.
func judgeDir(id fileID, uid uint32, typed string) error {
	switch {
	case id.uid != uid && id.uid != 0:
		return fmt.Errorf("owned by user %d: run sudo chown %d %s", id.uid, uid, typed)
	case id.mode&0o022 != 0:
		return fmt.Errorf("mode %04o lets others write: run chmod go-w %s", id.mode&0o7777, typed)
	}
	return nil
}

// explain makes the error of a file that cannot be used: errNoCredential, or an error with the subject and a way out.
func (f *secretFile) explain(err error, id fileID) error {
	switch {
	case errors.Is(err, fs.ErrNotExist) && !f.used.Load():
		return errNoCredential
	case errors.Is(err, fs.ErrNotExist):
		err = fmt.Errorf("gone: it was used in this run: write %s again with mode 0600, or restart muxproxy to go on without", f.typed())
	case id != fileID{} && id.mode&syscall.S_IFMT != syscall.S_IFREG:
		err = judgeFile(id, f.uid, f.typed()) // a socket cannot even be opened
	case errors.Is(err, fs.ErrPermission) && id != fileID{}:
		err = fmt.Errorf("permission denied, mode %04o, owned by user %d: run chmod 600 %s", id.mode&0o7777, id.uid, f.typed())
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("permission denied: run chmod u+rx %s", typedPath(filepath.Dir(f.path), f.home))
	}
	var system syscall.Errno
	if errors.As(err, &system) {
		err = fmt.Errorf("%s: run ls -ld %s to see what it is", system.Error(), f.typed())
	}
	return fmt.Errorf("load secret %q: %w", f.shown, err)
}

// checkSecret gives value without the one newline that ends a file ("\n", "\r\n"), or an error that tells what a
// credential may not be without quoting it. What passes is 1 to 16,384 printable ASCII bytes, blanks included.
func checkSecret(value string) (string, error) {
	if cut, ok := strings.CutSuffix(value, "\n"); ok {
		value = strings.TrimSuffix(cut, "\r")
	}
	if strings.Trim(value, " ") == "" {
		return "", errors.New("empty")
	}
	if len(value) > maxSecret {
		return "", fmt.Errorf("over %d KiB", maxSecret>>10)
	}
	for i := range len(value) {
		switch b := value[i]; {
		case b == '\n' || b == '\r':
			return "", errors.New("holds a line break")
		case b < ' ' || b == 0x7f:
			return "", errors.New("holds a control byte")
		case b > 0x7f:
			return "", errors.New("holds a byte that is not ASCII")
		}
	}
	if strings.Contains(value, "muxproxy-placeholder") {
		return "", errors.New("holds a placeholder of muxproxy, not a credential")
	}
	return value, nil
}

// typed gives the path as one types it in a shell.
func (f *secretFile) typed() string { return typedPath(f.path, f.home) }

// showPath gives "~/.secrets/github" for a path below home, any other path as it is.
func showPath(path, home string) string {
	if rest, ok := strings.CutPrefix(path, home+"/"); ok && home != "" {
		return "~/" + rest
	}
	return path
}

// plainPath are paths that a shell takes as they are; a leading "~/" is expanded by it.
var plainPath = regexp.MustCompile(`^(~/)?[A-Za-z0-9_./:@%+,-]+$`)

// typedPath gives path as one types it in a shell: "~/.secrets/github", or "'/home/u/my secrets/github'".
func typedPath(path, home string) string {
	if shown := showPath(path, home); plainPath.MatchString(shown) {
		return shown
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// fileKind names what is not a regular file by the type bits of mode.
func fileKind(mode uint32) string {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return "directory"
	case syscall.S_IFIFO:
		return "named pipe"
	case syscall.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// statID stats path, following links. It is the one system call of a request that uses a file's credential.
func statID(path string) (fileID, error) {
	var st syscall.Stat_t
	for {
		err := syscall.Stat(path, &st)
		if err == nil {
			return newFileID(&st), nil
		}
		if err != syscall.EINTR {
			return fileID{}, &fs.PathError{Op: "stat", Path: path, Err: err}
		}
	}
}

// fstatID stats an opened file.
func fstatID(file *os.File) (fileID, error) {
	info, err := file.Stat()
	if err != nil {
		return fileID{}, err
	}
	return newFileID(info.Sys().(*syscall.Stat_t)), nil
}

// newFileID takes from st what changes with the file, and not the access time, which a reading changes.
func newFileID(st *syscall.Stat_t) fileID {
	mtime, ctime := stamps(st)
	return fileID{
		dev: uint64(st.Dev), ino: st.Ino, size: st.Size,
		mode: uint32(st.Mode), uid: st.Uid,
		mtime: mtime.Nano(), ctime: ctime.Nano(),
	}
}
