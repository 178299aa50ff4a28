package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"
)

var auditStart = time.Date(2026, 3, 4, 5, 6, 7, 89_900_000, time.FixedZone("", 3600))

// auditAt is a clock that stands still 1.5 s after auditStart.
func auditAt() time.Time { return auditStart.Add(1500 * time.Millisecond) }

// newAudit opens a log in a new directory.
func newAudit(t *testing.T, c auditConfig) *auditLog {
	t.Helper()
	if c.path == "" {
		c.path = filepath.Join(t.TempDir(), "log", "audit.jsonl")
	}
	l, err := openAudit(c, auditAt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.close() })
	return l
}

// auditLines gives the parsed lines of a log file, "" for none; each must be a whole line of JSON.
func auditLines(t *testing.T, path string) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var lines []map[string]any
	for raw := range strings.Lines(string(data)) {
		line := map[string]any{}
		if err := json.Unmarshal([]byte(raw), &line); err != nil || !strings.HasSuffix(raw, "}\n") {
			t.Fatalf("%q: %v", raw, err)
		}
		lines = append(lines, line)
	}
	return lines
}

// idsOf gives the ids of a log's lines in order.
func idsOf(t *testing.T, path string) []string {
	t.Helper()
	var ids []string
	for _, line := range auditLines(t, path) {
		ids = append(ids, line["id"].(string))
	}
	return ids
}

// wantIDs holds the log at path against the ids that it must have.
func wantIDs(t *testing.T, path string, want ...string) {
	t.Helper()
	if got := idsOf(t, path); !slices.Equal(got, want) {
		t.Errorf("%s has %q, want %q", filepath.Base(path), got, want)
	}
}

func injectedEvent(id string) *event {
	return &event{id: id, start: auditStart, plane: "http", service: "github", client: "172.17.0.2:5", method: "GET", host: "api.github.com", path: "/user", injected: true, decision: decisionInjected, code: 200}
}

func deniedEvent(id, client string) *event {
	return &event{id: id, start: auditStart, plane: "http", client: client, method: "CONNECT", host: "evil.example", decision: decisionDenied, code: 403}
}

