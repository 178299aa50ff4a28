package http

import (
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"muxproxy/e2e/origin"
)

// row is one row of the built-in table: where a request goes and which field, with which value, the service must get.
type row struct {
	name, host, path string
	field, value     string
	oauth            bool // needs the daemon that holds the subscription's token
}

// rows is the built-in table but registry-1. The paths are ones that the services answer with 200 once the field is right.
func rows(s origin.Secrets) []row {
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	refs := origin.Repository + "/info/refs?service=git-upload-pack"
	return []row{
		{name: "github api", host: "api.github.com", path: "/lab/x?", field: "Authorization", value: "Bearer " + s.GitHub},
		{name: "github uploads", host: "uploads.github.com", path: "/lab/x?", field: "Authorization", value: "Bearer " + s.GitHub},
		{name: "git", host: "github.com", path: refs + "&", field: "Authorization", value: basic("x-access-token", s.GitHub)},
		{name: "anthropic key", host: "api.anthropic.com", path: "/lab/x?", field: "X-Api-Key", value: s.AnthropicKey},
		{name: "anthropic subscription", host: "api.anthropic.com", path: "/lab/x?", field: "Authorization", value: "Bearer " + s.AnthropicOAuth, oauth: true},
		{name: "pagerduty", host: "api.pagerduty.com", path: "/lab/x?", field: "Authorization", value: "Token token=" + s.PagerDuty},
		{name: "pagerduty eu", host: "api.eu.pagerduty.com", path: "/lab/x?", field: "Authorization", value: "Token token=" + s.PagerDuty},
		{name: "sentry", host: "sentry.io", path: "/lab/x?", field: "Authorization", value: "Bearer " + s.Sentry},
		{name: "sentry us", host: "us.sentry.io", path: "/lab/x?", field: "Authorization", value: "Bearer " + s.Sentry},
		{name: "sentry de", host: "de.sentry.io", path: "/lab/x?", field: "Authorization", value: "Bearer " + s.Sentry},
		{name: "npm", host: origin.NPMHost, path: "/lab/x?", field: "Authorization", value: "Bearer " + s.NPM},
		{name: "docker auth", host: "auth.docker.io", path: "/token?service=registry.docker.io&", field: "Authorization", value: basic(s.DockerUser, s.DockerToken)},
		{name: "file rule", host: origin.GitLab, path: "/api/v4/x?", field: "Private-Token", value: s.GitLab},
	}
}

// attempt is what a client tries beside a plain request. FIELD stands for the name of the row's own field.
type attempt struct {
	name    string
	lines   []string // "Name: value"
	trailer []string // a content in chunks ends with these; over HTTP/2 they are trailers
	h1Only  bool     // malformed over HTTP/2 (RFC 9113 §8.2), which the library's client would not send
	refused bool     // may be refused instead of cleaned
}

var attempts = []attempt{
	{name: "none"},
	{name: "placeholder", lines: []string{"FIELD: Bearer muxproxy-placeholder"}},
	{name: "two", lines: []string{"FIELD: Bearer one", "FIELD: Basic b25lOnR3bw=="}},
	{name: "lower case", lines: []string{"authorization: Bearer one", "x-api-key: two"}, h1Only: true},
	{name: "both", lines: []string{"X-Api-Key: one", "Authorization: Bearer two"}},
	{name: "named by Connection", lines: []string{"FIELD: Bearer one", "Connection: FIELD, Authorization, X-Api-Key, Anthropic-Beta"}, h1Only: true},
	{name: "in the trailer section", trailer: []string{"Authorization: Bearer one", "X-Api-Key: two"}, h1Only: true},
	{name: "own field in the trailer section", trailer: []string{"FIELD: one"}, refused: true},
	{name: "key in the trailer section", trailer: []string{"X-Api-Key: two"}},
	{name: "for the proxy", lines: []string{"Proxy-Authorization: Basic b25lOnR3bw=="}},
	{name: "cookie", lines: []string{"Cookie: session=stolen"}},
}

// on gives the attempt with the row's field.
func (a attempt) on(r row) attempt {
	named := func(lines []string) []string {
		var out []string
		for _, line := range lines {
			out = append(out, strings.ReplaceAll(line, "FIELD", r.field))
		}
		return out
	}
	a.lines, a.trailer = named(a.lines), named(a.trailer)
	return a
}

func TestUpstreamGetsExactlyOneRightFieldWhateverTheClientSends(t *testing.T) {
	w := theWorld(t)
	for _, r := range rows(w.secrets) {
		c := w.main.client(t)
		if r.oauth {
			c = w.oauth(t).client(t)
		}
		for _, a := range attempts {
			a = a.on(r)
			t.Run(r.name+" h1 "+a.name, func(t *testing.T) {
				q := mark(t, 1)
				got := c.raw(t, r.host+":443", h1Request(r, a, q))
				w.checkField(t, r, a, q, got.code)
			})
			if a.h1Only {
				continue
			}
			t.Run(r.name+" h2 "+a.name, func(t *testing.T) {
				q := mark(t, 2)
				got, err := do(t, c.web(t, "h2"), h2Request(t, r, a, q))
				if err != nil && !a.refused {
					t.Fatal(err)
				}
				w.checkField(t, r, a, q, got.code)
			})
		}
	}
}

func h1Request(r row, a attempt, query string) string {
	lines := append([]string{"GET " + r.path + query + " HTTP/1.1", "Host: " + r.host}, a.lines...)
	if len(a.trailer) == 0 {
		return strings.Join(lines, "\r\n") + "\r\n\r\n"
	}
	names := make([]string, len(a.trailer))
	for i, line := range a.trailer {
		names[i], _, _ = strings.Cut(line, ":")
	}
	lines = append(lines, "Transfer-Encoding: chunked", "Trailer: "+strings.Join(names, ", "))
	return strings.Join(lines, "\r\n") + "\r\n\r\n3\r\nabc\r\n0\r\n" + strings.Join(a.trailer, "\r\n") + "\r\n\r\n"
}

