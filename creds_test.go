package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// secretCanary is a credential that must show nowhere.
const secretCanary = "cnry-7Kq9zP4wX1vB8mT3"

// secretEnv makes a getenv of pairs: secretEnv("A", "1", "B", "2").
func secretEnv(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

// newSecretsDir gives a directory fit for secrets.
func newSecretsDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func putSecret(t *testing.T, path, value string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bearerRule is a rule with one source: Bearer, the variable MUX_TOKEN, then the file.
func bearerRule(file string) *rule {
	return &rule{service: "test", sources: []source{bearerSource(file)}}
}

func bearerSource(file string) source {
	return source{field: "Authorization", format: "Bearer {}", env: []string{"MUX_TOKEN", "MUX_TOKEN_2"}, file: file}
}

func dockerRule() *rule {
	return &rule{service: "docker", sources: []source{{
		field: "Authorization", basicPair: true, env: []string{"DOCKER_USERNAME", "DOCKER_TOKEN"}, file: "docker",
	}}}
}

// fieldOf gives what a found credential puts into the header.
func fieldOf(t *testing.T, c *credentials, r *rule) string {
	t.Helper()
	cred, err := c.find(r)
	if err != nil {
		t.Fatalf("find: %v", err)
	}
	h := http.Header{}
	cred.set(h)
	return h.Get(cred.field)
}

func basicOf(userToken string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(userToken))
}

// leaks tells whether text shows the secretCanary plain, in base64 or in hex.
func leaks(text string) bool {
	lower := strings.ToLower(text)
	if strings.Contains(lower, strings.ToLower(secretCanary)) || strings.Contains(lower, hex.EncodeToString([]byte(secretCanary))) {
		return true
	}
	for shift := range 3 { // base64 of the secretCanary at each alignment, without its unstable ends
		coded := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secretCanary))
		if strings.Contains(text, coded[4:len(coded)-4]) {
			return true
		}
	}
	return false
}

func TestLeaksFindsTheCanaryInEveryCoding(t *testing.T) {
	for _, text := range []string{
		"a" + secretCanary, basicOf("u:" + secretCanary), basicOf("us:" + secretCanary), basicOf("usr:" + secretCanary),
		fmt.Sprintf("%x", secretCanary), fmt.Sprintf("%X", secretCanary),
	} {
		if !leaks(text) {
			t.Errorf("not found in %q", text)
		}
	}
}

func TestSecretIsNeverShown(t *testing.T) {
	s := newSecret("Bearer " + secretCanary)
	cred := &credential{field: "Authorization", value: s}
	type holder struct {
		Open   secret
		hidden secret
	}
	h := holder{s, s}
	values := map[string]any{
		"secret": s, "pointer": &s, "struct": h, "pointer to struct": &h, "slice": []secret{s}, "array": [1]secret{s},
		"map": map[string]secret{"k": s}, "key": map[secret]int{s: 1}, "any": []any{s, &s, h}, "credential": cred, "credential value": *cred,
		"credentials": []*credential{cred}, "rendering": rendering{cred: cred}, "reading": &reading{renderings: []rendering{{cred: cred}}},
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T", "%t", "%U", "% x"} {
			if out := fmt.Sprintf(verb, v); leaks(out) {
				t.Errorf("%s with %s gives %s", name, verb, out)
			}
		}
		if out, _ := json.Marshal(v); leaks(string(out)) {
			t.Errorf("%s as JSON gives %s", name, out)
		}
		if out := fmt.Errorf("x: %v", v).Error(); leaks(out) {
			t.Errorf("%s in an error gives %s", name, out)
		}
		var text, line bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("m", "v", v)
		slog.New(slog.NewJSONHandler(&line, nil)).Info("m", "v", v, slog.Group("g", "v", v))
		if leaks(text.String()) || leaks(line.String()) {
			t.Errorf("%s in slog gives %s%s", name, text.String(), line.String())
		}
	}
	for _, out := range []string{fmt.Sprint(s), fmt.Sprintf("%#v", s), s.LogValue().String(), fmt.Sprintf("%v", &s)} {
		if out != redacted {
			t.Errorf("a secret prints as %q, want %q", out, redacted)
		}
	}
	if out, err := json.Marshal(h); err != nil || string(out) != `{"Open":"REDACTED"}` {
		t.Errorf("JSON of a struct: %s, %v", out, err)
	}
	if (secret{}).reveal() != "" || s.reveal() != "Bearer "+secretCanary {
		t.Error("reveal does not give the value")
	}
}

