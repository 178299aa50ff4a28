package origin

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Package is the private package that the npm registry holds, at version 1.0.0; require gives the string PackageValue.
const (
	Package      = "@acme/private"
	PackageValue = "private package works"
)

// NPMUser is whom the npm token belongs to.
const NPMUser = "octo-agent"

// npm is a verdaccio with a user of its own, whose token stands behind the front's.
type npm struct {
	mu    sync.Mutex
	addr  string // guarded by mu: "127.0.0.1:4873", "" until started
	token string // guarded by mu: what verdaccio calls the user by
}

// verdaccioConfig lets only users read and publish, and asks no other registry.
const verdaccioConfig = `storage: %s/storage
auth:
  htpasswd:
    file: %[1]s/htpasswd
packages:
  '**':
    access: $authenticated
    publish: $authenticated
log: {type: stdout, format: pretty, level: warn}
web: {enable: false}
`

// StartNPM starts verdaccio, given its program, makes the user and publishes Package.
func (s *Server) StartNPM(verdaccio string) error {
	dir := filepath.Join(s.dir, "npm")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, verdaccioConfig, dir), 0o644); err != nil {
		return err
	}
	addr, err := freePort()
	if err != nil {
		return err
	}
	if err := s.startChild(addr, verdaccio, "--config", config, "--listen", addr); err != nil {
		return err
	}
	token, err := makeNPMUser(addr)
	if err != nil {
		return err
	}
	s.npm.mu.Lock()
	s.npm.addr, s.npm.token = addr, token
	s.npm.mu.Unlock()
	return publish(addr, token)
}

// makeNPMUser gives the token of a new user.
func makeNPMUser(addr string) (string, error) {
	in := map[string]string{"name": NPMUser, "password": "only-for-this-run"}
	out, err := put(addr, "/-/user/org.couchdb.user:"+NPMUser, "", in)
	if err != nil {
		return "", err
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal(out, &answer); err != nil || answer.Token == "" {
		return "", fmt.Errorf("make npm user: no token in the answer: %w", err)
	}
	return answer.Token, nil
}

// publish puts Package as the npm command does.
func publish(addr, token string) error {
	tarball := packageTarball()
	sum := sha512.Sum512(tarball)
	version := map[string]any{
		"name": Package, "version": "1.0.0", "main": "index.js",
		"dist": map[string]string{
			"integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]),
			"tarball":   "https://" + NPMHost + "/" + Package + "/-/private-1.0.0.tgz",
		},
	}
	_, err := put(addr, "/"+url.PathEscape(Package), token, map[string]any{
		"_id": Package, "name": Package, "dist-tags": map[string]string{"latest": "1.0.0"},
		"versions": map[string]any{"1.0.0": version},
		"_attachments": map[string]any{"private-1.0.0.tgz": map[string]any{
			"content_type": "application/octet-stream", "data": tarball, "length": len(tarball),
		}},
	})
	return err
}

func packageTarball() []byte {
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	archive := tar.NewWriter(zip)
	for _, file := range [][2]string{
		{"package/package.json", `{"name":"` + Package + `","version":"1.0.0","main":"index.js"}`},
		{"package/index.js", `module.exports = "` + PackageValue + `"`},
	} {
		_ = archive.WriteHeader(&tar.Header{Name: file[0], Mode: 0o644, Size: int64(len(file[1]))})
		_, _ = io.WriteString(archive, file[1])
	}
	_ = archive.Close()
	_ = zip.Close()
	return out.Bytes()
}

// put sends JSON to verdaccio and gives its answer.
func put(addr, path, token string, body any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequest(http.MethodPut, "http://"+addr+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	out, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode >= 300 {
		return nil, fmt.Errorf("put %q: %s: %s: %w", path, answer.Status, out, err)
	}
	return out, nil
}

// npmFront takes the real service's token, puts verdaccio's in its place and passes the rest on. Without a token verdaccio decides.
func (s *Server) npmFront() http.Handler {
	lab := s.lab()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := judge(r, "Authorization", "Bearer "+s.secrets.NPM)
		if p == wrong {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeJSON(w, http.StatusUnauthorized, message("Invalid or expired token"))
			return
		}
		if p == right && strings.HasPrefix(r.URL.Path, "/lab/") {
			lab.ServeHTTP(w, r)
			return
		}
		s.npm.forward(w, r, p)
	})
}

func (n *npm) forward(w http.ResponseWriter, r *http.Request, p presented) {
	n.mu.Lock()
	addr, token := n.addr, n.token
	n.mu.Unlock()
	if addr == "" {
		http.Error(w, "verdaccio is not started", http.StatusServiceUnavailable)
		return
	}
	proxy := httputil.ReverseProxy{ErrorLog: silent, Rewrite: func(out *httputil.ProxyRequest) {
		out.SetURL(&url.URL{Scheme: "http", Host: addr})
		// verdaccio makes the tarballs' addresses from what its client named.
		out.Out.Host = r.Host
		out.Out.Header.Set("X-Forwarded-Proto", "https")
		if p == right {
			out.Out.Header.Set("Authorization", "Bearer "+token)
		}
	}}
	proxy.ServeHTTP(w, r)
}
