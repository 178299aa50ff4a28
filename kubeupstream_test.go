package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// apiServer stands for an API server: it takes the bearer tokens in good, and tells who came and how.
type apiServer struct {
	*httptest.Server
	good  atomic.Value // string
	conns atomic.Int32 // opened so far
	calls atomic.Int32
}

// newAPIServer starts one whose handler runs for requests that are authenticated; nil answers with what the request was.
func newAPIServer(t *testing.T, handler http.HandlerFunc) *apiServer {
	t.Helper()
	s := &apiServer{}
	s.good.Store("good")
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		cert := ""
		if len(r.TLS.PeerCertificates) > 0 {
			cert = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		switch auth := r.Header.Get("Authorization"); {
		case cert == "" && auth != "Bearer "+s.good.Load().(string):
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, "Unauthorized")
		case handler != nil:
			handler(w, r)
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s %q %s", r.Method, r.RequestURI, r.Proto, body, cert)
		}
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = discardLog
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// kubeContext gives a context for s whose user and cluster have these further fields.
func (s *apiServer) kubeContext(t *testing.T, user, cluster string, with ...func(*kubeSource)) *kubeContext {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	write(t, path, fmt.Sprintf(`{current-context: x, clusters: [{name: c, cluster: {server: "%s/prefix", %s}}], users: [{name: u, user: {%s}}], contexts: [{name: x, context: {cluster: c, user: u}}]}`,
		s.URL, cluster, user), 0o600)
	source := kubeSource{files: []string{path}, getenv: func(string) string { return "" }, log: slog.New(slog.DiscardHandler)}
	for _, f := range with {
		f(&source)
	}
	k, err := loadKubeconfig(source)
	if err != nil || len(k.contexts) != 1 || k.contexts[0].err != nil {
		t.Fatalf("load: %v, %+v", err, k)
	}
	return k.contexts[0]
}

// trust is the certificate authority of s as a cluster has it.
func (s *apiServer) trust() string {
	return "certificate-authority-data: " + base64.StdEncoding.EncodeToString(certPEM(s.Certificate().Raw))
}

// upstream gives the upstream of such a context.
func (s *apiServer) upstream(t *testing.T, user string) *kubeUpstream {
	t.Helper()
	u := newKubeUpstream(s.kubeContext(t, user, s.trust()), kubeUpstreamOptions{})
	t.Cleanup(u.closeIdle)
	return u
}

// ask sends a request over u and gives the status and content of its answer.
func ask(t *testing.T, u *kubeUpstream, method, target string, body io.Reader, header ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, u.context.server.String(), body)
	if err != nil {
		t.Fatal(err)
	}
	r.GetBody = nil // a server's request has none
	r.URL.Opaque = "//" + r.URL.Host + u.context.server.EscapedPath() + target
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := u.RoundTrip(r)
	if r.Header.Get("Authorization") != "" {
		t.Error("the caller's request holds the credential")
	}
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	if res.Request != r {
		t.Error("the answer names another request")
	}
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestRequestsCarryTheHostsCredential(t *testing.T) {
	keys := newTestKeys(t, "me")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "token"), " good\n", 0o600)
	write(t, filepath.Join(dir, "crt"), keys.show("@cert-me@"), 0o600)
	write(t, filepath.Join(dir, "key"), keys.show("@key-me@"), 0o600)
	s := newAPIServer(t, nil)
	for _, tt := range []struct{ user, cert string }{
		{"token: good", ""},
		{"tokenFile: " + dir + "/token", ""},
		{"token: stale, tokenFile: " + dir + "/token", ""},
		{keys.show("client-certificate-data: @cert-me:64@, client-key-data: @key-me:64@"), "me"},
		{"client-certificate: " + dir + "/crt, client-key: " + dir + "/key", "me"},
	} {
		code, text := ask(t, s.upstream(t, tt.user), "GET", "/api/v1/pods?x=%2B&y;z", nil)
		if want := `GET /prefix/api/v1/pods?x=%2B&y;z HTTP/1.1 "" ` + tt.cert; code != 200 || text != want {
			t.Errorf("%s: %d %q, want %q", tt.user, code, text, want)
		}
	}
}

