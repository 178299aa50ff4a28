package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// asPlugin makes the test binary be an exec plugin: its value is what it does.
const asPlugin = "MUXPROXY_TEST_AS_PLUGIN"

func init() {
	switch os.Getenv(asPlugin) {
	case "":
		return
	case "print": // a count of runs, what it was told, and what it is to print
		if file := os.Getenv("PLUGIN_RUNS"); file != "" {
			f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				os.Exit(3)
			}
			fmt.Fprintf(f, "%q %s", os.Args[1:], os.Getenv("KUBERNETES_EXEC_INFO"))
			f.Close()
		}
		fmt.Fprint(os.Stderr, os.Getenv("PLUGIN_SAYS"))
		fmt.Print(os.Getenv("PLUGIN_PRINTS"))
	case "fail":
		fmt.Print(canary)
		fmt.Fprintln(os.Stderr, "log in first")
		os.Exit(7)
	case "flood":
		fmt.Print(strings.Repeat(canary, 2<<20/len(canary)))
	case "hang": // with a child that hangs too and holds its standard output
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), asPlugin+"=sleep")
		child.Stdout = os.Stdout
		child.Start()
		fallthrough
	case "sleep":
		time.Sleep(time.Hour)
	}
	os.Exit(0)
}

// execCredentialText is what a plugin prints for a token.
func execCredentialText(version, token, expires string) string {
	return fmt.Sprintf(`{"apiVersion": "client.authentication.k8s.io/%s", "kind": "ExecCredential", "status": {"token": %q, "expirationTimestamp": %q}}`, version, token, expires)
}

// newTestPlugin gives the runner of a plugin that is this test binary.
func newTestPlugin(t *testing.T, does string, log io.Writer, env ...string) *kubeExec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &kubePlugin{apiVersion: execGroup + "v1", command: self, args: []string{"get-token", "--secret=" + canary}, env: append(env, asPlugin+"="+does, "GORACE=atexit_sleep_ms=0")}
	return newKubeExec(p, "told\n", kubeSource{log: slog.New(slog.NewTextHandler(log, nil))})
}

func TestAPluginIsToldAndHeard(t *testing.T) {
	runs := filepath.Join(t.TempDir(), "runs")
	var log bytes.Buffer
	e := newTestPlugin(t, "print", &log, "PLUGIN_RUNS="+runs, "PLUGIN_SAYS=open https://login\nand enter ABCD", "PLUGIN_PRINTS="+execCredentialText("v1", "tok", ""))
	cred, err := e.current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := cred.header.value.reveal(); got != "Bearer tok" {
		t.Errorf("header %q", got)
	}
	text, _ := os.ReadFile(runs)
	if want := fmt.Sprintf("%q told\n", e.plugin.args); string(text) != want {
		t.Errorf("the plugin saw %q, want %q", text, want)
	}
	if got := log.String(); !strings.Contains(got, `line="open https://login"`) || !strings.Contains(got, `line="and enter ABCD"`) {
		t.Errorf("log %q", got)
	}
}

func TestWhatAPluginDoesWrongIsToldWithoutWhatItPrinted(t *testing.T) {
	good := execCredentialText("v1", "tok", "")
	past := time.Now().Add(-time.Minute).Format(time.RFC3339)
	tests := []struct{ name, does, prints, want string }{
		{"nothing", "print", "", "something else than an ExecCredential"},
		{"junk", "print", "Error: " + canary + ": [", "something else than an ExecCredential"},
		{"text", "print", canary, "something else than an ExecCredential"},
		{"another kind", "print", strings.Replace(good, `"ExecCredential"`, `"`+canary+`"`, 1), "something else than an ExecCredential"},
		{"another version", "print", execCredentialText("v1beta1", canary, ""), "another apiVersion"},
		{"no status", "print", `{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "spec": "` + canary + `"}`, "without status"},
		{"empty status", "print", execCredentialText("v1", "", ""), "neither a token nor a client certificate"},
		{"a number for a token", "print", strings.Replace(good, `"tok"`, `12`, 1), "something else than an ExecCredential"},
		{"a token with a newline", "print", execCredentialText("v1", canary+"\n", ""), "no header field may hold"},
		{"an expired token", "print", execCredentialText("v1", canary, past), "expired at"},
		{"no time", "print", execCredentialText("v1", canary, "soon "+canary), "no time of RFC 3339"},
		{"a certificate alone", "print", strings.Replace(good, `"token"`, `"clientCertificateData"`, 1), "without its key"},
		{"no certificate", "print", strings.Replace(good, `"token"`, `"clientKeyData": "`+canary+`", "clientCertificateData"`, 1), "cannot be used"},
		{"failure", "fail", "", "exit status 7"},
		{"too much", "flood", "", "printed more than 1024 KiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			_, err := newTestPlugin(t, tt.does, &log, "PLUGIN_PRINTS="+tt.prints).current(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if strings.Contains(fmt.Sprint(err)+log.String(), canary) {
				t.Errorf("the canary shows: %v\n%s", err, &log)
			}
		})
	}
}