func TestAuditLineIsGolden(t *testing.T) {
	status := 7
	zero := 0
	for _, test := range []struct {
		name string
		e    event
		want string
	}{
		{"injected", event{id: "00f1", start: auditStart, plane: "http", service: "github", client: "172.17.0.2:51234", method: "POST", host: "api.github.com", path: "/repos/a/b?access_token=x", injected: true, decision: decisionInjected, code: 201, in: 12, out: 3456},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f1","plane":"http","service":"github","client":"172.17.0.2:51234","method":"POST","host":"api.github.com","path":"/repos/a/b","auth_injected":true,"decision":"injected","response_code":201,"duration_ms":1500,"bytes_in":12,"bytes_out":3456,"error":""}`},
		{"forwarded with a session", event{id: "00f2", start: auditStart, plane: "http", service: "npm", client: "[fd00::2]:1", session: "s-1", method: "GET", host: "registry.example:8443", path: "/left-pad", decision: decisionForwarded, code: 304},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f2","plane":"http","service":"npm","client":"[fd00::2]:1","session":"s-1","method":"GET","host":"registry.example:8443","path":"/left-pad","auth_injected":false,"decision":"forwarded","response_code":304,"duration_ms":1500,"bytes_in":0,"bytes_out":0,"error":""}`},
		{"tunneled, opening", event{id: "00f3", start: auditStart, plane: "http", client: "127.0.0.1:9", method: "CONNECT", host: "example.com:443", decision: decisionTunneled, code: 200, open: true},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f3","plane":"http","service":"","client":"127.0.0.1:9","method":"CONNECT","host":"example.com:443","path":"","auth_injected":false,"decision":"tunneled","response_code":0,"duration_ms":1500,"bytes_in":0,"bytes_out":0,"error":"","open":true}`},
		{"tunneled", event{id: "00f3", start: auditStart, plane: "http", client: "127.0.0.1:9", method: "CONNECT", host: "example.com:443", decision: decisionTunneled, code: 200, in: 1, out: 1 << 40},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f3","plane":"http","service":"","client":"127.0.0.1:9","method":"CONNECT","host":"example.com:443","path":"","auth_injected":false,"decision":"tunneled","response_code":200,"duration_ms":1500,"bytes_in":1,"bytes_out":1099511627776,"error":""}`},
		{"denied", event{id: "00f4", start: auditStart, plane: "kube", service: "prod", context: "prod", verb: "create", resource: "pods/exec", namespace: "dev", client: "127.0.0.1:9", method: "POST", host: "k", path: "/api/v1/x", decision: decisionDenied, code: 403, err: "access: no-credentials"},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f4","plane":"kube","service":"prod","client":"127.0.0.1:9","method":"POST","host":"k","path":"/api/v1/x","auth_injected":false,"decision":"denied","response_code":403,"duration_ms":1500,"bytes_in":0,"bytes_out":0,"error":"access: no-credentials","context":"prod","verb":"create","resource":"pods/exec","namespace":"dev"}`},
		{"failed on talos", event{id: "00f5", start: auditStart, plane: "talos", service: "lab", client: "127.0.0.1:9", method: "POST", host: "10.0.0.2:50000", path: "/machine.MachineService/Version", injected: true, decision: decisionFailed, code: 200, err: "upstream", grpcStatus: &status, nodes: []string{"10.0.0.2", "10.0.0.3"}},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f5","plane":"talos","service":"lab","client":"127.0.0.1:9","method":"POST","host":"10.0.0.2:50000","path":"/machine.MachineService/Version","auth_injected":true,"decision":"failed","response_code":200,"duration_ms":1500,"bytes_in":0,"bytes_out":0,"error":"upstream","grpc_status":7,"nodes":["10.0.0.2","10.0.0.3"]}`},
		{"talos without nodes", event{id: "00f6", start: auditStart, plane: "talos", injected: true, decision: decisionInjected, code: 200, grpcStatus: &zero, open: true},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f6","plane":"talos","service":"","client":"","method":"","host":"","path":"","auth_injected":true,"decision":"injected","response_code":0,"duration_ms":1500,"bytes_in":0,"bytes_out":0,"error":"","grpc_status":0,"nodes":[],"open":true}`},
		{"of the log itself", event{id: "00f7", start: auditStart, decision: decisionFailed, suppressed: 3, dropped: 4, torn: "{\"x\n\xff"},
			`{"timestamp":"2026-03-04T04:06:07.089Z","id":"00f7","plane":"","service":"","client":"","method":"","host":"","path":"","auth_injected":false,"decision":"failed","response_code":0,"duration_ms":1500,"bytes_in":0,"bytes_out":0,"error":"","suppressed":3,"dropped":4,"torn":"{\"x\u000a\\xff"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newAudit(t, auditConfig{})
			l.write(&test.e)
			got, err := os.ReadFile(l.config.path)
			if err != nil || string(got) != test.want+"\n" {
				t.Errorf("got  %swant %s\n%v", got, test.want, err)
			}
		})
	}
}

func TestLoggedPathHasNoQueryAndNoUserinfo(t *testing.T) {
	for target, want := range map[string]string{
		"/a/b?c=d":                      "/a/b",
		"/a?b?c":                        "/a",
		"/a%3Fb":                        "/a%3Fb",
		"/a@b://c":                      "/a@b://c",
		"//u:p@h/a":                     "//u:p@h/a",
		"*":                             "*",
		"":                              "",
		"http://h/a?b":                  "/a",
		"http://u:p@h/a?b":              "/a",
		"http://u:p@h":                  "",
		"http://u:p@h?q":                "",
		"http://u:p?w@h/a":              "",
		"u:p@h:443":                     "h:443",
		"u:p?w@h:443":                   "h:443",
		"u:p@h://x@y":                   "y",
		"h:443":                         "h:443",
		"/proxy/http://x/y?token=z://a": "/proxy/http://x/y",
	} {
		if got := loggedPath(target); got != want {
			t.Errorf("%q gives %q, want %q", target, got, want)
		}
	}
	if got := loggedHost("u:p@x@h:1"); got != "h:1" {
		t.Errorf("host %q", got)
	}
}

func TestLoggedValueIsCutAt1KiBOnARune(t *testing.T) {
	for _, test := range []struct {
		name, in string
		want     int
	}{
		{"short", strings.Repeat("a", 1024), 1024},
		{"long", strings.Repeat("a", 1025), 1024},
		{"a rune across the end", strings.Repeat("a", 1023) + "é", 1023},
		{"a wide rune across the end", strings.Repeat("a", 1021) + "😀", 1021},
		{"a rune up to the end", strings.Repeat("a", 1022) + "éx", 1024},
		{"no rune at all", strings.Repeat("\x80", 2000), 1020},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := cutText(test.in, maxLogged); len(got) != test.want || !strings.HasPrefix(test.in, got) {
				t.Errorf("%d bytes, want %d", len(got), test.want)
			}
		})
	}
}

func TestWhatIsNotPrintableIsEscaped(t *testing.T) {
	for in, want := range map[string]string{
		"a\x1b[31m\r\n\x00\t": `a\u001b[31m\u000d\u000a\u0000\u0009`,
		"\x7f\u0085\u2028":    `\u007f\u0085\u2028`,
		"\u202e\u200b\ufeff":  `\u202e\u200b\ufeff`,
		"\U000e0001":          `\udb40\udc01`,
		"\U0001d173":          `\ud834\udd73`,
		"é😀<>&'\ufffd":        "é😀<>&'\ufffd",
		`"\`:                  `\"\\`,
		"\xff\xc3":            `\\xff\\xc3`,
	} {
		if got := string(appendQuoted(nil, in)); got != `"`+want+`"` {
			t.Errorf("%q gives %s, want %q", in, got, want)
		}
	}
}

// plainText is what a reader finds for a logged value: cut, and with \xff for a byte that is not UTF-8.
func plainText(s string, bound int) string {
	var out strings.Builder
	for used := 0; len(s) > 0; {
		r, n := utf8.DecodeRuneInString(s)
		if used += n; used > bound {
			break
		}
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&out, `\x%02x`, s[0])
		} else {
			out.WriteString(s[:n])
		}
		s = s[n:]
	}
	return out.String()
}

func FuzzAuditLine(f *testing.F) {
	f.Add("172.17.0.2:5", "GET", "h", "/a?b", "x\x1b\xff", int64(1), int64(200), true)
	f.Add("", "\u2028", "u@h", "http://u:p@h/é\u0085", "\U000e0001\"\\", int64(-1), int64(-1), false)
	f.Add("é", "a", "b", "/\x80", "c", int64(1<<62), int64(0), true)
	f.Add("a", strings.Repeat("B", maxMethod)+"\xff", "b", "/", "c", int64(1), int64(0), false)
	f.Add("a", strings.Repeat("B", maxMethod)+"\xff", "b", "/", "c", int64(1), int64(0), true)
	f.Fuzz(func(t *testing.T, client, method, host, path, text string, n, ms int64, flag bool) {
		code := int(int32(n))
		plane, bound, nodes := "kube", maxMethod, 0
		if flag {
			plane, bound, nodes = "talos", maxRPC, 2
		}
		e := &event{
			id: "id", start: time.UnixMilli(ms % 1e13), plane: plane, service: text, client: client, session: text, method: method, host: host, path: path,
			injected: flag, decision: decisionFailed, code: code, in: n, out: -n, err: text, open: flag, grpcStatus: &code, nodes: []string{text, method}, torn: text,
		}
		line := appendEvent([]byte("x"), e, e.start.Add(time.Second))
		if line[0] != 'x' || bytes.IndexByte(line, '\n') != len(line)-1 {
			t.Fatalf("not one line: %q", line)
		}
		for _, r := range string(line[1 : len(line)-1]) {
			if r == utf8.RuneError && !strings.ContainsRune(client+method+host+path+text, '\ufffd') || r != ' ' && !unicode.IsPrint(r) {
				t.Fatalf("%U is raw in %q", r, line)
			}
		}
		got := map[string]any{}
		if err := json.Unmarshal(line[1:], &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		want := map[string]string{
			"timestamp": e.start.UTC().Format("2006-01-02T15:04:05.000Z"), "id": "id", "plane": plane, "service": plainText(text, 1024), "client": plainText(client, 1024),
			"method": plainText(method, bound), "host": plainText(loggedHost(host), 1024), "path": plainText(loggedPath(path), 1024), "decision": "failed", "error": plainText(text, 1024),
		}
		for name, value := range want {
			// A run of bytes that are no text may be cut up to three bytes early.
			limit := maxLogged
			if name == "method" {
				limit = bound
			}
			if s, ok := got[name].(string); !ok || s != value && (utf8.ValidString(value) && len(value) < limit-utf8.UTFMax || !strings.HasPrefix(value, s)) {
				t.Errorf("%s is %q, want %q", name, got[name], value)
			}
		}
		if torn, _ := got["torn"].(string); torn != plainText(text, len(text)) {
			t.Errorf("torn is %q of %q", torn, text)
		}
		if strings.Contains(loggedPath(path), "?") || strings.Contains(loggedHost(host), "@") {
			t.Errorf("%q, %q show too much", loggedPath(path), loggedHost(host))
		}
		if list, _ := got["nodes"].([]any); len(list) != nodes || got["auth_injected"] != flag || got["grpc_status"] != float64(code) {
			t.Errorf("got %v", got)
		}
	})
}

func TestEventIDIs16HexDigits(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newEventID()
		if len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" || seen[id] {
			t.Fatalf("got %q", id)
		}
		seen[id] = true
	}
}

func TestAuditFileIsForTheUserAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "audit.jsonl")
	newAudit(t, auditConfig{path: path})
	wide := filepath.Join(dir, "wide.jsonl")
	okay(t, os.WriteFile(wide, nil, 0o644))
	newAudit(t, auditConfig{path: wide})
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700 | os.ModeDir, wide: 0o600} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestAuditLogIsOpenedOnlyWhereItMayBe(t *testing.T) {
	dir := t.TempDir()
	okay(t, os.WriteFile(filepath.Join(dir, "target"), nil, 0o600))
	okay(t, os.Symlink("target", filepath.Join(dir, "link")))
	okay(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	okay(t, os.Mkdir(filepath.Join(dir, "dir"), 0o700))
	for path, want := range map[string]string{
		"link":     "is a symbolic link: set path in [audit]",
		"pipe":     "is not a regular file",
		"dir":      "is a directory",
		"target/x": "not a directory",
	} {
		path = filepath.Join(dir, path)
		_, err := openAudit(auditConfig{path: path}, auditAt)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("open audit log %q: ", path)) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLogIsAppendedTo(t *testing.T) {
	l := newAudit(t, auditConfig{})
	l.write(injectedEvent("a"))
	okay(t, l.close())
	l = newAudit(t, l.config)
	l.write(injectedEvent("b"))
	wantIDs(t, l.config.path, "a", "b")
	okay(t, l.close())
	okay(t, l.close())
	if err := l.ready(); err != nil {
		t.Errorf("a log that was closed in order: %v", err)
	}
	l.write(injectedEvent("c"))
	if err := l.ready(); !errors.Is(err, errAuditClosed) {
		t.Errorf("after a line too late: %v", err)
	}
}

func TestTornTailIsClosedWhereverItWasTorn(t *testing.T) {
	whole := string(appendEvent(nil, injectedEvent("a"), auditAt()))
	for _, tail := range []string{whole[:1], whole[:60], whole[:len(whole)-1], "\x00\x00\x00", "\xff\x1b", strings.Repeat("x", maxTorn), strings.Repeat("y", 5000)} {
		for _, before := range []string{"", whole, whole + whole} {
			path := filepath.Join(t.TempDir(), "audit.jsonl")
			okay(t, os.WriteFile(path, []byte(before+tail), 0o600))
			l := newAudit(t, auditConfig{path: path})
			okay(t, l.ready())
			l.write(injectedEvent("b"))
			if info, err := os.Stat(path); err != nil || info.Size() != l.file.size {
				t.Errorf("size %d is held to be %d", info.Size(), l.file.size)
			}
			lines := auditLines(t, path)
			n := strings.Count(before, "\n")
			if len(lines) != n+2 || lines[n+1]["id"] != "b" {
				t.Fatalf("%d lines after %.20q", len(lines), tail)
			}
			if got := lines[n]["torn"]; got != plainText(tail, len(tail)) || lines[n]["decision"] != decisionFailed {
				t.Errorf("%.20q became %.20q", tail, got)
			}
			okay(t, l.close())
			newAudit(t, auditConfig{path: path})
			if got := len(auditLines(t, path)); got != n+2 {
				t.Errorf("%d lines after another start", got)
			}
		}
	}
}

func TestLongTailThatIsNoLineOfOursIsLeftAndEnded(t *testing.T) {
	for _, before := range []string{"", "{}\n"} {
		path, tail := filepath.Join(t.TempDir(), "audit.jsonl"), strings.Repeat("z", maxTorn+1)
		okay(t, os.WriteFile(path, []byte(before+tail), 0o600))
		l := newAudit(t, auditConfig{path: path})
		l.write(injectedEvent("b"))
		data, err := os.ReadFile(path)
		okay(t, err)
		if !strings.HasPrefix(string(data), before+tail+"\n{\"timestamp\"") {
			t.Errorf("got %d bytes, %.30q", len(data), data)
		}
	}
}

// failWrites makes the next writes of l's open file write only part of the line (n bytes) and fail.
func failWrites(l *auditLog, n int) {
	file := l.file.file
	l.file.write = func(line []byte) (int, error) {
		written, _ := file.Write(line[:n])
		return written, &os.PathError{Op: "write", Path: file.Name(), Err: syscall.ENOSPC}
	}
}

func TestLineThatCouldNotBeWrittenIsWrittenLater(t *testing.T) {
	for _, part := range []int{0, 1, 30} {
		l := newAudit(t, auditConfig{})
		l.write(injectedEvent("a"))
		failWrites(l, part)
		l.write(injectedEvent("b"))
		wantIDs(t, l.config.path, "a") // and no part of b
		okay(t, l.failing())
		wantIDs(t, l.config.path, "a", "b")
		failWrites(l, part)
		l.write(injectedEvent("c"))
		l.write(injectedEvent("d"))
		wantIDs(t, l.config.path, "a", "b", "c", "d")
		if l.broken.Load() {
			t.Error("a log that was mended is still held to be broken")
		}
	}
}

func TestFullDiskKeepsReadyFromAnyCredential(t *testing.T) {
	l, err := openAudit(auditConfig{path: "/dev/full", maxSize: 1}, auditAt)
	okay(t, err)
	okay(t, l.ready())
	l.write(injectedEvent("a"))
	for range 2 {
		if err := l.ready(); !errors.Is(err, syscall.ENOSPC) || err.Error() != `write audit log "/dev/full": no space left on device` {
			t.Fatalf("ready: %v", err)
		}
	}
	l.write(injectedEvent("b"))
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	okay(t, l.reopen(auditConfig{path: path}))
	okay(t, l.ready())
	wantIDs(t, path, "a", "b")
	okay(t, l.close())
}

func TestLogThatStaysBrokenTellsWhatIsLost(t *testing.T) {
	l, err := openAudit(auditConfig{path: "/dev/full"}, auditAt)
	okay(t, err)
	l.write(injectedEvent("a"))
	l.write(injectedEvent("b"))
	if err := l.close(); err == nil || !strings.Contains(err.Error(), "2 lines are lost") || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("close: %v", err)
	}
}

func TestPendingLinesAreBoundedAndTheLostOnesCounted(t *testing.T) {
	l, err := openAudit(auditConfig{path: "/dev/full"}, auditAt)
	okay(t, err)
	for i := range maxPending + 5 {
		l.write(&event{id: fmt.Sprint(i), start: auditStart, decision: decisionTunneled})
	}
	l.write(injectedEvent("kept"))
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	okay(t, l.reopen(auditConfig{path: path}))
	lines := auditLines(t, path)
	if len(lines) != maxPending+2 || lines[0]["id"] != "0" || lines[maxPending-1]["id"] != fmt.Sprint(maxPending-1) || lines[maxPending]["id"] != "kept" {
		t.Fatalf("%d lines", len(lines))
	}
	if got := lines[maxPending+1]["dropped"]; got != float64(5) {
		t.Errorf("dropped is %v", got)
	}
	l.write(injectedEvent("after"))
	if got := idsOf(t, path); len(got) != maxPending+3 || got[maxPending+2] != "after" {
		t.Errorf("%d lines after it", len(got))
	}
	okay(t, l.close())
}

func TestReopenFollowsLogrotateAndANewPath(t *testing.T) {
	l := newAudit(t, auditConfig{})
	path := l.config.path
	l.write(injectedEvent("a"))
	okay(t, os.Rename(path, path+"-old"))
	l.write(injectedEvent("b"))
	okay(t, l.reopen(l.config))
	l.write(injectedEvent("c"))
	wantIDs(t, path+"-old", "a", "b")
	wantIDs(t, path, "c")
	okay(t, l.reopen(auditConfig{path: path + "-new"}))
	l.write(injectedEvent("d"))
	if err := l.reopen(auditConfig{path: filepath.Dir(path)}); err == nil {
		t.Error("a directory was opened")
	}
	failWrites(l, 3)
	l.write(injectedEvent("e"))
	okay(t, l.ready())
	wantIDs(t, path, "c")
	wantIDs(t, path+"-new", "d", "e")
}

func TestTruncatedLogIsWrittenFromItsStart(t *testing.T) {
	l := newAudit(t, auditConfig{})
	l.write(injectedEvent("a"))
	okay(t, os.Truncate(l.config.path, 0))
	l.write(injectedEvent("b"))
	wantIDs(t, l.config.path, "b")
}

func TestLogIsRotatedAtItsSize(t *testing.T) {
	size := int64(len(appendEvent(nil, injectedEvent("0"), auditAt())))
	for _, test := range []struct {
		name    string
		maxSize int64
		keep    int
		want    []string // ids in audit.jsonl, .1, .2 …
	}{
		{"never", 0, 5, []string{"012345678"}},
		{"three lines fit exactly", 3 * size, 5, []string{"678", "345", "012"}},
		{"one byte less", 3*size - 1, 5, []string{"8", "67", "45", "23", "01"}},
		{"smaller than a line", 1, 2, []string{"8", "7", "6"}},
		{"smaller than a line, all kept", 1, 9, []string{"8", "7", "6", "5", "4", "3", "2", "1", "0"}},
		{"keep 1", 3 * size, 1, []string{"678", "345"}},
		{"keep 0", 4 * size, 0, []string{"8"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newAudit(t, auditConfig{maxSize: test.maxSize, keep: test.keep})
			for i := range 9 {
				l.write(injectedEvent(fmt.Sprint(i)))
			}
			okay(t, l.ready())
			path := l.config.path
			for i, want := range test.want {
				wantIDs(t, path, strings.Split(want, "")...)
				path = fmt.Sprintf("%s.%d", l.config.path, i+1)
			}
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		})
	}
}

func TestSizeOfAnOlderLogCountsAndFewerAreKept(t *testing.T) {
	l := newAudit(t, auditConfig{maxSize: 1, keep: 4})
	for i := range 5 {
		l.write(injectedEvent(fmt.Sprint(i)))
	}
	okay(t, l.close())
	c := l.config
	c.keep = 2
	l = newAudit(t, c)
	l.write(injectedEvent("5"))
	wantIDs(t, c.path, "5")
	wantIDs(t, c.path+".1", "4")
	wantIDs(t, c.path+".2", "3")
	if left, _ := filepath.Glob(c.path + ".*"); len(left) != 2 {
		t.Errorf("left are %q", left)
	}
}

func TestRotationThatFailsLosesNothing(t *testing.T) {
	l := newAudit(t, auditConfig{maxSize: 1, keep: 3})
	path := l.config.path
	l.write(injectedEvent("a"))
	l.write(injectedEvent("b"))
	// The first free number is taken by a directory that is not empty: no file can be renamed to it.
	okay(t, os.Remove(path+".1"))
	okay(t, os.MkdirAll(path+".3/x", 0o700))
	okay(t, os.WriteFile(path+".2", []byte("{\"id\":\"y\"}\n"), 0o600))
	okay(t, os.WriteFile(path+".1", []byte("{\"id\":\"z\"}\n"), 0o600))
	l.write(injectedEvent("c"))
	for range 2 {
		if err := l.ready(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("write audit log %q: rotate: ", path)) {
			t.Fatalf("ready: %v", err)
		}
	}
	wantIDs(t, path, "b")
	wantIDs(t, path+".1", "z")
	wantIDs(t, path+".2", "y")
	okay(t, os.RemoveAll(path+".3"))
	okay(t, l.ready())
	wantIDs(t, path, "c")
	wantIDs(t, path+".1", "b")
	wantIDs(t, path+".3", "y")
}

func TestNoLineIsLostOrTornWhenManyWriteAndTheLogRotates(t *testing.T) {
	l := newAudit(t, auditConfig{maxSize: 64 << 10, keep: 1000})
	const writers, each = 16, 1000
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for i := range each {
				l.write(injectedEvent(fmt.Sprintf("%d-%d", w, i)))
			}
		})
	}
	for range 10 {
		okay(t, l.reopen(l.config))
	}
	group.Wait()
	okay(t, l.close())
	files, err := filepath.Glob(l.config.path + "*")
	okay(t, err)
	seen := map[string]int{}
	for _, file := range files {
		if info, err := os.Stat(file); err != nil || info.Size() > 64<<10 {
			t.Errorf("%s: %v, %v", file, info, err)
		}
		for _, id := range idsOf(t, file) {
			seen[id]++
		}
	}
	if len(seen) != writers*each || len(files) < 10 {
		t.Errorf("%d ids in %d files", len(seen), len(files))
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("%s is there %d times", id, n)
		}
	}
}

// auditIn opens a log on the clock of a synctest bubble.
func auditIn(t *testing.T) *auditLog {
	t.Helper()
	l, err := openAudit(auditConfig{path: filepath.Join(t.TempDir(), "audit.jsonl")}, time.Now)
	okay(t, err)
	return l
}

// refusedClients gives how many clients l counts refusals of.
func refusedClients(l *auditLog) int {
	l.refusals.mu.Lock()
	defer l.refusals.mu.Unlock()
	return len(l.refusals.clients)
}

// pass lets d pass in a synctest bubble, and what is due then happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestRefusalsOfAClientAreBoundedPerSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := auditIn(t)
		path, began := l.config.path, time.Now()
		for i := range 50 { // ports do not tell clients apart, nor do the two forms of an address
			l.write(deniedEvent("a", fmt.Sprintf("172.17.0.2:%d", 1000+i)))
			l.write(deniedEvent("a", fmt.Sprintf("[::ffff:172.17.0.2]:%d", 1000+i)))
		}
		failed := deniedEvent("f", "172.17.0.2:1")
		failed.decision = decisionFailed
		l.write(failed)
		l.write(deniedEvent("b", "172.17.0.3:1"))
		if got := len(auditLines(t, path)); got != 21 {
			t.Errorf("%d lines in the first second, want 20 and one of another client", got)
		}
		pass(999 * time.Millisecond)
		l.write(deniedEvent("late", "172.17.0.2:1"))
		if got := len(auditLines(t, path)); got != 21 {
			t.Errorf("%d lines at its end", got)
		}
		pass(time.Millisecond)
		lines := auditLines(t, path)
		if len(lines) != 22 {
			t.Fatalf("%d lines after it, want one more", len(lines))
		}
		last := lines[21]
		if last["suppressed"] != float64(82) || last["client"] != "172.17.0.2" || last["decision"] != decisionDenied || last["plane"] != "http" ||
			last["auth_injected"] != false || last["timestamp"] != began.UTC().Format("2006-01-02T15:04:05.000Z") || last["duration_ms"] != float64(1000) {
			t.Errorf("got %v", last)
		}
		for range 21 {
			l.write(deniedEvent("c", "172.17.0.2:1"))
		}
		if got := len(auditLines(t, path)); got != 42 {
			t.Errorf("%d lines in the next second", got)
		}
		pass(time.Hour)
		if got := len(auditLines(t, path)); got != 43 || refusedClients(l) != 0 {
			t.Errorf("%d lines at the end, %d clients remembered", got, refusedClients(l))
		}
		okay(t, l.close())
	})
}

