package talos

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"muxproxy/e2e/apid"
)

// transcript is everything that clients without a certificate were shown.
type transcript struct {
	mu     sync.Mutex
	all    []note // guarded by mu
	paused bool   // guarded by mu
}

// note is one text and where it comes from.
type note struct{ from, text string }

func (c *transcript) add(from, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused {
		c.all = append(c.all, note{from, text})
	}
}

// pause makes add forget what it is given.
func (c *transcript) pause(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = on
}

// aligned are the three ways in which base64 may spell a text inside a longer one, without what neighbours change at either end.
func aligned(text string) []string {
	var all []string
	for shift := range 3 {
		b := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + text))
		all = append(all, b[4*((shift+2)/3):len(b)-4])
	}
	return all
}

// canaries are the spellings of what no container may see: the host's keys, any key at all, and the secret of the nodes.
func (w *world) canaries() []string {
	all := append([]string{"PRIVATE KEY", apid.SecretToken}, aligned("PRIVATE KEY-----")...)
	all = append(all, aligned(apid.SecretToken)...)
	for _, c := range []*apid.Cluster{w.prod, w.lab} {
		block, _ := pem.Decode(c.Admin.Key)
		body := base64.StdEncoding.EncodeToString(block.Bytes)
		all = append(all, body, string(block.Bytes))
		all = append(all, aligned(body)...)
	}
	return all
}

// search says which canary is in a text.
func (w *world) search(t *testing.T, from, text string) {
	t.Helper()
	for _, canary := range w.canaries() {
		if strings.Contains(text, canary) {
			t.Errorf("%s holds %.12q…", from, canary)
		}
	}
}

// lookAround prints all that a process of a container can see of its own and of others, mounted files included.
const lookAround = `env; cat /proc/mounts; ls -laR /etc/mux; find /etc/mux -type f -exec cat {} +
	for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline; tr '\0' '\n' <$p/environ; done
	talosctl config info; talosctl config contexts`

// searchEverything looks for keys once all cases are over.
func (w *world) searchEverything(t *testing.T) {
	out := w.run(t, container, versions[1].variable, "{ "+lookAround+"\n} 2>&1")
	if !strings.Contains(out.stdout, "cluster: prod") {
		t.Errorf("the look around is cut short:\n%s", out.stdout)
	}
	ps, err := exec.CommandContext(t.Context(), "ps", "auxwwe").Output()
	if err != nil {
		t.Error(err)
	}
	w.search(t, "the process list", string(ps))
	w.search(t, "the daemon's output", w.daemon.Stderr())
	err = filepath.WalkDir(filepath.Join(w.daemon.Home, ".mux"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || entry.Name() == "proxy-ca-key.pem" {
			return err
		}
		text, err := os.ReadFile(path)
		w.search(t, path, string(text))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	w.seen.mu.Lock()
	defer w.seen.mu.Unlock()
	for _, n := range w.seen.all {
		w.search(t, n.from, n.text)
	}
	if len(w.seen.all) < 100 {
		t.Errorf("only %d outputs were looked at", len(w.seen.all))
	}
	// The search finds what it is for.
	for _, text := range []string{string(w.prod.Admin.Key), string(apid.Talosconfig(w.contexts()[0]))} {
		found := false
		for _, canary := range w.canaries() {
			found = found || bytes.Contains([]byte(text), []byte(canary))
		}
		if !found {
			t.Errorf("the search is blind")
		}
	}
}