func TestCredentialSetReplacesEveryValueOfItsField(t *testing.T) {
	cred, err := newCredential(source{field: "Authorization", format: "Token token={}"}, secretCanary)
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{"Authorization": {"a", "b"}, "X-Other": {"c"}}
	cred.set(h)
	if got := h["Authorization"]; !slices.Equal(got, []string{"Token token=" + secretCanary}) {
		t.Errorf("Authorization is %q", got)
	}
	if len(h) != 2 || h.Get("X-Other") != "c" {
		t.Errorf("other fields changed: %v", h)
	}
}

func TestCredentialAppendsToAListWhereAbsent(t *testing.T) {
	const beta = "oauth-2025-04-20"
	for _, test := range []struct {
		name     string
		in, want []string
	}{
		{"no field", nil, []string{beta}},
		{"an empty field", []string{""}, []string{beta}},
		{"another member", []string{"tools-1"}, []string{"tools-1," + beta}},
		{"two lines", []string{"a", "b"}, []string{"a", "b," + beta}},
		{"there already", []string{"a, " + beta + " ,b"}, []string{"a, " + beta + " ,b"}},
		{"there in the first of two lines", []string{beta, "b"}, []string{beta, "b"}},
		{"a longer word is not it", []string{beta + "x"}, []string{beta + "x," + beta}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cred, err := newCredential(source{field: "Authorization", format: "Bearer {}", appendField: "Anthropic-Beta", appendValue: beta}, secretCanary)
			if err != nil {
				t.Fatal(err)
			}
			h, before := http.Header{}, slices.Clone(test.in)
			if test.in != nil {
				h["Anthropic-Beta"] = test.in
			}
			cred.set(h)
			if got := h["Anthropic-Beta"]; !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if !slices.Equal(test.in, before) {
				t.Errorf("the slice of the caller became %q", test.in)
			}
		})
	}
}

func TestCredentialIsRenderedAsTheSourceSays(t *testing.T) {
	for _, test := range []struct {
		name, value, want string
		source            source
	}{
		{"a format", "tok", "Bearer tok", source{format: "Bearer {}"}},
		{"raw", "tok", "tok", source{format: "{}"}},
		{"a value that looks like the mark", "{}", "Bearer {}", source{format: "Bearer {}"}},
		{"basic with a fixed user", "tok", basicOf("x-access-token:tok"), source{username: "x-access-token"}},
		{"a pair", "user:tok", basicOf("user:tok"), source{basicPair: true}},
		{"a pair whose token holds a colon", "user:to:k", basicOf("user:to:k"), source{basicPair: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cred, err := newCredential(test.source, test.value)
			if err != nil || cred.value.reveal() != test.want {
				t.Errorf("got %v, %v; want %q", cred, err, test.want)
			}
		})
	}
}

func TestUserNameWithAColonIsRefused(t *testing.T) {
	_, err := newCredential(source{username: "a:b"}, secretCanary)
	wantSecretError(t, err, `username "a:b"`, "colon")
}

func TestEnvironmentIsAskedFirstAndOnce(t *testing.T) {
	dir := newSecretsDir(t)
	putSecret(t, filepath.Join(dir, "tok"), "from-file")
	r := bearerRule("tok")
	asked := map[string]int{}
	get := secretEnv("MUX_TOKEN_2", "from-env\n")
	c := newCredentials([]*rule{r}, dir, func(name string) string { asked[name]++; return get(name) }, nil)
	if got := fieldOf(t, c, r); got != "Bearer from-env" {
		t.Errorf("got %q", got)
	}
	fieldOf(t, c, r)
	if asked["MUX_TOKEN"] != 1 || asked["MUX_TOKEN_2"] != 1 {
		t.Errorf("asked %v", asked)
	}
	if s := c.status(); len(s) != 1 || s[0].origin != "MUX_TOKEN_2 in the environment" || s[0].source != 0 || s[0].err != nil || s[0].hint != "" {
		t.Errorf("status %+v", s)
	}
}

