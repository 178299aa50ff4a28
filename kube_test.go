package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testKube is a whole kube plane in process, before an origin that stands for the API server of each context.
type testKube struct {
	*kubePlane
	addr   string // of its listener, "127.0.0.1:40123"
	file   string // the kubeconfig
	audit  string // path of the log
	origin *testOrigin
	log    *logBuffer
}

// newTestKube serves the contexts prod (the current one), dev and "arn:x/y" of a kubeconfig whose users have the tokens canary-NAME.
func newTestKube(t testing.TB, handler http.HandlerFunc, config kubePlaneConfig) *testKube {
	t.Helper()
	dir := t.TempDir()
	p := &testKube{file: filepath.Join(dir, "config"), audit: filepath.Join(dir, "audit.jsonl"), origin: newOrigin(t, handler), log: &logBuffer{}}
	p.writeConfig(t, "prod", "prod", "dev", "arn:x/y")
	audit, err := openAudit(auditConfig{path: p.audit}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	config.kubeconfig = p.file
	p.kubePlane = openKubePlane(kubePlaneOptions{
		config: config, audit: audit, log: slog.New(slog.NewTextHandler(p.log, nil)),
		source: kubeSource{getenv: func(string) string { return "" }, log: slog.New(slog.DiscardHandler)},
		local:  func(host string) bool { return strings.HasPrefix(host, "127.0.0.1") },
	})
	p.listen(t)
	t.Cleanup(func() { audit.close() })
	return p
}

// listen serves the plane until the test ends.
func (p *testKube) listen(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- p.serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		p.shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
}

// writeConfig writes the kubeconfig anew, with a context for each name.
func (p *testKube) writeConfig(t testing.TB, current string, names ...string) {
	t.Helper()
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.origin.root.Raw}))
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Config\ncurrent-context: %q\nclusters:\n", current)
	for _, name := range names {
		prefix := ""
		if name == "dev" {
			prefix = "/k8s/clusters/c-1"
		}
		fmt.Fprintf(&b, "- name: %q\n  cluster: {server: \"https://%s%s\", tls-server-name: kube.test, certificate-authority-data: %s}\n", name, p.origin.addr, prefix, ca)
	}
	b.WriteString("users:\n")
	for _, name := range names {
		fmt.Fprintf(&b, "- name: %q\n  user: {token: %q}\n", name, "canary-"+name)
	}
	b.WriteString("contexts:\n")
	for _, name := range names {
		fmt.Fprintf(&b, "- name: %q\n  context: {cluster: %q, user: %q, namespace: ns-of-%s}\n", name, name, name, name[:3])
	}
	if err := os.WriteFile(p.file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask sends a request as it stands on a connection of its own and gives the answer. A Host field is added where there is none.
func (p *testKube) ask(t testing.TB, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return p.askOn(t, conn, request)
}

func (p *testKube) askOn(t testing.TB, conn net.Conn, request string) (*http.Response, string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(conn, withHost(request, p.addr))
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("answer to %.60q: %v", request, err)
	}
	content := ""
	if res.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("content of the answer to %.60q: %v", request, err)
		}
		content = string(b)
	}
	return res, content
}

// withHost makes "GET /x" and field lines a whole request.
func withHost(request, host string) string {
	line, rest, _ := strings.Cut(request, "\r\n")
	head, body, hasBody := strings.Cut("\r\n"+rest, "\r\n\r\n")
	head = strings.TrimPrefix(head, "\r\n")
	if !strings.Contains("\r\n"+head, "\r\nHost:") {
		head = "Host: " + host + "\r\n" + head
	}
	head = strings.TrimRight(head, "\r\n")
	if hasBody && !strings.Contains(head, "Transfer-Encoding") {
		head += fmt.Sprintf("\r\nContent-Length: %d", len(body))
	}
	return line + " HTTP/1.1\r\n" + head + "\r\n\r\n" + body
}

// status reads a refusal.
func status(t testing.TB, content string) kubeStatus {
	t.Helper()
	var s kubeStatus
	if err := json.Unmarshal([]byte(content), &s); err != nil || s.Kind != "Status" || s.APIVersion != "v1" || s.Status != "Failure" {
		t.Fatalf("%q is no Status: %v", content, err)
	}
	return s
}

