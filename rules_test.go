package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func mustAuthority(t testing.TB, s string) authority {
	t.Helper()
	a, err := parseAuthority(s, 443)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// hostPatterns reads "api.example.com *.example.com:8443".
func hostPatterns(t testing.TB, list string) []hostPattern {
	t.Helper()
	var patterns []hostPattern
	for text := range strings.FieldsSeq(list) {
		base, wildcard := strings.CutPrefix(text, "*.")
		a := mustAuthority(t, base)
		patterns = append(patterns, hostPattern{host: a.host, wildcard: wildcard, port: a.port})
	}
	return patterns
}

// fileRule is a rule with a header, allowRule one without, as the config file would give them.
func fileRule(t testing.TB, service, hosts string, paths ...string) *rule {
	t.Helper()
	r := allowRule(t, service, hosts, paths...)
	r.sources = []source{{field: "Private-Token", format: "{}", env: []string{"X"}}}
	return r
}

func allowRule(t testing.TB, service, hosts string, paths ...string) *rule {
	t.Helper()
	return &rule{service: service, hosts: hostPatterns(t, hosts), paths: paths, config: "proxy.toml", line: 7}
}

func (a action) GoString() string {
	return []string{"deny", "tunnel", "intercept", "forward", "inject", "badTarget"}[a]
}

// told is a decision in a word: "inject github", "deny" where no rule decided.
func told(d decision) string {
	if d.rule == nil {
		return d.action.GoString()
	}
	return d.action.GoString() + " " + d.rule.service
}

func TestBuiltinRulesInjectOnTheirHostsAndNoOthers(t *testing.T) {
	s := newRuleSet(builtinRules(), actionTunnel)
	tests := []struct{ authority, connect, request string }{
		{"api.github.com", "intercept github", "inject github"},
		{"uploads.github.com", "intercept github", "inject github"},
		{"API.GITHUB.COM.", "intercept github", "inject github"},
		{"api.anthropic.com", "intercept anthropic", "inject anthropic"},
		{"api.pagerduty.com", "intercept pagerduty", "inject pagerduty"},
		{"api.eu.pagerduty.com", "intercept pagerduty", "inject pagerduty"},
		{"sentry.io", "intercept sentry", "inject sentry"},
		{"us.sentry.io", "intercept sentry", "inject sentry"},
		{"de.sentry.io", "intercept sentry", "inject sentry"},
		{npmHost, "intercept npm", "inject npm"},
		{"github.com", "intercept github", "forward github"},
		{"auth.docker.io", "intercept docker-auth", "forward docker-auth"},

		{"api.github.com:8443", "tunnel", "forward"},
		{"api.github.com:80", "tunnel", "forward"},
		{"evil-api.github.com", "tunnel", "forward"},
		{"api.github.com.evil.example", "tunnel", "forward"},
		{"x.api.github.com", "tunnel", "forward"},
		{"raw.githubusercontent.com", "tunnel", "forward"},
		{"o1.ingest.us.sentry.io", "tunnel", "forward"},
		{"registry-1.docker.io", "tunnel", "forward"},
		{"production.cloudflare.docker.com", "tunnel", "forward"},
		{"npmjs.org", "tunnel", "forward"},
		{"127.0.0.1", "tunnel", "forward"},
		{"[::1]", "tunnel", "forward"},
	}
	for _, tt := range tests {
		a := mustAuthority(t, tt.authority)
		if got := told(s.connect(a)); got != tt.connect {
			t.Errorf("connect %s: %s, want %s", tt.authority, got, tt.connect)
		}
		if got := told(s.request(a, "GET", "/a/b?c=d")); got != tt.request {
			t.Errorf("request to %s: %s, want %s", tt.authority, got, tt.request)
		}
	}
}

func TestBuiltinRulesInjectOnTheirPathsAndForwardTheRest(t *testing.T) {
	s := newRuleSet(builtinRules(), actionDeny)
	tests := []struct{ authority, method, target, want string }{
		{"github.com", "GET", "/o/r.git/info/refs?service=git-upload-pack", "inject"},
		{"github.com", "POST", "/o/r.git/git-upload-pack", "inject"},
		{"github.com", "POST", "/o/r/git-receive-pack", "inject"},
		{"github.com", "POST", "/o/r.git/info/lfs/objects/batch", "inject"},
		{"github.com", "GET", "/o/%72/info%2Frefs", "forward"},
		{"github.com", "GET", "/o/r/inf%6F/refs", "inject"},
		{"github.com", "GET", "/o/r/info/refs/x", "forward"},
		{"github.com", "GET", "/o/info/refs", "forward"},
		{"github.com", "GET", "/a/o/r/info/refs", "forward"},
		{"github.com", "GET", "/", "forward"},
		{"github.com", "OPTIONS", "*", "forward"},
		{"github.com", "GET", "/o/../info/refs", "badTarget"},
		{"auth.docker.io", "GET", "/token?service=registry.docker.io", "inject"},
		{"auth.docker.io", "POST", "/token", "forward"},
		{"auth.docker.io", "get", "/token", "forward"},
		{"auth.docker.io", "GET", "/token/", "forward"},
		{"auth.docker.io", "GET", "/tokens", "forward"},
		{"auth.docker.io", "GET", "//token", "badTarget"},
		{"api.github.com", "GET", "/a/../b//c%zz", "inject"},
		{"evil.example", "GET", "/", "deny"},
	}
	for _, tt := range tests {
		d := s.request(mustAuthority(t, tt.authority), tt.method, tt.target)
		if got := d.action.GoString(); got != tt.want {
			t.Errorf("%s %s on %s: %s, want %s", tt.method, tt.target, tt.authority, got, tt.want)
		}
		if strict := tt.authority != "api.github.com" && d.rule != nil; d.strict != strict {
			t.Errorf("%s %s on %s: strict %v, want %v", tt.method, tt.target, tt.authority, d.strict, strict)
		}
	}
}

// TestBuiltinSourcesGiveTheDocumentedFields holds the whole table: what goes out for a credential "T" (or pair "U:T").
func TestBuiltinSourcesGiveTheDocumentedFields(t *testing.T) {
	type row struct{ service, hosts, field, env, file, errorShape, dropQuery, appended string }
	want := []row{
		{"github", "api.github.com uploads.github.com", "Authorization: Bearer T", "GITHUB_TOKEN GH_TOKEN", "github", "", "", ""},
		{"github", "github.com", "Authorization: Basic x-access-token:T", "GITHUB_TOKEN GH_TOKEN", "github", "git", "", ""},
		{"anthropic", "api.anthropic.com", "X-Api-Key: T", "ANTHROPIC_API_KEY", "anthropic", "anthropic", "", ""},
		{"anthropic", "api.anthropic.com", "Authorization: Bearer T", "CLAUDE_CODE_OAUTH_TOKEN", "anthropic-oauth", "anthropic", "", "Anthropic-Beta: oauth-2025-04-20"},
		{"pagerduty", "api.pagerduty.com api.eu.pagerduty.com", "Authorization: Token token=T", "PAGERDUTY_TOKEN", "pagerduty", "", "", ""},
		{"sentry", "sentry.io us.sentry.io de.sentry.io", "Authorization: Bearer T", "SENTRY_AUTH_TOKEN", "sentry", "", "", ""},
		{"npm", npmHost, "Authorization: Bearer T", "NPM_TOKEN", "npm", "", "", ""},
		{"docker-auth", "auth.docker.io", "Authorization: Basic U:T", "DOCKER_USERNAME DOCKER_TOKEN", "docker", "registry", "offline_token", ""},
	}
	var got []row
	for _, r := range builtinRules() {
		var hosts []string
		for _, p := range r.hosts {
			hosts = append(hosts, p.String())
		}
		for _, s := range r.sources {
			value := strings.ReplaceAll(s.format, "{}", "T")
			if s.username != "" {
				value = "Basic " + s.username + ":T"
			}
			if s.basicPair {
				value = "Basic U:T"
			}
			row := row{r.service, strings.Join(hosts, " "), s.field + ": " + value, strings.Join(s.env, " "), s.file, r.errorShape, r.dropQuery, ""}
			if s.appendField != "" {
				row.appended = s.appendField + ": " + s.appendValue
			}
			got = append(got, row)
			if http.CanonicalHeaderKey(s.field) != s.field || http.CanonicalHeaderKey(s.appendField) != s.appendField {
				t.Errorf("%s: field %q or %q is not canonical", r.service, s.field, s.appendField)
			}
		}
		if !r.builtin || r.line != 0 {
			t.Errorf("%v is not marked as built in", r)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("built-in sources:\n%+v\nwant:\n%+v", got, want)
	}
}

func TestBuiltinPlaceholdersAreWhatClientsTakeAndWeRecognise(t *testing.T) {
	want := map[string]string{
		"GH_TOKEN": "github", "SENTRY_AUTH_TOKEN": "sentry", "PAGERDUTY_TOKEN": "pagerduty",
		"NPM_TOKEN": "npm", "YARN_NPM_AUTH_TOKEN": "npm", "NPM_CONFIG_TOKEN": "npm",
		"ANTHROPIC_API_KEY": "anthropic", "CLAUDE_CODE_OAUTH_TOKEN": "anthropic",
	}
	seen := make(map[string]string)
	for _, r := range builtinRules() {
		for _, p := range r.placeholders {
			seen[p.env] = r.service
			if !strings.Contains(p.value, placeholderMark) || strings.ContainsAny(p.value, " \t\n*?[]{}~$\"'\\") {
				t.Errorf("%s=%q", p.env, p.value)
			}
			if p.source >= len(r.sources) {
				t.Errorf("%s stands for source %d of %d", p.env, p.source, len(r.sources))
			}
			if p.env == "ANTHROPIC_API_KEY" && (p.source != 0 || !strings.HasPrefix(p.value, "sk-ant-api03-")) ||
				p.env == "CLAUDE_CODE_OAUTH_TOKEN" && (p.source != 1 || !strings.HasPrefix(p.value, "sk-ant-oat01-")) {
				t.Errorf("placeholder %+v", p)
			}
		}
	}
	if fmt.Sprint(seen) != fmt.Sprint(want) {
		t.Errorf("placeholders: %v, want %v", seen, want)
	}
	basic := base64.StdEncoding.EncodeToString([]byte("x-access-token:" + placeholderMark))
	if strings.Contains(basic, placeholderMark) {
		t.Error("the mark is to be looked for in decoded Basic")
	}
}

func TestTheFirstFileRuleThatFitsDecides(t *testing.T) {
	read := fileRule(t, "read", "git.example *.corp.example")
	read.methods = []string{"GET", "HEAD"}
	api := fileRule(t, "api", "git.example", "/api/*")
	api.others = actionForward // never asked: others of the first rule counts
	rest := allowRule(t, "rest", "git.example", "/public/*")
	alt := fileRule(t, "alt", "git.example:8443 api.github.com:8443")
	open := allowRule(t, "open", "open.example 10.0.0.1 deep.corp.example")
	shadow := fileRule(t, "shadow", "open.example")
	loose := fileRule(t, "loose", "loose.example", "/a/*")
	loose.others = actionForward
	star := fileRule(t, "star", "*.sentry.io")
	rules := append([]*rule{read, api, rest, alt, open, shadow, loose, star}, builtinRules()...)
	s := newRuleSet(rules, actionDeny)

	tests := []struct{ authority, method, target, connect, request string }{
		{"git.example", "GET", "/x", "intercept read", "inject read"},
		{"git.example", "get", "/x", "intercept read", "deny read"},
		{"git.example", "POST", "/api/x", "intercept read", "inject api"},
		{"git.example", "POST", "/public/x", "intercept read", "forward rest"},
		{"git.example", "POST", "/x", "intercept read", "deny read"},
		{"git.example", "GET", "/a/./b", "intercept read", "badTarget read"},
		{"git.example:8443", "POST", "/x/..", "intercept alt", "inject alt"},
		{"git.example:80", "GET", "/", "deny", "deny"},
		{"x.corp.example", "GET", "/", "intercept read", "inject read"},
		{"y.x.corp.example", "GET", "/", "intercept read", "inject read"},
		{"deep.corp.example", "GET", "/", "intercept read", "inject read"},
		{"deep.corp.example", "POST", "/", "intercept read", "forward open"},
		{"corp.example", "GET", "/", "deny", "deny"},
		{"evilcorp.example", "GET", "/", "deny", "deny"},
		{"open.example", "GET", "/", "tunnel open", "forward open"},
		{"open.example:8443", "GET", "/", "deny", "deny"},
		{"10.0.0.1", "GET", "/", "tunnel open", "forward open"},
		{"loose.example", "GET", "/a/b", "intercept loose", "inject loose"},
		{"loose.example", "GET", "/b", "intercept loose", "forward loose"},
		// A wildcard of the file takes the hosts of built-in rules over, another port does not.
		{"us.sentry.io", "GET", "/", "intercept star", "inject star"},
		{"sentry.io", "GET", "/", "intercept sentry", "inject sentry"},
		{"api.github.com", "GET", "/", "intercept github", "inject github"},
		{"api.github.com:8443", "GET", "/", "intercept alt", "inject alt"},
	}
	for _, tt := range tests {
		a := mustAuthority(t, tt.authority)
		if got := told(s.connect(a)); got != tt.connect {
			t.Errorf("connect %s: %s, want %s", tt.authority, got, tt.connect)
		}
		if got := told(s.request(a, tt.method, tt.target)); got != tt.request {
			t.Errorf("%s %s on %s: %s, want %s", tt.method, tt.target, tt.authority, got, tt.request)
		}
	}
}

func TestRefusalsNameTheSettingThatRefused(t *testing.T) {
	r := fileRule(t, "gitlab", "git.example", "/api/*")
	s := newRuleSet([]*rule{r}, actionDeny)
	git := mustAuthority(t, "git.example")
	tests := []struct{ got, want string }{
		{s.request(git, "GET", "/x").reason, `others = "deny" of rule "gitlab" (proxy.toml line 7)`},
		{s.request(git, "GET", "/api/../x").reason, `the path holds a . or .. segment, which methods and paths of rule "gitlab" (proxy.toml line 7) cannot judge`},
		{s.connect(mustAuthority(t, "evil.example:8080")).reason, `unmatched = "deny", and no rule names "evil.example:8080"`},
		{s.request(mustAuthority(t, "evil.example:80"), "GET", "/").reason, `unmatched = "deny", and no rule names "evil.example:80"`},
		{s.connect(git).reason, ""},
		{s.request(git, "GET", "/api/x").reason, ""},
		{builtinRules()[0].String(), `built-in rule "github"`},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("reason %q, want %q", tt.got, tt.want)
		}
	}
}

func TestNamesHoldsOnEveryPort(t *testing.T) {
	s := newRuleSet([]*rule{fileRule(t, "a", "a.example:8443 *.b.example:8443"), allowRule(t, "c", "c.example")}, actionTunnel)
	for host, want := range map[string]bool{
		"a.example": true, "x.b.example": true, "y.x.b.example": true, "c.example": true,
		"b.example": false, "x.a.example": false, "example": false, "xb.example": false, "": false,
	} {
		if got := len(s.naming(host)) > 0; got != want {
			t.Errorf("names(%q) = %v", host, got)
		}
	}
}

func TestMatchPath(t *testing.T) {
	tests := []struct {
		pattern, path string
		want          bool
	}{
		{"/token", "/token", true},
		{"/token", "/Token", false},
		{"/token", "/token/", false},
		{"/api/v4/*", "/api/v4/", true},
		{"/api/v4/*", "/api/v4/a/b", true},
		{"/api/v4/*", "/api/v4", false},
		{"/api/v4/*", "/api/v40/a", false},
		{"/api/v4*", "/api/v4", true},
		{"/api/v4*", "/api/v4x/y", true},
		{"/*", "/", true},
		{"/*", "*", false},
		{"/*", "", false},
		{"/*/b", "/a/b", true},
		{"/*/b", "/a/x/b", false},
		{"/*/*.tgz", "/a/b.c.tgz", true},
		{"/*/*.tgz", "/a/b/c.tgz", false},
		{"/a*b*c/d", "/aXbYbZc/d", true},
		{"/a*b*c/d", "/aXbYb/Zc/d", false},
		{"/a*b/c", "/abbb/c", true},
		{"/*/*/info/lfs/*", "/o/r/info/lfs/objects/batch", true},
		{"/*/*/info/refs", "/o/r/info/refs", true},
		{"/*/*/info/refs", "/o/r/x/info/refs", false},
		{"/a/*/c", "/a/%2F/c", true},
		{"/a%2Fb", "/a%2Fb", true},
		{"/a%2Fb", "/a/b", false},
		{"/~user", "/~user", true},
	}
	for _, tt := range tests {
		if got := matchPath(tt.pattern, tt.path); got != tt.want {
			t.Errorf("matchPath(%q, %q) = %v", tt.pattern, tt.path, got)
		}
	}
}

func TestComparablePathDecodesUnreservedEscapesAlone(t *testing.T) {
	for in, want := range map[string]string{
		"/a/b": "/a/b", "/%61%2d%5F%7e%2E": "/a-_~.", "/a%2fb": "/a%2Fb", "/%40scope": "/%40scope",
		"/%2561": "/%2561", "/%": "/%", "/%6": "/%6", "/%6g%61": "/%6ga", "/%c3%A4": "/%C3%A4", "*": "*",
	} {
		if got := comparablePath(in); got != want {
			t.Errorf("comparablePath(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestAmbiguousPathsAreTold(t *testing.T) {
	bad := []string{
		"", "a", "http://x/", "/..", "/.", "/a/../b", "/a/./b", "/a/%2e%2E/b", "/a/.%2e", "/%2e", "/a%2f..%2fb", "/a%2F.",
		"/a/..;x=1/b", "/;/..;", "//", "/a//b", "/a%2f/b", "/a/%2F", `/a\b`, "/a%5cb", "/a%00", "/a\x00", "/%", "/%4", "/%zz", "/a%2",
		"/a b", "/a\tb", "/a#b", "/a\x7f", "**",
	}
	for _, path := range bad {
		if ambiguity(path) == "" {
			t.Errorf("%q passes", path)
		}
	}
	for _, path := range []string{"*", "/", "/a/", "/a.b/..c/.d/e..", "/a%2Fb", "/...", "/%2561", "/a;b=..", "/@s%2fn", "/ä", "/a%20b%23", "/%252e%252e"} {
		if why := ambiguity(path); why != "" {
			t.Errorf("%q: %s", path, why)
		}
	}
	if got := targetPath("/a?b=/../c"); got != "/a" {
		t.Errorf("targetPath keeps the query: %q", got)
	}
}

// naivePath is the matcher that FuzzMatchPath compares with: a regular expression on the segments.
func naivePath(pattern, path string) bool {
	body, rest := strings.CutSuffix(pattern, "*")
	expression := strings.ReplaceAll(regexp.QuoteMeta(body), `\*`, `[^/]*`)
	if rest {
		expression += `.*`
	}
	return strings.HasPrefix(path, "/") && regexp.MustCompile(`(?s)\A`+expression+`\z`).MatchString(path)
}

func FuzzMatchPath(f *testing.F) {
	for _, seed := range [][2]string{
		{"/*/*/info/refs", "/o/r/info/refs"}, {"/a*b*c/d", "/aXbYbZc/d"}, {"/api/v4/*", "/api/v4/%2e%2e/x"},
		{"/a/**", "/a/b"}, {"/*", "*"}, {"/%61", "/a"}, {"/a*/b*", "/a/b/c"}, {"", ""}, {"/*", "/%3%30"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, path string) {
		pattern, path = strings.ToValidUTF8(pattern, "x"), strings.ToValidUTF8(path, "x") // regexp reads runes
		if got, want := matchPath(pattern, path), naivePath(pattern, path); got != want {
			t.Fatalf("matchPath(%q, %q) = %v, naive %v", pattern, path, got, want)
		}
		comparable := comparablePath(path)
		if again := comparablePath(comparable); !strings.Contains(comparable, "%") && again != comparable {
			t.Fatalf("comparablePath(%q) = %q, and of that %q", path, comparable, again)
		}
		a, errA := url.PathUnescape(path)
		b, errB := url.PathUnescape(comparable)
		// What holds a "%" that starts no escape is refused before it is compared: see ambiguity.
		if errA == nil && (errB != nil || a != b) {
			t.Fatalf("comparablePath(%q) = %q means another path", path, comparable)
		}
		if ambiguity(path) == "" && path != "*" && (a == "" || a != "/" && strings.Contains(a+"/", "/../") || strings.Contains(a, "//")) {
			t.Fatalf("%q passes as unambiguous", path)
		}
	})
}

// naiveFind is the matcher that FuzzHostMatch compares with: all rules, label by label.
func naiveFind(rules []*rule, a authority) string {
	var file, builtin []string
	for i, r := range rules {
		for _, p := range r.hosts {
			have, want := strings.Split(a.host, "."), strings.Split(p.host, ".")
			depth := len(have) - len(want)
			if depth < 0 || p.port != a.port || p.wildcard != (depth > 0) || !slices.Equal(have[depth:], want) {
				continue
			}
			if r.builtin {
				builtin = append(builtin, strconv.Itoa(i))
			} else {
				file = append(file, strconv.Itoa(i))
			}
			break
		}
	}
	if len(file) > 0 {
		return strings.Join(file, " ")
	}
	return strings.Join(builtin, " ")
}

func FuzzHostMatch(f *testing.F) {
	f.Add("a.b *.b:8443,*.b,!b *.a.b", "x.a.b", false)
	f.Add("*.example.com,!api.example.com,api.example.com", "api.example.com", false)
	f.Add("*.c,*.b.c,*.a.b.c:8443 b.c", "z.y.a.b.c", true)
	f.Fuzz(func(t *testing.T, spec, host string, other bool) {
		var rules []*rule
		for i, text := range strings.Split(spec, ",") {
			text, builtin := strings.CutPrefix(text, "!")
			r := &rule{service: strconv.Itoa(i), builtin: builtin}
			for field := range strings.FieldsSeq(text) {
				base, wildcard := strings.CutPrefix(field, "*.")
				if a, err := parseAuthority(base, 443); err == nil && !(wildcard && a.isIP()) {
					r.hosts = append(r.hosts, hostPattern{a.host, wildcard, a.port})
				}
			}
			rules = append(rules, r)
		}
		a, err := parseAuthority(host, 443)
		if err != nil {
			return
		}
		if other {
			a.port = 8443
		}
		s := newRuleSet(rules, actionTunnel)
		var got []string
		for _, r := range s.find(a) {
			got = append(got, r.service)
		}
		if want := naiveFind(rules, a); strings.Join(got, " ") != want {
			t.Fatalf("rules of %q for %q: %v, naive %q", spec, a, got, want)
		}
		if len(got) > 0 && len(s.naming(a.host)) == 0 {
			t.Fatalf("%q has rules for %q, but does not name it", spec, a)
		}
	})
}

func TestMatchingDoesNotAllocate(t *testing.T) {
	s := newRuleSet(append([]*rule{fileRule(t, "w", "*.corp.example")}, builtinRules()...), actionTunnel)
	for _, name := range []string{"api.github.com", "github.com", "x.y.corp.example", "other.example"} {
		a := mustAuthority(t, name)
		if n := testing.AllocsPerRun(100, func() {
			s.connect(a)
			s.request(a, "GET", "/o/r.git/info/refs?service=git-upload-pack")
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
