// Package thief takes the CA key of a mux-dir that the real program made, as a thief would, and shows that real TLS
// stacks refuse what it signs for any host outside the constraints.
//
//	MUXPROXY_BIN=/path/to/muxproxy go test ./thief
package thief

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestStolenKeyIsOfNoUseOutsideTheConstraints(t *testing.T) {
	dir := makeMuxDir(t)
	stolen, root := steal(t, dir)
	for _, key := range keysUnder(t, dir) {
		if key.PublicKey.Equal(root.PublicKey) {
			t.Fatal("the root's key is in a file: a thief is bound by nothing")
		}
	}
	free, freeRoot := freeIssuer(t)
	freeRoots := filepath.Join(t.TempDir(), "free.pem")
	writePEM(t, freeRoots, freeRoot)
	key := newKey(t)
	forgeries := forge(t, stolen, free, key)
	servers := make([]*server, len(forgeries))
	for n, f := range forgeries {
		servers[n] = serve(t, tls.Certificate{Certificate: f.chain, PrivateKey: key})
	}
	proxy := connectProxy(t)
	javaDir := compileJava(t)
	for n, s := range stacks(javaDir) {
		t.Run(s.name, func(t *testing.T) {
			if _, err := exec.LookPath(s.tool); err != nil {
				t.Fatalf("%s is missing: %s", s.tool, s.install)
			}
			for m, f := range forgeries {
				t.Run(f.name, func(t *testing.T) {
					v := &visit{host: f.host, port: servers[m].port, path: "/" + string(rune('a'+n)), roots: filepath.Join(dir, "proxy-ca.pem"), proxy: proxy, dir: t.TempDir()}
					if f.free {
						v.roots = freeRoots
					}
					writePEM(t, filepath.Join(v.dir, "leaf.pem"), f.chain[0])
					writePEM(t, filepath.Join(v.dir, "rest.pem"), f.chain[1:]...)
					writePEM(t, filepath.Join(v.dir, "chain.pem"), f.chain...)
					judge(t, s, f, servers[m], v)
				})
			}
		})
	}
}

// judge lets the stack visit the server. What counts is what the server saw, a request or a handshake alone, together
// with the client's exit code.
func judge(t *testing.T, s stack, f *forgery, at *server, v *visit) {
	t.Helper()
	before := at.handshakes.Load()
	err := s.visit(v)
	if errors.Is(err, errTimeout) {
		t.Fatal(err)
	}
	accepted := err == nil
	if !s.offline {
		if at.handshakes.Load() == before {
			t.Fatalf("the client never came: %v", err)
		}
		asked := at.asked(v.path)
		if asked != accepted && !s.anyExit {
			t.Errorf("the server was asked %v, the client says: %v", asked, err)
		}
		accepted = asked
	}
	switch hole := slices.Contains(s.holes, f.name); {
	case f.accept && !accepted:
		t.Errorf("refused: %v", err)
	case hole && !accepted:
		t.Errorf("the known hole is closed, good: take it out of the list here and out of the README (%v)", err)
	case !f.accept && !hole && accepted:
		t.Error("accepted: a thief of the CA key can impersonate this host")
	}
}

// makeMuxDir has the real program make a mux-dir.
func makeMuxDir(t *testing.T) string {
	t.Helper()
	program := os.Getenv("MUXPROXY_BIN")
	if program == "" {
		t.Fatal("MUXPROXY_BIN is not set: build the program (go build -o /tmp/muxproxy .) and name it there")
	}
	home := t.TempDir()
	dir := filepath.Join(home, "mux")
	cmd := exec.Command(program, "gen-configs", "--mux-dir", dir)
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("muxproxy gen-configs: %v: %s", err, out)
	}
	return dir
}

func compileJava(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// Where javac is missing, the Java stack says so.
	if _, err := exec.LookPath("javac"); err != nil {
		return dir
	}
	if out, err := exec.Command("javac", "-d", dir, filepath.Join("testdata", "Fetch.java")).CombinedOutput(); err != nil {
		t.Fatalf("javac: %v: %s", err, out)
	}
	return dir
}

func writePEM(t *testing.T, path string, ders ...[]byte) {
	t.Helper()
	var text bytes.Buffer
	for _, der := range ders {
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// server shows one certificate, and remembers who came and who asked for something.
type server struct {
	port       string
	handshakes atomic.Int64 // begun ones
	mu         sync.Mutex
	paths      []string // guarded by mu
}

func (s *server) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paths = append(s.paths, r.URL.Path)
}

// asked tells whether a request for path, or below it, arrived.
func (s *server) asked(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.paths, func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") })
}

func serve(t *testing.T, c tls.Certificate) *server {
	t.Helper()
	ln := listen(t)
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	s := &server{port: port}
	h := &http.Server{
		Handler:  s,
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.handshakes.Add(1)
			return &c, nil
		}},
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.ServeTLS(ln, "", "")
	}()
	t.Cleanup(func() {
		h.Close()
		<-ended
	})
	return s
}

// connectProxy takes CONNECT HOST:PORT and goes to PORT on 127.0.0.1: a name mapping for clients that have none.
func connectProxy(t *testing.T) string {
	t.Helper()
	ln := listen(t)
	h := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, port, err := net.SplitHostPort(r.Host)
		if r.Method != http.MethodConnect || err != nil {
			http.Error(w, "CONNECT HOST:PORT alone", http.StatusBadRequest)
			return
		}
		up, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer up.Close()
		client, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			defer client.Close() // ends the copy below, which the handler waits for
			io.Copy(client, up)
		}()
		io.Copy(up, buffered)
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.Serve(ln)
	}()
	t.Cleanup(func() {
		h.Close()
		<-ended
	})
	return ln.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}