// kubeLine is an audit line of the kube plane.
type kubeLine struct {
	auditLine
	Context, Verb, Resource, Namespace string
}

// lines gives the audit log.
func (p *testKube) lines(t testing.TB) (lines []kubeLine) {
	t.Helper()
	b, err := os.ReadFile(p.audit)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		lines = append(lines, readKubeLine(t, line))
	}
	return lines
}

// lastLine gives the last line of the audit log.
func (p *testKube) lastLine(t testing.TB) kubeLine {
	t.Helper()
	b, err := os.ReadFile(p.audit)
	if err != nil || len(b) == 0 {
		t.Fatalf("the audit log is empty: %v", err)
	}
	return readKubeLine(t, string(b[bytes.LastIndexByte(b[:len(b)-1], '\n')+1:]))
}

func readKubeLine(t testing.TB, line string) (l kubeLine) {
	t.Helper()
	if err := json.Unmarshal([]byte(line), &l); err != nil {
		t.Fatalf("audit line %q: %v", line, err)
	}
	return l
}

// forgive lets the next refusals have their audit lines, however many there have been.
func (p *testKube) forgive() {
	r := p.kubePlane.audit.refusals
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.clients)
}

// kubeEcho answers with the request line and what authenticates the request.
func kubeEcho(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s auth=%q", r.Method, r.RequestURI, r.Header["Authorization"])
}

func TestEachContextIsServedUnderItsPathWithItsOwnCredential(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{})
	for _, c := range []struct{ target, want string }{
		{"/version", `GET /version auth=["Bearer canary-prod"]`},
		{"/contexts/prod/version", `GET /version auth=["Bearer canary-prod"]`},
		{"/contexts/dev/version", `GET /k8s/clusters/c-1/version auth=["Bearer canary-dev"]`},
		{"/contexts/dev", `GET /k8s/clusters/c-1/ auth=["Bearer canary-dev"]`},
		{"/contexts/dev?x=%2B;y&z", `GET /k8s/clusters/c-1/?x=%2B;y&z auth=["Bearer canary-dev"]`},
		{"/contexts/" + kubeSlug("arn:x/y") + "/api", `GET /api auth=["Bearer canary-arn:x/y"]`},
		{"/contexts/%70rod/api", `GET /api auth=["Bearer canary-prod"]`},
		{`/api/v1/pods?q=%2B&x=;y&z="|&&`, `GET /api/v1/pods?q=%2B&x=;y&z="|&& auth=["Bearer canary-prod"]`},
		{"/api/v1/namespaces/a/services/b/proxy/x%2Fy//z/%7e?", `GET /api/v1/namespaces/a/services/b/proxy/x%2Fy//z/%7e? auth=["Bearer canary-prod"]`},
		{"/%61pi/v1/pods", `GET /%61pi/v1/pods auth=["Bearer canary-prod"]`},
	} {
		if res, content := p.ask(t, "GET "+c.target); res.StatusCode != 200 || content != c.want {
			t.Errorf("%s: %d %s, want %s", c.target, res.StatusCode, content, c.want)
		}
	}
	for _, target := range []string{"/contexts/other/api", "/contexts/", "/contexts/arn:x/y/api", "/contexts/..%2Fprod/api"} {
		res, content := p.ask(t, "GET "+target)
		if s := status(t, content); res.StatusCode != 404 || s.Reason != "NotFound" {
			t.Errorf("%s: %d %+v", target, res.StatusCode, s)
		}
	}
}

