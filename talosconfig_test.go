package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// testTalosCA is a cluster's certificate authority, with Ed25519 keys as Talos makes them.
type testTalosCA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
	pool *x509.CertPool
}

func newTestTalosCA(t testing.TB) *testTalosCA {
	t.Helper()
	ca := &testTalosCA{pool: x509.NewCertPool()}
	_, ca.key, _ = ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"talos"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	ca.cert, _ = x509.ParseCertificate(der)
	ca.pool.AddCert(ca.cert)
	return ca
}

// issue gives a certificate and its key in PEM: a client's with roles, or with none a server's for 127.0.0.1 and "localhost".
func (ca *testTalosCA) issue(t testing.TB, notAfter time.Time, roles ...string) (crt, key []byte) {
	t.Helper()
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: roles}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(roles) == 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "ED25519 PRIVATE KEY", Bytes: pkcs8})
}

// pem gives the authority's own certificate.
func (ca *testTalosCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
}

// context gives a context of a talosconfig as talosctl writes it, for a client of that role.
func (ca *testTalosCA) context(t testing.TB, role string, endpoints ...string) *talosContextYAML {
	t.Helper()
	crt, key := ca.issue(t, time.Now().Add(365*24*time.Hour), role)
	encode := base64.StdEncoding.EncodeToString
	return &talosContextYAML{Endpoints: endpoints, Nodes: []string{"10.5.0.2"}, CA: encode(ca.pem()), Crt: encode(crt), Key: encode(key)}
}

// talosconfigText writes a talosconfig.
func talosconfigText(t testing.TB, current string, contexts map[string]*talosContextYAML) []byte {
	t.Helper()
	text, err := yaml.Marshal(talosconfigYAML{Context: current, Contexts: contexts})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTheTalosconfigIsFoundWhereTalosctlLooks(t *testing.T) {
	home, other := t.TempDir(), t.TempDir()
	write := func(path string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own, named, moved := home+"/.talos/config", other+"/named", other+"/talos/config"
	write(own)
	write(named)
	write(moved)
	tests := []struct {
		name     string
		explicit string
		env      map[string]string
		want     string
	}{
		{"nothing set", "", nil, own},
		{"TALOSCONFIG", "", map[string]string{"TALOSCONFIG": named}, named},
		{"TALOSCONFIG names no file", "", map[string]string{"TALOSCONFIG": other + "/none"}, own},
		{"TALOS_HOME", "", map[string]string{"TALOS_HOME": other + "/talos"}, moved},
		{"TALOS_HOME is relative", "", map[string]string{"TALOS_HOME": "talos"}, own},
		{"TALOSCONFIG before TALOS_HOME", "", map[string]string{"TALOS_HOME": other + "/talos", "TALOSCONFIG": named}, named},
		{"the config before all", named, map[string]string{"TALOSCONFIG": own}, named},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := talosSource{explicit: tt.explicit, getenv: func(name string) string { return tt.env[name] }, home: home}
			path, _, err := s.find()
			if err != nil || path != tt.want {
				t.Errorf("got %q, %v, want %q", path, err, tt.want)
			}
			if tt.explicit == "" && !slices.Contains(s.paths(), "/var/run/secrets/talos.dev/config") {
				t.Errorf("no place of pods in %q", s.paths())
			}
		})
	}
	s := talosSource{getenv: func(string) string { return "" }, home: other}
	if _, _, err := s.find(); err == nil || !strings.Contains(err.Error(), other+"/.talos/config") {
		t.Errorf("with none: %v", err)
	}
	s.explicit = other + "/none"
	if _, _, err := s.find(); err == nil || err.Error() != fmt.Sprintf("load talosconfig %q: %v", s.explicit, fs.ErrNotExist.Error()) && !strings.Contains(err.Error(), "no such file") {
		t.Errorf("an explicit one that is not there: %v", err)
	}
}

