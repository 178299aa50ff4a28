package main

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// canary is what every test credential contains.
const canary = "canary-5f3c9e"

// rowTest is one host of one row of the built-in table with a request that its rule injects into.
type rowTest struct {
	name    string
	host    string
	method  string
	path    string
	env     map[string]string
	field   string
	want    string
	appends string // a value of Anthropic-Beta that has to be there
}

// rowTests gives every row of spec section 5 but registry-1.
func rowTests() []rowTest {
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	rows := []rowTest{
		{"github", "api.github.com", "GET", "/user", map[string]string{"GITHUB_TOKEN": canary}, "Authorization", "Bearer " + canary, ""},
		{"github, GH_TOKEN", "uploads.github.com", "POST", "/repos/o/r/releases/1/assets?name=a", map[string]string{"GH_TOKEN": canary}, "Authorization", "Bearer " + canary, ""},
		{"git refs", "github.com", "GET", "/o/r.git/info/refs?service=git-upload-pack", map[string]string{"GITHUB_TOKEN": canary}, "Authorization", basic("x-access-token:" + canary), ""},
		{"git fetch", "github.com", "POST", "/o/r.git/git-upload-pack", map[string]string{"GITHUB_TOKEN": canary}, "Authorization", basic("x-access-token:" + canary), ""},
		{"git push", "github.com", "POST", "/o/r/git-receive-pack", map[string]string{"GITHUB_TOKEN": canary}, "Authorization", basic("x-access-token:" + canary), ""},
		{"git lfs", "github.com", "POST", "/o/r.git/info/lfs/objects/batch", map[string]string{"GITHUB_TOKEN": canary}, "Authorization", basic("x-access-token:" + canary), ""},
		{"anthropic", "api.anthropic.com", "POST", "/v1/messages", map[string]string{"ANTHROPIC_API_KEY": canary}, "X-Api-Key", canary, ""},
		{"anthropic, both", "api.anthropic.com", "POST", "/v1/messages", map[string]string{"ANTHROPIC_API_KEY": canary, "CLAUDE_CODE_OAUTH_TOKEN": "other"}, "X-Api-Key", canary, ""},
		{"anthropic subscription", "api.anthropic.com", "POST", "/v1/messages", map[string]string{"CLAUDE_CODE_OAUTH_TOKEN": canary}, "Authorization", "Bearer " + canary, "oauth-2025-04-20"},
		{"npm", npmHost, "GET", "/@scope%2fname", map[string]string{"NPM_TOKEN": canary}, "Authorization", "Bearer " + canary, ""},
		{"docker-auth", "auth.docker.io", "GET", "/token?service=registry.docker.io", map[string]string{"DOCKER_USERNAME": "user", "DOCKER_TOKEN": canary}, "Authorization", basic("user:" + canary), ""},
	}
	for _, host := range []string{"api.pagerduty.com", "api.eu.pagerduty.com"} {
		rows = append(rows, rowTest{host, host, "GET", "/users", map[string]string{"PAGERDUTY_TOKEN": canary}, "Authorization", "Token token=" + canary, ""})
	}
	for _, host := range []string{"sentry.io", "us.sentry.io", "de.sentry.io"} {
		rows = append(rows, rowTest{host, host, "GET", "/api/0/", map[string]string{"SENTRY_AUTH_TOKEN": canary}, "Authorization", "Bearer " + canary, ""})
	}
	return rows
}