func TestWhoArrivesIsTheHostWhateverTheClientSends(t *testing.T) {
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {}, kubePlaneConfig{access: accessFull})
	hostile := "Authorization: Bearer evil\r\nCookie: a=b\r\nProxy-Authorization: evil\r\nX-Remote-User: evil\r\nX-Remote-Group: system:masters\r\n" +
		"X-Remote-Extra-a: evil\r\nX-Forwarded-For: 6.6.6.6\r\nX_Forwarded_For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nAudit-ID: evil\r\nX_Remote_User: evil\r\n" +
		"Connection: Authorization, X-Keep, Impersonate-User\r\nX-Keep: named by Connection\r\nX-Stays: yes"
	res, content := p.ask(t, "GET /api\r\n"+hostile)
	if res.StatusCode != 200 {
		t.Fatalf("%d %s", res.StatusCode, content)
	}
	got := p.origin.take()[0]
	got.Header.Del("User-Agent")
	if len(got.Header) != 2 || got.Header.Get("Authorization") != "Bearer canary-prod" || got.Header.Get("X-Stays") != "yes" || got.Host != p.origin.addr {
		t.Errorf("host %q, header %v", got.Host, got.Header)
	}
	p.ask(t, "GET /api\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: a, base64url.bearer.authorization.k8s.io.ZXZpbA, b\r\nSec-WebSocket-Protocol: Base64url.bearer.authorization.k8s.io.ZXZpbA")
	if got := p.origin.take()[0].Header["Sec-Websocket-Protocol"]; len(got) != 1 || got[0] != "a, b" {
		t.Errorf("subprotocols %q", got)
	}
	p.ask(t, "POST /api\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization, X-Remote-User\r\n\r\n1\r\nx\r\n0\r\nAuthorization: Bearer evil\r\nX-Remote-User: evil\r\n\r\n")
	if got := p.origin.take()[0]; got.content != "x" || len(got.Trailer) != 0 || got.Header.Get("Authorization") != "Bearer canary-prod" {
		t.Errorf("content %q, trailer %v", got.content, got.Trailer)
	}
}