func TestATalosconfigIsReadAsTalosctlDoes(t *testing.T) {
	ca := newTestTalosCA(t)
	good := ca.context(t, "os:admin", "10.5.0.2", "cp.example.com:50001", "https://lb.example.com", "fd00::2", "[fd00::3]:50002", "http://10.5.0.9:1")
	good.Target = "10.5.0.3"
	text := talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": good, "dev": ca.context(t, "os:reader", "10.6.0.2")})
	text = append(text, "an-unknown-field: {a: 1}\n"...)
	c, err := parseTalosconfig(text)
	if err != nil {
		t.Fatal(err)
	}
	if c.current != "prod" || c.names() != `"dev", "prod"` {
		t.Errorf("current %q, contexts %s", c.current, c.names())
	}
	prod := c.find("prod")
	if prod.problem(time.Now()) != nil || c.currentContext() != prod || c.find("none") != nil {
		t.Errorf("prod: %v", prod.err)
	}
	want := "[10.5.0.2:50000 cp.example.com:50001 lb.example.com:443 [fd00::2]:50000 [fd00::3]:50002 10.5.0.9:1 10.5.0.3:50000]"
	if got := fmt.Sprint(prod.endpoints); got != want {
		t.Errorf("endpoints %s, want %s", got, want)
	}
	if got := prod.cert.Leaf.Subject.Organization; !slices.Equal(got, []string{"os:admin"}) {
		t.Errorf("the certificate has the roles %q", got)
	}
	if !slices.Equal(prod.nodes, []string{"10.5.0.2"}) || prod.expires().Before(time.Now().Add(364*24*time.Hour)) {
		t.Errorf("nodes %q, expires %v", prod.nodes, prod.expires())
	}
	if err := prod.problem(prod.expires().Add(time.Second)); err == nil || !strings.HasPrefix(err.Error(), "crt: the client certificate ended on ") {
		t.Errorf("after its end: %v", err)
	}
}

func TestAContextThatCannotBeServedSaysWhichFieldIsWrongAndNoMore(t *testing.T) {
	const canary = "c4n4rY"
	ca := newTestTalosCA(t)
	otherCrt, _ := ca.issue(t, time.Now().Add(time.Hour), "os:admin")
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	tests := []struct {
		name   string
		change func(*talosContextYAML)
		want   string
	}{
		{"Omni", func(y *talosContextYAML) { y.Auth.SideroV1 = &struct{}{} }, "auth.siderov1: "},
		{"no certificate", func(y *talosContextYAML) { y.Crt, y.Key = "", "" }, "crt: no client certificate"},
		{"no endpoints", func(y *talosContextYAML) { y.Endpoints = nil }, "endpoints: none: run talosctl --context prod config endpoint ADDRESS"},
		{"an endpoint that is none", func(y *talosContextYAML) { y.Endpoints = append(y.Endpoints, canary+"@10.0.0.1 x") }, `endpoints: "10.0.0.1 x" is no address`},
		{"a port that is none", func(y *talosContextYAML) { y.Endpoints[0] = "10.0.0.1:0" }, "endpoints: "},
		{"ca not base64", func(y *talosContextYAML) { y.CA = "%" + canary }, "ca: not base64"},
		{"ca not PEM", func(y *talosContextYAML) { y.CA = encode(canary) }, "ca: holds no certificate in PEM"},
		{"crt not base64", func(y *talosContextYAML) { y.Crt = canary + "%" }, "crt: not base64"},
		{"crt not PEM", func(y *talosContextYAML) { y.Crt = encode(canary) }, "crt: holds no certificate in PEM"},
		{"crt not X.509", func(y *talosContextYAML) {
			y.Crt = encode("-----BEGIN CERTIFICATE-----\n" + encode(canary) + "\n-----END CERTIFICATE-----\n")
		}, "crt: not an X.509 certificate"},
		{"crt missing", func(y *talosContextYAML) { y.Crt = "" }, "crt: empty"},
		{"key missing", func(y *talosContextYAML) { y.Key = "" }, "key: empty"},
		{"key not base64", func(y *talosContextYAML) { y.Key = canary + "%" }, "key: not base64"},
		{"key not PEM", func(y *talosContextYAML) { y.Key = encode(canary) }, "key: holds no private key in PEM"},
		{"key under a label of its own", func(y *talosContextYAML) {
			y.Key = encode("-----BEGIN " + canary + "-----\n" + encode(canary) + "\n-----END " + canary + "-----\n")
		}, "key: holds no private key in PEM"},
		{"key not PKCS #8", func(y *talosContextYAML) {
			y.Key = encode("-----BEGIN ED25519 PRIVATE KEY-----\n" + encode(canary) + "\n-----END ED25519 PRIVATE KEY-----\n")
		}, "key: cannot be read"},
		{"key of another certificate", func(y *talosContextYAML) { y.Crt = encode(string(otherCrt)) }, "key: cannot be read, or is not the key of crt"},
		{"proxy-url", func(y *talosContextYAML) { y.ProxyURL = "ftp://u:" + canary + "@h" }, `proxy-url: no proxies of scheme "ftp"`},
		{"proxy-url without a scheme", func(y *talosContextYAML) { y.ProxyURL = "u:" + canary + "@h:1" }, "proxy-url: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			y := ca.context(t, "os:admin", "10.5.0.2")
			tt.change(y)
			c, err := parseTalosconfig(talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": y, "dev": ca.context(t, "os:admin", "10.6.0.2")}))
			if err != nil {
				t.Fatal(err)
			}
			got := c.find("prod").problem(time.Now())
			if got == nil || !strings.HasPrefix(got.Error(), tt.want) {
				t.Fatalf("got %v, want %s", got, tt.want)
			}
			for _, secret := range []string{canary, encode(canary), y.Key} {
				if secret != "" && strings.Contains(got.Error(), secret) {
					t.Errorf("the error shows what stands in the file: %v", got)
				}
			}
			if err := c.find("dev").problem(time.Now()); err != nil {
				t.Errorf("the other context: %v", err)
			}
		})
	}
}

