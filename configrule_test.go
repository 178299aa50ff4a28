package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// gitlabRule is a rule at lines 1 to 4 that is right, but for the lines that follow it.
func gitlabRule(lines ...string) string {
	return "[[rule]]\nservice = \"gitlab\"\nhosts = [\"gitlab.example.com\"]\nheader = \"PRIVATE-TOKEN\"\n" + strings.Join(lines, "\n") + "\n"
}

// bareRule is a rule at lines 1 and 2 that has a service alone, but for the lines that follow it.
func bareRule(lines ...string) string {
	return "[[rule]]\nservice = \"x\"\n" + strings.Join(lines, "\n") + "\n"
}

// goodRules is every key of a rule in use; TestRulesAreRead counts its lines.
const goodRules = `
[[rule]]
service = "gitlab"
hosts   = ["GitLab.example.com", "*.gitlab.example.com:8443"]
header  = "private-token"
env     = "GITLAB_TOKEN"
file    = "corp/gitlab"
methods = ["GET", "HEAD"]
paths   = ["/api/v4/*", "/%61%2fb"]
others  = "forward"

[[rule]]
service  = "anthropic"
hosts    = ["api.anthropic.com"]
header   = "Authorization"
username = "me"
file     = "~/key"

[[rule]]
service = "sentry"
hosts   = ["sentry.example"]
header  = "Authorization"
format  = "Bearer {}"
env     = "SENTRY_AUTH_TOKEN"

[[rule]]
service = "open"
hosts   = ["10.0.0.1:22", "[::1]:8443", "*.internal"]

[[rule]]
service = "npm"
disabled = true

[[rule]]
service = "docker-auth"
hosts   = ["auth.docker.io"]
paths   = ["/token"]
disabled = false
`

func TestRulesAreRead(t *testing.T) {
	c := mustLoadText(t, goodRules)
	want := []*rule{
		{
			service: "gitlab", config: "proxy.toml", line: 2,
			hosts:   []hostPattern{{"gitlab.example.com", false, 443}, {"gitlab.example.com", true, 8443}},
			sources: []source{{field: "Private-Token", format: "{}", env: []string{"GITLAB_TOKEN"}, file: "corp/gitlab"}},
			methods: []string{"GET", "HEAD"}, paths: []string{"/api/v4/*", "/a%2Fb"}, others: actionForward,
			placeholders: []placeholder{{0, "GITLAB_TOKEN", "muxproxy-placeholder"}},
		}, {
			service: "anthropic", config: "proxy.toml", line: 12, hosts: on443("api.anthropic.com"),
			sources:    []source{{field: "Authorization", username: "me", file: "/home/u/key"}},
			errorShape: "anthropic",
		}, {
			service: "sentry", config: "proxy.toml", line: 19, hosts: on443("sentry.example"),
			sources:      []source{{field: "Authorization", format: "Bearer {}", env: []string{"SENTRY_AUTH_TOKEN"}}},
			placeholders: []placeholder{{0, "SENTRY_AUTH_TOKEN", "muxproxy-placeholder"}},
		}, {
			service: "open", config: "proxy.toml", line: 26,
			hosts: []hostPattern{{"10.0.0.1", false, 22}, {"::1", false, 8443}, {"internal", true, 443}},
		}, {
			service: "docker-auth", config: "proxy.toml", line: 34, hosts: on443("auth.docker.io"), paths: []string{"/token"},
			dropQuery: "offline_token", errorShape: "registry",
		},
	}
	for _, r := range builtinRules() {
		if r.service == "github" || r.service == "pagerduty" {
			want = append(want, r)
		}
	}
	for i, r := range c.rules {
		if i >= len(want) || !reflect.DeepEqual(r, want[i]) {
			t.Fatalf("rule %d is %+v\nwant %+v", i, r, want[min(i, len(want)-1)])
		}
	}
	if len(c.rules) != len(want) {
		t.Errorf("%d rules, want %d", len(c.rules), len(want))
	}
	hosts := "api.eu.pagerduty.com api.anthropic.com api.github.com api.pagerduty.com auth.docker.io github.com gitlab.example.com host.docker.internal localhost sentry.example uploads.github.com"
	sorted := strings.Fields(hosts)
	slices.Sort(sorted)
	if got := c.caHosts(); !slices.Equal(got, sorted) {
		t.Errorf("caHosts() = %v\nwant %v", got, sorted)
	}
	if got := c.rules[3].hosts[1].String() + " " + c.rules[0].hosts[1].String(); got != "[::1]:8443 *.gitlab.example.com:8443" {
		t.Errorf("patterns read as %s", got)
	}
}