func TestImpersonationOfTheKubeconfigIsSent(t *testing.T) {
	var got http.Header
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	ask(t, s.upstream(t, "token: good, as: dev, as-uid: '7', as-groups: [a, b], as-user-extra: {x/y: [z]}"), "GET", "/", nil, "Impersonate-User", "root", "Accept-Encoding", "gzip")
	want := http.Header{"Authorization": {"Bearer good"}, "Accept-Encoding": {"gzip"}, "Impersonate-User": {"dev"}, "Impersonate-Uid": {"7"}, "Impersonate-Group": {"a", "b"}, "Impersonate-Extra-X%2fy": {"z"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("header %v", got)
	}
}

func TestAClusterMayForbidContentCodings(t *testing.T) {
	var got http.Header
	s := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	u := newKubeUpstream(s.kubeContext(t, "token: good", s.trust()+", disable-compression: true"), kubeUpstreamOptions{})
	ask(t, u, "GET", "/", nil, "Accept-Encoding", "gzip")
	if len(got) != 1 {
		t.Errorf("header %v", got)
	}
}

// pluginUser is a user whose plugin prints an ExecCredential, and the file that counts its runs.
func pluginUser(t *testing.T, token string) (user, runs string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	runs = filepath.Join(t.TempDir(), "runs")
	return fmt.Sprintf(`exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: %q, env: [{name: %s, value: print}, {name: PLUGIN_RUNS, value: %q}, {name: PLUGIN_PRINTS, value: %q}]}`,
		self, asPlugin, runs, execCredentialText("v1", token, "")), runs
}

// runsOf counts the runs of a plugin.
func runsOf(t *testing.T, runs string) int {
	t.Helper()
	text, err := os.ReadFile(runs)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte("\n"))
}

func TestA401IsAnsweredByARenewedCredential(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, method, content string
		header                []string
		want                  int
	}{
		{"GET", "GET", "", nil, 200},
		{"POST", "POST", "small", nil, 200},
		{"POST that waits for 100", "POST", "small", []string{"Expect", "100-continue"}, 200},
		{"watch", "GET", "", nil, 200},
		{"WebSocket", "GET", "", []string{"Connection", "Upgrade", "Upgrade", "websocket"}, 200},
		{"SPDY", "POST", "", []string{"Connection", "Upgrade", "Upgrade", "SPDY/3.1"}, 200},
		{"large POST", "POST", strings.Repeat("x", maxReplayable+1), nil, 401},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(dir, tt.name)
			write(t, file, "old", 0o600)
			s := newAPIServer(t, nil)
			u := s.upstream(t, "tokenFile: '"+file+"'")
			s.good.Store("old")
			if code, text := ask(t, u, "GET", "/", nil); code != 200 {
				t.Fatal(code, text)
			}
			s.good.Store("new")
			write(t, file, "new", 0o600)
			var body io.Reader
			if tt.content != "" {
				body = strings.NewReader(tt.content)
			}
			target := "/"
			if tt.name == "watch" {
				target = "/?watch=1"
			}
			code, text := ask(t, u, tt.method, target, body, tt.header...)
			if code != tt.want || code == 200 && !strings.Contains(text, fmt.Sprintf("%q", tt.content)) {
				t.Errorf("%d %.200s", code, text)
			}
			if code, _ := ask(t, u, "GET", "/", nil); code != 200 {
				t.Errorf("the next request: %d", code)
			}
		})
	}
}

