package main

import (
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

// badConfig is a config file and what is to be said of it, from the line on; a want that ends in ": " is its beginning.
type badConfig struct{ name, text, want string }

// checkBadConfigs loads each and compares the message. No message may show "hunter2", which stands for a credential in the wrong place.
func checkBadConfigs(t *testing.T, tests []badConfig) {
	t.Helper()
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

func TestBadDocumentsAreReportedWithLineKeyAndWayOut(t *testing.T) {
	checkBadConfigs(t, []badConfig{
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
		{"table without a name", "[\"\"]\ndrain = \"1s\"\n", "proxy.toml:1: []: unknown table"},
		{"table below a table", "[audit]\n[audit.x]\n", "proxy.toml:2: [audit] x: unknown key"},
		{"table for a value", "[drain]\nx = 1\n", "proxy.toml:1: drain: takes a value, not a table"},
		{"dotted key below a value", "[audit]\nkeep.x = 1\n", "proxy.toml:2: [audit] keep.x: keep takes a value, not a table"},
		{"value for a table", "audit = \"x\"\n", "proxy.toml:1: audit: is a table, not a value"},
		{"single rule", "[rule]\nservice = \"x\"\n", "proxy.toml:1: [rule]: there may be several: write [[rule]]"},
		{"many audits", "[[audit]]\n", "proxy.toml:1: [[audit]]: there is only one: write [audit]"},
		{"http table", "[http]\naccess = \"full\"\n", "proxy.toml:1: [http]: not in this version: take it out"},
		{"access", gitlabRule(`env = "X"`, `access = "read-only"`), "proxy.toml:6: [rule] access: not in this version: take it out"},
		{"too long", strings.Repeat("#", 64<<10) + "\n", "over 64 KiB"},
	})
}

func TestBadValuesAreReportedWithLineKeyAndWayOut(t *testing.T) {
	checkBadConfigs(t, []badConfig{
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
	})
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

// TestTheExamplesInTheREADMELoad takes every ```toml block of README.md for a config file; one of them has a rule.
func TestTheExamplesInTheREADMELoad(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	for i, block := range strings.Split(string(text), "```toml\n")[1:] {
		example, _, closed := strings.Cut(block, "\n```")
		if !closed {
			t.Fatalf("example %d has no end", i+1)
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "proxy.toml")
		for name, data := range map[string][]byte{"proxy.toml": []byte(example), "corp-ca.pem": extraRoot(t)} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := loadConfig(file, "/mux", "/home/u")
		if err != nil {
			t.Errorf("example %d: %v", i+1, err)
			continue
		}
		for _, r := range c.rules {
			if !r.builtin {
				rules++
			}
		}
	}
	if rules == 0 {
		t.Error("README.md has no ```toml block with a [[rule]]")
	}
}
