package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// testApid is one endpoint of a cluster: TLS 1.3, a client certificate demanded, no session tickets, as Talos has it.
type testApid struct {
	addr string
	mu   sync.Mutex
	got  []*http.Request // guarded by mu
}

// newTestApid answers with handler, until the test ends, those clients whose certificate trusted has signed. change may change the
// server.
func newTestApid(t testing.TB, ca, trusted *testTalosCA, handler http.HandlerFunc, change ...func(*http.Server)) *testApid {
	t.Helper()
	crt, key := ca.issue(t, time.Now().Add(time.Hour))
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &testApid{addr: ln.Addr().String()}
	server := &http.Server{ErrorLog: discardLog, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.got = append(a.got, r)
		a.mu.Unlock()
		handler(w, r)
	})}
	server.TLSConfig = &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"h2"},
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted.pool,
	}
	for _, f := range change {
		f(server)
	}
	done := make(chan struct{})
	go func() { defer close(done); server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { server.Close(); <-done })
	return a
}

// take gives what was received since the last call.
func (a *testApid) take() []*http.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	got := a.got
	a.got = nil
	return got
}

// answerGRPC reads the request and answers with one message and a status.
func answerGRPC(status string, message []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write(framed(message))
		w.Header().Set("Grpc-Status", status)
	}
}

// testTalos is a whole talos plane in process, whose talosconfig is a file.
type testTalos struct {
	*talosPlane
	file  string
	audit string
	ca    *x509.CertPool
	url   string
	logs  *syncBuffer
}

// syncBuffer is a buffer for a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// openTestTalos opens a plane on a talosconfig, and checks at the end of the test that no goroutine of it is left.
func openTestTalos(t testing.TB, config talosPlaneConfig, current string, contexts map[string]*talosContextYAML) *testTalos {
	t.Helper()
	dir := t.TempDir()
	p := &testTalos{file: filepath.Join(dir, "talosconfig"), audit: filepath.Join(dir, "audit.jsonl"), ca: x509.NewCertPool(), logs: &syncBuffer{}}
	p.write(t, talosconfigText(t, current, contexts))
	audit, err := openAudit(auditConfig{path: p.audit}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ca, _, err := openCA(caOptions{dir: dir, hosts: []string{"host.docker.internal", "localhost"}, ephemeral: true, now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	p.ca.AppendCertsFromPEM(ca.roots())
	config.talosconfig = p.file
	p.talosPlane, err = openTalosPlane(talosPlaneOptions{
		config: config, getenv: func(string) string { return "" }, home: dir, dockerHost: "host.docker.internal", port: 18082, leaf: ca.leaf,
		audit: audit, log: slog.New(slog.NewTextHandler(p.logs, nil)), now: time.Now, clients: newClients(1024),
		environment: func(*url.URL) (*url.URL, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { audit.close() })
	return p
}

// newTestTalos opens a plane and serves it on a port of loopback.
func newTestTalos(t testing.TB, config talosPlaneConfig, current string, contexts map[string]*talosContextYAML) *testTalos {
	t.Helper()
	p := openTestTalos(t, config, current, contexts)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.url = "https://" + ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- p.serve(ln) }()
	t.Cleanup(func() {
		ln.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		p.shutdown(ctx)
	})
	return p
}

// write puts text into the talosconfig as talosctl does.
func (p *testTalos) write(t testing.TB, text []byte) {
	t.Helper()
	if err := os.WriteFile(p.file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// client gives a client of HTTP/2 with connections of its own.
func (p *testTalos) client(t testing.TB) *http.Transport {
	t.Helper()
	tr := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{RootCAs: p.ca, ServerName: "host.docker.internal"}}
	tr.Protocols.SetHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// rpcAnswer is what a client has of an RPC.
type rpcAnswer struct {
	status, message string
	content         []byte
}

// call makes an RPC over a connection of its own; fields are names and values in turn.
func (p *testTalos) call(t testing.TB, method string, content []byte, fields ...string) rpcAnswer {
	t.Helper()
	tr := p.client(t)
	defer tr.CloseIdleConnections()
	return p.callOn(t, tr, method, content, fields...)
}

// callOn makes an RPC over a client's connection.
func (p *testTalos) callOn(t testing.TB, tr *http.Transport, method string, content []byte, fields ...string) rpcAnswer {
	t.Helper()
	return p.stream(t, tr, method, bytes.NewReader(content), fields...)
}

// stream makes an RPC whose content is sent as it is read.
func (p *testTalos) stream(t testing.TB, tr *http.Transport, method string, content io.Reader, fields ...string) rpcAnswer {
	t.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = method
	r := &http.Request{Method: "POST", URL: u, Host: "host.docker.internal:18082", Header: http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}}, Body: io.NopCloser(content)}
	if b, ok := content.(*bytes.Reader); ok { // it can be sent again, as after GOAWAY
		whole := *b
		r.GetBody = func() (io.ReadCloser, error) { again := whole; return io.NopCloser(&again), nil }
	}
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	res, err := tr.RoundTrip(r.WithContext(t.Context()))
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	a := rpcAnswer{status: res.Trailer.Get("Grpc-Status"), content: b}
	if a.status == "" {
		a.status = res.Header.Get("Grpc-Status")
		a.message, _ = url.PathUnescape(res.Header.Get("Grpc-Message"))
	}
	return a
}

// talosLine is an audit line of the talos plane.
type talosLine struct {
	auditLine
	Plane, Context string
	GRPC           *int     `json:"grpc_status"`
	Nodes          []string `json:"nodes"`
}

// lines gives the audit log.
func (p *testTalos) lines(t testing.TB) (lines []talosLine) {
	t.Helper()
	b, err := os.ReadFile(p.audit)
	if err != nil {
		t.Fatal(err)
	}
	for text := range strings.Lines(string(b)) {
		var l talosLine
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("audit line %q: %v", text, err)
		}
		lines = append(lines, l)
	}
	return lines
}