func TestDoorRefusesWhatIsNoRequestOfAContainer(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{access: accessFull})
	for _, c := range []struct {
		name, request string
		code          int
		cause         string
	}{
		{"DNS rebinding", "GET /api\r\nHost: evil.example:18081", 403, "door: host"},
		{"a name that only begins like ours", "GET /api\r\nHost: localhost.evil.example", 403, "door: host"},
		{"docker's name", "GET /api\r\nHost: host.docker.internal:18081", 200, ""},
		{"its name in upper case", "GET /api\r\nHost: HOST.docker.internal", 200, ""},
		{"podman's name", "GET /api\r\nHost: host.containers.internal:1", 200, ""},
		{"500 fields and more", "GET /api" + strings.Repeat("\r\nx: ", 501), 431, "door: header"},
		{"ten thousand parameters", "GET /api/v1/pods?watch=1" + strings.Repeat("&", 10_000), 400, "door: target"},
		{"cross-site page", "GET /api\r\nOrigin: https://evil.example", 403, "door: cross-site"},
		{"sandboxed page", "GET /api\r\nOrigin: null", 403, "door: cross-site"},
		{"another port", "GET /api\r\nOrigin: http://127.0.0.1:1", 403, "door: cross-site"},
		{"two origins", "GET /api\r\nOrigin: http://ADDR\r\nOrigin: https://evil.example", 403, "door: cross-site"},
		{"same origin", "GET /api\r\nOrigin: http://ADDR", 200, ""},
		{"cross-site fetch", "GET /api\r\nSec-Fetch-Site: cross-site", 403, "door: cross-site"},
		{"same-site fetch", "GET /api\r\nSec-Fetch-Site: same-site", 403, "door: cross-site"},
		{"same-origin fetch", "GET /api\r\nSec-Fetch-Site: same-origin", 200, ""},
		{"a browser that does not say", "GET /api\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)", 403, "door: cross-site"},
		{"a browser that says none", "GET /api\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nSec-Fetch-Site: none", 200, ""},
		{"cross-site WebSocket", "GET /api/v1/secrets?watch=1\r\nOrigin: https://evil.example\r\nConnection: Upgrade\r\nUpgrade: websocket", 403, "door: cross-site"},
		{"absolute-form", "GET http://ADDR/api", 400, "door: target"},
		{"CONNECT", "CONNECT kubernetes:443", 403, "door: host"},
		{"CONNECT to ourselves", "CONNECT ADDR", 400, "door: target"},
		{"asterisk-form", "OPTIONS *", 400, "door: target"},
		{"fragment", "GET /api#x", 400, "door: target"},
		{"dot segments", "GET /api/../x", 400, "door: ambiguous path"},
		{"escaped dot segments", "GET /api/%2e%2e/x", 400, "door: ambiguous path"},
		{"dot segments by escaped slashes", "GET /api/..%2fx", 400, "door: ambiguous path"},
		{"dot segments by backslash", "GET /api/..%5cx", 400, "door: ambiguous path"},
		{"empty segment", "GET /api//v1", 400, "door: ambiguous path"},
		{"empty first segment", "GET //api/v1", 400, "door: ambiguous path"},
		{"empty first segment of a context", "GET /contexts/prod//api", 400, "door: ambiguous path"},
		{"escaped twice", "GET /api/%252e%252e/x", 400, "door: ambiguous path"},
		{"NUL", "GET /api/v1/pods%00", 400, "door: ambiguous path"},
		{"trailing slash", "GET /api/v1/pods/", 200, ""},
		{"a namespace called proxy", "GET /api/v1/namespaces/proxy//pods", 400, "door: ambiguous path"},
		{"empty segment behind proxy", "GET /api/v1/namespaces/a/pods/b/proxy//x", 200, ""},
		{"dot segments that stay behind proxy", "GET /api/v1/namespaces/a/pods/b/proxy/x/../y", 200, ""},
		{"dot segments that lead out of proxy", "GET /api/v1/namespaces/a/pods/b/proxy/x/../../y", 400, "door: ambiguous path"},
		{"empty segments that hide it", "GET /api/v1/namespaces/a/pods/b/proxy/x//../../y", 400, "door: ambiguous path"},
		{"a malformed escape that hides it", "GET /api/v1/namespaces/a/pods/b/proxy/%25zz/../../y", 400, "door: ambiguous path"},
		{"escaped twice behind proxy", "GET /api/v1/namespaces/a/pods/b/proxy/%252e%252e/y", 400, "door: ambiguous path"},
		{"a question mark", "GET /api/v1/namespaces/dev/secrets%3Fx=", 400, "door: ambiguous path"},
		{"a number sign", "GET /api/v1/namespaces/dev/secrets%23", 400, "door: ambiguous path"},
		{"path parameters", "GET /api/v1/namespaces/dev/secrets;x=y/a", 400, "door: ambiguous path"},
		{"a space in a resource", "GET /api/v1/namespaces/dev/secrets%20HTTP", 400, "door: ambiguous path"},
		{"a space in a name", "GET /apis/user.openshift.io/v1/groups/Domain%20Admins", 200, ""},
		{"a line end", "GET /api/v1/namespaces/dev/pods%0d%0aX:", 400, "door: ambiguous path"},
		{"DEL", "GET /api/v1/namespaces/dev/pods%7f", 400, "door: ambiguous path"},
		{"overlong UTF-8", "GET /api/v1/namespaces/dev%c0%afsecrets", 400, "door: ambiguous path"},
		{"anything in a path behind proxy", "GET /api/v1/namespaces/a/pods/b/proxy/x%3Fy%23;z%20%0a%25", 200, ""},
		{"dot segments with parameters", "GET /api/v1/namespaces/a/pods/b/proxy/..;a/y", 400, "door: ambiguous path"},
		{"escaped twice beside a malformed escape", "GET /api/v1/namespaces/a/pods/b/proxy/%25zz/%252e%252E/%252e%252e/y", 400, "door: ambiguous path"},
		{"slash and backslash escaped twice", "GET /api/v1/namespaces/a/pods/b/proxy/x%252f..%255C..%252Fy", 400, "door: ambiguous path"},
		{"impersonation", "GET /api\r\nImpersonate-User: admin", 403, "door: impersonation"},
		{"impersonation by underscores", "GET /api\r\nimpersonate_user: admin", 403, "door: impersonation"},
		{"impersonation of a group alone", "GET /api\r\nImpersonate-Extra-x: admin", 403, "door: impersonation"},
		{"TRACE", "TRACE /version", 403, "door: TRACE"},
		{"TRACE by its other name", "TRACK /version", 403, "door: TRACE"},
		{"a method that some servers read in capitals", "post /api/v1/namespaces/a/secrets", 400, "door: method"},
		{"TRACE so", "tRACE /version", 400, "door: method"},
		{"h2c", "GET /api\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA", 400, "door: upgrade"},
		{"two upgrades", "GET /api\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c", 400, "door: upgrade"},
		{"upgrade with content", "POST /api\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nx", 400, "door: upgrade"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.forgive()
			res, content := p.ask(t, strings.ReplaceAll(c.request, "ADDR", p.addr))
			l := p.lastLine(t)
			if res.StatusCode != c.code || l.Code != c.code || l.Error != c.cause {
				t.Fatalf("%d %s, audit %+v", res.StatusCode, content, l)
			}
			if reached := len(p.origin.take()); (reached == 1) != (c.code == 200) {
				t.Errorf("%d requests reached the API server", reached)
			}
			if c.code == 200 {
				return
			}
			s := status(t, content)
			if s.Code != c.code || !strings.HasPrefix(s.Message, "muxproxy: ") || !strings.HasSuffix(s.Message, "(audit id "+l.ID+")") || l.Decision != "denied" || l.Injected {
				t.Errorf("status %+v, audit %+v", s, l)
			}
		})
	}
}