func TestEmptyVariableCountsAsUnset(t *testing.T) {
	dir := newSecretsDir(t)
	putSecret(t, filepath.Join(dir, "tok"), "from-file\n")
	r := bearerRule("tok")
	c := newCredentials([]*rule{r}, dir, secretEnv("MUX_TOKEN", ""), nil)
	if got := fieldOf(t, c, r); got != "Bearer from-file" {
		t.Errorf("got %q", got)
	}
}

func TestUnusableVariableIsAnErrorAndNeverTheNextSource(t *testing.T) {
	dir := newSecretsDir(t)
	putSecret(t, filepath.Join(dir, "tok"), "from-file")
	putSecret(t, filepath.Join(dir, "docker"), "user:from-file")
	for _, test := range []struct {
		name  string
		rule  *rule
		env   []string
		parts []string
	}{
		{"a line break", bearerRule("tok"), []string{"MUX_TOKEN", "a\n" + secretCanary, "MUX_TOKEN_2", "good"}, []string{"MUX_TOKEN", "line break", "unset"}},
		{"a lone newline", bearerRule("tok"), []string{"MUX_TOKEN", "\n"}, []string{"MUX_TOKEN", "empty"}},
		{"not ASCII", bearerRule("tok"), []string{"MUX_TOKEN", secretCanary + "é"}, []string{"MUX_TOKEN", "not ASCII"}},
		{"too long", bearerRule("tok"), []string{"MUX_TOKEN", secretCanary + strings.Repeat("x", maxSecret)}, []string{"MUX_TOKEN", "over 16 KiB"}},
		{"a placeholder", bearerRule("tok"), []string{"MUX_TOKEN", "ghp_muxproxy-placeholder000"}, []string{"MUX_TOKEN", "placeholder"}},
		{"a user without a token", dockerRule(), []string{"DOCKER_USERNAME", secretCanary}, []string{"DOCKER_USERNAME", "DOCKER_TOKEN is not set", "both or neither"}},
		{"a token without a user", dockerRule(), []string{"DOCKER_TOKEN", secretCanary}, []string{"DOCKER_TOKEN", "DOCKER_USERNAME is not set", "both or neither"}},
		{"a user with a colon", dockerRule(), []string{"DOCKER_USERNAME", "a:b", "DOCKER_TOKEN", secretCanary}, []string{"DOCKER_USERNAME", "colon"}},
		{"a user with a control byte", dockerRule(), []string{"DOCKER_USERNAME", "a\tb", "DOCKER_TOKEN", secretCanary}, []string{"DOCKER_USERNAME", "control byte"}},
		{"a token with NUL", dockerRule(), []string{"DOCKER_USERNAME", "a", "DOCKER_TOKEN", secretCanary + "\x00"}, []string{"DOCKER_TOKEN", "control byte"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCredentials([]*rule{test.rule}, dir, secretEnv(test.env...), nil)
			_, err := c.find(test.rule)
			wantSecretError(t, err, test.parts...)
			s := c.status()
			if len(s) != 1 || s[0].err == nil || s[0].source != -1 || s[0].hint != "" || !strings.Contains(s[0].origin, "in the environment") {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// wantSecretError holds err against the parts that its text must have, and the secretCanary that it must not.
func wantSecretError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil || err == errNoCredential {
		t.Fatalf("got %v, want an error", err)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q lacks %q", err, part)
		}
	}
	if leaks(err.Error()) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%q shows too much", err)
	}
}

func TestDockerPairIsOneCredential(t *testing.T) {
	dir, r := newSecretsDir(t), dockerRule()
	c := newCredentials([]*rule{r}, dir, secretEnv("DOCKER_USERNAME", "alice", "DOCKER_TOKEN", "to:k"), nil)
	if got := fieldOf(t, c, r); got != basicOf("alice:to:k") {
		t.Errorf("from the environment %q", got)
	}
	putSecret(t, filepath.Join(dir, "docker"), "bob:tok\n")
	c = newCredentials([]*rule{r}, dir, secretEnv(), nil)
	if got := fieldOf(t, c, r); got != basicOf("bob:tok") {
		t.Errorf("from the file %q", got)
	}
}

func TestBadSecretFileIsNamedWithItsWayOut(t *testing.T) {
	write := func(value string, mode os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			putSecret(t, path, value)
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name  string
		make  func(*testing.T, string)
		parts []string // besides the path
	}{
		{"readable by others", write(secretCanary, 0o604), []string{"mode 0604", "chmod 600 "}},
		{"readable by the group", write(secretCanary, 0o640), []string{"mode 0640", "chmod 600 "}},
		{"writable by others", write(secretCanary, 0o602), []string{"mode 0602", "chmod 600 "}},
		{"executable by others", write(secretCanary, 0o601), []string{"mode 0601", "chmod 600 "}},
		{"empty", write("", 0o600), []string{"empty", "write the credential to "}},
		{"a newline alone", write("\n", 0o600), []string{"empty"}},
		{"blanks alone", write("  \n", 0o600), []string{"empty"}},
		{"two lines", write("a\n"+secretCanary, 0o600), []string{"line break"}},
		{"two trailing newlines", write(secretCanary+"\n\n", 0o600), []string{"line break"}},
		{"a carriage return inside", write(secretCanary+"\rb", 0o600), []string{"line break"}},
		{"a carriage return at the end", write(secretCanary+"\r", 0o600), []string{"line break"}},
		{"NUL", write(secretCanary+"\x00", 0o600), []string{"control byte"}},
		{"a tab", write(secretCanary+"\tb", 0o600), []string{"control byte"}},
		{"DEL", write(secretCanary+"\x7f", 0o600), []string{"control byte"}},
		{"a byte order mark", write("\ufeff"+secretCanary, 0o600), []string{"not ASCII"}},
		{"one byte too long", write(secretCanary+strings.Repeat("x", maxSecret+1-len(secretCanary)), 0o600), []string{"over 16 KiB"}},
		{"far too long", write(secretCanary+strings.Repeat("x", 1<<20), 0o600), []string{"over 16 KiB"}},
		{"a placeholder", write("sk-ant-muxproxy-placeholder", 0o600), []string{"placeholder"}},
		{"a directory", func(t *testing.T, path string) { okay(t, os.Mkdir(path, 0o700)) }, []string{"is a directory", "write the credential to a file "}},
		{"a named pipe", func(t *testing.T, path string) { okay(t, syscall.Mkfifo(path, 0o600)) }, []string{"is a named pipe"}},
		{"a socket", func(t *testing.T, path string) {
			ln, err := net.Listen("unix", path)
			okay(t, err)
			t.Cleanup(func() { ln.Close() })
		}, []string{"is a socket"}},
		{"a device", func(t *testing.T, path string) { okay(t, os.Symlink("/dev/null", path)) }, []string{"is a device"}},
		{"a link to itself", func(t *testing.T, path string) { okay(t, os.Symlink(path, path)) }, []string{"symbolic links", "ls -ld "}},
		{"a link to a file with an open mode", func(t *testing.T, path string) {
			write(secretCanary, 0o644)(t, path+"-target")
			okay(t, os.Symlink(path+"-target", path))
		}, []string{"mode 0644", "chmod 600 "}},
		{"in a directory that others can write", func(t *testing.T, path string) {
			write(secretCanary, 0o600)(t, path)
			okay(t, os.Chmod(filepath.Dir(path), 0o777|os.ModeSticky))
		}, []string{"mode 1777 lets others write", "chmod go-w "}},
		{"in a directory that the group can write", func(t *testing.T, path string) {
			write(secretCanary, 0o600)(t, path)
			okay(t, os.Chmod(filepath.Dir(path), 0o770))
		}, []string{"directory", "mode 0770 lets others write", "chmod go-w "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newSecretsDir(t)
			path := filepath.Join(dir, "tok")
			test.make(t, path)
			second := bearerSource("second")
			putSecret(t, filepath.Join(dir, "second"), "other")
			t.Cleanup(func() { os.Chmod(dir, 0o700) })
			for _, file := range []string{"tok", path} {
				r := &rule{service: "test", sources: []source{bearerSource(file), second}}
				c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
				_, err := c.find(r)
				wantSecretError(t, err, append(test.parts, fmt.Sprintf("load secret %q", path))...)
				if s := c.status(); len(s) != 1 || s[0].err == nil || s[0].origin != path {
					t.Errorf("status %+v", s)
				}
			}
		})
	}
}

func okay(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDockerFileWithoutColonIsRefused(t *testing.T) {
	for _, value := range []string{secretCanary, ":" + secretCanary, secretCanary + ":"} {
		dir, r := newSecretsDir(t), dockerRule()
		putSecret(t, filepath.Join(dir, "docker"), value)
		_, err := newCredentials([]*rule{r}, dir, secretEnv(), nil).find(r)
		wantSecretError(t, err, filepath.Join(dir, "docker"), "user:token")
	}
}

func TestSecretFileBelongsToTheUserOrRoot(t *testing.T) {
	file := fileID{mode: syscall.S_IFREG | 0o600, uid: 1000}
	dir := fileID{mode: syscall.S_IFDIR | 0o755, uid: 1000}
	for _, test := range []struct {
		name string
		err  error
		want string // part of the error, "" for none
	}{
		{"the user's file", judgeFile(file, 1000, "/s/x"), ""},
		{"root's file", judgeFile(fileID{mode: syscall.S_IFREG | 0o400}, 1000, "/s/x"), ""},
		{"another's file", judgeFile(file, 1001, "/s/x"), "owned by user 1000: run sudo chown 1001 /s/x"},
		{"another's file for root", judgeFile(file, 0, "/s/x"), "owned by user 1000: run sudo chown 0 /s/x"},
		{"the user's directory", judgeDir(dir, 1000, "/s"), ""},
		{"root's directory", judgeDir(fileID{mode: syscall.S_IFDIR | 0o755}, 1000, "/s"), ""},
		{"another's directory", judgeDir(dir, 1001, "/s"), "owned by user 1000: run sudo chown 1001 /s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if (test.err == nil) != (test.want == "") || test.err != nil && test.err.Error() != test.want {
				t.Errorf("got %v, want %q", test.err, test.want)
			}
		})
	}
}

func TestDeniedFileIsExplained(t *testing.T) {
	f := newSecretFile("/home/u/.secrets/x", "/home/u/.secrets", "/home/u", new(atomic.Bool))
	denied := &os.PathError{Op: "open", Path: "/home/u/.secrets/x", Err: syscall.EACCES}
	wantSecretError(t, f.explain(denied, fileID{mode: syscall.S_IFREG, uid: 1000}), `"~/.secrets/x"`, "mode 0000", "owned by user 1000", "chmod 600 ~/.secrets/x")
	wantSecretError(t, f.explain(denied, fileID{}), `"~/.secrets/x"`, "permission denied", "chmod u+rx ~/.secrets")
	wantSecretError(t, f.explain(&os.PathError{Err: syscall.EIO}, fileID{mode: syscall.S_IFREG}), "input/output error", "ls -ld ~/.secrets/x")
}

func TestGoodSecretFilesAreRead(t *testing.T) {
	long := strings.Repeat("x", maxSecret)
	for _, test := range []struct{ name, content, want string }{
		{"no newline", "tok", "tok"},
		{"a newline", "tok\n", "tok"},
		{"CRLF", "tok\r\n", "tok"},
		{"blanks and quotes", ` a"b' c`, ` a"b' c`},
		{"16 KiB", long, long},
		{"16 KiB and CRLF", long + "\r\n", long},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := newSecretsDir(t)
			putSecret(t, filepath.Join(dir, "target"), test.content)
			okay(t, os.Symlink("target", filepath.Join(dir, "link")))
			for _, file := range []string{"target", "link", filepath.Join(dir, "target")} {
				r := bearerRule(file)
				if got := fieldOf(t, newCredentials([]*rule{r}, dir, secretEnv(), nil), r); got != "Bearer "+test.want {
					t.Errorf("%s gives %.40q", file, got)
				}
			}
		})
	}
}

