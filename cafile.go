package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// caFiles are the files of the CA in the mux-dir: proxy-ca-key.pem (the truth: for each issuer its root, its
// intermediate and the intermediate's PKCS #8 key), proxy-ca.pem (the roots alone) and ca.lock. All methods but lock
// are called with the lock held.
type caFiles struct{ dir string }

// maxKeyFile bounds what is read of proxy-ca-key.pem; an issuer of 200 names takes about 10 KB.
const maxKeyFile = 4 << 20

var (
	errNoKeyFile = errors.New("no such file") // load: there is no key file
	errUnusable  = errors.New("unusable")     // load: it was read, and must be made anew
)

func (f caFiles) keyPath() string   { return filepath.Join(f.dir, "proxy-ca-key.pem") }
func (f caFiles) rootsPath() string { return filepath.Join(f.dir, "proxy-ca.pem") }

// tempPath is where a new key file is written before it takes the old one's place. One fixed name, which the lock
// protects, so that a crash leaves no key behind that nobody would find.
func (f caFiles) tempPath() string { return f.keyPath() + ".tmp" }

// lock waits for ca.lock, an flock, so that commands read and write the files one after the other. It makes the mux-dir.
func (f caFiles) lock() (unlock func(), err error) {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make mux-dir %q: %w", f.dir, err)
	}
	path := filepath.Join(f.dir, "ca.lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	err = syscall.EINTR
	for err == syscall.EINTR {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	return func() { file.Close() }, nil
}

// load reads the key file. errNoKeyFile and errUnusable mean that a new one may be made; any other error (a file
// that this user may not read, an I/O error) says nothing about the keys, so they must not be replaced.
func (f caFiles) load() (issuers, error) {
	text, err := f.readKeys()
	if err != nil {
		return nil, fmt.Errorf("load CA %q: %w", f.keyPath(), err)
	}
	list, err := parseIssuers(text)
	if err != nil {
		return nil, fmt.Errorf("load CA %q: %w: %w", f.keyPath(), errUnusable, err)
	}
	return list, nil
}

// readKeys gives the key file's text. The file is judged on the opened descriptor: a key that others could read or
// that another user wrote is no longer ours alone.
func (f caFiles) readKeys() ([]byte, error) {
	// A pipe in its place must not block the start.
	file, err := os.OpenFile(f.keyPath(), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoKeyFile
	case err != nil:
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, errors.New("not a regular file: remove it")
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%w: mode %04o: others could read the key", errUnusable, info.Mode().Perm())
	case !ownedByUs(info):
		return nil, fmt.Errorf("%w: it belongs to another user", errUnusable)
	case info.Size() > maxKeyFile:
		return nil, fmt.Errorf("%w: longer than %d bytes", errUnusable, maxKeyFile)
	}
	return io.ReadAll(io.LimitReader(file, maxKeyFile))
}

// ownedByUs tells whether a file belongs to this user or to root.
func ownedByUs(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (int(stat.Uid) == os.Geteuid() || stat.Uid == 0)
}

// parseIssuers reads what formatIssuers writes. One issuer that is not as it must be condemns the file.
func parseIssuers(text []byte) (list issuers, err error) {
	for len(bytes.TrimSpace(text)) > 0 {
		i := &issuer{}
		if i.root, text, err = nextCertificate(text); err != nil {
			return nil, fmt.Errorf("root %d: %w", len(list)+1, err)
		}
		if i.intermediate, text, err = nextCertificate(text); err != nil {
			return nil, fmt.Errorf("intermediate %d: %w", len(list)+1, err)
		}
		if i.key, text, err = nextKey(text); err != nil {
			return nil, fmt.Errorf("key %d: %w", len(list)+1, err)
		}
		if err := i.check(); err != nil {
			return nil, fmt.Errorf("issuer %d: %w", len(list)+1, err)
		}
		list = append(list, i)
	}
	if len(list) == 0 {
		return nil, errors.New("empty")
	}
	return list, nil
}

// nextCertificate takes one CERTIFICATE block from the front of text and gives what follows it.
func nextCertificate(text []byte) (*x509.Certificate, []byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, nil, errors.New("no CERTIFICATE block")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	return c, rest, err
}

// nextKey takes one PRIVATE KEY block (PKCS #8, RFC 5958) from the front of text and gives what follows it. It drops the parser's error, which could quote the key.
func nextKey(text []byte) (*ecdsa.PrivateKey, []byte, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, nil, errors.New("no PRIVATE KEY block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, nil, errors.New("not an ECDSA key in PKCS #8")
	}
	return key, rest, nil
}

// formatIssuers gives the key file's text.
func formatIssuers(list issuers) ([]byte, error) {
	var out []byte
	for _, i := range list {
		key, err := x509.MarshalPKCS8PrivateKey(i.key)
		if err != nil {
			return nil, errors.New("encode CA key: not an ECDSA key")
		}
		out = append(out, certificatePEM(i.root.Raw)...)
		out = append(out, certificatePEM(i.intermediate.Raw)...)
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	}
	return out, nil
}

// writeKeys replaces the key file as a whole, unless it holds the list already: after a crash it is the old or the new one.
func (f caFiles) writeKeys(list issuers) error {
	text, err := formatIssuers(list)
	if err != nil {
		return err
	}
	if old, err := f.readKeys(); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := f.replaceKeys(text); err != nil {
		return fmt.Errorf("write CA %q: %w", f.keyPath(), errors.Join(err, removeFile(f.tempPath())))
	}
	return nil
}

// replaceKeys writes beside the key file, syncs, renames, and syncs the directory, or a power cut could undo the rename
// after proxy-ca.pem was written.
func (f caFiles) replaceKeys(text []byte) error {
	// Without O_EXCL the file of a crash would keep its owner and mode.
	if err := removeFile(f.tempPath()); err != nil {
		return err
	}
	file, err := os.OpenFile(f.tempPath(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.tempPath(), f.keyPath()); err != nil {
		return err
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// removeKeys leaves no CA key on the disk.
func (f caFiles) removeKeys() error {
	if err := errors.Join(removeFile(f.keyPath()), removeFile(f.tempPath())); err != nil {
		return fmt.Errorf("remove CA key: %w", err)
	}
	return nil
}

// writeRoots rewrites proxy-ca.pem where it differs, in place: containers hold it by a single-file bind mount, which
// a rename would leave with the old one. It is written before it is cut, so that no reader finds it empty.
func (f caFiles) writeRoots(roots []byte) error {
	path := f.rootsPath()
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("write %q: a directory, as docker makes of a mount whose file is missing: remove it: rmdir %s", path, path)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write CA roots: %w", err)
	}
	defer file.Close()
	old, err := io.ReadAll(file)
	if err != nil {
		return fmt.Errorf("read CA roots: %w", err)
	}
	if !bytes.Equal(old, roots) {
		_, err = file.WriteAt(roots, 0)
		if err := errors.Join(err, file.Truncate(int64(len(roots))), file.Sync()); err != nil {
			return fmt.Errorf("write CA roots: %w", err)
		}
	}
	// Containers read it as any user, whatever the umask.
	if info, err := file.Stat(); err != nil || info.Mode().Perm() != 0o644 {
		if err := file.Chmod(0o644); err != nil {
			return fmt.Errorf("write CA roots: %w", err)
		}
	}
	return nil
}

// haveRoots tells whether containers may have been started with roots of before.
func (f caFiles) haveRoots() bool {
	info, err := os.Stat(f.rootsPath())
	return err == nil && info.Size() > 0
}

// readRoots gives the proxy-ca.pem that an ephemeral run wrote.
func (f caFiles) readRoots() ([]byte, error) {
	roots, err := os.ReadFile(f.rootsPath())
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(roots) == 0 {
		return nil, fmt.Errorf(`read CA roots %q: there is none yet (ca = "ephemeral"): start muxproxy run first`, f.rootsPath())
	}
	if err != nil {
		return nil, fmt.Errorf("read CA roots: %w", err)
	}
	return roots, nil
}

// removeFile removes path where it exists.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