// clientAuths are the ways in which a container may try to add to, replace or drop the credential's field.
var clientAuths = map[string]func(*http.Request){
	"none":        func(*http.Request) {},
	"placeholder": func(r *http.Request) { r.Header.Set("Authorization", "Bearer muxproxy-placeholder") },
	"two":         func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer a", "Basic Yjpj"} },
	"lower case": func(r *http.Request) {
		r.Header["authorization"] = []string{"Bearer a"}
		r.Header["x-api-key"] = []string{"k"}
	},
	"both fields": func(r *http.Request) { r.Header.Set("Authorization", "Bearer a"); r.Header.Set("X-Api-Key", "k") },
	"named by Connection": func(r *http.Request) {
		if r.ProtoMajor == 1 {
			r.Header.Set("Connection", "authorization, X-Api-Key, Host, Content-Length")
		}
	},
	"in the trailer section": func(r *http.Request) {
		if r.Method == "POST" {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader("content")), -1
			r.Trailer = http.Header{"X-Api-Key": {"k"}, "Cookie": {"a=b"}, "X-Kept": {"yes"}}
			if r.ProtoMajor == 1 { // net/http's HTTP/2 server refuses it (httpguts.ValidTrailerHeader)
				r.Trailer["Authorization"] = []string{"Bearer a"}
			}
		}
	},
	"proxy authorization": func(r *http.Request) { r.Header.Set("Proxy-Authorization", "Basic Yjpj") },
	"a cookie":            func(r *http.Request) { r.Header.Set("Cookie", "session=1") },
}

func TestEachRowGivesTheUpstreamExactlyOneAuthField(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	for _, row := range rowTests() {
		t.Run(row.name, func(t *testing.T) {
			p := newTestProxy(t, o, testProxyOptions{env: row.env})
			for _, version := range []int{1, 2} {
				client := p.client(t, version)
				for name, auth := range clientAuths {
					r, _ := http.NewRequest(row.method, "https://"+row.host+row.path, nil)
					r.ProtoMajor = version
					auth(r)
					res, err := client.Do(r)
					if err != nil {
						t.Fatalf("HTTP/%d, %s: %v", version, name, err)
					}
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
					got := o.take()
					if len(got) != 1 || res.StatusCode != 200 || res.ProtoMajor != version {
						t.Fatalf("HTTP/%d, %s: %d requests, answer %s", version, name, len(got), res.Status)
					}
					checkAuth(t, fmt.Sprintf("HTTP/%d, %s", version, name), row, got[0])
				}
			}
			if l := p.lastLine(t); !l.Injected || l.Decision != "injected" || l.Host != row.host || l.Code != 200 {
				t.Errorf("audit line %+v", l)
			}
		})
	}
}

// checkAuth fails unless got has the row's field once and nothing else that authenticates.
func checkAuth(t *testing.T, name string, row rowTest, got received) {
	t.Helper()
	if v := got.Header[row.field]; !slices.Equal(v, []string{row.want}) {
		t.Errorf("%s: %s is %q, want %q", name, row.field, v, row.want)
	}
	for _, field := range []string{"Authorization", "X-Api-Key", "Proxy-Authorization", "Cookie"} {
		if field != row.field && got.Header[field] != nil {
			t.Errorf("%s: %s is %q", name, field, got.Header[field])
		}
		if got.Trailer[field] != nil {
			t.Errorf("%s: trailer %s is %q", name, field, got.Trailer[field])
		}
	}
	if row.appends != "" && !strings.Contains(strings.Join(got.Header["Anthropic-Beta"], ","), row.appends) {
		t.Errorf("%s: anthropic-beta is %q", name, got.Header["Anthropic-Beta"])
	}
	if got.RequestURI != row.path || got.Host != row.host {
		t.Errorf("%s: the upstream got %s %s", name, got.Host, got.RequestURI)
	}
}