func TestRelativeFileStaysInTheSecretsDir(t *testing.T) {
	dir := newSecretsDir(t)
	okay(t, os.Mkdir(filepath.Join(dir, "in"), 0o700))
	putSecret(t, filepath.Join(dir, "tok"), secretCanary)
	for _, file := range []string{"../tok", "a/../../tok"} {
		r := bearerRule(file)
		_, err := newCredentials([]*rule{r}, filepath.Join(dir, "in"), secretEnv(), nil).find(r)
		wantSecretError(t, err, file, "absolute path")
	}
	putSecret(t, filepath.Join(dir, "in", "tok"), "deep")
	r := bearerRule("in/tok")
	if got := fieldOf(t, newCredentials([]*rule{r}, dir, secretEnv(), nil), r); got != "Bearer deep" {
		t.Errorf("got %q", got)
	}
	okay(t, os.Chmod(dir, 0o777))
	_, err := newCredentials([]*rule{r}, dir, secretEnv(), nil).find(r)
	wantSecretError(t, err, fmt.Sprintf("directory %q", dir))
}

func TestSecretIsFreshOnEveryRequest(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	path := filepath.Join(dir, "tok")
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	if _, err := c.find(r); err != errNoCredential {
		t.Fatalf("before it is written: %v", err)
	}
	putSecret(t, path, "one")
	if got := fieldOf(t, c, r); got != "Bearer one" {
		t.Errorf("written later: %q", got)
	}
	putSecret(t, path+".new", "two")
	okay(t, os.Rename(path+".new", path))
	if got := fieldOf(t, c, r); got != "Bearer two" {
		t.Errorf("renamed over: %q", got)
	}
	okay(t, os.Chmod(path, 0o644))
	_, err := c.find(r)
	wantSecretError(t, err, path, "mode 0644", "chmod 600 "+path)
	okay(t, os.Chmod(path, 0o600))
	if got := fieldOf(t, c, r); got != "Bearer two" {
		t.Errorf("mode put right: %q", got)
	}
	okay(t, os.Chmod(dir, 0o777))
	putSecret(t, path, "three")
	_, err = c.find(r)
	wantSecretError(t, err, "chmod go-w "+dir)
	okay(t, os.Chmod(dir, 0o700))
	if got := fieldOf(t, c, r); got != "Bearer three" {
		t.Errorf("directory put right: %q", got)
	}
	okay(t, os.Remove(path))
	_, err = c.find(r)
	wantSecretError(t, err, path, "gone: ", "restart muxproxy")
	putSecret(t, path, "four")
	if got := fieldOf(t, c, r); got != "Bearer four" {
		t.Errorf("written again: %q", got)
	}
}

