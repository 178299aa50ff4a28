// Package origin holds stand-ins for the services that muxproxy authenticates to. They judge the auth field as the real
// service does, answer a wrong one in the real service's shape, and record all that they receive, so that a
// test can say what left the proxy and not only what the client saw.
package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// NPMHost is the public npm registry.
const NPMHost = "registry" + ".npmjs.org"

// Names of hosts beside the built-in ones. The first three are served with certificates of the ruled root and expect GitLab's field; for
// muxproxy they exist only where its config file says so. No rule names the others, and their root is another.
const (
	GitLab  = "gitlab.example.com"
	Second  = "second.example.com"
	Apps    = "a.b.apps.example.com" // what a rule for "*.apps.example.com" covers
	Tunnel  = "tunnel.example.org"
	Other   = "other.example.org"
	Objects = "objects.example.net" // presigned storage, where Git LFS keeps its objects
)

// Secrets are the credentials that the services accept: the canaries of a run.
type Secrets struct {
	GitHub, AnthropicKey, AnthropicOAuth, PagerDuty, Sentry, NPM, DockerUser, DockerToken, GitLab string
}

// Options say where a Server listens and what it accepts.
type Options struct {
	Addr       string // "198.51.100.10"
	TLSPorts   []int  // 0 asks for a free one; the first is TLSAddr
	PlainPorts []int
	Dir        string // repositories, objects and registries live here
	Secrets    Secrets
}

// Server is all origins together: one TLS listener per port for all names. Its methods may be called at once.
type Server struct {
	secrets  Secrets
	dir      string
	ruled    *testCA
	public   *testCA
	tlsAddrs []string
	plain    []string
	hosts    map[string]site
	log      recorder
	gates    gates
	acks     gates
	objects  objectStore
	hub      hub
	npm      npm
	ctx      context.Context
	stop     context.CancelFunc
	servers  []*http.Server
	serving  sync.WaitGroup
	children []*child // guarded by childMu
	childMu  sync.Mutex
}

// site is one host's face: who signs its certificate and what answers.
type site struct {
	signer  *testCA
	handler http.Handler
}

// Start opens all listeners and serves until Close. The Docker and npm registries start later, each with its own method.
func Start(o Options) (*Server, error) {
	s := &Server{secrets: o.Secrets, dir: o.Dir}
	s.ctx, s.stop = context.WithCancel(context.Background())
	var err error
	if s.ruled, err = newTestCA("test root of ruled hosts"); err != nil {
		return nil, err
	}
	if s.public, err = newTestCA("test root of other hosts"); err != nil {
		return nil, err
	}
	s.hosts = s.sites()
	if err := s.listen(o); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// sites is the table of all names. Every handler but the streaming ones sees a request whose body has been read whole.
func (s *Server) sites() map[string]site {
	ruled := func(h http.Handler) site { return site{s.ruled, h} }
	public := func(h http.Handler) site { return site{s.public, h} }
	github, anthropic, pagerduty, sentry := whole(s.github()), whole(s.anthropic()), whole(s.pagerduty()), whole(s.sentry())
	return map[string]site{
		"api.github.com":       ruled(github),
		"uploads.github.com":   ruled(github),
		"github.com":           ruled(s.git()),
		"api.anthropic.com":    ruled(anthropic),
		"api.pagerduty.com":    ruled(pagerduty),
		"api.eu.pagerduty.com": ruled(pagerduty),
		"sentry.io":            ruled(sentry),
		"us.sentry.io":         ruled(sentry),
		"de.sentry.io":         ruled(sentry),
		NPMHost:                ruled(s.npmFront()),
		"auth.docker.io":       ruled(whole(s.tokenServer())),
		"registry-1.docker.io": ruled(s.registryFront()),
		GitLab:                 ruled(s.gitlab()),
		Second:                 ruled(s.gitlab()),
		Apps:                   ruled(s.gitlab()),
		Tunnel:                 public(s.echo()),
		Other:                  public(s.echo()),
		Objects:                public(whole(s.objects.handler())),
	}
}

func (s *Server) listen(o Options) error {
	for _, port := range o.TLSPorts {
		ln, err := net.Listen("tcp", net.JoinHostPort(o.Addr, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		s.tlsAddrs = append(s.tlsAddrs, ln.Addr().String())
		s.serve(func(h *http.Server) error { return h.ServeTLS(ln, "", "") })
	}
	for _, port := range o.PlainPorts {
		ln, err := net.Listen("tcp", net.JoinHostPort(o.Addr, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		s.plain = append(s.plain, ln.Addr().String())
		s.serve(func(h *http.Server) error { return h.Serve(ln) })
	}
	return nil
}

// serve runs one HTTP server on a goroutine that Close waits for.
func (s *Server) serve(run func(*http.Server) error) {
	server := &http.Server{
		Handler:     s.log.record(http.HandlerFunc(s.dispatch)),
		TLSConfig:   &tls.Config{GetCertificate: s.certificate, MinVersion: tls.VersionTLS12},
		BaseContext: func(net.Listener) context.Context { return s.ctx },
		ErrorLog:    silent,
	}
	s.servers = append(s.servers, server)
	s.serving.Go(func() { _ = run(server) })
}

func (s *Server) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	site, ok := s.hosts[hello.ServerName]
	if !ok {
		return nil, fmt.Errorf("no certificate for %q", hello.ServerName)
	}
	return site.signer.leaf(hello.ServerName)
}

// dispatch chooses the service by the Host field, as a service behind a shared front does.
func (s *Server) dispatch(w http.ResponseWriter, r *http.Request) {
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	site, ok := s.hosts[name]
	switch {
	case !ok:
		http.Error(w, "misdirected", http.StatusMisdirectedRequest)
	case r.TLS == nil && site.signer == s.ruled:
		http.Redirect(w, r, "https://"+name+r.URL.RequestURI(), http.StatusMovedPermanently)
	default:
		site.handler.ServeHTTP(w, r)
	}
}

// TLSAddr is the first TLS listener, "198.51.100.10:443".
func (s *Server) TLSAddr() string { return s.tlsAddrs[0] }

// PlainAddr is the first listener without TLS.
func (s *Server) PlainAddr() string { return s.plain[0] }

// Hosts are all names that are served, for a hosts file.
func (s *Server) Hosts() []string {
	names := make([]string, 0, len(s.hosts))
	for name := range s.hosts {
		names = append(names, name)
	}
	return names
}

// RuledRoot is the root of the hosts that rules name, PEM.
func (s *Server) RuledRoot() []byte { return s.ruled.pem }

// PublicRoot is the root of the hosts that no rule names, PEM.
func (s *Server) PublicRoot() []byte { return s.public.pem }

// Bundle is both roots: what SSL_CERT_FILE of the daemon names.
func (s *Server) Bundle() []byte { return append(append([]byte{}, s.ruled.pem...), s.public.pem...) }

// Close ends all connections and child processes and waits for them.
func (s *Server) Close() error {
	s.stop()
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Close())
	}
	s.serving.Wait()
	s.childMu.Lock()
	defer s.childMu.Unlock()
	for _, c := range s.children {
		c.end()
	}
	return errors.Join(errs...)
}

// silent is for the complaints of servers whose clients leave in the middle, as many here do on purpose.
var silent = log.New(io.Discard, "", 0)

// pause waits for d, or less if the server or the request ends.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
