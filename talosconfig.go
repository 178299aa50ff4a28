package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxTalosconfig bounds the file: a context takes some 3 KB.
const maxTalosconfig = 4 << 20

// apidPort is where Talos' API listens unless an endpoint says otherwise.
const apidPort = 50000

// podTalosconfig is where Talos puts a talosconfig for pods that may use its API.
const podTalosconfig = "/var/run/secrets/talos.dev/config"

// errNoTalosconfig means that there is none: nothing is wrong, and there is nothing to serve.
var errNoTalosconfig = errors.New("no talosconfig found")

// talosSource says where the host's talosconfig is looked for.
type talosSource struct {
	explicit string // the config key: absolute; "" is where talosctl looks
	getenv   func(string) string
	home     string
}

// talosconfig is what a talosconfig file says. It never changes.
type talosconfig struct {
	path     string          // of the file it came from
	current  string          // the default context, "" where the file names none
	contexts []*talosContext // by name
}

// talosContext is one cluster and the host's identity there. It never changes.
type talosContext struct {
	name      string
	endpoints []authority // in the file's order: "10.5.0.2:50000"
	nodes     []string
	roots     *x509.CertPool   // that endpoints' certificates must lead to; nil is the system's
	cert      *tls.Certificate // what is presented
	proxy     string           // "" follows the environment, "direct" or the URL of a proxy, which may hold a password
	err       error            // why the context cannot be served: nil where it can
}

// paths are where a talosconfig may be, the first that exists being taken: pkg/machinery/client/config/path.go of Talos 1.13.
func (s talosSource) paths() []string {
	if s.explicit != "" {
		return []string{s.explicit}
	}
	var paths []string
	if p := s.getenv("TALOSCONFIG"); p != "" {
		paths = append(paths, p)
	}
	dir := s.getenv("TALOS_HOME")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.home, ".talos")
	}
	return append(paths, filepath.Join(dir, "config"), podTalosconfig)
}

// find gives the file that is to be read, and its state. The error is errNoTalosconfig with the places that were looked at, or,
// of a file that the config names, why it cannot be read.
func (s talosSource) find() (string, fileID, error) {
	paths := s.paths()
	for _, path := range paths {
		id, err := statID(path)
		if err == nil {
			return path, id, nil
		}
		if s.explicit != "" {
			return path, id, fmt.Errorf("load talosconfig %q: %w", path, bareError(err))
		}
	}
	return "", fileID{}, fmt.Errorf("%w: looked for %s", errNoTalosconfig, strings.Join(paths, ", "))
}

// loadTalosconfig reads the file at path. An error means that none of its contexts can be served; it holds nothing of what stands
// in the file.
func loadTalosconfig(path string) (*talosconfig, error) {
	data, err := readRegular(path, maxTalosconfig)
	if err != nil {
		return nil, fmt.Errorf("load talosconfig %q: %w", path, err)
	}
	c, err := parseTalosconfig(data)
	if err != nil {
		return nil, fmt.Errorf("load talosconfig %q: %w", path, err)
	}
	c.path = path
	return c, nil
}

// talosconfigYAML is the file as pkg/machinery/client/config/config.go of Talos describes it. What it does not name is ignored
// there too.
type talosconfigYAML struct {
	Context  string                       `yaml:"context"`
	Contexts map[string]*talosContextYAML `yaml:"contexts"`
}

type talosContextYAML struct {
	Target    string   `yaml:"target,omitempty"` // deprecated: one more endpoint
	Endpoints []string `yaml:"endpoints"`
	Nodes     []string `yaml:"nodes,omitempty"`
	CA        string   `yaml:"ca,omitempty"`
	Crt       string   `yaml:"crt,omitempty"`
	Key       string   `yaml:"key,omitempty"`
	Auth      struct {
		SideroV1 *struct{} `yaml:"siderov1,omitempty"`
	} `yaml:"auth,omitempty"`
	Cluster  string `yaml:"cluster,omitempty"`
	ProxyURL string `yaml:"proxy-url,omitempty"`
}

// parseTalosconfig reads the text of a talosconfig.
func parseTalosconfig(data []byte) (*talosconfig, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("empty: run talosctl config merge FILE")
	}
	var file talosconfigYAML
	if err := yaml.Unmarshal(data, &file); err != nil {
		return nil, yamlProblem(err)
	}
	c := &talosconfig{current: file.Context}
	for name, y := range file.Contexts {
		if y == nil {
			y = &talosContextYAML{}
		}
		c.contexts = append(c.contexts, newTalosContext(name, y))
	}
	if len(c.contexts) == 0 {
		return nil, errors.New("no contexts: run talosctl config merge FILE")
	}
	slices.SortFunc(c.contexts, func(a, b *talosContext) int { return strings.Compare(a.name, b.name) })
	return c, nil
}

