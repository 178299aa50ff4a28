package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
)

// config is a validated configuration: every field has its effective value, paths are absolute, names are normalised.
type config struct {
	file            string       // the file it came from, "" where there is none
	muxDir          string       // "/home/u/.mux"
	secretsDir      string       // "/home/u/.secrets"
	httpPort        uint16       // 18080
	kubePort        uint16       // 18081
	talosPort       uint16       // 18082
	bind            []netip.Addr // nil is "auto"
	clientNetworks  []netip.Prefix
	dockerHost      string // "host.docker.internal"
	noProxy         []string
	caConstraints   bool
	caEphemeral     bool
	allowedNetworks []netip.Prefix
	unmatched       action // actionTunnel or actionDeny
	drain           time.Duration
	audit           auditConfig
	kube            kubePlaneConfig
	talos           talosPlaneConfig
	rules           []*rule // in the order in which they are asked: the file's, then the built-in ones that the file leaves on
}

// auditConfig says where the audit log goes and when it is rotated.
type auditConfig struct {
	path    string // absolute
	maxSize int64  // bytes; 0: never rotated
	keep    int    // rotated files kept
}

// The sizes past which a config is refused. Each name of caHosts is a name constraint of the intermediate, which every
// handshake carries: with a thousand names (22 KB) wolfSSL breaks, and Java takes 32 KB.
const (
	maxConfig      = 64 << 10 // bytes of the file
	maxCAHosts     = 256
	maxCAHostBytes = 16 << 10
)

// configLoader gathers what loadConfig reads and all that is wrong with it.
type configLoader struct {
	configError
	dir      string // relative paths of the file start here
	home     string // what "~" is
	topKeys  []string
	replaced map[string]int            // service → line of the file's first rule for it
	disabled map[string]int            // service → line of the rule that turns it off
	pools    map[string]*x509.CertPool // by ca_file, so that rules with one share a pool
}

// newConfigLoader is for an absolute file.
func newConfigLoader(file, home string) *configLoader {
	return &configLoader{
		configError: configError{file: file},
		dir:         filepath.Dir(file),
		home:        home,
		replaced:    make(map[string]int),
		disabled:    make(map[string]int),
		pools:       make(map[string]*x509.CertPool),
	}
}

// loadConfig reads file, or takes the defaults where file is "" . home expands "~". The error is a *configError with all
// problems, or says why the file cannot be read.
func loadConfig(file, muxDir, home string) (*config, error) {
	muxDir, err := filepath.Abs(muxDir)
	if err != nil {
		return nil, fmt.Errorf("load config: state directory: %w", err)
	}
	c := defaultConfig(muxDir, home)
	if file != "" {
		if err := c.read(file, home); err != nil {
			return nil, err
		}
	}
	if !filepath.IsAbs(c.secretsDir) {
		return nil, fmt.Errorf("load config %q: HOME is no absolute path: set it, or secrets_dir", file)
	}
	return c, nil
}

// read takes what a file says into the defaults.
func (c *config) read(file, home string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return fmt.Errorf("load config %q: %w", file, err)
	}
	data, err := readRegular(file, maxConfig)
	if err != nil {
		return fmt.Errorf("load config %q: %w", file, err)
	}
	c.file = file
	l := newConfigLoader(file, home)
	tables, problem := readTOML(data)
	if problem != nil {
		l.problems = append(l.problems, *problem)
	} else {
		l.load(c, tables)
	}
	if len(l.problems) > 0 {
		l.sort()
		return &l.configError
	}
	return nil
}

// defaultConfig is what holds where the file says nothing.
func defaultConfig(muxDir, home string) *config {
	return &config{
		muxDir:        muxDir,
		secretsDir:    filepath.Join(home, ".secrets"),
		httpPort:      18080,
		kubePort:      18081,
		talosPort:     18082,
		dockerHost:    "host.docker.internal",
		caConstraints: true,
		unmatched:     actionTunnel,
		drain:         10 * time.Second,
		audit:         auditConfig{path: filepath.Join(muxDir, "audit.jsonl"), maxSize: 100e6, keep: 5},
		rules:         builtinRules(),
	}
}