func TestAFileThatIsNoTalosconfigIsRefusedWithoutQuotingIt(t *testing.T) {
	const canary = "c4n4rY"
	tests := []struct{ name, text, want string }{
		{"empty", " \n", "empty: run talosctl config merge FILE"},
		{"null", "~\n", "no contexts: run talosctl config merge FILE"},
		{"no contexts", "context: a\ncontexts: {}\n", "no contexts: run talosctl config merge FILE"},
		{"a list", "- " + canary, "line 1: not the YAML of a talosconfig"},
		{"a wrong type", "contexts:\n  a:\n    key: [" + canary + "]\n", "line 3: not the YAML of a talosconfig"},
		{"a key twice", "contexts:\n  " + canary + ": {}\n  " + canary + ": {}\n", "line 3: not the YAML of a talosconfig"},
		{"an anchor that is none", "contexts: *" + canary + "\n", "not the YAML of a talosconfig"},
		{"cut off", "contexts:\n  a: {key: \"" + canary, "line 2: not the YAML of a talosconfig"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseTalosconfig([]byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := parseTalosconfig([]byte("context: a\ncontexts: {a: }\n")); err != nil {
		t.Errorf("a context with nothing in it: %v", err)
	}
}

func TestContainersGetTheContextsWithoutTheCredentials(t *testing.T) {
	ca := newTestTalosCA(t)
	text := talosconfigText(t, "prod", map[string]*talosContextYAML{
		"prod": ca.context(t, "os:admin", "10.5.0.2"), "dév ": ca.context(t, "os:admin", "10.6.0.2"), "50%": {},
	})
	c, err := parseTalosconfig(text)
	if err != nil {
		t.Fatal(err)
	}
	got := string(containerTalosconfig(c, "host.docker.internal", 18082, []byte("ROOTS")))
	want := `context: prod
contexts:
    50%:
        endpoints:
            - host.docker.internal:18082
        ca: Uk9PVFM=
        cluster: '%50%25'
        proxy-url: direct
    'dév ':
        endpoints:
            - host.docker.internal:18082
        nodes:
            - 10.5.0.2
        ca: Uk9PVFM=
        cluster: '%d%C3%A9v+'
        proxy-url: direct
    prod:
        endpoints:
            - host.docker.internal:18082
        nodes:
            - 10.5.0.2
        ca: Uk9PVFM=
        cluster: prod
        proxy-url: direct
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, context := range c.contexts {
		if c.find(context.wireName()) != context {
			t.Errorf("%q is not found by %q", context.name, context.wireName())
		}
	}
	if got := string(containerTalosconfig(nil, "h", 1, nil)); got != "context: \"\"\ncontexts: {}\n" {
		t.Errorf("of none: %q", got)
	}
}

func FuzzTalosconfig(f *testing.F) {
	ca := newTestTalosCA(f)
	f.Add(talosconfigText(f, "prod", map[string]*talosContextYAML{"prod": ca.context(f, "os:admin", "10.5.0.2")}))
	f.Add([]byte("context: a\ncontexts: {a: {endpoints: [https://h, fd00::1], crt: LQ==, key: LQ==, proxy-url: socks5://h}}\n"))
	f.Add([]byte("contexts: &a {a: *a, b: ~}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseTalosconfig(text)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, context := range c.contexts {
			if seen[context.wireName()] || c.find(context.wireName()) != context {
				t.Errorf("%q is not found by %q", context.name, context.wireName())
			}
			seen[context.wireName()] = true
			for _, r := range context.wireName() {
				if r < ' ' || r > '~' {
					t.Errorf("%q cannot stand in metadata", context.wireName())
				}
			}
			if context.err == nil && (context.cert == nil || len(context.endpoints) == 0) {
				t.Errorf("%q is served with nothing", context.name)
			}
		}
		again, err := parseTalosconfig(containerTalosconfig(c, "h", 1, nil))
		if err != nil || again.names() != c.names() || again.current != c.current {
			t.Errorf("containers get other contexts: %v", err)
		}
	})
}
