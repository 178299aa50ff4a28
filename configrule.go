package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
)

// maxCAFile is the size in bytes past which a ca_file is refused; the public roots of a system are a quarter of it.
const maxCAFile = 1 << 20

// rule reads one [[rule]]. It gives nil for a rule that only turns a built-in service off, which it notes in the loader.
func (t *configTable) rule(dockerHost string) *rule {
	r := &rule{service: t.service(), config: filepath.Base(t.file), line: t.line}
	if t.flag("disabled", false) {
		t.disable(r.service)
		return nil
	}
	if t.has("access") {
		t.problem(t.lineOf("access"), "access", "not in this version: take it out")
	}
	r.sources = t.sources()
	r.methods = t.methods()
	r.paths = t.paths()
	r.others = t.others()
	intercepts := t.has("header") || t.has("methods") || t.has("paths")
	r.hosts = t.hosts(intercepts, dockerHost)
	r.roots = t.roots(intercepts)
	t.unknown()
	r.inherit()

	if line := t.disabled[r.service]; line != 0 {
		t.problem(t.line, "service", "%q is turned off by the rule at line %d, and a rule here does that already", r.service, line)
	}
	if t.replaced[r.service] == 0 {
		t.replaced[r.service] = t.line
	}
	return r
}

// service reads the name that the audit log has, and that tells which built-in rules are replaced.
func (t *configTable) service() string {
	s := t.text("service", "")
	if !t.has("service") {
		t.problem(t.line, "service", `is missing: name the service, as in service = "gitlab"`)
	}
	if strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > 0x7e || strings.ContainsRune(`"'\`, c) }) {
		t.problem(t.lineOf("service"), "service", "%q holds more than ASCII letters, digits and signs", s)
	}
	return s
}

// disable notes a built-in service that is off.
func (t *configTable) disable(service string) {
	for _, e := range t.entries {
		if e.key != "service" && e.key != "disabled" {
			t.problem(e.line, e.key, "goes with no disabled = true: take one of the two out")
		}
	}
	var known []string
	for _, r := range builtinRules() {
		if !slices.Contains(known, r.service) {
			known = append(known, r.service)
		}
	}
	line := t.lineOf("disabled")
	switch {
	case service == "": // reported already
	case !slices.Contains(known, service):
		t.problem(line, "disabled", "no built-in service is called %q: there are %s", service, quotedList(known))
	case t.disabled[service] != 0:
		t.problem(line, "disabled", "%q is turned off at line %d already", service, t.disabled[service])
	case t.replaced[service] != 0:
		t.problem(line, "disabled", "the rule at line %d replaces the built-in rules of %q already", t.replaced[service], service)
	default:
		t.disabled[service] = line
	}
}

// sources reads where the credential comes from and how it goes out; nil for an allow rule.
func (t *configTable) sources() []source {
	s := source{field: t.header(), username: t.username(), format: t.format(), file: t.secretFile()}
	if env := t.env(); env != "" {
		s.env = []string{env}
	}
	if t.has("header") {
		if !t.has("env") && !t.has("file") {
			t.problem(t.lineOf("header"), "header", `there is no credential for it: add env = "NAME" or file = "NAME"`)
		}
		return []source{s}
	}
	for _, key := range []string{"format", "username", "env", "file"} {
		if t.has(key) {
			t.problem(t.lineOf(key), key, `there is no header that it is for: add header = "Authorization"`)
		}
	}
	return nil
}

// hopFields are the fields that belong to a connection or to the framing of a message (RFC 9110 §7.6.1, RFC 9112 §6), that
// choose the host, or that only answers have.
var hopFields = []string{
	"Connection", "Content-Length", "Expect", "Host", "Http2-Settings", "Keep-Alive", "Set-Cookie", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

// header reads the field's name. A wrong one is not shown: it may be a whole field with its credential.
func (t *configTable) header() string {
	s := t.text("header", "")
	name := http.CanonicalHeaderKey(s)
	switch {
	case s == "":
	case !isToken(s):
		t.problem(t.lineOf("header"), "header", `is no field name like "Authorization": the value belongs in format`)
	case slices.Contains(hopFields, name) || strings.HasPrefix(name, "Proxy-"):
		t.problem(t.lineOf("header"), "header", "%q belongs to the connection and cannot carry a credential", name)
	}
	return name
}

// format reads the value around the credential. It is not shown where it is wrong: the credential may stand in it.
func (t *configTable) format() string {
	s := t.text("format", "{}")
	line := t.lineOf("format")
	header, _ := t.find("header")
	switch {
	case t.has("username") && t.has("format"):
		t.problem(line, "format", "goes with no username, which makes it HTTP Basic: take one of the two out")
	case t.has("username"):
		return ""
	case !t.has("format") && header.isAuthorization():
		t.problem(line, "format", `is missing: add format = "Bearer {}", or username = "x" for HTTP Basic`)
	case strings.Count(s, "{}") != 1:
		t.problem(line, "format", "must have {} exactly once, where the credential goes")
	case strings.ContainsFunc(s, notPrintable):
		t.problem(line, "format", "must be printable ASCII")
	}
	return s
}

// isAuthorization tells whether the value of "header" names the field in which a bare credential is most likely a mistake.
func (v tomlValue) isAuthorization() bool {
	s, ok := v.value.(string)
	return ok && strings.EqualFold(s, "Authorization")
}

// username reads the user name of HTTP Basic, which ends at the first colon (RFC 7617 §2).
func (t *configTable) username() string {
	s := t.text("username", "")
	if strings.ContainsFunc(s, notPrintable) || strings.Contains(s, ":") {
		t.problem(t.lineOf("username"), "username", "must be printable ASCII without a colon")
	}
	return s
}

// reservedEnv are the variables that print-docker-args gives values of its own; a rule's placeholder would take their place.
var reservedEnv = []string{
	"ALL_PROXY", "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "CURL_CA_BUNDLE", "DENO_CERT", "GIT_CONFIG_COUNT", "GIT_SSL_CAINFO",
	"GIT_TERMINAL_PROMPT", "HOME", "HTTP_PROXY", "HTTPS_PROXY", "KUBECONFIG", "LD_PRELOAD", "MUX_DIR", "NIX_SSL_CERT_FILE",
	"NODE_EXTRA_CA_CERTS", "NODE_OPTIONS", "NODE_USE_ENV_PROXY", "NO_PROXY", "NPM_CONFIG_GLOBALCONFIG", "PATH",
	"PERL_LWP_SSL_CA_FILE", "PHP_INI_SCAN_DIR", "PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE", "TALOSCONFIG",
	"WGETRC", "YARN_HTTPS_CA_FILE_PATH", "YARN_HTTPS_PROXY", "YARN_HTTP_PROXY",
}

// env reads the variable's name. A wrong one is not shown: it may be the credential itself.
func (t *configTable) env() string {
	s := t.text("env", "")
	switch {
	case s == "":
	case !isEnvName(s):
		t.problem(t.lineOf("env"), "env", "is no name of a variable (letters, digits and _): write its name, not the credential")
	case slices.Contains(reservedEnv, strings.ToUpper(s)):
		t.problem(t.lineOf("env"), "env", "%q means something else to programs in containers: choose another name", s)
	}
	return s
}

// secretFile reads the name of a file in secrets_dir, or a path of its own.
func (t *configTable) secretFile() string {
	s := t.text("file", "")
	if s == "" {
		return ""
	}
	if strings.HasPrefix(s, "~") || filepath.IsAbs(s) {
		return t.path("file", "")
	}
	name := filepath.Clean(s)
	if name == "." || !filepath.IsLocal(name) || strings.HasSuffix(s, "/") {
		t.problem(t.lineOf("file"), "file", "%q is no file in secrets_dir: write its name there, or an absolute path", s)
	}
	return name
}

func (t *configTable) methods() []string {
	var methods []string
	for _, e := range t.list("methods") {
		switch upper := strings.ToUpper(e.text); {
		case !isToken(e.text):
			t.problem(e.line, "methods", `%q is no method like "GET"`, e.text)
		case upper != e.text:
			t.problem(e.line, "methods", "%q is not in upper case: write %q", e.text, upper)
		default:
			methods = append(methods, e.text)
		}
	}
	return methods
}

// paths reads patterns and gives them as comparablePath does. One that no unambiguous path could fit is a mistake.
func (t *configTable) paths() []string {
	var paths []string
	for _, e := range t.list("paths") {
		why := ambiguity(e.text)
		switch {
		case strings.Contains(e.text, "?"):
			why = "the query is not matched: leave it out"
		case strings.Contains(e.text, "**"):
			why = `"**" is not known: "*" stays within a segment, a final "*" is any rest`
		case e.text == "*":
			why = `write "/*", or leave paths out`
		}
		if why != "" {
			t.problem(e.line, "paths", "%q: %s", e.text, why)
			continue
		}
		paths = append(paths, comparablePath(e.text))
	}
	return paths
}

func (t *configTable) others() action {
	word := t.choice("others", "deny", "deny", "forward")
	if t.has("others") && !t.has("methods") && !t.has("paths") {
		t.problem(t.lineOf("others"), "others", "no request is left out without methods or paths: add one of them or take it out")
	}
	if word == "forward" {
		return actionForward
	}
	return actionDeny
}

// hosts reads the patterns. What is intercepted needs a certificate, and the authority's constraints exclude every IP address.
func (t *configTable) hosts(intercepts bool, dockerHost string) []hostPattern {
	if !t.has("hosts") {
		t.problem(t.line, "hosts", `is missing: name the hosts, as in hosts = ["gitlab.example.com"]`)
	}
	var patterns []hostPattern
	for _, e := range t.list("hosts") {
		p, err := parseHostPattern(e.text)
		switch {
		case err != nil:
		case p.host == dockerHost && !p.wildcard:
			err = errors.New("is docker_host, which the proxy never goes to")
		case intercepts && (authority{p.host, p.port}).isIP():
			err = errors.New("is an IP address, which the certificate authority cannot name: use a DNS name")
		case intercepts && p.wildcard && !strings.Contains(p.host, "."):
			err = errors.New("would have the certificate authority cover a whole top-level domain: name more of it")
		case slices.Contains(patterns, p):
			err = errors.New("is there twice")
		}
		if err != nil {
			t.problem(e.line, "hosts", "%q: %v", e.text, err)
			continue
		}
		patterns = append(patterns, p)
	}
	return patterns
}

// parseHostPattern reads "api.github.com", "*.example.com:8443", "[::1]:443".
func parseHostPattern(s string) (hostPattern, error) {
	if strings.Contains(s, "://") || strings.Contains(s, "/") {
		return hostPattern{}, errors.New("write the host alone, without scheme and path")
	}
	base, wildcard := strings.CutPrefix(s, "*.")
	if strings.Contains(base, "*") {
		return hostPattern{}, errors.New(`a "*" can only be the first label, as in "*.example.com"`)
	}
	a, err := readAuthority(base, 443)
	if err != nil {
		return hostPattern{}, err
	}
	if wildcard && a.isIP() {
		return hostPattern{}, errors.New("nothing lies below an IP address")
	}
	return hostPattern{host: a.host, wildcard: wildcard, port: a.port}, nil
}

// roots reads ca_file: the system's roots and those of the file.
func (t *configTable) roots(intercepts bool) *x509.CertPool {
	file := t.path("ca_file", "")
	if file == "" {
		return nil
	}
	if !intercepts {
		t.problem(t.lineOf("ca_file"), "ca_file", "is not used without header, methods or paths: such a rule tunnels")
	}
	if pool := t.pools[file]; pool != nil {
		return pool
	}
	pool, err := x509.SystemCertPool()
	if err == nil {
		err = addRoots(pool, file)
	}
	if err != nil {
		t.problem(t.lineOf("ca_file"), "ca_file", "%q: %v", file, err)
		return nil
	}
	t.pools[file] = pool
	return pool
}

// addRoots adds every certificate of a PEM file. AppendCertsFromPEM would leave a broken one out without a word.
func addRoots(pool *x509.CertPool, file string) error {
	data, err := readRegular(file, maxCAFile)
	if err != nil {
		return err
	}
	found := false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("holds a PEM block %q, and not certificates alone", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return errors.New("holds no certificate in PEM form")
	}
	return nil
}

// inherit gives a file's rule what only the built-in rules of its service know: the form in which the service tells errors, the
// query parameter that asks for a credential, and the placeholder's shape. The variable is the rule's own.
func (r *rule) inherit() {
	value := placeholderMark
	for _, b := range builtinRules() {
		for _, p := range b.placeholders {
			if len(r.sources) > 0 && slices.Contains(r.sources[0].env, p.env) {
				value = p.value
			}
		}
		if b.service == r.service {
			r.errorShape, r.dropQuery = b.errorShape, b.dropQuery
		}
	}
	if len(r.sources) > 0 && len(r.sources[0].env) > 0 {
		r.placeholders = []placeholder{{env: r.sources[0].env[0], value: value}}
	}
}

// checkShadowed reports hosts that a rule can never decide on, because one above it takes all their requests.
func (l *configLoader) checkShadowed(rules []*rule) {
	for i, r := range rules {
		for _, p := range r.hosts {
			for _, above := range rules[:i] {
				if above.unconditional() && slices.Contains(above.hosts, p) {
					l.problems = append(l.problems, configProblem{r.line, fmt.Sprintf(
						"[rule] hosts: %q: the rule at line %d takes all its requests: merge the two or put this one first", p, above.line)})
					break
				}
			}
		}
	}
}

// isToken tells the form of methods and field names (RFC 9110 §5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c <= ' ' || c > 0x7e || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}

func isEnvName(s string) bool {
	return s != "" && (s[0] < '0' || s[0] > '9') && !strings.ContainsFunc(s, func(c rune) bool {
		return c > 0x7e || c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z')
	})
}

func notPrintable(c rune) bool {
	return c < ' ' || c > 0x7e
}