// readRegular reads a regular file of at most limit bytes; another kind, a FIFO say, could block or never end.
func readRegular(file string, limit int64) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, errors.Unwrap(err) // the caller names the file
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("over %d KiB", limit>>10)
	}
	return data, err
}

// load takes the tables into c. The top level is read first: rules are checked against its docker_host, and its keys are
// known when one of them is found in another table.
func (l *configLoader) load(c *config, tables []*tomlTable) {
	top := &configTable{configLoader: l, tomlTable: tables[0]}
	l.loadTop(c, top)
	l.topKeys = top.asked
	top.unknown()

	var rules []*rule
	var told []string
	var planes planeTables
	for _, table := range tables[1:] {
		t := &configTable{configLoader: l, tomlTable: table}
		switch {
		case table.name == "rule" && table.array:
			if r := t.rule(c.dockerHost); r != nil {
				rules = append(rules, r)
			}
		case table.name == "audit" && !table.array:
			l.loadAudit(&c.audit, t)
			t.unknown()
		case table.parts[0] == "kube" && (len(table.parts) == 4) == table.array:
			planes.kube = append(planes.kube, t)
		case table.parts[0] == "talos" && !table.array:
			planes.talos = append(planes.talos, t)
		case !slices.Contains(told, table.name):
			told = append(told, table.name)
			l.problems = append(l.problems, configProblem{table.line, l.wrongTable(table)})
		}
	}
	planes.load(c)
	l.checkShadowed(rules)
	for _, r := range builtinRules() {
		if l.replaced[r.service] == 0 && l.disabled[r.service] == 0 {
			rules = append(rules, r)
		}
	}
	c.rules = rules
	l.checkCAHosts(c, tables)
}

// loadTop reads the flat keys.
func (l *configLoader) loadTop(c *config, t *configTable) {
	c.secretsDir = t.path("secrets_dir", c.secretsDir)
	c.httpPort = t.port("http_proxy_port", c.httpPort)
	c.kubePort = t.port("k8s_proxy_port", c.kubePort)
	c.talosPort = t.port("talos_gateway_port", c.talosPort)
	t.checkPorts(c)
	c.bind = t.bind()
	c.clientNetworks = t.prefixes("client_networks")
	c.dockerHost = t.dockerHost(c.dockerHost)
	c.noProxy = t.noProxy()
	c.caConstraints = t.flag("ca_constraints", c.caConstraints)
	c.caEphemeral = t.choice("ca", "persistent", "persistent", "ephemeral") == "ephemeral"
	c.allowedNetworks = t.prefixes("allowed_networks")
	if t.choice("unmatched", "tunnel", "tunnel", "deny") == "deny" {
		c.unmatched = actionDeny
	}
	c.drain = t.duration("drain", c.drain)
}

func (l *configLoader) loadAudit(a *auditConfig, t *configTable) {
	a.path = t.path("path", a.path)
	a.maxSize = t.size("max_size", a.maxSize)
	a.keep = t.integer("keep", a.keep, 0, 10_000)
}

// checkPorts reports two planes on one port, also where one of them is at its default.
func (t *configTable) checkPorts(c *config) {
	ports := []struct {
		key  string
		port uint16
	}{{"http_proxy_port", c.httpPort}, {"k8s_proxy_port", c.kubePort}, {"talos_gateway_port", c.talosPort}}
	for i, p := range ports {
		for _, o := range ports[:i] {
			key, other := p.key, o.key
			if !t.has(key) || t.has(other) && t.lineOf(other) > t.lineOf(key) {
				key, other = other, key
			}
			if p.port == o.port {
				t.problem(t.lineOf(key), key, "%d is also %s: choose another", p.port, other)
			}
		}
	}
}