func TestPlaceholdersOfFileRulesHaveTheShapeThatClientsCheck(t *testing.T) {
	c := mustLoadText(t, gitlabRule(`env = "CLAUDE_CODE_OAUTH_TOKEN"`))
	if got := c.rules[0].placeholders[0].value; got != "sk-ant-oat01-muxproxy-placeholder" {
		t.Errorf("placeholder %q", got)
	}
}

func TestBadRulesAreReportedWithLineKeyAndWayOut(t *testing.T) {
	checkBadConfigs(t, []badConfig{
		{"no service", "[[rule]]\nhosts = [\"a.example\"]\n", `proxy.toml:1: [rule] service: is missing: name the service, as in service = "gitlab"`},
		{"service with a line end", "[[rule]]\nservice = \"a\\nb\"\nhosts = [\"a.example\"]\n", `proxy.toml:2: [rule] service: "a\nb" holds more than ASCII letters, digits and signs`},
		{"no hosts", bareRule(), `proxy.toml:1: [rule] hosts: is missing: name the hosts, as in hosts = ["gitlab.example.com"]`},
		{"every host", bareRule(`hosts = ["*"]`), `proxy.toml:3: [rule] hosts: "*": a "*" can only be the first label, as in "*.example.com"`},
		{"star within", bareRule(`hosts = ["a.*.b"]`), `proxy.toml:3: [rule] hosts: "a.*.b": a "*" can only be the first label, as in "*.example.com"`},
		{"star in a label", bareRule(`hosts = ["api*.example.com"]`), `proxy.toml:3: [rule] hosts: "api*.example.com": a "*" can only be the first label, as in "*.example.com"`},
		{"star over an address", bareRule(`hosts = ["*.1.2.3.4"]`), `proxy.toml:3: [rule] hosts: "*.1.2.3.4": nothing lies below an IP address`},
		{"star over com", bareRule(`hosts = ["*.com"]`, `paths = ["/x"]`), `proxy.toml:3: [rule] hosts: "*.com": would have the certificate authority cover a whole top-level domain: name more of it`},
		{"URL", bareRule(`hosts = ["https://a.example/"]`), `proxy.toml:3: [rule] hosts: "https://a.example/": write the host alone, without scheme and path`},
		{"bad port", bareRule("hosts = [", `"a.example",`, `"b.example:0"]`), `proxy.toml:5: [rule] hosts: "b.example:0": port 0`},
		{"host twice", bareRule(`hosts = ["a.example", "A.example:443"]`), `proxy.toml:3: [rule] hosts: "A.example:443": is there twice`},
		{"address to intercept", bareRule(`hosts = ["10.0.0.1"]`, `methods = ["GET"]`), `proxy.toml:3: [rule] hosts: "10.0.0.1": is an IP address, which the certificate authority cannot name: use a DNS name`},
		{"docker_host", bareRule(`hosts = ["host.docker.internal:9"]`), `proxy.toml:3: [rule] hosts: "host.docker.internal:9": is docker_host, which the proxy never goes to`},
		{"never asked", bareRule(`hosts = ["a.example"]`) + bareRule(`hosts = ["b.example", "a.example"]`, `methods = ["GET"]`), `proxy.toml:4: [rule] hosts: "a.example": the rule at line 1 takes all its requests: merge the two or put this one first`},
	})
}

