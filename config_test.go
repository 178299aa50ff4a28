package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// loadText writes a config file into a directory of its own and loads it; the state directory is "/mux", home is "/home/u".
func loadText(t testing.TB, text string) (*config, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "proxy.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return loadConfig(file, "/mux", "/home/u")
}

func mustLoadText(t testing.TB, text string) *config {
	t.Helper()
	c, err := loadText(t, text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func netPrefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestDefaultsHoldWithoutAFile(t *testing.T) {
	c, err := loadConfig("", "/mux", "/home/u")
	if err != nil {
		t.Fatal(err)
	}
	want := &config{
		muxDir: "/mux", secretsDir: "/home/u/.secrets", httpPort: 18080, kubePort: 18081, talosPort: 18082,
		dockerHost: "host.docker.internal", caConstraints: true, unmatched: actionTunnel, drain: 10 * time.Second,
		audit: auditConfig{"/mux/audit.jsonl", 100_000_000, 5}, rules: builtinRules(),
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v\nwant %+v", c, want)
	}
	empty := mustLoadText(t, "# nothing\n")
	want.file = empty.file
	if !reflect.DeepEqual(empty, want) {
		t.Errorf("an empty file changes a default: %+v", empty)
	}
}

func TestEveryKeyIsRead(t *testing.T) {
	c := mustLoadText(t, `
secrets_dir = "~/keys"
http_proxy_port = 28_080
k8s_proxy_port = 0x6db1
talos_gateway_port = 28082
bind = ["127.0.0.1", "::1"]
client_networks = ["172.30.0.0/16", "fd00::/8"]
docker_host = "host.containers.internal"
no_proxy = ["db", ".corp.example", "10.0.0.0/8", "Cache_1"]
ca_constraints = false
allowed_networks = ["10.0.0.0/8"]
unmatched = "deny"
ca = "ephemeral"
drain = "1m30s"
audit.keep = 0
audit.path = "log/audit.jsonl"
audit.max_size = "64 MiB"
`)
	dir := filepath.Dir(c.file)
	want := &config{
		file: filepath.Join(dir, "proxy.toml"), muxDir: "/mux", secretsDir: "/home/u/keys",
		httpPort: 28080, kubePort: 28081, talosPort: 28082,
		bind:           []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")},
		clientNetworks: netPrefixes("172.30.0.0/16", "fd00::/8"), dockerHost: "host.containers.internal",
		noProxy: []string{"db", ".corp.example", "10.0.0.0/8", "Cache_1"}, caEphemeral: true,
		allowedNetworks: netPrefixes("10.0.0.0/8"), unmatched: actionDeny, drain: 90 * time.Second,
		audit: auditConfig{filepath.Join(dir, "log/audit.jsonl"), 64 << 20, 0}, rules: builtinRules(),
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v\nwant %+v", c, want)
	}
}

func TestTablesAreReadInEverySpelling(t *testing.T) {
	for _, text := range []string{
		"[audit]\nkeep = 7\n[[rule]]\nservice = \"a\"\nhosts = [\"a.example\"]\n",
		"audit = {keep = 7}\nrule = [{service = \"a\", hosts = [\"a.example\"]}]\n",
		"audit.keep = 7\n[[rule]]\n\"service\" = 'a'\nhosts = [ # here\n  \"a.example\",\n]\n",
	} {
		c := mustLoadText(t, text)
		if c.audit.keep != 7 || c.rules[0].service != "a" || c.rules[0].hosts[0].host != "a.example" || c.rules[0].builtin {
			t.Errorf("%q gives %+v", text, c)
		}
	}
}

func TestRulesAreRead(t *testing.T) {
	c := mustLoadText(t, `
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
`)
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

// gitlabRule is a rule at lines 1 to 4 that is right, but for the lines that follow it.
func gitlabRule(lines ...string) string {
	return "[[rule]]\nservice = \"gitlab\"\nhosts = [\"gitlab.example.com\"]\nheader = \"PRIVATE-TOKEN\"\n" + strings.Join(lines, "\n") + "\n"
}

// bareRule is a rule at lines 1 and 2 that has a service alone, but for the lines that follow it.
func bareRule(lines ...string) string {
	return "[[rule]]\nservice = \"x\"\n" + strings.Join(lines, "\n") + "\n"
}

func TestBadConfigsAreReportedWithLineKeyAndWayOut(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"syntax", "drain = \"1s\"\nbind = \n", "proxy.toml:2: unexpected character U+000A at start of value"},
		{"open string", "\ndrain = \"1s\n", "proxy.toml:2: "},
		{"not UTF-8", "drain = \"\xff\"\n", "proxy.toml:1: invalid UTF-8 character in basic string"},
		{"key twice", "drain = \"1s\"\n\ndrain = \"x\"\nfoo = 1\n", "proxy.toml:3: key drain is already defined"},
		{"table twice", "[audit]\n[audit]\n", "proxy.toml:2: table audit already exists"},
		{"unknown key", "\nfoo = 1\n", "proxy.toml:2: foo: unknown key"},
		{"misspelled key", "allowed_network = []\n", "proxy.toml:1: allowed_network: unknown key: did you mean allowed_networks?"},
		{"misspelled rule key", bareRule(`hosts = ["a.example"]`, `metods = ["GET"]`), "proxy.toml:4: [rule] metods: unknown key: did you mean methods?"},
		{"flat key below a table", "[audit]\nkeep = 1\ndrain = \"1s\"\n", "proxy.toml:3: [audit] drain: is no key of [audit]: move it above the first [table]"},
		{"unknown table", "\n[adit]\n", "proxy.toml:2: [adit]: unknown table: did you mean audit?"},
		{"table below a table", "[audit]\n[audit.x]\n", "proxy.toml:2: [audit] x: unknown key"},
		{"table for a value", "[drain]\nx = 1\n", "proxy.toml:1: drain: takes a value, not a table"},
		{"dotted key below a value", "[audit]\nkeep.x = 1\n", "proxy.toml:2: [audit] keep.x: keep takes a value, not a table"},
		{"value for a table", "audit = \"x\"\n", "proxy.toml:1: audit: is a table, not a value"},
		{"single rule", "[rule]\nservice = \"x\"\n", "proxy.toml:1: [rule]: there may be several: write [[rule]]"},
		{"many audits", "[[audit]]\n", "proxy.toml:1: [[audit]]: there is only one: write [audit]"},
		{"http table", "[http]\naccess = \"full\"\n", "proxy.toml:1: [http]: not in this version: take it out"},
		{"kube table", "\n[kube.context.\"prod\"]\naccess = \"full\"\n[kube.context.dev]\n", "proxy.toml:2: [kube]: not in this version: take it out"},
		{"talos table", "talos.access = \"full\"\n", "proxy.toml:1: [talos]: not in this version: take it out"},
		{"access", gitlabRule(`env = "X"`, `access = "read-only"`), "proxy.toml:6: [rule] access: not in this version: take it out"},

		{"type of a string", "drain = 10\n", `proxy.toml:1: drain: want a string with a unit like "10s", not an integer`},
		{"empty string", "secrets_dir = \"\"\n", "proxy.toml:1: secrets_dir: is empty: leave it out instead"},
		{"string for a list", "no_proxy = \"db\"\n", "proxy.toml:1: no_proxy: want a list of strings, not a string"},
		{"number in a list", "no_proxy = [\n\"db\",\n4.5]\n", "proxy.toml:3: no_proxy: want a list of strings, but there is a float in it"},
		{"empty list", "client_networks = []\n", "proxy.toml:1: client_networks: the list is empty: leave the key out instead"},
		{"string for a flag", "ca_constraints = \"no\"\n", "proxy.toml:1: ca_constraints: want true or false, not a string"},
		{"date for a size", "audit.max_size = 2026-01-01\n", `proxy.toml:1: [audit] max_size: want a size like "100MB", not a date or time`},
		{"table for a string", "secrets_dir = [1]\n", "proxy.toml:1: secrets_dir: want a string, not a list"},
		{"port 0", "http_proxy_port = 0\n", "proxy.toml:1: http_proxy_port: 0 is not from 1 to 65535"},
		{"port too high", "k8s_proxy_port = 65536\n", "proxy.toml:1: k8s_proxy_port: 65536 is not from 1 to 65535"},
		{"port as a string", "k8s_proxy_port = \"1\"\n", "proxy.toml:1: k8s_proxy_port: want a number, not a string"},
		{"two planes on one port", "k8s_proxy_port = 9\nhttp_proxy_port = 9\n", "proxy.toml:2: http_proxy_port: 9 is also k8s_proxy_port: choose another"},
		{"a default's port", "http_proxy_port = 18082\n", "proxy.toml:1: http_proxy_port: 18082 is also talos_gateway_port: choose another"},
		{"bind word", "bind = \"all\"\n", `proxy.toml:1: bind: "all" is not "auto": write a list of addresses, ["127.0.0.1"]`},
		{"bind name", "bind = [\"localhost\"]\n", `proxy.toml:1: bind: "localhost" is no address to listen on like "127.0.0.1"`},
		{"bind number", "bind = 1\n", "proxy.toml:1: bind: want a list of strings, not an integer"},
		{"address for a network", "allowed_networks = [\"10.0.0.5\"]\n", `proxy.toml:1: allowed_networks: "10.0.0.5" is an address: write "10.0.0.5/32" for it alone`},
		{"host bits", "allowed_networks = [\"10.0.0.5/8\"]\n", `proxy.toml:1: allowed_networks: "10.0.0.5/8" has bits beyond its mask: write "10.0.0.0/8"`},
		{"mapped network", "client_networks = [\"::ffff:10.0.0.0/104\"]\n", `proxy.toml:1: client_networks: "::ffff:10.0.0.0/104" is an IPv4-mapped network: write the IPv4 one`},
		{"no network", "client_networks = [\"lan\"]\n", `proxy.toml:1: client_networks: "lan" is no network like "10.0.0.0/8"`},
		{"docker_host as an address", "docker_host = \"172.17.0.1\"\n", `proxy.toml:1: docker_host: "172.17.0.1" is an IP address, which the certificate authority cannot name: use a DNS name`},
		{"docker_host in capitals", "docker_host = \"Host.internal.\"\n", `proxy.toml:1: docker_host: "Host.internal." is not in its normal form: write "host.internal"`},
		{"docker_host with a port", "docker_host = \"host.internal:443\"\n", `proxy.toml:1: docker_host: "host.internal:443" is no DNS name`},
		{"no_proxy blank", "no_proxy = [\"a b\"]\n", `proxy.toml:1: no_proxy: "a b" is no name: one name an element, without blanks and commas`},
		{"no_proxy comma", "no_proxy = [\"a,b\"]\n", `proxy.toml:1: no_proxy: "a,b" is no name: one name an element, without blanks and commas`},
		{"no_proxy line end", "no_proxy = [\"a\\rb\"]\n", `proxy.toml:1: no_proxy: "a\rb" is no name: one name an element, without blanks and commas`},
		{"no_proxy star", "no_proxy = [\"*\"]\n", `proxy.toml:1: no_proxy: "*" would take every host past the proxy: use print-docker-args --no-proxy`},
		{"unmatched", "unmatched = \"allow\"\n", `proxy.toml:1: unmatched: "allow" is none of "tunnel", "deny"`},
		{"ca", "ca = \"none\"\n", `proxy.toml:1: ca: "none" is none of "persistent", "ephemeral"`},
		{"drain without a unit", "drain = \"10\"\n", `proxy.toml:1: drain: "10" is no duration: write a number and a unit, like "10s"`},
		{"drain below 0", "drain = \"-1s\"\n", `proxy.toml:1: drain: "-1s" is less than nothing`},
		{"size", "audit.max_size = \"100 megs\"\n", `proxy.toml:1: [audit] max_size: "100 megs" is no size: write a number and a unit, like "100MB" or "64MiB"`},
		{"size below 0", "audit.max_size = -1\n", "proxy.toml:1: [audit] max_size: -1 is less than nothing"},
		{"keep", "audit.keep = -1\n", "proxy.toml:1: [audit] keep: -1 is not from 0 to 10000"},
		{"another's home", "secrets_dir = \"~root/x\"\n", `proxy.toml:1: secrets_dir: "~root/x": only ~/ is expanded: write the path in full`},

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
		{"too long", strings.Repeat("#", 64<<10) + "\n", "over 64 KiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := loadText(t, tt.text)
			if err == nil {
				t.Fatal("loads")
			}
			got := err.Error()
			if strings.Contains(got, "hunter2") {
				t.Errorf("shows what may be a credential: %s", got)
			}
			_, got, _ = strings.Cut(got, `proxy.toml": `)
			if got != tt.want && !(strings.HasSuffix(tt.want, ": ") && strings.HasPrefix(got, tt.want)) {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestAllProblemsAreReportedTogetherInTheOrderOfTheirLines(t *testing.T) {
	_, err := loadText(t, "drain = \"x\"\n[[rule]]\nservice = \"a\"\nhosts = [\"a..b\"]\nmethods = [\"get\"]\n[audit]\nkeep = \"1\"\n[foo]\n")
	problems, ok := errors.AsType[*configError](err)
	if !ok || len(problems.problems) != 5 {
		t.Fatalf("error %v", err)
	}
	want := []string{
		`load config "` + problems.file + `": 5 problems`,
		`proxy.toml:1: drain: "x" is no duration: write a number and a unit, like "10s"`,
		`proxy.toml:4: [rule] hosts: "a..b": an empty label in the host`,
		`proxy.toml:5: [rule] methods: "get" is not in upper case: write "GET"`,
		`proxy.toml:7: [audit] keep: want a number, not a string`,
		`proxy.toml:8: [foo]: unknown table`,
	}
	if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, want) {
		t.Errorf("%s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAConfigThatCannotBeReadNamesTheFile(t *testing.T) {
	dir := t.TempDir()
	missing, fifo := filepath.Join(dir, "missing.toml"), filepath.Join(dir, "fifo.toml")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(missing, "/mux", "/home/u"); !errors.Is(err, fs.ErrNotExist) || err.Error() != fmt.Sprintf("load config %q: no such file or directory", missing) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := loadConfig(fifo, "/mux", "/home/u"); err == nil || err.Error() != fmt.Sprintf("load config %q: not a regular file", fifo) {
		t.Errorf("fifo: %v", err)
	}
}

func TestAHomeThatIsNotSetIsNeverTheWorkingDirectory(t *testing.T) {
	if _, err := loadConfig("", "/mux", ""); err == nil || !strings.Contains(err.Error(), "HOME") {
		t.Errorf("secrets_dir below no home: %v", err)
	}
	file := filepath.Join(t.TempDir(), "proxy.toml")
	if err := os.WriteFile(file, []byte("secrets_dir = \"~/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(file, "/mux", ""); err == nil || !strings.Contains(err.Error(), "HOME is not set: write the path in full") {
		t.Errorf("~ without a home: %v", err)
	}
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

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "7": 7, "7B": 7, "1KB": 1000, "1KiB": 1024, "100MB": 100_000_000, "64 MiB": 64 << 20, "2GB": 2_000_000_000,
		"3GiB": 3 << 30, "1TB": 1_000_000_000_000, "8388607TiB": 8388607 << 40,
	} {
		if got, ok := parseSize(in); !ok || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "MB", "-1", "+1", "1.5MB", "1mb", "1 2", "1  MB", " 1", "0x1", "1e3", "8388608TiB", "9223372036854775808"} {
		if got, ok := parseSize(in); ok {
			t.Errorf("parseSize(%q) = %d", in, got)
		}
	}
	if got, _ := parseSize("9223372036854775807"); got != math.MaxInt64 {
		t.Errorf("the largest size is %d", got)
	}
}

// TestCharacterClasses compares every byte with the sets that the RFCs and POSIX list.
func TestCharacterClasses(t *testing.T) {
	const digits, lower, upper = "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for c := range rune(0x100) {
		for name, tt := range map[string]struct {
			got bool
			set string
		}{
			"token":       {isToken(string(c)), "!#$%&'*+-.^_`|~" + digits + lower + upper},
			"unreserved":  {c < 0x80 && isUnreserved(byte(c)), "-._~" + digits + lower + upper},
			"hex":         {c < 0x80 && isHex(byte(c)), digits + "abcdefABCDEF"},
			"variable":    {isEnvName("X" + string(c)), "_" + digits + lower + upper},
			"start of it": {isEnvName(string(c)), "_" + lower + upper},
			"name":        {c < 0x80 && isNameByte(byte(c)), "-._" + digits + lower},
			"no_proxy":    {!notInNoProxy(c), "-._*:/[]" + digits + lower + upper},
		} {
			if want := strings.ContainsRune(tt.set, c); tt.got != want {
				t.Errorf("%s: %q is %v", name, c, tt.got)
			}
		}
		if want := c >= ' ' && c <= '~'; notPrintable(c) == want {
			t.Errorf("notPrintable(%q)", c)
		}
	}
	if isToken("") || isEnvName("") {
		t.Error("an empty string is a token or a variable's name")
	}
}

func TestTheLimitsThemselvesAreAllowed(t *testing.T) {
	c := mustLoadText(t, "drain = \"0s\"\nhttp_proxy_port = 1\nk8s_proxy_port = 65535\naudit.max_size = 0\n"+strings.Repeat("#", maxConfig-80)+"\n")
	if c.drain != 0 || c.httpPort != 1 || c.kubePort != 65535 || c.audit.maxSize != 0 {
		t.Errorf("%+v", c)
	}
	if _, err := loadText(t, strings.Repeat("#", maxConfig-1)+"\n"); err != nil {
		t.Errorf("a file of maxConfig bytes: %v", err)
	}
}

func TestNearestFindsMisspelledKeys(t *testing.T) {
	known := []string{"hosts", "header", "methods", "ca"}
	for in, want := range map[string]string{"host": "hosts", "headers": "header", "x": "", "foo": "", "mehtods": "methods", "Hosts": "hosts", "ca_": "ca"} {
		if got := nearest(in, known); got != want {
			t.Errorf("nearest(%q) = %q, want %q", in, got, want)
		}
	}
}

// FuzzConfig holds that no file panics the loader, that every problem has a line of the file, and that what is accepted
// keeps its promises to the parts that take it.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"drain = \"10s\"\n[audit]\nkeep = 3\n", gitlabRule(`env = "X"`, `paths = ["/a/*"]`, `others = "forward"`),
		"rule = [{service = \"a\", hosts = [\"*.a.example:8443\"]}]\n", "[[rule]]\n[rule.x]\n", "audit = {x = [[1], {y = 2}]}\n",
		"[kube.context.\"a b\"]\n", "a.b.c = 1979-05-27\n", "bind = [\"::1%eth0\"]\n", "[[rule]]\nservice = \"npm\"\ndisabled = true\n",
		"rule = []\n", "rule.hosts = 1\n", "\"\" = 1\n[\"\"]\n", "rule = [{}, 1]\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "ca_file") {
			return // it reads a file that the text names
		}
		l := newConfigLoader("/x/proxy.toml", "/home/u")
		tables, problem := readTOML([]byte(text))
		if problem != nil {
			if problem.line < 1 || problem.line > strings.Count(text, "\n")+1 {
				t.Fatalf("problem %+v", problem)
			}
			return
		}
		c := defaultConfig("/mux", "/home/u")
		l.load(c, tables)
		for _, p := range l.problems {
			if p.line < 1 || p.line > strings.Count(text, "\n")+1 || p.text == "" || strings.Contains(p.text, "\n") {
				t.Fatalf("problem %+v", p)
			}
		}
		if len(l.problems) > 0 {
			return
		}
		for _, host := range c.caHosts() {
			if a, err := parseAuthority(host, 443); err != nil || a.host != host || a.isIP() {
				t.Fatalf("the authority would cover %q: %v", host, err)
			}
		}
		for _, r := range c.rules {
			for _, s := range r.sources {
				if s.field == "" || len(s.env) == 0 && s.file == "" || !s.basicPair && (s.username == "") == (s.format == "") {
					t.Fatalf("source %+v", s)
				}
			}
			for _, p := range r.paths {
				if ambiguity(p) != "" || comparablePath(p) != p {
					t.Fatalf("path pattern %q", p)
				}
			}
		}
		for _, p := range []string{c.secretsDir, c.audit.path} {
			if !filepath.IsAbs(p) {
				t.Fatalf("relative path %q", p)
			}
		}
	})
}