func TestAPluginIsSharedAndSurvivesAReload(t *testing.T) {
	s := newAPIServer(t, nil)
	user, runs := pluginUser(t, "good")
	plugins := &kubePlugins{}
	for range 3 { // three loads of one kubeconfig
		u := newKubeUpstream(s.kubeContext(t, user, s.trust(), func(k *kubeSource) { k.plugins = plugins }), kubeUpstreamOptions{})
		for range 3 {
			if code, text := ask(t, u, "GET", "/", nil); code != 200 {
				t.Fatal(code, text)
			}
		}
	}
	if n := runsOf(t, runs); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestACredentialThatIsNeverAcceptedGivesTheServersAnswerAndNoStorm(t *testing.T) {
	s := newAPIServer(t, nil)
	user, runs := pluginUser(t, "bad")
	u := s.upstream(t, user)
	for range 20 {
		if code, text := ask(t, u, "GET", "/", nil); code != 401 || text != "Unauthorized" {
			t.Fatal(code, text)
		}
	}
	if n := runsOf(t, runs); n > 4 { // the first, one after the refusal, and what a slow machine adds
		t.Errorf("%d runs", n)
	}
}

func TestANewClientCertificateTakesNewConnections(t *testing.T) {
	keys := newTestKeys(t, "one", "two")
	dir := t.TempDir()
	install := func(name string) {
		write(t, filepath.Join(dir, "crt"), keys.show("@cert-"+name+"@"), 0o600)
		write(t, filepath.Join(dir, "key"), keys.show("@key-"+name+"@"), 0o600)
	}
	install("one")
	s := newAPIServer(t, nil)
	u := s.upstream(t, "client-certificate: "+dir+"/crt, client-key: "+dir+"/key")
	who := func() string {
		_, text := ask(t, u, "GET", "/", nil)
		return text[strings.LastIndex(text, " ")+1:]
	}
	if got := who() + who(); got != "oneone" || s.conns.Load() != 1 {
		t.Fatalf("came as %s over %d connections", got, s.conns.Load())
	}
	old := u.link.Load().up
	write(t, filepath.Join(dir, "crt"), keys.show("@cert-two@"), 0o600) // half of the renewal
	u.auth.pair.certFile.looked = time.Time{}
	if got := who(); got != "one" {
		t.Errorf("in the middle of the renewal: %s", got)
	}
	install("two")
	u.auth.pair.keyFile.looked = time.Time{}
	if got := who(); got != "two" {
		t.Errorf("after the renewal: %s", got)
	}
	if old.kept != 0 {
		t.Errorf("%d connections of the old certificate are kept", old.kept)
	}
}

func TestACertificateAuthorityInAFileIsReadAgain(t *testing.T) {
	s := newAPIServer(t, nil)
	keys := newTestKeys(t, "other")
	file := filepath.Join(t.TempDir(), "ca.crt")
	u := newKubeUpstream(s.kubeContext(t, "token: good", "certificate-authority: "+file), kubeUpstreamOptions{})
	if _, text := ask(t, u, "GET", "/", nil); !strings.Contains(text, "load certificate-authority") {
		t.Errorf("without the file: %s", text)
	}
	write(t, file, keys.show("@cert-other@"), 0o600)
	u.root.looked = time.Time{}
	if _, text := ask(t, u, "GET", "/", nil); !strings.Contains(text, "tls handshake") {
		t.Errorf("with another authority: %s", text)
	}
	write(t, file, string(certPEM(s.Certificate().Raw)), 0o600)
	u.root.looked = time.Time{}
	if code, text := ask(t, u, "GET", "/", nil); code != 200 {
		t.Errorf("with the authority: %d %s", code, text)
	}
}

func TestWatchesShareConnections(t *testing.T) {
	const n = 60
	var begun sync.WaitGroup
	begun.Add(n)
	s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("a watch came over %s", r.Proto)
		}
		w.(http.Flusher).Flush()
		begun.Done()
		begun.Wait()
	})
	u := s.upstream(t, "token: good")
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			ask(t, u, "GET", []string{"/?watch=1", "/?watch=true", "/log?follow=true", "/api/v1/watch/pods"}[i%4], nil)
		})
	}
	all.Wait()
	t.Logf("%d watches over %d connections", n, s.conns.Load())
	if s.conns.Load() > n/4 {
		t.Errorf("%d watches took %d connections", n, s.conns.Load())
	}
}

func TestOtherRequestsGoOverHTTP1(t *testing.T) {
	s := newAPIServer(t, nil)
	u := s.upstream(t, "token: good")
	for _, target := range []string{"/", "/?watch=false", "/?watch=0", "/log?follow=false", "/?rewatch=1"} {
		if _, text := ask(t, u, "GET", target, nil); !strings.Contains(text, "HTTP/1.1") {
			t.Errorf("%s: %s", target, text)
		}
	}
	if _, text := ask(t, u, "POST", "/?watch=1", nil); !strings.Contains(text, "HTTP/1.1") {
		t.Error(text)
	}
}

func TestAnUpgradeHasAConnectionToItself(t *testing.T) {
	for _, protocol := range []string{"SPDY/3.1", "websocket"} {
		s := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
			rw.Flush()
			line, _ := rw.ReadString('\n')
			fmt.Fprintf(conn, "echo %s", line)
		})
		u := s.upstream(t, "token: good")
		r, _ := http.NewRequestWithContext(t.Context(), "POST", u.context.server.String(), nil)
		r.URL.Opaque = "//" + r.URL.Host + "/prefix/exec"
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", protocol)
		res, err := u.RoundTrip(r)
		if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != protocol {
			t.Fatal(res, err)
		}
		stream := res.Body.(io.ReadWriteCloser)
		io.WriteString(stream, "hello\n")
		if text, _ := io.ReadAll(stream); string(text) != "echo hello\n" {
			t.Errorf("%s: %q", protocol, text)
		}
		stream.Close()
	}
}