func TestAPluginThatHangsIsKilledWithAllItStarted(t *testing.T) {
	e := newTestPlugin(t, "hang", io.Discard)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := e.process(ctx)
	if err == nil || !strings.Contains(err.Error(), "did not end within") {
		t.Errorf("error %v", err)
	}
	// The child holds the pipe: had it survived, the pipe would have been given up only after pluginKill.
	if took := time.Since(began); took > 300*time.Millisecond+pluginKill {
		t.Errorf("it took %s", took)
	}
}

func TestACommandIsFoundInTheConfiguredPath(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "aws"), "#!/bin/sh\n", 0o755)
	write(t, filepath.Join(dir, "text"), "", 0o644)
	for _, tt := range []struct{ command, path, want string }{
		{"aws", "/nowhere:" + dir, filepath.Join(dir, "aws")},
		{"aws", "/nowhere", ""},
		{"aws", ".", ""},
		{"text", dir, ""},
		{filepath.Join(dir, "aws"), "", filepath.Join(dir, "aws")},
		{filepath.Join(dir, "text"), "", ""},
		{filepath.Join(dir, "gone"), "", ""},
	} {
		if got, err := findExecutable(tt.command, tt.path); (err == nil) != (tt.want != "") || err == nil && got != tt.want {
			t.Errorf("%q in %q: %q, %v", tt.command, tt.path, got, err)
		}
	}
	e := newKubeExec(&kubePlugin{command: "aws", hint: "run\n brew install aws\x1b[1m"}, "", kubeSource{pluginPath: "/nowhere", environ: []string{"PATH=" + dir}, log: slog.New(slog.DiscardHandler)})
	if _, err := e.current(t.Context()); err == nil || !strings.Contains(err.Error(), `not found in PATH "/nowhere"`) || !strings.HasSuffix(err.Error(), "run brew install aws [1m") {
		t.Errorf("error %v", err)
	}
}

// fakePlugin answers runs in the place of a process.
type fakePlugin struct {
	mu   sync.Mutex
	runs []time.Time
	life time.Duration // of its tokens; 0: no end is told
	err  error
	wait time.Duration
}

func (f *fakePlugin) invoke(ctx context.Context) ([]byte, error) {
	f.mu.Lock()
	f.runs = append(f.runs, time.Now())
	n, err, wait, expires := len(f.runs), f.err, f.wait, ""
	if f.life > 0 {
		expires = time.Now().Add(f.life).Format(time.RFC3339)
	}
	f.mu.Unlock()
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return []byte(execCredentialText("v1", fmt.Sprint("tok", n), expires)), err
}

// newFakePlugin gives a runner for f; it belongs into a synctest bubble.
func newFakePlugin(f *fakePlugin) *kubeExec {
	e := newKubeExec(&kubePlugin{apiVersion: execGroup + "v1", command: "aws"}, "", kubeSource{log: slog.New(slog.DiscardHandler)})
	e.invoke = f.invoke
	return e
}

// tokenOf gives the token of a credential, or the error.
func tokenOf(cred *kubeCredential, err error) string {
	if err != nil {
		return err.Error()
	}
	return strings.TrimPrefix(cred.header.value.reveal(), "Bearer ")
}

func TestACredentialIsKeptUntilShortlyBeforeItExpires(t *testing.T) {
	for _, tt := range []struct{ life, keeps time.Duration }{
		{14 * time.Minute, 14*time.Minute - pluginLeeway}, // EKS
		{time.Minute, 48 * time.Second},
		{10 * time.Second, 8 * time.Second},
		{0, 100 * time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakePlugin{life: tt.life}
			e := newFakePlugin(f)
			tokenOf(e.current(t.Context()))
			time.Sleep(tt.keeps - time.Millisecond)
			if got := tokenOf(e.current(t.Context())); got != "tok1" {
				t.Errorf("life %s: %s just before %s", tt.life, got, tt.keeps)
			}
			time.Sleep(2 * time.Millisecond)
			want := "tok2"
			if tt.life == 0 {
				want = "tok1"
			}
			if got := tokenOf(e.current(t.Context())); got != want {
				t.Errorf("life %s: %s just after %s", tt.life, got, tt.keeps)
			}
		})
	}
}

func TestManyRequestsRunAPluginOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{life: 10 * time.Minute, wait: 2 * time.Second}
		e := newFakePlugin(f)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if got := tokenOf(e.current(t.Context())); got != "tok1" {
					t.Errorf("got %s", got)
				}
			})
		}
		all.Wait()
		time.Sleep(10*time.Minute - pluginLeeway)
		for i := range 50 { // one waits for the renewal, the others go on with what still holds
			all.Go(func() {
				began := time.Now()
				if got := tokenOf(e.current(t.Context())); got == "tok1" && time.Since(began) > 0 {
					t.Errorf("request %d waited for the run and did not take what came of it", i)
				}
			})
		}
		all.Wait()
		if len(f.runs) != 2 {
			t.Errorf("%d runs", len(f.runs))
		}
	})
}

func TestAClientThatLeavesEndsNoRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{wait: 2 * time.Second}
		e := newFakePlugin(f)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go e.current(ctx)
		synctest.Wait()
		waits, leave := context.WithTimeout(t.Context(), time.Millisecond)
		defer leave()
		if _, err := e.current(waits); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who waits for another's run and leaves: %v", err)
		}
		if got := tokenOf(e.current(t.Context())); got != "tok1" || len(f.runs) != 1 {
			t.Errorf("got %s after %d runs", got, len(f.runs))
		}
	})
}

func TestAPluginThatFailsRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{err: errors.New("exit status 1")}
		e := newFakePlugin(f)
		for range 10 * 60 * 10 { // ten requests a second for ten minutes
			if _, err := e.current(t.Context()); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(100 * time.Millisecond)
		}
		var rests []int
		for i, run := range f.runs[1:] {
			rests = append(rests, int(run.Sub(f.runs[i]).Seconds()))
		}
		if got := fmt.Sprint(rests[:7]); got != "[1 2 4 8 16 30 30]" || len(f.runs) > 25 {
			t.Errorf("%d runs, %v apart", len(f.runs), got)
		}
		f.err = nil
		time.Sleep(pluginMaxRest)
		if got := tokenOf(e.current(t.Context())); !strings.HasPrefix(got, "tok") {
			t.Errorf("after it was mended: %s", got)
		}
	})
}

func TestACredentialThatHoldsOutlivesAFailedRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{life: 10 * time.Minute}
		e := newFakePlugin(f)
		tokenOf(e.current(t.Context()))
		f.err = errors.New("exit status 1")
		time.Sleep(10*time.Minute - pluginLeeway)
		if got := tokenOf(e.current(t.Context())); got != "tok1" {
			t.Errorf("got %s", got)
		}
		time.Sleep(pluginLeeway)
		if got := tokenOf(e.current(t.Context())); !strings.Contains(got, "exit status 1") {
			t.Errorf("once it has expired: %s", got)
		}
	})
}

func TestARefusedCredentialIsRenewedWithoutAStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{}
		e := newFakePlugin(f)
		first, _ := e.current(t.Context())
		time.Sleep(time.Hour)
		var all sync.WaitGroup
		for range 20 { // all were sent with the one that was refused
			all.Go(func() {
				if next := e.renewed(t.Context(), first); next == nil || tokenOf(next, nil) != "tok2" {
					t.Errorf("renewed %v", next)
				}
			})
		}
		all.Wait()
		if len(f.runs) != 2 {
			t.Errorf("%d runs for one refusal", len(f.runs))
		}
		for range 10 * 60 * 10 { // and now each is refused, at ten requests a second
			used, err := e.current(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			e.renewed(t.Context(), used)
			time.Sleep(100 * time.Millisecond)
		}
		if n := len(f.runs); n > 28 {
			t.Errorf("%d runs in ten minutes", n)
		}
	})
}

func TestAFailedRenewalKeepsTheRefusedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakePlugin{}
		e := newFakePlugin(f)
		first, _ := e.current(t.Context())
		f.err = errors.New("exit status 1")
		time.Sleep(time.Hour)
		if next := e.renewed(t.Context(), first); next != nil {
			t.Errorf("renewed %v", next)
		}
		if got := tokenOf(e.current(t.Context())); got != "tok1" {
			t.Errorf("an answer 401 may have had another reason: %s", got)
		}
	})
}