func TestOnlyTheConnectAuthorityDecides(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary, "ANTHROPIC_API_KEY": canary}})
	for _, c := range []struct {
		name, authority, sni, request string
		code                          int
		injected                      bool
	}{
		{"the same host", "api.github.com:443", "api.github.com", "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 200, true},
		{"upper case", "API.GITHUB.COM:443", "API.GitHub.com", "GET / HTTP/1.1\r\nHost: API.github.COM:443\r\n\r\n", 200, true},
		{"trailing dot", "api.github.com.:443", "api.github.com", "GET / HTTP/1.1\r\nHost: api.github.com.\r\n\r\n", 200, true},
		{"no SNI", "api.github.com:443", "", "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 200, true},
		{"HTTP/1.0 without Host", "api.github.com:443", "api.github.com", "GET / HTTP/1.0\r\n\r\n", 200, true},
		{"another Host", "api.github.com:443", "api.github.com", "GET / HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n", 421, false},
		{"another port in Host", "api.github.com:443", "api.github.com", "GET / HTTP/1.1\r\nHost: api.github.com:8443\r\n\r\n", 421, false},
		{"another SNI", "api.github.com:443", "api.anthropic.com", "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 421, false},
		{"absolute-form inside", "api.github.com:443", "api.github.com", "GET https://api.github.com/ HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 400, false},
		{"no Host", "api.github.com:443", "api.github.com", "GET / HTTP/1.1\r\n\r\n", 400, false},
		{"two Hosts", "api.github.com:443", "api.github.com", "GET / HTTP/1.1\r\nHost: api.github.com\r\nHost: api.anthropic.com\r\n\r\n", 400, false},
		{"CONNECT inside", "api.github.com:443", "api.github.com", "CONNECT api.github.com:443 HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 400, false},
		{"TRACE in small letters", "api.github.com:443", "api.github.com", "trace / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 403, false},
		{"TRACK", "api.github.com:443", "api.github.com", "TRACK / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 403, false},
		{"TRACE", "api.github.com:443", "api.github.com", "TRACE / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 403, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, content := exchangeRaw(t, p.intercepted(t, c.authority, c.sni), c.request)
			if res.StatusCode != c.code {
				t.Fatalf("answer %s %s, want %d", res.Status, content, c.code)
			}
			got := o.take()
			if injected := len(got) == 1 && got[0].Header.Get("Authorization") == "Bearer "+canary; injected != c.injected {
				t.Errorf("injected: %v, want %v; the upstream got %d requests", injected, c.injected, len(got))
			}
			l := p.lastLine(t)
			if l.Code != c.code || l.Injected != c.injected {
				t.Errorf("audit line %+v", l)
			}
			if !c.injected && (len(got) > 0 || l.Decision != "denied" || !strings.Contains(content, l.ID)) {
				t.Errorf("a refused request: %d reached the upstream, audit line %+v, answer %q", len(got), l, content)
			}
		})
	}
}

func TestNoCredentialLeavesOnAnyOtherWay(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	for _, authority := range []string{"api.github.com:8443", "evil.example:443", "evil-api.github.com:443", "api.github.com.evil.com:443"} {
		conn, res := p.connect(t, authority)
		if res.StatusCode != 200 {
			t.Fatalf("CONNECT %s: %s", authority, res.Status)
		}
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
		conn.Close()
		if d := <-p.dialed; d != authority {
			t.Errorf("CONNECT %s dialed %s", authority, d)
		}
		if got := o.take(); len(got) != 0 {
			t.Errorf("CONNECT %s was intercepted", authority)
		}
	}
	for _, c := range []struct {
		request string
		code    int
	}{
		{"GET https://api.github.com/ HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 400},
		{"CONNECT 127.0.0.2:443 HTTP/1.1\r\n\r\n", 403}, // see guard_test.go for the rest
		{"CONNECT host.docker.internal:2375 HTTP/1.1\r\n\r\n", 403},
		{"CONNECT user@api.github.com:443 HTTP/1.1\r\n\r\n", 400},
		{"CONNECT api.github.com:0 HTTP/1.1\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n", 404},
	} {
		conn, err := dialProxy(p)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(c.request, "127.0.0.2") {
			p.policy.Load().dialer.guard.allowed = nil
		}
		res, content := exchangeRaw(t, conn, c.request)
		if res.StatusCode != c.code {
			t.Errorf("%q: %s %q, want %d", c.request, res.Status, content, c.code)
		}
		if strings.Contains(content, canary) || len(o.take()) > 0 {
			t.Errorf("%q reached an upstream", c.request)
		}
		audited := func(l auditLine) bool { return l.Host == "api.github.com" && l.Code == 400 }
		if strings.Contains(c.request, "https://") && !slices.ContainsFunc(p.lines(t), audited) {
			t.Errorf("%q is not in the audit log with its host", c.request)
		}
		conn.Close()
	}
}

func TestPlainHTTPToARuledHostLosesItsAuthAndGetsNone(t *testing.T) {
	o := newPlainOrigin(t)
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	for _, c := range []struct{ host, want string }{{"api.github.com", ""}, {"other.example", "Bearer mine"}} {
		r, _ := http.NewRequest("GET", "http://"+c.host+"/a%2Fb?x=;y", nil)
		r.Header = http.Header{"Authorization": {"Bearer mine"}, "Proxy-Authorization": {"Basic Yjpj"}, "Cookie": {"a=b"}}
		res, err := p.client(t, 1).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		got := o.take()[0]
		if got.Header.Get("Authorization") != c.want || got.Header.Get("Proxy-Authorization") != "" || got.Header.Get("Cookie") != "a=b" {
			t.Errorf("%s got %v", c.host, got.Header)
		}
		if got.RequestURI != "/a%2Fb?x=;y" || got.Host != c.host {
			t.Errorf("%s got %s %s", c.host, got.Host, got.RequestURI)
		}
	}
}

func TestOthersAreForwardedWithoutACredential(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary, "DOCKER_USERNAME": "u", "DOCKER_TOKEN": canary}})
	for _, target := range []string{"github.com/login", "github.com/o/r/info/refs/x", "auth.docker.io/token/x", "github.com/a/b/c/info/refs"} {
		r, _ := http.NewRequest("GET", "https://"+target, nil)
		r.Header = http.Header{"Authorization": {"Bearer mine"}, "Cookie": {"a=b"}}
		res, err := p.client(t, 1).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		got := o.take()
		if len(got) != 1 || got[0].Header.Get("Authorization") != "" || got[0].Header.Get("Cookie") != "a=b" {
			t.Errorf("%s: the upstream got %v", target, got)
		}
		if l := p.lastLine(t); l.Decision != "forwarded" || l.Injected {
			t.Errorf("%s: audit line %+v", target, l)
		}
	}
	for _, target := range []string{"/o/r/../x/info/refs", "/o/%2e%2e/r/info/refs", "/o//r/info/refs", `/o\r/info/refs`, "/o/r%00/info/refs", "/o/a%2F..%2Fb/info/refs"} {
		res, content := exchangeRaw(t, p.intercepted(t, "github.com:443", "github.com"), "GET "+target+" HTTP/1.1\r\nHost: github.com\r\n\r\n")
		if res.StatusCode != 400 || len(o.take()) > 0 {
			t.Errorf("%s: %s %q", target, res.Status, content)
		}
	}
	res, _ := exchangeRaw(t, p.intercepted(t, "github.com:443", "github.com"), "POST /o/r/info/refs HTTP/1.1\r\nHost: github.com\r\nX-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n\r\n")
	if res.StatusCode != 400 {
		t.Errorf("a method override: %s", res.Status)
	}
}

func TestOfflineTokenIsTakenOutOfTheQuery(t *testing.T) {
	for _, c := range []struct{ target, want string }{
		{"/token?a=1&offline_token=true&b=%2f", "/token?a=1&b=%2f"},
		{"/token?offline%5Ftoken=true", "/token"},
		{"/token?a=1;offline_token=true", "/token?a=1"},
		{"/token?offline_token&x", "/token?x"},
		{"/token?OFFLINE_TOKEN=1&offline_tokens=1", "/token?offline_tokens=1"},
		{"/token?a=%zz&&b", "/token?a=%zz&&b"},
		{"/token", "/token"},
	} {
		if got := dropParameter(c.target, "offline_token"); got != c.want {
			t.Errorf("%s becomes %s, want %s", c.target, got, c.want)
		}
	}
}

func TestAServiceWithoutACredentialIsPassive(t *testing.T) {
	o := newOrigin(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Set-Cookie", "a=b") })
	p := newTestProxy(t, o, testProxyOptions{})
	ask := func(authorization string) (*http.Response, string) {
		r, _ := http.NewRequest("GET", "https://api.github.com/user", nil)
		r.Header = http.Header{"Authorization": {authorization}, "Cookie": {"a=b"}}
		res, err := p.client(t, 1).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res, string(b)
	}
	res, _ := ask("Bearer mine")
	got := o.take()
	if res.StatusCode != 200 || res.Header.Get("Set-Cookie") != "a=b" || got[0].Header.Get("Authorization") != "Bearer mine" || got[0].Header.Get("Cookie") != "a=b" {
		t.Errorf("a passive service changed the request or its answer: %v %v", got[0].Header, res.Header)
	}
	for _, placeholder := range []string{"Bearer ghp_muxproxy-placeholder", "Basic " + base64.StdEncoding.EncodeToString([]byte("x:muxproxy-placeholder")), "basic  " + base64.RawStdEncoding.EncodeToString([]byte("muxproxy-placeholder:x"))} {
		res, content := ask(placeholder)
		if res.StatusCode != 502 || len(o.take()) > 0 || !strings.Contains(content, `no credential for \"github\": write `) {
			t.Errorf("placeholder %q: %s %s", placeholder, res.Status, content)
		}
	}
	p.writeSecret(t, "github", canary)
	res, _ = ask("Bearer mine")
	got = o.take()
	if got[0].Header.Get("Authorization") != "Bearer "+canary || got[0].Header.Get("Cookie") != "" || res.Header.Get("Set-Cookie") != "" {
		t.Errorf("a secret written later is not used: %v %v", got[0].Header, res.Header)
	}
	p.writeSecret(t, "github", canary+"-rotated")
	ask("")
	if got := o.take(); got[0].Header.Get("Authorization") != "Bearer "+canary+"-rotated" {
		t.Errorf("a rotated secret is not used: %v", got[0].Header)
	}
	file := filepath.Join(p.secrets, "github")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if res, content := ask("Bearer mine"); res.StatusCode != 502 || !strings.Contains(content, "chmod") || len(o.take()) > 0 {
		t.Errorf("a secret that others may read: %s %s", res.Status, content)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if res, content := ask("Bearer mine"); res.StatusCode != 502 || len(o.take()) > 0 {
		t.Errorf("a secret that is gone: %s %s", res.Status, content)
	}
}

func TestAnAnswerLosesWhatWouldLeadAroundTheProxy(t *testing.T) {
	o := newOrigin(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.Header().Set("Set-Cookie", "session=1")
		w.Header().Set("X-Kept", "yes")
		w.Header().Set("Location", "https://elsewhere.example/")
		w.WriteHeader(302)
	})
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	for _, version := range []int{1, 2} {
		res, err := p.client(t, version).Get("https://api.github.com/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if h := res.Header; h.Get("Alt-Svc") != "" || h.Get("Set-Cookie") != "" || h.Get("X-Kept") != "yes" || res.StatusCode != 302 {
			t.Errorf("HTTP/%d: %s %v", version, res.Status, h)
		}
	}
	if n := len(o.take()); n != 2 {
		t.Errorf("the redirect was followed: %d requests", n)
	}
}

func TestOnlyTheWayToTheUpstreamIsPostQuantum(t *testing.T) {
	p, o := githubProxy(t, func(http.ResponseWriter, *http.Request) {})
	conn := p.intercepted(t, "api.github.com:443", "api.github.com")
	exchangeRaw(t, conn, "GET / HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
	client, upstream := conn.ConnectionState().CurveID, o.take()[0].TLS.CurveID
	if client != tls.X25519 || upstream != tls.X25519MLKEM768 {
		t.Errorf("key exchange with the client %v, with the upstream %v", client, upstream)
	}
}