func TestErrorsAreToldInAFewSentences(t *testing.T) {
	refused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	s := newAPIServer(t, nil)
	at := func(server, user string, o kubeUpstreamOptions) *kubeUpstream {
		c := s.kubeContext(t, user, s.trust())
		c.server.Host = server
		return newKubeUpstream(c, o)
	}
	own := kubeUpstreamOptions{guard: guard{isOwn: func(netip.Addr) bool { return true }, ownPorts: []uint16{uint16(refused.Addr().(*net.TCPAddr).Port)}}}
	for _, tt := range []struct {
		cause string
		u     *kubeUpstream
	}{
		{"connect", at(refused.Addr().String(), "token: good", kubeUpstreamOptions{})},
		{"loop", at(refused.Addr().String(), "token: good", own)},
		{"dns", at("nowhere.invalid:443", "token: good", kubeUpstreamOptions{})},
		{"tls handshake", newKubeUpstream(s.kubeContext(t, "token: good", "tls-server-name: api.example, "+s.trust()), kubeUpstreamOptions{})},
		{"credential", at(refused.Addr().String(), "tokenFile: /gone/"+canary, kubeUpstreamOptions{})},
	} {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", tt.u.context.server.String(), nil)
		_, err := tt.u.RoundTrip(r)
		var e *kubeError
		if !errors.As(err, &e) || e.cause != tt.cause || e.code != 502 || !strings.Contains(e.Error(), `context "x"`) || strings.Contains(e.text, canary) {
			t.Errorf("%s: %T %v", tt.cause, err, err)
		}
	}
}

func TestAContextsProxyIsUsed(t *testing.T) {
	s := newAPIServer(t, nil)
	var connects atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		connects.Add(1)
		to, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil || r.Method != "CONNECT" || r.Header.Get("Proxy-Authorization") == "" || r.Host != "known.to.proxy.invalid:6443" {
			t.Errorf("%s %s: %v", r.Method, r.Host, err)
			return
		}
		w.WriteHeader(200)
		conn, rw, _ := w.(http.Hijacker).Hijack()
		relay(t.Context(), struct {
			io.Reader
			io.WriteCloser
		}{rw, conn}, to)
	}))
	t.Cleanup(proxy.Close)
	c := s.kubeContext(t, "token: good", "proxy-url: 'http://u:p@"+proxy.Listener.Addr().String()+"', tls-server-name: example.com, "+s.trust())
	c.server.Host = "known.to.proxy.invalid:6443"
	u := newKubeUpstream(c, kubeUpstreamOptions{})
	t.Cleanup(u.closeIdle)
	if code, text := ask(t, u, "GET", "/", nil); code != 200 || connects.Load() != 1 {
		t.Errorf("%d %s", code, text)
	}
	if _, text := ask(t, u, "GET", "/?watch=1", nil); !strings.Contains(text, "HTTP/2.0") {
		t.Error(text)
	}
}

func TestASOCKSProxyIsUsed(t *testing.T) {
	s := newAPIServer(t, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	asked := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		br := bufio.NewReader(conn)
		head := make([]byte, 3) // version 5, one method, none
		io.ReadFull(br, head)
		conn.Write([]byte{5, 0})
		head = make([]byte, 5) // version, connect, reserved, a name, its length
		io.ReadFull(br, head)
		name := make([]byte, head[4]+2)
		io.ReadFull(br, name)
		asked <- string(name[:head[4]])
		conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		to, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			return
		}
		relay(t.Context(), struct {
			io.Reader
			io.WriteCloser
		}{br, conn}, to)
	}()
	c := s.kubeContext(t, "token: good", "proxy-url: 'socks5://"+ln.Addr().String()+"', tls-server-name: example.com, "+s.trust())
	c.server.Host = "known.to.proxy.invalid:6443"
	u := newKubeUpstream(c, kubeUpstreamOptions{})
	defer u.closeIdle()
	if code, text := ask(t, u, "GET", "/", nil); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	if name := <-asked; name != "known.to.proxy.invalid" {
		t.Errorf("the proxy was asked for %q", name)
	}
}
