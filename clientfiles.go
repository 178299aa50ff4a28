package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// clientFile is one file that containers see below a directory of /etc/mux. No credential is in any of them.
type clientFile struct {
	name    string // in its directory: "php.d/muxproxy.ini"
	content []byte
}

// bundleName is the trust bundle in the client directory.
const bundleName = "ca-bundle.pem"

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".new-"

// clientFiles renders the client directory: the trust bundle, what tells wget and PHP of it, which read no variable, and
// the placeholder of npm and pnpm.
func clientFiles(trust []byte, rules []*rule) []clientFile {
	bundle := clientMount + "/" + bundleName
	return []clientFile{
		{bundleName, trust},
		{"npmrc", npmrc(rules)},
		{"php.d/muxproxy.ini", []byte("curl.cainfo = " + bundle + "\nopenssl.cafile = " + bundle + "\n")},
		{"wgetrc", []byte("ca_certificate = " + bundle + "\n")},
	}
}

// npmrc gives the placeholder token for each registry of the npm service: `//registry.example/:_authToken=…`. npm sends
// no publish or whoami without one.
func npmrc(rules []*rule) []byte {
	var b bytes.Buffer
	for _, r := range rules {
		if r.service != "npm" || len(r.placeholders) == 0 {
			continue
		}
		for _, h := range r.hosts {
			registry := h.host
			if h.port != 443 {
				registry = fmt.Sprintf("%s:%d", h.host, h.port)
			}
			if !h.wildcard { // npm matches whole names only
				fmt.Fprintf(&b, "//%s/:_authToken=%s\n", registry, r.placeholders[0].value)
			}
		}
	}
	return b.Bytes()
}

// writeClientFiles brings a directory of muxDir that containers mount up to date ("client"), and gives the names of the files that
// it changed ("client/npmrc"). Each file is replaced as a whole, so that a client in a container never reads half of one.
// Nothing is written through a symbolic link that leads out of the directory (os.Root).
func writeClientFiles(muxDir, name string, files []clientFile) (changed []string, err error) {
	dir, err := openClientDir(muxDir, name, files)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for _, f := range files {
		if upToDate(dir, f) {
			continue
		}
		if err := replaceFile(dir, f); err != nil {
			return changed, fmt.Errorf("write client file %q: %w", path.Join(dir.Name(), f.name), pathCause(err))
		}
		changed = append(changed, path.Join(name, f.name))
	}
	return changed, nil
}

// openClientDir makes the directory with those that files need in it, and removes what a killed process left half written
// there. Containers run as any user, so everyone may read it; the mux-dir above lets nobody else on the host come near.
func openClientDir(muxDir, dir string, files []clientFile) (*os.Root, error) {
	parent, err := os.OpenRoot(muxDir)
	if err != nil {
		return nil, fmt.Errorf("open mux-dir %q: %w", muxDir, pathCause(err))
	}
	defer parent.Close()
	names := []string{dir}
	for _, f := range files {
		if name := path.Join(dir, path.Dir(f.name)); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		err := parent.Mkdir(name, 0o755)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make client directory %q: %w", path.Join(muxDir, name), pathCause(err))
		}
		info, err := parent.Lstat(name)
		if err == nil && !info.IsDir() {
			err = &hintError{errors.New("it is no directory"), "run rm " + shellQuote(path.Join(muxDir, name))}
		}
		if err == nil {
			err = parent.Chmod(name, 0o755) // whatever the umask took
		}
		if err != nil {
			return nil, fmt.Errorf("open client directory %q: %w", path.Join(muxDir, name), pathCause(err))
		}
		removeLeftovers(parent, name)
	}
	return parent.OpenRoot(dir)
}

// removeLeftovers removes temporary files that are too old to be another process's work: a process that writes one
// renames it within milliseconds.
func removeLeftovers(root *os.Root, dir string) {
	entries, _ := fs.ReadDir(root.FS(), dir) // what cannot be listed is met again when it is written to
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), tempPrefix) && time.Since(info.ModTime()) > time.Minute {
			root.Remove(path.Join(dir, e.Name()))
		}
	}
}

// upToDate tells whether f is there as it would be written.
func upToDate(dir *os.Root, f clientFile) bool {
	info, err := dir.Lstat(f.name)
	if err != nil || info.Mode() != 0o644 {
		return false
	}
	content, err := dir.ReadFile(f.name)
	return err == nil && bytes.Equal(content, f.content)
}

// replaceFile writes f under another name and renames it. After an error no temporary file is left, and the old file is
// as it was. Containers mount the directory, so they see the new file; in a mount of the file alone they would not.
func replaceFile(dir *os.Root, f clientFile) error {
	temp := path.Join(path.Dir(f.name), tempPrefix+rand.Text())
	w, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(f.content)
	err = cmp.Or(err, w.Chmod(0o644), w.Close())
	if err == nil {
		err = dir.Rename(temp, f.name)
	}
	if err != nil {
		dir.Remove(temp)
	}
	return err
}