func TestOnlyRefusalsAreSuppressed(t *testing.T) {
	injectedAndFailed := injectedEvent("x")
	injectedAndFailed.decision = decisionFailed
	forwarded := deniedEvent("x", "172.17.0.2:1")
	forwarded.decision = decisionForwarded
	tunneled := deniedEvent("x", "172.17.0.2:1")
	tunneled.decision = decisionTunneled
	sentAndFailed := deniedEvent("x", "172.17.0.2:1")
	sentAndFailed.decision, sentAndFailed.sent = decisionFailed, true
	for _, e := range []*event{injectedEvent("x"), injectedAndFailed, forwarded, tunneled, sentAndFailed} {
		l := newAudit(t, auditConfig{})
		for range 30 {
			l.write(e)
		}
		if got := len(auditLines(t, l.config.path)); got != 30 {
			t.Errorf("%d lines of %s", got, e.decision)
		}
	}
}

func TestClosingLineFollowsItsOpeningLineWhateverTheClientDoes(t *testing.T) {
	l := newAudit(t, auditConfig{})
	opening := deniedEvent("tunnel", "172.17.0.2:1")
	opening.decision, opening.open = decisionTunneled, true
	l.write(opening)
	for range 30 {
		l.write(deniedEvent("x", "172.17.0.2:1"))
	}
	closing := *opening
	closing.decision, closing.open = decisionFailed, false
	l.write(&closing)
	l.write(&closing) // another of that id is a refusal like any
	ids := idsOf(t, l.config.path)
	if len(ids) != 22 || ids[21] != "tunnel" || len(l.refusals.opened) != 0 {
		t.Errorf("got %q", ids)
	}
}

func TestCloseTellsWhatWasSuppressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := auditIn(t)
		for range 25 {
			l.write(deniedEvent("x", "172.17.0.2:1"))
		}
		okay(t, l.close())
		lines := auditLines(t, l.config.path)
		if len(lines) != 21 || lines[20]["suppressed"] != float64(5) {
			t.Errorf("%d lines, the last is %v", len(lines), lines[len(lines)-1])
		}
		pass(time.Hour)
		if got := len(auditLines(t, l.config.path)); got != 21 {
			t.Errorf("%d lines later", got)
		}
	})
}

func TestClientsThatAreCountedApartAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := auditIn(t)
		for i := range maxRefusedClients + 100 {
			l.write(deniedEvent("x", fmt.Sprintf("[fd00::%x]:1", i+1)))
		}
		l.write(deniedEvent("x", "no address"))
		if got := refusedClients(l); got != maxRefusedClients+1 {
			t.Errorf("%d clients", got)
		}
		pass(time.Second)
		lines := auditLines(t, l.config.path)
		last := lines[len(lines)-1]
		if len(lines) != maxRefusedClients+20+1 || last["suppressed"] != float64(81) || last["client"] != "other clients" {
			t.Errorf("%d lines, the last is %v", len(lines), last)
		}
		okay(t, l.close())
	})
}