func TestRewriteOfTheSameSizeInOneTickIsNoticed(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	path := filepath.Join(dir, "tok")
	putSecret(t, path, "0000")
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	for i := range 500 {
		value := fmt.Sprintf("%04d", i)
		putSecret(t, path, value)
		if got := fieldOf(t, c, r); got != "Bearer "+value {
			t.Fatalf("write %d: got %q", i, got)
		}
	}
}

func TestReadingSettlesOnceTheClockOfTheFileSystemHasTicked(t *testing.T) {
	at := time.Unix(1_700_000_000, 500)
	after := func(d time.Duration) time.Time { return at.Add(d) }
	for _, test := range []struct {
		name         string
		ctime        time.Time
		first, began time.Time
		want         bool
	}{
		{"read at once", at, at, at, false},
		{"read within a tick", at, after(10 * time.Millisecond), after(50 * time.Millisecond), false},
		{"read after a tick", at, after(51 * time.Millisecond), after(51 * time.Millisecond), true},
		{"whole seconds, read a second later", at.Truncate(time.Second), after(time.Second), after(time.Second), false},
		{"whole seconds, read three seconds later", at.Truncate(time.Second), after(3 * time.Second), after(3 * time.Second), true},
		{"a clock that runs ahead, first reading", after(time.Hour), at, at, false},
		{"a clock that runs ahead, a later reading", after(time.Hour), at, after(51 * time.Millisecond), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := settled(fileID{ctime: test.ctime.UnixNano()}, test.first, test.began); got != test.want {
				t.Errorf("settled is %v", got)
			}
		})
	}
}

