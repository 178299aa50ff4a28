package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var kubeconfigs = flag.String("kubeconfigs", "testdata/kubeconfigs", "a `DIR` of kubeconfigs with what client-go makes of them")

// kubeCase is a list of kubeconfigs, and what client-go makes of it: e2e/kubeconfig writes them.
type kubeCase struct {
	Files map[string]string `json:"files"`
	List  []string          `json:"list"`
	Want  kubeResult        `json:"want"`
}

type kubeResult struct {
	Error    bool                   `json:"error"`
	Current  string                 `json:"current"`
	Contexts map[string]kubeOutcome `json:"contexts"`
}

// kubeOutcome is what a context comes to.
type kubeOutcome struct {
	Error                    bool
	Server, Namespace        string
	ServerName, Roots, Proxy string
	Insecure, Uncompressed   bool
	Authorization            string
	Impersonate              map[string][]string
	Certificate              string
	Exec                     *kubeExecOutcome
}

type kubeExecOutcome struct {
	Command   string
	Args, Env []string
	Info      string
}

func TestKubeconfigsAreReadAsClientGoReadsThem(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(*kubeconfigs, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in %s: %v", *kubeconfigs, err)
	}
	keys := newTestKeys(t, "a", "b")
	differ := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c kubeCase
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		got, why := c.load(t, keys)
		c.Want.accept(got)
		if !reflect.DeepEqual(got, c.Want) {
			differ++
			g, _ := json.Marshal(got)
			w, _ := json.Marshal(c.Want)
			t.Errorf("%s: muxproxy and client-go differ (%v)\n%s\n%s", filepath.Base(file), why, g, w)
		}
	}
	t.Logf("%d cases, %d differ", len(files), differ)
}

// accept takes over the differences that are meant to be, which is one: over plain http no certificate is used, and muxproxy does
// not ask whether the files are there, where client-go opens them all the same.
func (r *kubeResult) accept(got kubeResult) {
	for name, want := range r.Contexts {
		if g := got.Contexts[name]; want.Error && !g.Error && strings.HasPrefix(g.Server, "http://") {
			r.Contexts[name] = g
		}
	}
}

// load gives what muxproxy makes of the case, and its errors.
func (c *kubeCase) load(t *testing.T, keys testKeys) (r kubeResult, why []error) {
	t.Helper()
	dir := t.TempDir()
	s := kubeSource{getenv: func(string) string { return "" }, log: slog.New(slog.DiscardHandler)}
	for name, text := range c.Files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, path, keys.show(text), 0o600)
	}
	for _, name := range c.List {
		s.files = append(s.files, filepath.Join(dir, name))
	}
	k, err := loadKubeconfig(s)
	if err != nil {
		return kubeResult{Error: true}, []error{err}
	}
	r = kubeResult{Current: k.current}
	for _, context := range k.contexts {
		outcome, err := keys.outcome(t, context, dir)
		if err != nil {
			outcome = kubeOutcome{Error: true}
			why = append(why, err)
		}
		outcome.Namespace = context.namespace
		if r.Contexts == nil {
			r.Contexts = map[string]kubeOutcome{}
		}
		r.Contexts[context.name] = outcome
	}
	return r, why
}

// outcome makes a request ready as kubeUpstream does, files read and all, and gives what it would carry.
func (k testKeys) outcome(t *testing.T, c *kubeContext, dir string) (o kubeOutcome, err error) {
	if c.err != nil {
		return o, c.err
	}
	o = kubeOutcome{Server: c.server.String(), Insecure: c.insecure, ServerName: c.tlsServerName, Uncompressed: c.uncompressed}
	if c.proxy != nil {
		o.Proxy = c.proxy.String()
	}
	u := newKubeUpstream(c, kubeUpstreamOptions{})
	cred := &kubeCredential{}
	if e := c.auth.exec; e != nil {
		o.Exec = &kubeExecOutcome{Command: strings.TrimPrefix(e.plugin.command, dir+"/"), Args: e.plugin.args, Env: e.plugin.env}
		o.Exec.Info = k.hide(strings.TrimPrefix(e.environ[len(e.environ)-1], "KUBERNETES_EXEC_INFO="))
	} else if cred, err = u.auth.current(t.Context()); err != nil {
		return o, err
	}
	l, err := u.linkFor(cred, 0)
	if err != nil {
		return o, err
	}
	h := http.Header{}
	u.dress(h, cred)
	o.Authorization = h.Get("Authorization")
	h.Del("Authorization")
	if len(h) > 0 {
		o.Impersonate = h
	}
	if c.server.Scheme != "https" {
		o.Insecure, o.ServerName = false, "" // client-go leaves them out then
		return o, nil
	}
	o.Roots = k.roots(l.roots)
	if cred.cert != nil {
		o.Certificate = k.name(cred.cert.Certificate[0])
	}
	return o, nil
}

// testKeys are certificates that stand in the text of a case as words: see e2e/kubeconfig.
type testKeys map[string]testPair

type testPair struct {
	cert            *x509.Certificate
	certPEM, keyPEM string
}

// newTestKeys makes self-signed certificates of these names.
func newTestKeys(t testing.TB, names ...string) testKeys {
	t.Helper()
	keys := testKeys{}
	for _, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = testPair{cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
			string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))}
	}
	return keys
}

func (k testKeys) words() (pairs []string) {
	for name, p := range k {
		for word, text := range map[string]string{"@cert-" + name: p.certPEM, "@key-" + name: p.keyPEM} {
			pairs = append(pairs, word+":64@", base64.StdEncoding.EncodeToString([]byte(text)), word+"@", text)
		}
	}
	return pairs
}

func (k testKeys) show(text string) string { return strings.NewReplacer(k.words()...).Replace(text) }

func (k testKeys) hide(text string) string {
	words := k.words()
	for i := 0; i < len(words); i += 2 {
		words[i], words[i+1] = words[i+1], words[i]
	}
	return strings.NewReplacer(words...).Replace(text)
}

func (k testKeys) name(der []byte) string {
	for name, p := range k {
		if string(p.cert.Raw) == string(der) {
			return name
		}
	}
	return "unknown"
}

func (k testKeys) roots(roots *x509.CertPool) string {
	if roots == nil {
		return ""
	}
	for name, p := range k {
		only := x509.NewCertPool()
		only.AddCert(p.cert)
		if roots.Equal(only) {
			return name
		}
	}
	return "unknown"
}

// certPEM gives a certificate in PEM form.
func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
