package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// discardLog keeps the handshake errors that tests provoke out of the output.
var discardLog = log.New(io.Discard, "", 0)

// received is one request as an origin got it.
type received struct {
	*http.Request
	content string
}

// testOrigin is a TLS server for any name, in the place of the internet; it records what it receives.
type testOrigin struct {
	*http.Server
	addr  string
	root  *x509.Certificate
	roots *x509.CertPool
	mu    sync.Mutex
	got   []received
}

// newOrigin starts an origin that answers with handler, HTTP/2 included, and ends with the test.
func newOrigin(t testing.TB, handler http.HandlerFunc) *testOrigin {
	t.Helper()
	o := &testOrigin{roots: x509.NewCertPool()}
	var issue func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	o.root, issue = originIssuer(t)
	o.roots.AddCert(o.root)
	o.Server = &http.Server{ErrorLog: discardLog, DisableGeneralOptionsHandler: true, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.record(r)
		handler(w, r)
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.addr = ln.Addr().String()
	o.TLSConfig = &tls.Config{NextProtos: []string{"h2", "http/1.1"}, GetCertificate: issue}
	done := make(chan struct{})
	go func() { defer close(done); o.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { o.Close(); <-done })
	return o
}

// record keeps r with its content; a request whose content is streamed is recorded by its handler's reading.
func (o *testOrigin) record(r *http.Request) {
	content := ""
	if r.Header.Get("X-Stream") == "" {
		b, _ := io.ReadAll(r.Body)
		content = string(b)
		r.Body = io.NopCloser(bytes.NewReader(b))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got = append(o.got, received{r, content})
}

// take gives what has been received since the last call.
func (o *testOrigin) take() []received {
	o.mu.Lock()
	defer o.mu.Unlock()
	got := o.got
	o.got = nil
	return got
}

// originIssuer makes a root, and certificates for whatever name a client asks for.
func originIssuer(t testing.TB) (*x509.Certificate, func(*tls.ClientHelloInfo) (*tls.Certificate, error)) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, SubjectKeyId: []byte{1},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	issue := func(c *x509.Certificate) ([]byte, error) {
		return x509.CreateCertificate(rand.Reader, c, root, key.Public(), key)
	}
	der, err := issue(root)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return parsed, func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		leaf, err := issue(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{hello.ServerName}, NotBefore: root.NotBefore, NotAfter: root.NotAfter})
		return &tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: key}, err
	}
}

// testProxy is a whole http plane in process, whose clients and origins are on loopback.
type testProxy struct {
	*proxy
	url     *url.URL
	audit   string // path of the log
	secrets string // secrets_dir
	ca      *x509.CertPool
	origin  *testOrigin
	dialed  chan string // every address that was dialed for a client, "api.github.com:443"
}

// testProxyOptions varies a testProxy.
type testProxyOptions struct {
	rules   []*rule // nil: the built-in ones
	deny    bool    // unmatched = "deny"
	env     map[string]string
	secrets map[string]string // files in secrets_dir
}