func TestUnchangedFileIsNotReadAgain(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	path := filepath.Join(dir, "tok")
	putSecret(t, path, "tok")
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	f := c.origins[r][0].file
	old := *f.last.Load()
	old.settled = true
	f.last.Store(&old)
	for range 3 {
		fieldOf(t, c, r)
	}
	if f.last.Load() != &old {
		t.Error("the file was read again")
	}
	okay(t, os.Chmod(path, 0o400))
	fieldOf(t, c, r)
	if f.last.Load() == &old {
		t.Error("a change of mode was not noticed")
	}
}

func TestUnsettledReadingIsTakenAgain(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	putSecret(t, filepath.Join(dir, "tok"), "new")
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	f := c.origins[r][0].file
	stale, err := newCredential(r.sources[0], "old")
	okay(t, err)
	before := &reading{id: f.last.Load().id, first: time.Now().Add(-time.Hour), renderings: []rendering{{cred: stale}}}
	f.last.Store(before)
	if got := fieldOf(t, c, r); got != "Bearer new" {
		t.Errorf("got %q", got)
	}
	if r := f.last.Load(); !r.settled || r.first != before.first {
		t.Error("an id that was seen an hour ago is not settled")
	}
}

func TestFileIDTellsEveryChange(t *testing.T) {
	dir := newSecretsDir(t)
	path := filepath.Join(dir, "x")
	putSecret(t, path, "x")
	id, err := statID(path)
	okay(t, err)
	info, err := os.Stat(path)
	okay(t, err)
	if id.size != 1 || id.mode != syscall.S_IFREG|0o600 || id.uid != uint32(os.Geteuid()) || id.ino == 0 || id.mtime != info.ModTime().UnixNano() || id.ctime < id.mtime {
		t.Errorf("got %+v", id)
	}
	// An old time stamp put back with utimes shows in the change time alone.
	okay(t, os.Chtimes(path, time.Time{}, time.Unix(1, 0)))
	old, err := statID(path)
	okay(t, err)
	if old.mtime != int64(time.Second) || old.ctime < id.ctime {
		t.Errorf("got %+v", old)
	}
}