func TestAnswersAreCleanedAndRedirectsLeadBack(t *testing.T) {
	location := ""
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Set-Cookie", "session=canary")
		h.Set("Alt-Svc", `h3=":443"`)
		h.Set("Warning", "299 - \"deprecated\"")
		h["Date"], h["Content-Type"] = nil, nil
		if location != "" {
			h["Location"] = []string{location}
			w.WriteHeader(301)
		}
		io.WriteString(w, "<html>")
	}, kubePlaneConfig{})
	res, _ := p.ask(t, "GET /api")
	res.Header.Del("Content-Length")
	if len(res.Header) != 1 || res.Header.Get("Warning") == "" {
		t.Errorf("header %v", res.Header)
	}
	for _, c := range []struct{ target, location, want string }{
		{"/api", "/api/v1/x/", "/api/v1/x/"},
		{"/contexts/prod/api", "/api/v1/x/", "/contexts/prod/api/v1/x/"},
		{"/contexts/dev/api", "/api/v1/x/?y", "/contexts/dev/api/v1/x/?y"},
		{"/contexts/dev/api", "/k8s/clusters/c-1/api/", "/contexts/dev/api/"},
		{"/contexts/dev/api", "/k8s/clusters/c-12/api/", "/contexts/dev/k8s/clusters/c-12/api/"},
		{"/contexts/prod/api", "https://ORIGIN/api/?a=b", "/contexts/prod/api/?a=b"},
		{"/contexts/dev/api", "https://ORIGIN/k8s/clusters/c-1/api/", "/contexts/dev/api/"},
		{"/api", "https://ORIGIN", "/"},
		{"/api", "https://evil.example/api", ""},
		{"/api", "//evil.example/api", ""},
		{"/api", "https://ORIGIN//evil.example/api", ""},
		{"/contexts/dev/api", "https://ORIGIN/k8s/clusters/c-1//evil.example/api", ""},
		{"/api", "mailto:a@b", ""},
		{"/api", "x/y", "x/y"},
	} {
		location = strings.ReplaceAll(c.location, "ORIGIN", p.origin.addr)
		if res, _ := p.ask(t, "GET "+c.target); res.StatusCode != 301 || res.Header.Get("Location") != c.want {
			t.Errorf("%s: Location %q became %q, want %q", c.target, location, res.Header.Get("Location"), c.want)
		}
	}
}

func TestAuditLineOfARequestIsWrittenBeforeItsLastByte(t *testing.T) {
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.URL.Query().Has("chunked") {
			w.(http.Flusher).Flush()
		}
		if r.Method != "DELETE" {
			io.WriteString(w, "12345")
		}
	}, kubePlaneConfig{})
	for _, c := range []struct {
		request string
		want    kubeLine
	}{
		{"GET /contexts/prod/api/v1/namespaces/a/pods/b/log?x=canary", kubeLine{auditLine{Path: "/api/v1/namespaces/a/pods/b/log", Out: 5}, "prod", "get", "pods/log", "a"}},
		{"GET /contexts/dev/apis/apps/v1/deployments?chunked", kubeLine{auditLine{Path: "/apis/apps/v1/deployments", Out: 5}, "dev", "list", "deployments.apps", ""}},
		{"POST /api/v1/namespaces/a/pods\r\n\r\n123", kubeLine{auditLine{Path: "/api/v1/namespaces/a/pods", In: 3, Out: 5}, "prod", "create", "pods", "a"}},
		{"DELETE /api/v1/namespaces/a/pods/x", kubeLine{auditLine{Path: "/api/v1/namespaces/a/pods/x"}, "prod", "delete", "pods", "a"}},
		{"HEAD /version", kubeLine{auditLine{Path: "/version"}, "prod", "head", "", ""}},
	} {
		res, content := p.ask(t, c.request)
		l := p.lastLine(t) // at once: who has the whole answer has its line
		if res.StatusCode != 200 || int64(len(content)) != c.want.Out {
			t.Fatalf("%s: %d %q", c.request, res.StatusCode, content)
		}
		want := c.want
		want.ID, want.Client, want.Service, want.Host = l.ID, l.Client, want.Context, p.origin.addr
		want.Method, _, _ = strings.Cut(c.request, " ")
		want.Injected, want.Decision, want.Code = true, "injected", 200
		if l != want {
			t.Errorf("got  %+v\nwant %+v", l, want)
		}
	}
}

