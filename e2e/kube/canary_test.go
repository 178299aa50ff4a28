package kube

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"muxproxy/e2e/testbed"
)

// transcript is everything that clients were answered and that containers printed. Its methods may be called at once.
type transcript struct {
	mu    sync.Mutex
	found []string // guarded by mu
	size  int      // bytes looked at; guarded by mu
}

var seen transcript

// add looks for canaries in a text.
func (c *transcript) add(from, text string) {
	var found []string
	for _, canary := range shared.Canaries() {
		for _, spelling := range testbed.Spellings(canary) {
			if strings.Contains(text, spelling) {
				found = append(found, fmt.Sprintf("%s holds %.12s…", from, canary))
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.found = append(c.found, found...)
	c.size += len(text)
}

// addFiles looks for canaries in all files below a directory.
func (c *transcript) addFiles(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		c.add(path, string(text))
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// search gives what was found.
func (c *transcript) search() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.found
}
