package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"muxproxy/e2e/measure"
)

// distance is the round trip to the origin behind the relay.
const distance = 40 * time.Millisecond

// world is what a run measures, and measures with.
type world struct {
	options
	ctx   context.Context
	dir   string
	token string // the credential

	origin, relay, load *measure.Process
	intercepted         string // "localhost:4001": the origin's port that proxies intercept
	tunneled            string // the one that they tunnel to
	http2               string // net/http's, for the direct row
	far                 string // the intercepted one at a distance
	contenders          []*contender

	values measure.Values
	cpu    measure.Values // µs of the proxy, for one request, connection or MB
	shares map[*contender][]shares
}

// shares is how much CPU time went where while requests were measured.
type shares struct{ proxy, origin, load time.Duration }

// contender is one proxy, or none.
type contender struct {
	name   string
	rounds int // 0: all
	token  string
	roots  []string // files that its clients trust
	// start makes another process of it and says where it listens; nil where there is no proxy.
	start   func() (*measure.Process, string, error)
	process *measure.Process
	address string
}

func newWorld(ctx context.Context, o options) (*world, error) {
	dir, err := os.MkdirTemp("", "muxproxy-bench")
	if err != nil {
		return nil, err
	}
	w := &world{
		options: o, ctx: ctx, dir: dir, token: "bench-" + rand.Text(),
		values: measure.Values{}, cpu: measure.Values{}, shares: map[*contender][]shares{},
	}
	if err := w.begin(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// begin starts everything that a run needs.
func (w *world) begin() (err error) {
	if err := w.writeCertificates(); err != nil {
		return err
	}
	w.origin, err = measure.StartRole(w.ctx, "origin", originParameters{Cert: w.path("origin.pem"), Key: w.path("origin-key.pem"), Token: w.token})
	if err != nil {
		return err
	}
	w.relay, err = measure.StartRole(w.ctx, "relay", relayParameters{To: w.origin.Addresses[0], RTT: distance})
	if err != nil {
		return err
	}
	for i, at := range []*string{&w.intercepted, &w.tunneled, &w.http2} {
		*at = onHost(w.origin.Addresses[i])
	}
	w.far = onHost(w.relay.Addresses[0])
	if w.load, err = measure.StartRole(w.ctx, "load", struct{}{}); err != nil {
		return err
	}
	return w.addContenders()
}

// onHost gives "localhost:4001" for "127.0.0.1:4001".
func onHost(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return net.JoinHostPort(host, port)
}

func (w *world) close() {
	for _, c := range w.contenders {
		if c.process != nil {
			c.process.Stop()
		}
	}
	for _, p := range []*measure.Process{w.load, w.relay, w.origin} {
		if p != nil {
			p.Stop()
		}
	}
	os.RemoveAll(w.dir)
}

// addContenders starts the proxies; the order is that of the table's columns.
func (w *world) addContenders() error {
	if w.muxproxy == "" {
		w.muxproxy = w.path("muxproxy")
		if err := w.build(); err != nil {
			return err
		}
	}
	p := proxyParameters{
		CACert: w.path("ca.pem"), CAKey: w.path("ca-key.pem"), Roots: w.path("root.pem"),
		Token: w.token, Tunneled: []string{w.tunneled},
	}
	opponent := func(role string, idle int) func() (*measure.Process, string, error) {
		p := p
		p.Idle = idle
		return func() (*measure.Process, string, error) {
			process, err := measure.StartRole(w.ctx, role, p)
			if err != nil {
				return nil, "", err
			}
			return process, process.Addresses[0], nil
		}
	}
	w.contenders = []*contender{
		{name: "muxproxy", start: w.startMuxproxy, roots: []string{w.path("muxproxy-ca.pem")}},
		{name: "goproxy", start: opponent("goproxy", poolSize), roots: []string{p.CACert}},
		{name: "stock", start: opponent("goproxy", 0), roots: []string{p.CACert}},
		{name: "net/http", start: opponent("reverse", poolSize), roots: []string{p.CACert}},
		{name: "bare", start: opponent("bare", 0), token: w.token, roots: []string{p.CACert}},
		{name: "direct", token: w.token, roots: []string{p.Roots}},
	}
	if _, err := exec.LookPath("mitmdump"); err == nil && !w.short {
		m := &contender{name: "mitmproxy", rounds: 2, start: w.startMitmproxy, roots: []string{w.path("mitmproxy/mitmproxy-ca-cert.pem")}}
		w.contenders = slices.Insert(w.contenders, 4, m)
	}
	w.contenders = slices.DeleteFunc(w.contenders, func(c *contender) bool { return !w.with.MatchString(c.name) })
	for _, c := range w.contenders {
		if c.start == nil {
			continue
		}
		var err error
		if c.process, c.address, err = c.start(); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
	}
	return nil
}

// build makes the program of this checkout.
func (w *world) build() error {
	module, err := exec.CommandContext(w.ctx, "go", "list", "-m", "-f", "{{.Dir}}", "muxproxy/e2e").Output()
	if err != nil {
		return fmt.Errorf("find the checkout: %w: run it in the folder e2e", err)
	}
	cmd := exec.CommandContext(w.ctx, "go", "build", "-o", w.muxproxy, ".")
	cmd.Dir = filepath.Dir(string(module))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build muxproxy: %w: %s", err, text)
	}
	return nil
}

const muxproxyConfig = `
http_proxy_port  = %s
bind             = ["127.0.0.1"]
allowed_networks = ["127.0.0.0/8"]

[[rule]]
service = "bench"
hosts   = [%q, %q]
header  = "Authorization"
format  = "Bearer {}"
env     = "BENCH_TOKEN"
ca_file = %q
`

// startMuxproxy starts the real program in a home of its own.
func (w *world) startMuxproxy() (*measure.Process, string, error) {
	home, err := os.MkdirTemp(w.dir, "home")
	if err != nil {
		return nil, "", err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	_, port, _ := net.SplitHostPort(address)
	if err := os.Mkdir(filepath.Join(home, ".mux"), 0o700); err != nil {
		return nil, "", err
	}
	config := fmt.Sprintf(muxproxyConfig, port, w.intercepted, w.far, w.path("root.pem"))
	if err := os.WriteFile(filepath.Join(home, ".mux/proxy.toml"), []byte(config), 0o600); err != nil {
		return nil, "", err
	}
	cmd := exec.CommandContext(w.ctx, w.muxproxy, "run")
	cmd.Env = []string{"HOME=" + home, "BENCH_TOKEN=" + w.token}
	p, err := measure.StartListening(w.ctx, cmd, address)
	if err != nil {
		return nil, "", err
	}
	// Each home has a CA of its own: the file gathers them.
	if err := appendURL(w.path("muxproxy-ca.pem"), "http://"+address+"/proxy/ca.pem"); err != nil {
		p.Stop()
		return nil, "", err
	}
	return p, address, nil
}

// startMitmproxy starts mitmdump without its log of requests.
func (w *world) startMitmproxy() (*measure.Process, string, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	_, port, _ := net.SplitHostPort(address)
	p, err := measure.StartListening(w.ctx, exec.CommandContext(w.ctx, "mitmdump", "--quiet", "--listen-host", "127.0.0.1", "--listen-port", port,
		"--set", "confdir="+w.path("mitmproxy"), "--set", "ssl_verify_upstream_trusted_ca="+w.path("root.pem"),
		"--set", "flow_detail=0", "--modify-headers", "/~q/Authorization/Bearer "+w.token), address)
	return p, address, err
}

// freeAddress gives a port of loopback that nobody listens on now.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// appendURL adds what is at url to a file.
func appendURL(file, url string) error {
	res, err := http.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", url, res.Status)
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, res.Body)
	return errors.Join(err, f.Close())
}

// writeCertificates makes the origin's root and certificate, and the CA of the opponents.
func (w *world) writeCertificates() error {
	root, err := newRoot("bench origin root")
	if err != nil {
		return err
	}
	leaf, err := newLeaf(root)
	if err != nil {
		return err
	}
	ca, err := newRoot("bench proxy CA")
	if err != nil {
		return err
	}
	files := map[string][]byte{"root.pem": certPEM(root), "origin.pem": certPEM(leaf), "ca.pem": certPEM(ca)}
	for name, c := range map[string]tls.Certificate{"origin-key.pem": leaf, "ca-key.pem": ca} {
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		if err != nil {
			return err
		}
		files[name] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(w.path(name), files[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}

// certPEM gives the chain without its root, which the client has.
func certPEM(c tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
}

func newRoot(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, err
}