func TestGoneCredentialIsNoticedOverAReload(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	path := filepath.Join(dir, "tok")
	putSecret(t, path, "tok")
	first := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	okay(t, os.Remove(path))
	without := newCredentials(nil, dir, secretEnv(), first)
	again := bearerRule("tok")
	c := newCredentials([]*rule{again}, dir, secretEnv(), without)
	_, err := c.find(again)
	wantSecretError(t, err, path, "gone: ")
	moved := newCredentials([]*rule{again}, newSecretsDir(t), secretEnv(), c)
	_, err = moved.find(again)
	wantSecretError(t, err, "gone: ")
	fresh := newCredentials([]*rule{again}, dir, secretEnv(), nil)
	if _, err := fresh.find(again); err != errNoCredential {
		t.Errorf("another run: %v", err)
	}
}

func TestFileThatWasNeverUsableIsNotMissedWhenItGoes(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	path := filepath.Join(dir, "tok")
	putSecret(t, path, "")
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	okay(t, os.Remove(path))
	if _, err := c.find(r); err != errNoCredential {
		t.Errorf("got %v", err)
	}
}

func TestFirstSourceWithACredentialIsUsed(t *testing.T) {
	dir := newSecretsDir(t)
	key, oauth := filepath.Join(dir, "anthropic"), filepath.Join(dir, "anthropic-oauth")
	r := &rule{service: "anthropic", sources: []source{
		{field: "X-Api-Key", format: "{}", file: "anthropic"},
		{field: "Authorization", format: "Bearer {}", file: "anthropic-oauth"},
	}}
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	putSecret(t, oauth, "subscription")
	if got := fieldOf(t, c, r); got != "Bearer subscription" {
		t.Errorf("only the second: %q", got)
	}
	if s := c.status(); len(s) != 1 || s[0].source != 1 || s[0].origin != oauth {
		t.Errorf("status %+v", s)
	}
	putSecret(t, key, "key")
	if got := fieldOf(t, c, r); got != "key" {
		t.Errorf("both: %q", got)
	}
	okay(t, os.Remove(key))
	_, err := c.find(r)
	wantSecretError(t, err, key, "gone: ")
	if s := c.status(); len(s) != 1 || s[0].source != -1 || s[0].err == nil || s[0].origin != key {
		t.Errorf("status %+v", s)
	}
}

func TestRulesWithOneFileShareWhatItHasSeen(t *testing.T) {
	dir := newSecretsDir(t)
	api := &rule{service: "github", sources: []source{{field: "Authorization", format: "Bearer {}", file: "github"}}}
	git := &rule{service: "github", sources: []source{{field: "Authorization", username: "x-access-token", file: "github"}}}
	allow := &rule{service: "allowed"}
	c := newCredentials([]*rule{api, git, allow}, dir, secretEnv(), nil)
	if s := c.status(); len(s) != 1 || s[0].hint != "write "+filepath.Join(dir, "github")+" with mode 0600" || s[0].source != -1 || s[0].err != nil {
		t.Errorf("status %+v", s)
	}
	putSecret(t, filepath.Join(dir, "github"), "tok")
	if got := fieldOf(t, c, api); got != "Bearer tok" {
		t.Errorf("api: %q", got)
	}
	if got := fieldOf(t, c, git); got != basicOf("x-access-token:tok") {
		t.Errorf("git: %q", got)
	}
	okay(t, os.Remove(filepath.Join(dir, "github")))
	_, err := c.find(git)
	wantSecretError(t, err, "gone: ")
	if _, err := c.find(allow); err != errNoCredential {
		t.Errorf("a rule with no source: %v", err)
	}
}