// bind reads "auto", which is nil, or a list of addresses.
func (t *configTable) bind() []netip.Addr {
	v, _ := t.find("bind")
	if s, ok := v.value.(string); ok {
		if s != "auto" {
			t.problem(v.line, "bind", `%q is not "auto": write a list of addresses, ["127.0.0.1"]`, s)
		}
		return nil
	}
	var addrs []netip.Addr
	for _, e := range t.list("bind") {
		addr, err := netip.ParseAddr(e.text)
		if err != nil || addr.IsMulticast() {
			t.problem(e.line, "bind", `%q is no address to listen on like "127.0.0.1"`, e.text)
			continue
		}
		addrs = append(addrs, addr.Unmap())
	}
	return addrs
}

// dockerHost reads the name that containers have for this host.
func (t *configTable) dockerHost(otherwise string) string {
	name := t.text("docker_host", otherwise)
	a, err := parseAuthority(name, 443)
	switch line := t.lineOf("docker_host"); {
	case err == nil && a.isIP():
		t.problem(line, "docker_host", "%q is an IP address, which the certificate authority cannot name: use a DNS name", name)
	case err != nil || a.port != 443 || strings.ContainsAny(name, ":"):
		t.problem(line, "docker_host", "%q is no DNS name", name)
	case a.host != name:
		t.problem(line, "docker_host", "%q is not in its normal form: write %q", name, a.host)
	default:
		return name
	}
	return otherwise
}

// noProxy reads names for NO_PROXY, which is joined by commas and stands on a command line.
func (t *configTable) noProxy() []string {
	var names []string
	for _, e := range t.list("no_proxy") {
		switch {
		case e.text == "*":
			t.problem(e.line, "no_proxy", `"*" would take every host past the proxy: use print-docker-args --no-proxy`)
		case e.text == "" || strings.ContainsFunc(e.text, notInNoProxy):
			t.problem(e.line, "no_proxy", "%q is no name: one name an element, without blanks and commas", e.text)
		default:
			names = append(names, e.text)
		}
	}
	return names
}

// notInNoProxy tells the characters that no name, address or network has.
func notInNoProxy(c rune) bool {
	return c > 0x7e || !isNameByte(byte(unicode.ToLower(c))) && !strings.ContainsRune("*:/[]", c)
}

// wrongTable says what is wrong with a table that is not read.
func (l *configLoader) wrongTable(t *tomlTable) string {
	switch {
	case t.name == "http":
		return "[http]: not in this version: take it out"
	case t.name == "rule" || len(t.parts) == 4 && !t.array:
		return fmt.Sprintf("[%s]: there may be several: write [[%[1]s]]", t.name)
	case t.array && slices.Contains(tableNames, t.parts[0]):
		return fmt.Sprintf("[[%s]]: there is only one: write [%[1]s]", t.name)
	case slices.Contains(l.topKeys, t.name):
		return t.name + ": takes a value, not a table"
	}
	if near := nearest(t.name, []string{"rule", "audit"}); near != "" {
		return fmt.Sprintf("[%s]: unknown table: did you mean %s?", t.name, near)
	}
	return fmt.Sprintf("[%s]: unknown table", t.name)
}

// checkCAHosts reports more names than clients take in a certificate.
func (l *configLoader) checkCAHosts(c *config, tables []*tomlTable) {
	hosts, size := c.caHosts(), 0
	for _, h := range hosts {
		size += len(h)
	}
	if len(hosts) > maxCAHosts || size > maxCAHostBytes {
		l.problems = append(l.problems, configProblem{tables[len(tables)-1].line, fmt.Sprintf(
			"[rule] hosts: all rules together intercept %d hosts with %d bytes: clients take no more than %d hosts and %d bytes in the certificate: use a wildcard, or leave out header, methods and paths where a host is only to be allowed",
			len(hosts), size, maxCAHosts, maxCAHostBytes)})
	}
}

// caHosts are the names that the certificate authority must cover: the exact hosts of all rules that intercept, and
// for "*.example.com" the name "example.com"; sorted, without duplicates; plus dockerHost and "localhost".
func (c *config) caHosts() []string {
	hosts := []string{c.dockerHost, "localhost"}
	for _, r := range c.rules {
		if !r.intercepts() {
			continue
		}
		for _, p := range r.hosts {
			hosts = append(hosts, p.host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}
