package origin

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Docker Hub's names for itself (distribution.github.io/distribution/spec/auth/token).
const (
	hubRealm   = "https://auth.docker.io/token"
	hubService = "registry.docker.io"
	hubIssuer  = "auth.docker.io"
)

// Image is a private repository of the Docker user: "USER/private".
func (s *Server) Image() string { return s.secrets.DockerUser + "/private" }

// RefreshToken is what a client gets that asks for offline_token: in a container it is a leak.
const RefreshToken = "refresh-token-that-never-expires"

// hub is Docker Hub: the key that its tokens are signed with and the registry's address.
type hub struct {
	mu   sync.Mutex
	addr string // guarded by mu: "127.0.0.1:5000", "" until started
	key  *rsa.PrivateKey
	cert []byte // DER, made by makeKey
	once sync.Once
	err  error
}

// registryConfig is a registry that takes tokens of our key alone.
const registryConfig = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s/blobs}
  delete: {enabled: true}
http: {addr: %s, host: "https://registry-1.docker.io"}
auth:
  token: {realm: "%s", service: "%s", issuer: "%s", rootcertbundle: %[1]s/token.pem}
`

// StartRegistry starts docker-registry, found in PATH.
func (s *Server) StartRegistry() error {
	dir := filepath.Join(s.dir, "hub")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := s.hub.makeKey(); err != nil {
		return err
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.hub.cert})
	if err := os.WriteFile(filepath.Join(dir, "token.pem"), certificate, 0o644); err != nil {
		return err
	}
	addr, err := freePort()
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "config.yml")
	text := fmt.Appendf(nil, registryConfig, dir, addr, hubRealm, hubService, hubIssuer)
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return err
	}
	if err := s.startChild(addr, "docker-registry", "serve", config); err != nil {
		return err
	}
	s.hub.mu.Lock()
	s.hub.addr = addr
	s.hub.mu.Unlock()
	return nil
}

// makeKey makes the signing key at its first call; the registry wants a certificate for it.
func (h *hub) makeKey() error {
	h.once.Do(func() {
		if h.key, h.err = rsa.GenerateKey(rand.Reader, 2048); h.err != nil {
			return
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		h.cert, h.err = x509.CreateCertificate(rand.Reader, template, template, h.key.Public(), h.key)
	})
	return h.err
}

// tokenServer is auth.docker.io. GET /token takes HTTP Basic or nothing; POST /token, the OAuth form, is refused. Who brings nothing gets a token
// that allows nothing, as for a private repository at Docker Hub.
func (s *Server) tokenServer() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /token", s.token)
	mux.Handle("/lab/", http.StripPrefix("/lab", s.echo()))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusUnauthorized, map[string]string{"details": "incorrect username or password"})
	})
	return mux
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	p := judge(r, "Authorization", basic(s.secrets.DockerUser, s.secrets.DockerToken))
	if p == wrong {
		writeJSON(w, http.StatusUnauthorized, map[string]string{"details": "incorrect username or password"})
		return
	}
	var access []hubAccess
	if p == right {
		access = s.scopes(r.URL.Query()["scope"])
	}
	token, err := s.hub.sign(r.URL.Query().Get("service"), s.secrets.DockerUser, access)
	if err != nil {
		http.Error(w, "cannot sign", http.StatusInternalServerError)
		return
	}
	answer := map[string]any{"token": token, "access_token": token, "expires_in": 300, "issued_at": time.Now().UTC().Format(time.RFC3339)}
	if p == right && r.URL.Query().Get("offline_token") == "true" {
		answer["refresh_token"] = RefreshToken
	}
	writeJSON(w, http.StatusOK, answer)
}

// hubAccess is one grant of a token.
type hubAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// scopes grants what is asked of the user's own repositories: "repository:USER/private:pull,push".
func (s *Server) scopes(asked []string) []hubAccess {
	var granted []hubAccess
	for _, scope := range asked {
		for one := range strings.FieldsSeq(scope) {
			part := strings.Split(one, ":")
			if len(part) == 3 && strings.HasPrefix(part[1], s.secrets.DockerUser+"/") {
				granted = append(granted, hubAccess{part[0], part[1], strings.Split(part[2], ",")})
			}
		}
	}
	return granted
}

// sign makes the JWT, RS256 with the certificate in x5c.
func (h *hub) sign(audience, subject string, access []hubAccess) (string, error) {
	if err := h.makeKey(); err != nil {
		return "", err
	}
	header := map[string]any{"typ": "JWT", "alg": "RS256", "x5c": []string{base64.StdEncoding.EncodeToString(h.cert)}}
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": hubIssuer, "aud": audience, "sub": subject, "jti": rand.Text(), "access": access,
		"iat": now, "nbf": now - 60, "exp": now + 300,
	}
	text := segment(header) + "." + segment(claims)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, h.key, crypto.SHA256, sum[:])
	if err != nil {
		return "", err
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

func segment(v any) string {
	text, _ := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(text)
}

// registryFront is registry-1.docker.io: the registry itself checks the token.
func (s *Server) registryFront() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.hub.mu.Lock()
		addr := s.hub.addr
		s.hub.mu.Unlock()
		if addr == "" {
			http.Error(w, "docker-registry is not started", http.StatusServiceUnavailable)
			return
		}
		proxy := httputil.ReverseProxy{ErrorLog: silent, Rewrite: func(out *httputil.ProxyRequest) {
			out.SetURL(&url.URL{Scheme: "http", Host: addr})
			out.Out.Host = r.Host
		}}
		proxy.ServeHTTP(w, r)
	})
}