// newTestProxy starts a proxy to which o is the whole internet: every name and port leads there.
func newTestProxy(t testing.TB, o *testOrigin, opt testProxyOptions) *testProxy {
	t.Helper()
	dir := t.TempDir()
	p := &testProxy{audit: filepath.Join(dir, "audit.jsonl"), secrets: filepath.Join(dir, "secrets"), origin: o, dialed: make(chan string, 1000), ca: x509.NewCertPool()}
	if err := os.Mkdir(p.secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, value := range opt.secrets {
		p.writeSecret(t, name, value)
	}
	rules := opt.rules
	if rules == nil {
		rules = builtinRules()
	}
	audit, err := openAudit(auditConfig{path: p.audit}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	config := &config{rules: rules, dockerHost: "host.docker.internal"}
	ca, _, err := openCA(caOptions{dir: dir, hosts: config.caHosts(), ephemeral: true, now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	p.ca.AppendCertsFromPEM(ca.roots())
	p.proxy = newProxy(proxyOptions{
		ca: ca, audit: audit, clients: newClients(1024), log: slog.New(slog.DiscardHandler),
		policy:   p.testPolicy(rules, opt),
		health:   func(loopback bool) (int, []byte) { return 200, []byte(`{}`) },
		local:    func(host string) bool { return strings.HasPrefix(host, "127.0.0.1") },
		handover: func(authority) *handover { return nil },
	})
	p.listen(t)
	t.Cleanup(func() { audit.close() })
	return p
}

// testPolicy builds a policy whose dialer leads to the origin.
func (p *testProxy) testPolicy(rules []*rule, opt testProxyOptions) *policy {
	d := loopbackDialer()
	guarded := d.guarded
	d.guarded = func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(address)
		if _, err := netip.ParseAddr(host); err == nil {
			return guarded(ctx, network, address)
		}
		select {
		case p.dialed <- address:
		default: // a test that dials more does not look
		}
		return guarded(ctx, network, p.origin.addr)
	}
	unmatched := actionTunnel
	if opt.deny {
		unmatched = actionDeny
	}
	n := newPolicy(rules, unmatched, newCredentials(rules, p.secrets, func(name string) string { return opt.env[name] }, nil), d)
	n.plain = newUpstream(d, p.origin.roots)
	return n
}

// listen serves p on a port of loopback until the test ends, and checks that no goroutine is left then.
func (p *testProxy) listen(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.url = &url.URL{Scheme: "http", Host: ln.Addr().String()}
	served := make(chan error, 1)
	go func() { served <- p.serve(ln) }()
	t.Cleanup(func() {
		ln.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if !p.draining() {
			p.shutdown(ctx)
		}
		checkNoGoroutine(t)
	})
}

// checkNoGoroutine fails if a goroutine of a proxy is left: shutdown waits for all of them. One that has said so may still be on
// its last instructions.
func checkNoGoroutine(t testing.TB) {
	t.Helper()
	left := proxyGoroutines()
	for range 50 {
		if len(left) == 0 {
			return
		}
		<-time.After(2 * time.Millisecond)
		left = proxyGoroutines()
	}
	for _, stack := range left {
		t.Errorf("a goroutine outlives the proxy:\n%s", stack)
	}
}

// proxyGoroutines gives the stacks of a proxy's goroutines.
func proxyGoroutines() (left []string) {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		for _, owner := range []string{"muxproxy.(*clientConn).", "muxproxy.(*http1Conn).", "muxproxy.(*upstreamBody).", "muxproxy.(*http2Server).", "muxproxy.relay", "muxproxy.pump"} {
			if strings.Contains(stack, owner) {
				left = append(left, stack)
				break
			}
		}
	}
	return left
}

// writeSecret writes one credential, as the operator would.
func (p *testProxy) writeSecret(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.secrets, name), []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// client gives a client that goes through the proxy and trusts its CA and the origin's; version is 1 or 2.
func (p *testProxy) client(t *testing.T, version int) *http.Client {
	t.Helper()
	roots := p.ca.Clone()
	roots.AddCert(p.origin.root)
	tr := &http.Transport{Proxy: http.ProxyURL(p.url), DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(version == 1)
	tr.Protocols.SetHTTP2(version == 2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// connect opens a CONNECT to authority over a raw connection and gives it with the answer.
func (p *testProxy) connect(t testing.TB, authority string) (net.Conn, *http.Response) {
	t.Helper()
	conn, err := net.Dial("tcp", p.url.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	io.WriteString(conn, "CONNECT "+authority+" HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
	// An answer 200 has nothing behind it until the client speaks.
	res, err := http.ReadResponse(bufio.NewReader(iotest.OneByteReader(conn)), &http.Request{Method: "CONNECT"})
	if err != nil {
		t.Fatalf("CONNECT %s: %v", authority, err)
	}
	return conn, res
}

// intercepted opens an intercepted HTTP/1.1 connection to authority with sni in the handshake.
func (p *testProxy) intercepted(t testing.TB, authority, sni string) *tls.Conn {
	t.Helper()
	conn, res := p.connect(t, authority)
	if res.StatusCode != 200 {
		t.Fatalf("CONNECT %s: %s", authority, res.Status)
	}
	host, _, _ := net.SplitHostPort(authority)
	tc := tls.Client(conn, &tls.Config{ServerName: sni, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		return s.PeerCertificates[0].VerifyHostname(strings.ToLower(strings.TrimSuffix(host, ".")))
	}})
	if err := tc.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("handshake with %s: %v", authority, err)
	}
	return tc
}

// exchangeRaw sends request as it stands and gives the answer.
func exchangeRaw(t *testing.T, conn net.Conn, request string) (*http.Response, string) {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("answer to %.40q: %v", request, err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("content of the answer to %.40q: %v", request, err)
	}
	return res, string(b)
}

// auditLine is one line of the audit log as a reader sees it.
type auditLine struct {
	ID, Service, Client, Method, Host, Path, Decision, Error string
	Injected                                                 bool  `json:"auth_injected"`
	Code                                                     int   `json:"response_code"`
	In                                                       int64 `json:"bytes_in"`
	Out                                                      int64 `json:"bytes_out"`
	Open                                                     bool
}

// lines gives the audit log; every line must parse.
func (p *testProxy) lines(t testing.TB) []auditLine {
	t.Helper()
	b, err := os.ReadFile(p.audit)
	if err != nil {
		t.Fatal(err)
	}
	var lines []auditLine
	for line := range strings.Lines(string(b)) {
		var l auditLine
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			t.Fatalf("audit line %q: %v", line, err)
		}
		lines = append(lines, l)
	}
	return lines
}

// lastLine gives the last line of the audit log.
func (p *testProxy) lastLine(t *testing.T) auditLine {
	t.Helper()
	lines := p.lines(t)
	if len(lines) == 0 {
		t.Fatal("the audit log is empty")
	}
	return lines[len(lines)-1]
}

// dialProxy opens a raw connection to the proxy port.
func dialProxy(p *testProxy) (net.Conn, error) { return net.Dial("tcp", p.url.Host) }

// newPlainOrigin is an origin without TLS.
func newPlainOrigin(t *testing.T) *testOrigin {
	t.Helper()
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.addr = ln.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); o.Serve(ln) }()
	t.Cleanup(func() { ln.Close(); <-done })
	return o
}

// quiesce waits until no connection is left; the test must have closed its own. The proxy takes no new ones then.
func (p *testProxy) quiesce() { p.shutdown(context.Background()) }