func TestAuditLineDoesNotWaitForTheEndOfAWholeAnswer(t *testing.T) {
	p := newTestKube(t, echo, kubePlaneConfig{})
	x := &kubeExchange{k: p.kubePlane, ctx: t.Context()}
	x.answer.ReadCloser, x.answer.x, x.answer.left = io.NopCloser(strings.NewReader("12345")), x, 5
	for _, audited := range []bool{false, true} { // this reader tells its end by one Read more
		if n, err := x.answer.Read(make([]byte, 3)); n == 0 || err != nil || x.audited != audited {
			t.Errorf("read %d, %v, audited %t", n, err, x.audited)
		}
	}
}

func TestWithoutAnAuditLogNoCredentialIsUsed(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{})
	p.kubePlane.audit.reopen(auditConfig{path: "/dev/full", maxSize: 1})
	p.kubePlane.audit.write(&event{id: "x"})
	res, content := p.ask(t, "GET /api")
	if res.StatusCode != 502 || len(p.origin.take()) != 0 {
		t.Fatalf("%d %s", res.StatusCode, content)
	}
	if s := status(t, content); s.Reason != "BadGateway" || !strings.Contains(s.Message, "audit log") {
		t.Errorf("%+v", s)
	}
}

func TestAPIServerThatIsGoneIsTold(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{})
	p.origin.Close()
	res, content := p.ask(t, "GET /api")
	l := p.lastLine(t)
	if s := status(t, content); res.StatusCode != 502 || s.Reason != "BadGateway" || l.Decision != "failed" || l.Error != "connect" || l.Injected != true {
		t.Errorf("%+v, audit %+v", s, l)
	}
	if p.log.count("connection refused") != 1 {
		t.Errorf("the operator is told %q", p.log.b.String())
	}
}

func TestWatchIsHandedOnEventByEventAndHasAnOpeningLine(t *testing.T) {
	events, left := make(chan string), make(chan struct{})
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for {
			select {
			case e := <-events:
				io.WriteString(w, e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				close(left)
				return
			}
		}
	}, kubePlaneConfig{})
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, withHost("GET /api/v1/pods?watch=1", p.addr))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	l := p.lastLine(t)
	if !l.Open || l.Verb != "watch" || l.Code != 0 {
		t.Errorf("opening line %+v", l)
	}
	for i := range 3 {
		e := fmt.Sprintf("event %d\n", i)
		events <- e
		b := make([]byte, 100)
		if n, err := res.Body.Read(b); string(b[:n]) != e {
			t.Fatalf("got %q, %v", b[:n], err)
		}
	}
	conn.Close()
	<-left // the API server sees it too
	p.live.Wait()
	closing := p.lastLine(t)
	if closing.Open || closing.ID != l.ID || closing.Out != 24 || closing.Code != 200 || closing.Error != "client left" {
		t.Errorf("closing line %+v", closing)
	}
}

// upgradeEcho agrees to any upgrade and sends back what it gets, after a greeting that comes with the answer.
func upgradeEcho(w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSet-Cookie: canary=1\r\n\r\nhello ", r.Header.Get("Upgrade"))
	rw.Flush()
	io.Copy(conn, rw)
	io.WriteString(conn, " bye")
}