func h2Request(t *testing.T, r row, a attempt, query string) *http.Request {
	t.Helper()
	body := ""
	if len(a.trailer) > 0 {
		body = "abc"
	}
	out := request(t, http.MethodGet, "https://"+r.host+r.path+query, body, fields(a.lines))
	if len(a.trailer) > 0 {
		out.Trailer, out.ContentLength = fields(a.trailer), -1
		// Without it the client would send a refused request again and again.
		out.GetBody = nil
	}
	return out
}

func fields(lines []string) http.Header {
	h := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	return h
}

// checkField looks at what the service got: one request, with the row's field alone, once, and no Cookie.
func (w *world) checkField(t *testing.T, r row, a attempt, query string, code int) {
	t.Helper()
	got := w.origins.RequestsFor(r.host, query)
	refused := a.refused && code != http.StatusOK
	if refused && len(got) == 0 {
		return
	}
	if len(got) != 1 || code != http.StatusOK && !refused {
		t.Fatalf("status %d and %d requests at the service, want 200 and 1", code, len(got))
	}
	want := http.Header{r.field: {r.value}}
	if found := got[0].AuthFields(); !maps.EqualFunc(found, want, slices.Equal) {
		t.Errorf("auth fields %q, want %q", found, want)
	}
	betas := strings.Join(got[0].Header.Values("Anthropic-Beta"), ",")
	if r.oauth != strings.Contains(betas, "oauth-2025-04-20") {
		t.Errorf("anthropic-beta is %q", betas)
	}
	for _, name := range []string{"Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
		if values := got[0].Header.Values(name); len(values) > 0 {
			t.Errorf("%s was added: %q", name, values)
		}
	}
	if got[0].Remote == "" || got[0].SNI != r.host {
		t.Errorf("came from %q with SNI %q", got[0].Remote, got[0].SNI)
	}
}

func TestSubscriptionBetaIsAppendedAndNeverReplaces(t *testing.T) {
	w := theWorld(t)
	c := w.oauth(t).client(t)
	for i, tt := range []struct{ sent, want []string }{
		{[]string{"a-2024,b-2024"}, []string{"a-2024", "b-2024", "oauth-2025-04-20"}},
		{[]string{"a-2024", "b-2024"}, []string{"a-2024", "b-2024", "oauth-2025-04-20"}},
		{[]string{"oauth-2025-04-20,a-2024"}, []string{"oauth-2025-04-20", "a-2024"}},
	} {
		q := mark(t, i)
		r := request(t, http.MethodGet, "https://api.anthropic.com/lab/x?"+q, "", http.Header{"Anthropic-Beta": tt.sent})
		if _, err := do(t, c.web(t, "http/1.1"), r); err != nil {
			t.Fatal(err)
		}
		all := strings.Join(w.origins.RequestsFor("api.anthropic.com", q)[0].Header.Values("Anthropic-Beta"), ",")
		var got []string
		for member := range strings.SplitSeq(all, ",") {
			got = append(got, strings.TrimSpace(member))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("sent %q, arrived %q, want %q", tt.sent, got, tt.want)
		}
	}
}

func TestRequestsThatARuleLeavesOutLoseTheirFieldAndKeepTheirCookie(t *testing.T) {
	w := theWorld(t)
	q := mark(t, 0)
	r := request(t, http.MethodGet, "https://github.com/about?"+q, "", fields([]string{"Authorization: Bearer one", "X-Api-Key: two", "Cookie: a=b"}))
	if got, err := do(t, w.main.client(t).web(t, "http/1.1"), r); err != nil || got.code != http.StatusOK {
		t.Fatalf("status %d, %v", got.code, err)
	}
	want := http.Header{"Cookie": {"a=b"}}
	if found := w.origins.RequestsFor("github.com", q)[0].AuthFields(); !maps.EqualFunc(found, want, slices.Equal) {
		t.Errorf("auth fields %q, want %q", found, want)
	}
}

func TestOfflineTokenIsTakenOutOfTheQueryAndNoRefreshTokenComesBack(t *testing.T) {
	w := theWorld(t)
	q := mark(t, 0)
	r := request(t, http.MethodGet, "https://auth.docker.io/token?service=registry.docker.io&offline_token=true&"+q, "", nil)
	got, err := do(t, w.main.client(t).web(t, "http/1.1"), r)
	if err != nil || got.code != http.StatusOK {
		t.Fatalf("status %d, %v", got.code, err)
	}
	if strings.Contains(got.body, origin.RefreshToken) {
		t.Error("a refresh token came back")
	}
	if target := w.origins.RequestsFor("auth.docker.io", q)[0].Target; strings.Contains(target, "offline_token") {
		t.Errorf("the service got %q", target)
	}
}

func TestInjectedAnswersSetNoCookieAndOfferNoHTTP3(t *testing.T) {
	w := theWorld(t)
	for _, protocol := range []string{"http/1.1", "h2"} {
		r := request(t, http.MethodGet, "https://api.github.com/lab/cookie?"+mark(t, 0), "", nil)
		got, err := do(t, w.main.client(t).web(t, protocol), r)
		if err != nil || got.code != http.StatusNoContent {
			t.Fatalf("status %d, %v", got.code, err)
		}
		if got.header.Get("Set-Cookie") != "" || got.header.Get("Alt-Svc") != "" {
			t.Errorf("%s: answer has %v", protocol, got.header)
		}
	}
}