// yamlLine finds where YAML is wrong in the text of an error.
var yamlLine = regexp.MustCompile(`\bline [0-9]+`)

// yamlProblem gives the line alone of a YAML error, whose text quotes what stands there: it may be a key.
func yamlProblem(err error) error {
	if line := yamlLine.FindString(err.Error()); line != "" {
		return fmt.Errorf("%s: not the YAML of a talosconfig", line)
	}
	return errors.New("not the YAML of a talosconfig")
}

// newTalosContext takes over what the file says of a context; what is wrong with it stands in its err, field first.
func newTalosContext(name string, y *talosContextYAML) *talosContext {
	c := &talosContext{name: name, nodes: y.Nodes, proxy: y.ProxyURL}
	c.err = c.fill(y)
	return c
}

// fill reads the fields; the error names the first that is wrong and never quotes a certificate or a key.
func (c *talosContext) fill(y *talosContextYAML) (err error) {
	addresses := slices.Clone(y.Endpoints)
	if y.Target != "" {
		addresses = append(addresses, y.Target)
	}
	for _, address := range addresses {
		endpoint, err := parseTalosEndpoint(address)
		if err != nil {
			return fmt.Errorf("endpoints: %w", err)
		}
		c.endpoints = append(c.endpoints, endpoint)
	}
	switch {
	case y.Auth.SideroV1 != nil:
		return errors.New("auth.siderov1: Omni signs each request with a key of its user, which muxproxy does not do: use a talosconfig of the cluster itself")
	case y.Crt == "" && y.Key == "":
		return errors.New("crt: no client certificate: run talosctl config new with a certificate that may, and merge its file")
	case len(c.endpoints) == 0:
		return fmt.Errorf("endpoints: none: run talosctl --context %s config endpoint ADDRESS", shellQuote(c.name))
	}
	if c.roots, err = talosRoots(y.CA); err != nil {
		return err
	}
	if c.cert, err = talosKeyPair(y.Crt, y.Key); err != nil {
		return err
	}
	return checkTalosProxy(c.proxy)
}

// parseTalosEndpoint reads "10.5.0.2", "cp.example.com:50001", "fd00::2", "[fd00::2]:50001" or "https://cp.example.com", whose port
// is then 443: reduceURLsToAddresses in pkg/machinery/client/connection.go of Talos.
func parseTalosEndpoint(s string) (authority, error) {
	rest, port := s, uint16(apidPort)
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		rest, _, _ = strings.Cut(after, "/")
		if scheme == "https" {
			port = 443
		}
	}
	if addr, err := netip.ParseAddr(strings.Trim(rest, "[]")); err == nil {
		return authority{host: addr.String(), port: port}, nil
	}
	a, err := parseAuthority(rest, port)
	if err != nil {
		return a, fmt.Errorf("%q is no address like 10.5.0.2 or cp.example.com:50000", shownAuthority(s))
	}
	return a, nil
}

// talosRoots gives the certificates of the field "ca".
func talosRoots(ca string) (*x509.CertPool, error) {
	if ca == "" {
		return nil, nil
	}
	text, err := base64.StdEncoding.DecodeString(ca)
	if err != nil {
		return nil, errors.New("ca: not base64")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New("ca: holds no certificate in PEM")
	}
	return roots, nil
}

// talosKeyPair gives the client certificate of the fields "crt" and "key". Talos labels its keys "ED25519 PRIVATE KEY", over
// PKCS #8, which tls.X509KeyPair takes; its errors may tell of what it was given, and are not passed on.
func talosKeyPair(crt, key string) (*tls.Certificate, error) {
	crtPEM, err := base64.StdEncoding.DecodeString(crt)
	if err != nil {
		return nil, errors.New("crt: not base64")
	}
	keyPEM, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		return nil, errors.New("key: not base64")
	}
	return talosPair(crtPEM, keyPEM)
}

