package main

import (
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// watchEvery is how often the files of the host's contexts are looked at.
const watchEvery = 2 * time.Second

// contextPlanes are the planes that serve the contexts of a file of the host's: kube and talos. One that a flag turned off is nil.
type contextPlanes struct {
	kube  *kubePlane
	talos *talosPlane
}

// contextPlanesOptions is what openContextPlanes needs besides a config. The commands, which serve nothing, give log alone.
type contextPlanesOptions struct {
	clients *clients
	audit   *auditLog
	log     *slog.Logger
	leaf    func(host string) (*tls.Certificate, error)
	local   func(host string) bool
	env     *httpproxy.Config // upstream proxies; nil: none
	guard   guard             // for our own ports and addresses
}

// openContextPlanes reads the host's kubeconfig and talosconfig. It opens no port, makes no connection and runs no plugin.
// The error is of a talosconfig that the config names and that cannot be read.
func (i *invocation) openContextPlanes(c *config, o contextPlanesOptions) (*contextPlanes, error) {
	p := &contextPlanes{}
	if !i.noKube && !i.noProxy {
		p.kube = openKubePlane(kubePlaneOptions{
			config:   c.kube,
			source:   kubeSource{files: kubeSourceFiles(i.getenv), getenv: i.getenv, environ: i.environ, log: o.log},
			upstream: kubeUpstreamOptions{proxy: o.env, guard: o.guard},
			audit:    o.audit,
			log:      o.log,
			local:    o.local,
		})
	}
	if i.noTalos || i.noProxy {
		return p, nil
	}
	talos := talosPlaneOptions{
		config:     c.talos,
		getenv:     i.getenv,
		home:       i.home,
		dockerHost: c.dockerHost,
		port:       c.talosPort,
		leaf:       o.leaf,
		clients:    o.clients,
		audit:      o.audit,
		log:        o.log,
		now:        time.Now,
	}
	if o.env != nil {
		talos.environment = o.env.ProxyFunc()
	}
	var err error
	p.talos, err = openTalosPlane(talos)
	return p, err
}

// on tells which of the two have something to serve.
func (p *contextPlanes) on() (kube, talos bool) {
	return p.kube != nil && p.kube.serves(), p.talos != nil && p.talos.state().State != "off"
}

// writeFiles brings the containers' kubeconfig and talosconfig up to date, of the planes that have something to serve, and names
// those that it changed: "kube/config". roots are the CA's, in PEM.
func (p *contextPlanes) writeFiles(c *config, roots []byte) (changed []string, err error) {
	kube, talos := p.on()
	if kube {
		server := "http://" + net.JoinHostPort(c.dockerHost, strconv.Itoa(int(c.kubePort)))
		changed, err = writeClientFiles(c.muxDir, "kube", []clientFile{{"config", p.kube.clientConfig(server)}})
	}
	if err != nil || !talos {
		return changed, err
	}
	more, err := writeClientFiles(c.muxDir, "talos", []clientFile{{"config", p.talos.clientConfig(roots)}})
	return slices.Concat(changed, more), err
}

// makeContextFiles is writeFiles of a command that serves nothing, with the CA roots that are on disk.
func (i *invocation) makeContextFiles(c *config) (p *contextPlanes, changed []string, err error) {
	if p, err = i.openContextPlanes(c, contextPlanesOptions{log: slog.New(slog.DiscardHandler)}); err != nil {
		return nil, nil, err
	}
	roots, err := os.ReadFile(filepath.Join(c.muxDir, caFileName))
	if err == nil {
		changed, err = p.writeFiles(c, roots)
	}
	return p, changed, err
}

// planePort is the port of a context plane. It is opened once the plane has something to serve: where there is no kubeconfig,
// 18081 is left to others. Its methods may be called at once.
type planePort struct {
	config listenersConfig
	opened chan struct{} // closed with ln set
	gone   chan struct{} // closed by Close

	mu     sync.Mutex
	ln     *listeners // guarded by mu until opened is closed
	err    error      // guarded by mu: why the last attempt to open it failed
	closed bool       // guarded by mu
}

func newPlanePort(config listenersConfig) *planePort {
	return &planePort{config: config, opened: make(chan struct{}), gone: make(chan struct{})}
}

// open binds the port on n, where that has not been done.
func (p *planePort) open(n *networks) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.ln != nil {
		return nil
	}
	if p.ln, p.err = openListeners(p.config, n); p.err != nil {
		p.ln = nil
		return p.err
	}
	close(p.opened)
	return nil
}

// serve has the plane serve on the port, once it is open, until Close.
func (p *planePort) serve(serve func(net.Listener) error) error {
	select {
	case <-p.opened:
		return serve(p.ln)
	case <-p.gone:
		return nil
	}
}

// listeners gives the port's listeners, nil while it is not open, and why it could not be opened.
func (p *planePort) listeners() (*listeners, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ln, p.err
}

// Close closes the port for good.
func (p *planePort) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	close(p.gone)
	if p.ln != nil {
		p.ln.Close()
	}
}