func TestBadCredentialKeysAreReportedAndNotShown(t *testing.T) {
	checkBadConfigs(t, []badConfig{
		{"header with a colon", bareRule(`hosts = ["a.example"]`, `header = "Authorization: hunter2"`, `env = "X"`), `proxy.toml:4: [rule] header: is no field name like "Authorization": the value belongs in format`},
		{"hop-by-hop header", bareRule(`hosts = ["a.example"]`, `header = "proxy-authorization"`, `env = "X"`), `proxy.toml:4: [rule] header: "Proxy-Authorization" belongs to the connection and cannot carry a credential`},
		{"Host header", bareRule(`hosts = ["a.example"]`, `header = "HOST"`, `env = "X"`), `proxy.toml:4: [rule] header: "Host" belongs to the connection and cannot carry a credential`},
		{"no credential", gitlabRule(), `proxy.toml:4: [rule] header: there is no credential for it: add env = "NAME" or file = "NAME"`},
		{"no header", bareRule(`hosts = ["a.example"]`, `env = "X"`), `proxy.toml:4: [rule] env: there is no header that it is for: add header = "Authorization"`},
		{"bare Authorization", bareRule(`hosts = ["a.example"]`, `header = "authorization"`, `env = "X"`), `proxy.toml:1: [rule] format: is missing: add format = "Bearer {}", or username = "x" for HTTP Basic`},
		{"format without a place", gitlabRule(`env = "X"`, `format = "Bearer hunter2"`), "proxy.toml:6: [rule] format: must have {} exactly once, where the credential goes"},
		{"format with two places", gitlabRule(`env = "X"`, `format = "{} {}"`), "proxy.toml:6: [rule] format: must have {} exactly once, where the credential goes"},
		{"format with a line end", gitlabRule(`env = "X"`, `format = "{}\r\nX: y"`), "proxy.toml:6: [rule] format: must be printable ASCII"},
		{"format and username", gitlabRule(`env = "X"`, `username = "u"`, `format = "{}"`), "proxy.toml:7: [rule] format: goes with no username, which makes it HTTP Basic: take one of the two out"},
		{"username with a colon", gitlabRule(`env = "X"`, `username = "u:hunter2"`), "proxy.toml:6: [rule] username: must be printable ASCII without a colon"},
		{"credential for env", gitlabRule(`env = "hunter2-token"`), "proxy.toml:5: [rule] env: is no name of a variable (letters, digits and _): write its name, not the credential"},
		{"variable of the proxy", gitlabRule(`env = "https_proxy"`), `proxy.toml:5: [rule] env: "https_proxy" means something else to programs in containers: choose another name`},
		{"file outside", gitlabRule(`file = "../x"`), `proxy.toml:5: [rule] file: "../x" is no file in secrets_dir: write its name there, or an absolute path`},
		{"file outside, hidden", gitlabRule(`file = "a/../../x"`), `proxy.toml:5: [rule] file: "a/../../x" is no file in secrets_dir: write its name there, or an absolute path`},
		{"file is the directory", gitlabRule(`file = "."`), `proxy.toml:5: [rule] file: "." is no file in secrets_dir: write its name there, or an absolute path`},
	})
}

func TestContradictoryRulesAreReported(t *testing.T) {
	checkBadConfigs(t, []badConfig{
		{"lower-case method", gitlabRule(`env = "X"`, `methods = ["get"]`), `proxy.toml:6: [rule] methods: "get" is not in upper case: write "GET"`},
		{"bad method", gitlabRule(`env = "X"`, `methods = ["GET POST"]`), `proxy.toml:6: [rule] methods: "GET POST" is no method like "GET"`},
		{"relative path", gitlabRule(`env = "X"`, `paths = ["api/*"]`), `proxy.toml:6: [rule] paths: "api/*": the path does not start with /`},
		{"path with a query", gitlabRule(`env = "X"`, `paths = ["/api?x=1"]`), `proxy.toml:6: [rule] paths: "/api?x=1": the query is not matched: leave it out`},
		{"path that nothing fits", gitlabRule(`env = "X"`, `paths = ["/a/../b"]`), `proxy.toml:6: [rule] paths: "/a/../b": the path holds a . or .. segment`},
		{"two stars", gitlabRule(`env = "X"`, `paths = ["/a/**"]`), `proxy.toml:6: [rule] paths: "/a/**": "**" is not known: "*" stays within a segment, a final "*" is any rest`},
		{"star alone", gitlabRule(`env = "X"`, `paths = ["*"]`), `proxy.toml:6: [rule] paths: "*": write "/*", or leave paths out`},
		{"others alone", gitlabRule(`env = "X"`, `others = "forward"`), "proxy.toml:6: [rule] others: no request is left out without methods or paths: add one of them or take it out"},
		{"others", gitlabRule(`env = "X"`, `methods = ["GET"]`, `others = "tunnel"`), `proxy.toml:7: [rule] others: "tunnel" is none of "deny", "forward"`},
		{"ca_file that is not there", gitlabRule(`env = "X"`, `ca_file = "/nowhere/ca.pem"`), `proxy.toml:6: [rule] ca_file: "/nowhere/ca.pem": no such file or directory`},
		{"ca_file that is a device", gitlabRule(`env = "X"`, `ca_file = "/dev/zero"`), `proxy.toml:6: [rule] ca_file: "/dev/zero": not a regular file`},
		{"disabled unknown", "[[rule]]\nservice = \"gitlab\"\ndisabled = true\n", `proxy.toml:3: [rule] disabled: no built-in service is called "gitlab": there are "github", "anthropic", "pagerduty", "sentry", "npm", "docker-auth"`},
		{"disabled with another key", "[[rule]]\nservice = \"npm\"\ndisabled = true\nhosts = [\"a.example\"]\n", "proxy.toml:4: [rule] hosts: goes with no disabled = true: take one of the two out"},
		{"disabled twice", "[[rule]]\nservice = \"npm\"\ndisabled = true\n[[rule]]\nservice = \"npm\"\ndisabled = true\n", `proxy.toml:6: [rule] disabled: "npm" is turned off at line 3 already`},
		{"disabled and replaced", "[[rule]]\nservice = \"npm\"\nhosts = [\"a.example\"]\n[[rule]]\nservice = \"npm\"\ndisabled = true\n", `proxy.toml:6: [rule] disabled: the rule at line 1 replaces the built-in rules of "npm" already`},
		{"replaced and disabled", "[[rule]]\nservice = \"npm\"\ndisabled = true\n[[rule]]\nservice = \"npm\"\nhosts = [\"a.example\"]\n", `proxy.toml:4: [rule] service: "npm" is turned off by the rule at line 3, and a rule here does that already`},
	})
}