func TestOnlyAFollowedLogHasAnOpeningLine(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{})
	for query, want := range map[string]int{"": 1, "?follow=false": 1, "?follow=0": 1, "?tailLines=1&container=follow": 1, "?follow=true": 2, "?follow": 2, "?%66ollow=1": 2} {
		before := len(p.lines(t))
		p.ask(t, "GET "+ns+"/pods/a/log"+query)
		if got := len(p.lines(t)) - before; got != want {
			t.Errorf("%q: %d lines, want %d", query, got, want)
		}
	}
}

func TestUpgradesAreStreamsWithHalfClose(t *testing.T) {
	p := newTestKube(t, upgradeEcho, kubePlaneConfig{})
	for _, c := range []struct{ method, protocol string }{{"GET", "websocket"}, {"POST", "SPDY/3.1"}} {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// What is sent early arrives too.
		io.WriteString(conn, withHost(c.method+" /contexts/dev/api/v1/namespaces/a/pods/b/exec?command=canary\r\nConnection: Upgrade\r\nUpgrade: "+c.protocol, p.addr)+"early ")
		br := bufio.NewReader(conn)
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != c.protocol || res.Header.Get("Set-Cookie") != "" {
			t.Fatalf("%v %v", res, err)
		}
		l := p.lastLine(t)
		if !l.Open || l.Resource != "pods/exec" || l.Context != "dev" {
			t.Errorf("opening line %+v", l)
		}
		io.WriteString(conn, "late")
		conn.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(br); string(got) != "hello early late bye" || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
		p.live.Wait()
		if closing := p.lastLine(t); closing.Open || closing.ID != l.ID || closing.Code != 101 || closing.In != 10 || closing.Out != 20 || closing.Error != "" {
			t.Errorf("closing line %+v", closing)
		}
	}
}

func TestRefusedExecThatIsTriedTwiceHasOneID(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{access: accessReadOnly})
	exec := " /api/v1/namespaces/a/pods/b/exec?command=x\r\nConnection: Upgrade\r\nUpgrade: "
	p.ask(t, "GET"+exec+"websocket")
	_, content := p.ask(t, "POST"+exec+"SPDY/3.1")
	p.ask(t, "GET /api/v1/namespaces/a/pods/other/exec?command=x\r\nConnection: Upgrade\r\nUpgrade: websocket")
	lines := p.lines(t)
	if len(lines) != 3 || lines[0].ID != lines[1].ID || lines[0].ID == lines[2].ID || !strings.Contains(status(t, content).Message, lines[0].ID) {
		t.Errorf("%+v", lines)
	}
}

func TestAnswerBeforeAllContentEndsTheConnection(t *testing.T) {
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(413)
		io.WriteString(w, "too much")
	}, kubePlaneConfig{})
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "POST /api/v1/namespaces/a/pods HTTP/1.1\r\nHost: "+p.addr+"\r\nX-Stream: 1\r\nContent-Length: 5000000\r\n\r\nsome")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); res.StatusCode != 413 || string(b) != "too much" || err != nil || !res.Close {
		t.Errorf("%v %q %v", res, b, err)
	}
	p.live.Wait() // it does not wait for the client
}

func TestHandedOverConnectionKeepsItsClientAndMayBeAbsolute(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{})
	for _, c := range []struct {
		target string
		code   int
		closed bool
	}{{"/version", 200, false}, {"http://127.0.0.1:18081/contexts/dev/version", 200, true}, {"http://evil.example/version", 403, false}} {
		ours, theirs := net.Pipe()
		p.handOver(theirs)
		host := p.addr
		if u, err := url.Parse(c.target); err == nil && u.Host != "" {
			host = u.Host
		}
		res, content := p.askOn(t, ours, "GET "+c.target+"\r\nHost: "+host)
		if res.StatusCode != c.code || c.closed && !res.Close || c.code == 200 && !strings.Contains(content, "/version") {
			t.Errorf("%s: %d %s close=%t", c.target, res.StatusCode, content, res.Close)
		}
		if l := p.lastLine(t); l.Client != "pipe" {
			t.Errorf("client %q", l.Client)
		}
		ours.Close()
	}
}