// talosPair is talosKeyPair of what the base64 holds.
func talosPair(crtPEM, keyPEM []byte) (*tls.Certificate, error) {
	block, _ := pem.Decode(crtPEM)
	switch {
	case len(crtPEM) == 0:
		return nil, errors.New("crt: empty")
	case block == nil || block.Type != "CERTIFICATE":
		return nil, errors.New("crt: holds no certificate in PEM")
	case len(keyPEM) == 0:
		return nil, errors.New("key: empty")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return nil, errors.New("crt: not an X.509 certificate")
	}
	if block, _ := pem.Decode(keyPEM); block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY") {
		return nil, errors.New("key: holds no private key in PEM")
	}
	pair, err := tls.X509KeyPair(crtPEM, keyPEM)
	if err != nil {
		return nil, errors.New("key: cannot be read, or is not the key of crt")
	}
	return &pair, nil
}

// checkTalosProxy says what is wrong with a proxy-url, without quoting it.
func checkTalosProxy(value string) error {
	if value == "" || value == "direct" {
		return nil
	}
	if _, _, err := proxyAddress(value); err != nil {
		return fmt.Errorf("proxy-url: %w", err)
	}
	if u, err := url.Parse(value); err != nil || u.Scheme == "" || u.Host == "" {
		return errors.New("proxy-url: neither direct nor a URL like socks5://127.0.0.1:1080")
	}
	return nil
}

// expires is when the client certificate ends; zero where there is none.
func (c *talosContext) expires() time.Time {
	if c.cert == nil {
		return time.Time{}
	}
	return c.cert.Leaf.NotAfter
}

// leadsAs tells whether c leads where o does, with the same identity.
func (c *talosContext) leadsAs(o *talosContext) bool {
	if c.err != nil || o.err != nil {
		return false
	}
	return slices.Equal(c.endpoints, o.endpoints) && c.roots.Equal(o.roots) && c.proxy == o.proxy &&
		slices.EqualFunc(c.cert.Certificate, o.cert.Certificate, bytes.Equal)
}

// problem is why the context cannot be served at now, nil where it can.
func (c *talosContext) problem(now time.Time) error {
	if c.err == nil && now.After(c.expires()) {
		return fmt.Errorf("crt: the client certificate ended on %s: run talosctl config new with one that has not, and merge its file", c.expires().Format(time.DateOnly))
	}
	return c.err
}

// wireName is how the context is named in gRPC metadata, whose values are printable ASCII: the name itself, or an escaped form of a
// name that holds more. No two names share one.
func (c *talosContext) wireName() string {
	other := func(r rune) bool { return r < ' ' || r > '~' || r == '%' }
	if c.name == "" || strings.TrimSpace(c.name) != c.name || strings.ContainsFunc(c.name, other) {
		return "%" + url.QueryEscape(c.name)
	}
	return c.name
}

// find gives the context that is named name in metadata, nil where there is none.
func (c *talosconfig) find(name string) *talosContext {
	for _, context := range c.contexts {
		if context.wireName() == name {
			return context
		}
	}
	return nil
}

// currentContext gives the default context, nil where the file has none of that name.
func (c *talosconfig) currentContext() *talosContext {
	for _, context := range c.contexts {
		if context.name == c.current {
			return context
		}
	}
	return nil
}

// names are those of all contexts, as refusals list them: `"dev", "prod"`.
func (c *talosconfig) names() string {
	var names []string
	for _, context := range c.contexts {
		names = append(names, strconv.Quote(context.name))
	}
	return strings.Join(names, ", ")
}

// containerTalosconfig is what containers get: the contexts of c, each with the gateway as its endpoint and no credential. "cluster"
// makes talosctl name the context in each RPC, which lets one port serve all; "proxy-url: direct" keeps talosctl 1.14 from asking
// for a proxy. Contexts that are off are there too: a refusal tells more than a context that is missing.
func containerTalosconfig(c *talosconfig, dockerHost string, port uint16, ca []byte) []byte {
	file := talosconfigYAML{Contexts: map[string]*talosContextYAML{}}
	if c != nil {
		file.Context = c.current
		for _, context := range c.contexts {
			file.Contexts[context.name] = &talosContextYAML{
				Endpoints: []string{net.JoinHostPort(dockerHost, strconv.Itoa(int(port)))},
				Nodes:     context.nodes,
				CA:        base64.StdEncoding.EncodeToString(ca),
				Cluster:   context.wireName(),
				ProxyURL:  "direct",
			}
		}
	}
	text, err := yaml.Marshal(file)
	if err != nil { // strings always marshal
		return nil
	}
	return text
}
