package main

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// sampleView is a host with every kind of thing to print.
func sampleView() containerView {
	return containerView{
		HTTP: true, HTTPPort: 18080, Kube: true, Talos: true, DockerHost: "host.docker.internal",
		NoProxy: []string{"localhost", "127.0.0.1", "::1", "host.docker.internal", "172.17.0.1", "db.internal"},
		Services: []serviceEnv{
			{"github", []string{"GH_TOKEN=ghp_muxproxy-placeholder"}},
			{"anthropic", []string{"ANTHROPIC_API_KEY=sk-ant-api03-muxproxy-placeholder"}},
			{"npm", []string{"NPM_TOKEN=npm_muxproxy-placeholder"}},
		},
		MuxDir: "/home/u/.mux", AddHost: true,
	}
}

func TestDockerArgsGolden(t *testing.T) {
	got, err := formatArgs(dockerArgs(sampleView()), "lines")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "docker-args.golden", got)
}

// golden compares with a file under testdata; `go test -update` rewrites it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s; got:\n%s", path, got)
	}
}

func TestDockerArgsWithoutThePlaneHoldNothingOfIt(t *testing.T) {
	v := sampleView()
	v.HTTP = false
	if got := dockerArgs(v); len(got) != 9 || !slices.Contains(got, "KUBECONFIG=/etc/mux/kube/config") || !slices.Contains(got, "TALOSCONFIG=/etc/mux/talos/config") {
		t.Errorf("got %q", got)
	}
	v.Kube, v.Talos = false, false
	if got := dockerArgs(v); !slices.Equal(got, []string{"--add-host=host.docker.internal:host-gateway"}) {
		t.Errorf("got %q", got)
	}
	v.AddHost = false
	if got := dockerArgs(v); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestDockerArgsRelabelMountsWhereSELinuxEnforces(t *testing.T) {
	v := sampleView()
	v.SELinux = true
	args := strings.Join(dockerArgs(v), "\n")
	for _, mount := range []string{"/home/u/.mux/proxy-ca.pem:/etc/mux/proxy-ca.pem:ro,z", "/home/u/.mux/client:/etc/mux/client:ro,z", "/home/u/.mux/kube:/etc/mux/kube:ro,z"} {
		if !strings.Contains(args, mount+"\n") {
			t.Errorf("no %q in\n%s", mount, args)
		}
	}
	switched := filepath.Join(t.TempDir(), "enforce")
	for content, want := range map[string]bool{"1": true, "1\n": true, "0": false, "": false} {
		if err := os.WriteFile(switched, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := selinuxEnforces(switched); got != want {
			t.Errorf("enforce holds %q: got %v", content, got)
		}
	}
	if selinuxEnforces(switched + ".missing") {
		t.Error("a host without SELinux enforces it")
	}
}

func TestOneVariableIsSetOnce(t *testing.T) {
	v := sampleView()
	v.Services = append(v.Services, serviceEnv{"mirror", []string{"GH_TOKEN=other", "NPM_CONFIG_GLOBALCONFIG=/x"}})
	seen := map[string]bool{}
	args := dockerArgs(v)
	for i, a := range args {
		if a != "-e" {
			continue
		}
		name, _, _ := strings.Cut(args[i+1], "=")
		if seen[name] {
			t.Errorf("%s is set twice", name)
		}
		seen[name] = true
	}
	if !seen["NPM_CONFIG_GLOBALCONFIG"] {
		t.Error("npm has a credential, but its config is not named")
	}
	v.Services = nil
	if strings.Contains(strings.Join(dockerArgs(v), " "), "NPM_CONFIG_GLOBALCONFIG") {
		t.Error("npm has no credential, but its placeholder is named")
	}
}

func TestWordsAreRefusedWhereAShellWouldChangeThem(t *testing.T) {
	for _, bad := range []string{"a b", "a\tb", "a\nb", `a"b`, "a'b", `a\b`, "a*", "a?", "[a]", "$a", "`a`", "a\x00", "a\u00a0b"} {
		out, err := formatArgs([]string{"-e", bad}, "words")
		if err == nil {
			t.Errorf("%q was printed as %q", bad, out)
			continue
		}
		if report(new(strings.Builder), err) != 1 || !strings.Contains(err.Error(), "words") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	out, err := formatArgs([]string{"-e", "GIT_CONFIG_VALUE_0=git@github.com:", "-v", "/a~b:/c:ro,z"}, "words")
	if want := "-e GIT_CONFIG_VALUE_0=git@github.com: -v /a~b:/c:ro,z\n"; err != nil || out != want {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestLinesRefuseALineBreak(t *testing.T) {
	if out, err := formatArgs([]string{"a\nb"}, "lines"); err == nil {
		t.Errorf("printed %q", out)
	}
	if out, err := formatArgs([]string{"a b", "*"}, "lines"); err != nil || out != "a b\n*\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if out, err := formatArgs(nil, "lines"); err != nil || out != "" {
		t.Errorf("nothing is printed as %q, %v", out, err)
	}
}

func TestNoArgumentsAreAnEmptyJSONArray(t *testing.T) {
	if out, err := formatArgs(nil, "json"); err != nil || out != "[]\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestUnknownFormatIsAUsageError(t *testing.T) {
	_, err := formatArgs(nil, "yaml")
	if code := report(new(strings.Builder), err); code != 2 {
		t.Errorf("exit code %d for %v", code, err)
	}
}

// A real shell says whether it reads back what was quoted.
func TestQuotedArgumentsSurviveAShell(t *testing.T) {
	want := []string{"", "a", "it's", `"`, `\`, "a b", "*", "$HOME", "`id`", "a\nb", "~", "!x", "é", "-e", "''"}
	out, err := formatArgs(want, "shell")
	if err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command("sh", "-c", `eval "set -- $1"; for a do printf '%s\0' "$a"; done`, "sh", out).Output()
	if err != nil {
		t.Fatal(err)
	}
	if fields := strings.Split(strings.TrimSuffix(string(got), "\x00"), "\x00"); !slices.Equal(fields, want) {
		t.Errorf("got %q from %s", fields, out)
	}
	encoded, err := formatArgs(want, "json")
	var decoded []string
	if err != nil || json.Unmarshal([]byte(encoded), &decoded) != nil || !slices.Equal(decoded, want) {
		t.Errorf("json: got %q, %v", encoded, err)
	}
}

func TestClientFilesGolden(t *testing.T) {
	rules := []*rule{
		{service: "github", hosts: []hostPattern{{host: "api.github.com", port: 443}}, placeholders: []placeholder{{env: "GH_TOKEN", value: "x"}}},
		{
			service:      "npm",
			hosts:        []hostPattern{{host: "npm.example.com", port: 443}, {host: "npm.example.com", port: 8443}, {host: "example.com", wildcard: true, port: 443}},
			placeholders: []placeholder{{env: "NPM_TOKEN", value: "npm_muxproxy-placeholder"}},
		},
	}
	var b strings.Builder
	for _, f := range clientFiles([]byte("CA ROOTS\nHOST ROOTS\n"), rules) {
		b.WriteString("== " + f.name + "\n" + string(f.content))
	}
	golden(t, "client-files.golden", b.String())
}

func TestClientFilesAreReplacedWholeAndForAll(t *testing.T) {
	dir := t.TempDir()
	files := []clientFile{{"a", []byte("one")}, {"php.d/b", []byte("two")}}
	changed := writeFiles(t, dir, files)
	if !slices.Equal(changed, []string{"client/a", "client/php.d/b"}) {
		t.Errorf("changed %q", changed)
	}
	if changed := writeFiles(t, dir, files); len(changed) != 0 {
		t.Errorf("written again though nothing differs: %q", changed)
	}
	open, err := os.Open(filepath.Join(dir, "client", "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	files[0].content = []byte("three")
	if err := os.Chmod(filepath.Join(dir, "client", "php.d", "b"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed := writeFiles(t, dir, files); !slices.Equal(changed, []string{"client/a", "client/php.d/b"}) {
		t.Errorf("changed %q", changed)
	}
	old := make([]byte, 8)
	if n, _ := open.Read(old); string(old[:n]) != "one" {
		t.Errorf("a reader of the old file got %q", old[:n])
	}
	if got, want := tree(t, dir), "drwxr-xr-x client\n-rw-r--r-- client/a\ndrwxr-xr-x client/php.d\n-rw-r--r-- client/php.d/b\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

func writeFiles(t *testing.T, muxDir string, files []clientFile) []string {
	t.Helper()
	changed, err := writeClientFiles(muxDir, "client", files)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// tree lists all below dir with its mode.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		b.WriteString(info.Mode().String() + " " + name + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestClientFilesAreNotWrittenThroughALink(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	writeFiles(t, dir, nil)
	if err := os.Symlink(victim, filepath.Join(dir, "client", "npmrc")); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, []clientFile{{"npmrc", []byte("new")}})
	if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
		t.Errorf("the link's target holds %q, %v", b, err)
	}

	dir = t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "client")); err != nil {
		t.Fatal(err)
	}
	if _, err := writeClientFiles(dir, "client", []clientFile{{"npmrc", []byte("new")}}); err == nil || !strings.Contains(err.Error(), "client") {
		t.Errorf("a client directory that is a link: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "npmrc")); err == nil {
		t.Error("a file was written through the link")
	}
}

func TestLeftoversOfAKilledProcessAreRemoved(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, []clientFile{{name: "php.d/x"}})
	old, fresh := filepath.Join(dir, "client", tempPrefix+"old"), filepath.Join(dir, "client", "php.d", tempPrefix+"fresh")
	for _, path := range []string{old, fresh} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(fresh)
	if err != nil {
		t.Fatal(err)
	}
	hourAgo := info.ModTime().Add(-3600e9)
	if err := os.Chtimes(old, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, nil)
	if _, err := os.Lstat(old); err == nil {
		t.Error("an old one is still there")
	}
	if _, err := os.Lstat(fresh); err != nil {
		t.Error("one that another process may be writing was removed")
	}
}

func TestPlaceholdersAreOfTheSourceInUse(t *testing.T) {
	anthropic := &rule{service: "anthropic", placeholders: []placeholder{{0, "ANTHROPIC_API_KEY", "a"}, {1, "CLAUDE_CODE_OAUTH_TOKEN", "b"}}}
	github := &rule{service: "github", placeholders: []placeholder{{0, "GH_TOKEN", "c"}}}
	git := &rule{service: "github", placeholders: github.placeholders}
	broken := &rule{service: "npm", placeholders: []placeholder{{0, "NPM_TOKEN", "d"}}}
	none := &rule{service: "sentry", placeholders: []placeholder{{0, "SENTRY_AUTH_TOKEN", "e"}}}
	got := serviceEnvsOf([]credentialStatus{
		{rule: github}, {rule: git}, {rule: anthropic, source: 1}, {rule: broken, err: os.ErrPermission}, {rule: none, source: -1},
	})
	want := `[{"service":"github","env":["GH_TOKEN=c"]},{"service":"anthropic","env":["CLAUDE_CODE_OAUTH_TOKEN=b"]}]`
	if b, err := json.Marshal(got); err != nil || string(b) != want {
		t.Errorf("got %s, %v", b, err)
	}
}