// extraRoot makes a self-signed certificate for ca_file.
func extraRoot(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCAFilesAddToTheSystemsRoots(t *testing.T) {
	root := extraRoot(t)
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	loadWith := func(content []byte, lines string) (*config, error) {
		dir := t.TempDir()
		file := filepath.Join(dir, "proxy.toml")
		for name, data := range map[string][]byte{"ca.pem": content, "proxy.toml": []byte(lines)} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return loadConfig(file, "/mux", "/home/u")
	}
	rules := gitlabRule(`env = "X"`, `ca_file = "ca.pem"`) + bareRule(`hosts = ["b.example"]`, `methods = ["GET"]`, `ca_file = "ca.pem"`)
	c, err := loadWith(root, rules)
	if err != nil {
		t.Fatal(err)
	}
	want, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	want.AppendCertsFromPEM(root)
	if c.rules[0].roots == nil || !c.rules[0].roots.Equal(want) || c.rules[1].roots != c.rules[0].roots {
		t.Error("ca_file does not give one pool with the system's roots and its own")
	}
	for name, content := range map[string][]byte{
		"holds no certificate in PEM form":                            []byte("hello\n"),
		"malformed certificate":                                       slices.Concat(root, broken),
		`holds a PEM block "PRIVATE KEY", and not certificates alone`: slices.Concat(root, key),
		"over 1024 KiB":                                               make([]byte, maxCAFile+1),
	} {
		_, err := loadWith(content, gitlabRule(`env = "X"`, `ca_file = "ca.pem"`))
		if err == nil || !strings.Contains(err.Error(), "proxy.toml:6: [rule] ca_file: ") || !strings.Contains(err.Error(), name) {
			t.Errorf("ca_file: %v, want %q", err, name)
		}
	}
	if _, err := loadWith(root, bareRule(`hosts = ["a.example"]`, `ca_file = "ca.pem"`)); err == nil || !strings.Contains(err.Error(), "is not used") {
		t.Errorf("ca_file of a rule that tunnels: %v", err)
	}
}

func TestOnlyHostsThatAreInterceptedCountAgainstTheCertificate(t *testing.T) {
	many := func(n, width int, lines ...string) string {
		var hosts []string
		for i := range n {
			hosts = append(hosts, fmt.Sprintf("%q", fmt.Sprintf("%0*d.example", width, i)))
		}
		return bareRule(append(lines, "hosts = ["+strings.Join(hosts, ",")+"]")...)
	}
	builtin, err := loadConfig("", "/mux", "/home/u")
	if err != nil {
		t.Fatal(err)
	}
	room := maxCAHosts - len(builtin.caHosts())
	if _, err := loadText(t, many(room, 4, `methods = ["GET"]`)); err != nil {
		t.Errorf("%d hosts: %v", room, err)
	}
	for _, text := range []string{many(room+1, 4, `methods = ["GET"]`), many(300, 60, `methods = ["GET"]`)} {
		if _, err := loadText(t, text); err == nil || !strings.Contains(err.Error(), "proxy.toml:1: [rule] hosts: all rules together intercept") {
			t.Errorf("too many hosts: %v", err)
		}
	}
	if _, err := loadText(t, many(220, 63, `methods = ["GET"]`)); err != nil {
		t.Errorf("220 long hosts: %v", err)
	}
	if _, err := loadText(t, many(1000, 8)); err != nil {
		t.Errorf("1000 hosts that are only allowed: %v", err)
	}
}