func TestChangedKubeconfigIsServedLive(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{})
	ask := func(context string, want int) {
		t.Helper()
		if res, content := p.ask(t, "GET /contexts/"+context+"/version"); res.StatusCode != want {
			t.Errorf("%s: %d %s", context, res.StatusCode, content)
		}
	}
	ask("prod", 200)
	kept := p.serving.Load().served["prod"].upstream
	gone := p.serving.Load().served["dev"]
	p.writeConfig(t, "prod", "prod", "new")
	if err := p.reload(p.serving.Load().config); err != nil {
		t.Fatal(err)
	}
	ask("prod", 200)
	ask("new", 200)
	ask("dev", 404)
	if p.serving.Load().served["prod"].upstream != kept || gone == nil {
		t.Error("an unchanged context lost its connections")
	}
	if err := os.WriteFile(p.file, []byte("contexts: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.reload(kubePlaneConfig{kubeconfig: p.file, access: accessReadOnly}); err == nil {
		t.Error("a broken kubeconfig is no error")
	}
	ask("prod", 200)
	if res, _ := p.ask(t, "POST /contexts/prod/api/v1/namespaces/a/pods\r\n\r\n{}"); res.StatusCode != 403 {
		t.Error("the access level of the new config is not in force")
	}
	if s, contexts := p.state(); s.State != "degraded" || len(contexts) != 2 || p.log.count("stay as they were") != 1 {
		t.Errorf("%+v, log %s", s, p.log.b.String())
	}
	p.writeConfig(t, "new", "new")
	changed := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.watch(ctx, func() { close(changed) }) }()
	<-changed
	cancel()
	<-done
	ask("new", 200)
	ask("prod", 404)
	if s, contexts := p.state(); s.State != "on" || len(contexts) != 1 || !contexts[0].Current {
		t.Errorf("%+v %+v", s, contexts)
	}
}

func TestStateTellsWhyAContextIsOffAndWhatTheServerSaid(t *testing.T) {
	code := 500
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			w.WriteHeader(403)
		} else {
			w.WriteHeader(code)
		}
	}, kubePlaneConfig{contexts: []string{"prod", "dev"}})
	if s, contexts := p.state(); s.State != "on" || len(contexts) != 2 || contexts[0].Probe != "" {
		t.Fatalf("%+v %+v", s, contexts)
	}
	p.probe(t.Context())
	if len(p.origin.take()) != 0 {
		t.Error("a context that nobody uses is probed")
	}
	p.ask(t, "GET /contexts/prod/version")
	p.probe(t.Context())
	s, contexts := p.state()
	if s.State != "degraded" || contexts[0].State != "degraded" || contexts[0].Probe != "answers 500" || contexts[1].State != "on" {
		t.Errorf("%+v %+v", s, contexts)
	}
	p.origin.take()
	p.probe(t.Context())
	if len(p.origin.take()) != 0 {
		t.Error("a context is probed again at once")
	}
	none := openKubePlane(kubePlaneOptions{
		config: kubePlaneConfig{kubeconfig: p.file + "-not"}, audit: p.kubePlane.audit, log: slog.New(slog.DiscardHandler),
		source: kubeSource{getenv: func(string) string { return "" }, log: slog.New(slog.DiscardHandler)}, local: p.local,
	})
	if s, _ := none.state(); s.State != "off" || !strings.Contains(s.Why, p.file+"-not") {
		t.Errorf("%+v", s)
	}
	none.shutdown(t.Context())
}

func TestDrainLetsRequestsFinishAndThenCutsStreams(t *testing.T) {
	arrived, release := make(chan struct{}, 2), make(chan struct{})
	p := newTestKube(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		arrived <- struct{}{}
		if r.URL.Query().Has("watch") {
			<-r.Context().Done()
			return
		}
		<-release
		io.WriteString(w, "done")
	}, kubePlaneConfig{})
	answers := make(chan string, 2)
	for _, target := range []string{"/api/v1/pods?watch=1", "/api/v1/pods"} {
		go func() {
			res, err := http.Get("http://" + p.addr + target)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			answers <- fmt.Sprint(string(b), err)
		}()
		<-arrived
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() { defer close(over); p.shutdown(ctx) }()
	close(release)
	if a := <-answers; a != "done<nil>" {
		t.Errorf("a request in a drain: %s", a)
	}
	cancel()
	if a := <-answers; !strings.Contains(a, "EOF") {
		t.Errorf("a watch that is cut: %s", a)
	}
	<-over
}
