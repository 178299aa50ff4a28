package http

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"muxproxy/e2e/origin"
	"muxproxy/e2e/testbed"
)

// canaries are all credentials of the run in all spellings.
func (w *world) canaries() []string {
	s := w.secrets
	var all []string
	for _, credential := range []string{s.GitHub, s.AnthropicKey, s.AnthropicOAuth, s.PagerDuty, s.Sentry, s.NPM, s.DockerToken, s.GitLab} {
		all = append(all, testbed.Spellings(credential)...)
	}
	return append(all, origin.RefreshToken)
}

// transcript is everything that clients were answered and that containers printed.
type transcript struct {
	mu  sync.Mutex
	all []note // guarded by mu
}

// note is one text and where it comes from.
type note struct{ from, text string }

func (c *transcript) add(from, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, note{from, text})
}

// search says where a canary is in a text.
func (w *world) search(from, text string) []string {
	var found []string
	for _, canary := range w.canaries() {
		if strings.Contains(text, canary) {
			found = append(found, fmt.Sprintf("%s holds %.12s…", from, canary))
		}
	}
	return found
}

// searchEverything looks for canaries on the host once all cases are over: answers, outputs, logs, and each file that a daemon may write.
func (w *world) searchEverything() []string {
	var found []string
	w.seen.mu.Lock()
	for _, n := range w.seen.all {
		found = append(found, w.search(n.from, n.text)...)
	}
	w.seen.mu.Unlock()
	for _, d := range w.started {
		found = append(found, w.search("output of "+d.home, d.log.String())...)
		found = append(found, w.searchFiles(filepath.Join(d.home, ".mux"))...)
	}
	return found
}

func (w *world) searchFiles(dir string) []string {
	var found []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		found = append(found, w.search(path, string(text))...)
		return err
	})
	if err != nil {
		found = append(found, err.Error())
	}
	return found
}

func TestTheSearchFindsACanaryInEverySpelling(t *testing.T) {
	w := theWorld(t)
	secret := w.secrets.GitHub
	for _, text := range []string{
		secret, "a" + secret + "b", url.QueryEscape(w.secrets.PagerDuty), base64.StdEncoding.EncodeToString([]byte("x-access-token:" + secret)),
		base64.StdEncoding.EncodeToString([]byte("ab:" + secret + "!")), base64.RawURLEncoding.EncodeToString([]byte("a:" + secret)),
		base64.StdEncoding.EncodeToString([]byte(secret)),
	} {
		if len(w.search("here", text)) == 0 {
			t.Errorf("not found in %q", text)
		}
	}
	if found := w.search("here", w.placeholder(t, "GH_TOKEN")); len(found) > 0 {
		t.Error(found)
	}
}

// lookAround prints all that a process of a container can see of its own and of others, mounted files included.
const lookAround = `
	env; cat /proc/mounts; ls -laR /etc/mux; find /etc/mux -type f -exec cat {} +
	for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline; tr '\0' '\n' <$p/environ; done
	curl -sS https://api.github.com/user; git credential fill </dev/null || true; gh auth token || true; npm config list --json; cat ~/.docker/config.json || true`

func TestNoCredentialIsInTheContainersOrTheProcessList(t *testing.T) {
	w := theWorld(t)
	for _, d := range []*daemon{w.main, w.oauth(t)} {
		name := "canary-" + filepath.Base(d.home)
		p := d.startContainer(t, []string{"--name", name}, `echo ready; read -r _`)
		p.expect(t, "ready")
		for _, command := range [][]string{
			{"/usr/bin/docker", "inspect", name},
			{"/usr/bin/docker", "top", name, "auxwwe"},
			{"ps", "auxwwe"},
		} {
			out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).Output()
			if err != nil {
				t.Errorf("%v: %v", command, err)
			}
			// The daemon's own process may hold nothing either: its credentials come from files here.
			for _, found := range w.search(strings.Join(command, " "), string(out)) {
				t.Error(found)
			}
		}
		out := d.container(t, nil, "{ "+lookAround+"\n} 2>&1")
		if !bytes.Contains([]byte(out), []byte("octo-agent")) && d == w.main {
			t.Errorf("the look around is cut short:\n%s", out)
		}
	}
}