func TestHowToNamesFileOrVariable(t *testing.T) {
	dir := "/home/u/.secrets"
	for _, test := range []struct {
		want    string
		sources []source
	}{
		{"write ~/.secrets/github with mode 0600", []source{{env: []string{"GITHUB_TOKEN"}, file: "github"}}},
		{"write ~/.secrets/a or ~/.secrets/b with mode 0600", []source{{file: "a"}, {file: "b"}}},
		{"write ~/.secrets/docker (user:token) with mode 0600", []source{{basicPair: true, env: []string{"U", "T"}, file: "docker"}}},
		{"write '/home/u/.secrets/my token' with mode 0600", []source{{file: "my token"}}},
		{"write /etc/tok with mode 0600", []source{{file: "/etc/tok"}}},
		{"set A or B in the environment of muxproxy and restart it", []source{{env: []string{"A", "B"}}}},
		{"set U and T in the environment of muxproxy and restart it", []source{{basicPair: true, env: []string{"U", "T"}}}},
	} {
		r := &rule{service: "x", sources: test.sources}
		if got := newCredentials([]*rule{r}, dir, secretEnv("HOME", "/home/u"), nil).howTo(r); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestTypedPathIsWhatAShellTakes(t *testing.T) {
	for _, test := range []struct{ path, home, want string }{
		{"/home/u/.secrets/x", "/home/u", "~/.secrets/x"},
		{"/home/user2/x", "/home/u", "/home/user2/x"},
		{"/s/x", "", "/s/x"},
		{"/s/it's $HOME", "/home/u", `'/s/it'\''s $HOME'`},
		{"/home/u/a b", "/home/u", "'/home/u/a b'"},
		{"/s/~x", "/home/u", "'/s/~x'"},
	} {
		if got := typedPath(test.path, test.home); got != test.want {
			t.Errorf("%q: got %s, want %s", test.path, got, test.want)
		}
	}
}

func TestFindMayBeCalledAtOnceWhileTheFileChanges(t *testing.T) {
	dir, r := newSecretsDir(t), bearerRule("tok")
	path := filepath.Join(dir, "tok")
	putSecret(t, path, "tok-0000")
	c := newCredentials([]*rule{r}, dir, secretEnv(), nil)
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				cred, err := c.find(r)
				if err != nil || !strings.HasPrefix(cred.value.reveal(), "Bearer tok-") {
					t.Errorf("got %v, %v", cred, err)
					return
				}
			}
		})
	}
	for i := range 200 {
		putSecret(t, path+".new", fmt.Sprintf("tok-%04d", i))
		okay(t, os.Rename(path+".new", path))
	}
	close(stop)
	readers.Wait()
	if got := fieldOf(t, c, r); got != "Bearer tok-0199" {
		t.Errorf("at the end %q", got)
	}
}

func FuzzSecretValue(f *testing.F) {
	for _, seed := range []string{"", "\n", "\r\n", "a\rb", "é", "\x00", "x:y\n", "\x7f"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, tail string) {
		value, err := checkSecret(secretCanary + tail)
		if err != nil {
			if leaks(err.Error()) {
				t.Errorf("%q shows the value", err)
			}
			return
		}
		if trimmed := strings.TrimSuffix(strings.TrimSuffix(secretCanary+tail, "\n"), "\r"); value != trimmed {
			t.Errorf("got %q of %q", value, secretCanary+tail)
		}
		for _, s := range []source{{format: "Bearer {}"}, {username: "u"}, {basicPair: true}} {
			cred, err := newCredential(s, value)
			if err != nil {
				if leaks(err.Error()) {
					t.Errorf("%q shows the value", err)
				}
				continue
			}
			for _, b := range []byte(cred.value.reveal()) {
				if b < ' ' || b > '~' {
					t.Errorf("%q is no field value", cred.value.reveal())
				}
			}
		}
	})
}
