package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/sync/errgroup"
)

// daemon is one `muxproxy run`: all its parts, open before the first Accept. It makes no connection of its own and sends
// nothing anywhere. The Go runtime has raised the soft limit of open files to the hard one by then (package os does at
// its start).
//
// Its life is openDaemon, serve, close. After openDaemon only a lost listener ends it by itself: whatever goes wrong with
// a connection, a credential or a reload is told and survived.
type daemon struct {
	// Set once in openDaemon.

	invocation
	log       *slog.Logger
	lock      *runLock
	ca        *certAuthority
	audit     *auditLog
	listeners *listeners // of the http plane
	kubePort  *planePort
	talosPort *planePort
	control   *control
	proxy     *proxy
	contexts  *contextPlanes
	upstream  func(*url.URL) (*url.URL, error) // which proxy a request takes on the way out

	// Replaced by a reload or by a change of the host's networks; read at any time.

	config   atomic.Pointer[config]
	creds    atomic.Pointer[credentials]
	networks atomic.Pointer[networks]

	// What health tells.

	history   planeHistory
	stopping  atomic.Bool
	unwatched atomic.Bool // the host's networks are no longer followed
}

// maxClientConns bounds the connections of one client address, over all planes (spec 6.10); minClientConns does from below.
const maxClientConns, minClientConns = 1024, 16

// clientConns is how many connections one client address may have where the process may have that many files open. A tunnel takes
// six: two sockets, and a pipe each way for splice(2). No client shall take more than half of all.
func clientConns(files uint64) int {
	return int(min(max(files/12, minClientConns), maxClientConns))
}

// errCutShort is what run ends with when the operator did not wait for the drain.
var errCutShort = errors.New("drain connections: a second signal cut it short")

// openDaemon opens all parts, and says what is on, off and why. The caller closes the daemon. After an error nothing is
// open: what was opened before it is closed again, in the same order as at the end.
func openDaemon(ctx context.Context, i invocation, log *slog.Logger) (*daemon, error) {
	d := &daemon{invocation: i, log: log}
	notices, err := d.openState()
	if err == nil {
		err = d.openPlanes(ctx)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	d.announce(notices)
	return d, nil
}

// openState opens what is on disk: the mux-dir and its lock, config, audit log, CA, credentials, the containers' files.
// The lock comes first, so that two daemons never write one mux-dir. notices are the CA's lines for the operator.
func (d *daemon) openState() (notices []string, err error) {
	if err := openMuxDir(d.muxDir); err != nil {
		return nil, err
	}
	if d.lock, err = lockRun(d.muxDir); err != nil {
		return nil, err
	}
	c, err := d.load()
	if err != nil {
		return nil, err
	}
	d.config.Store(c)
	if d.audit, err = openAudit(c.audit, time.Now); err != nil {
		return nil, err
	}
	if d.ca, notices, err = openCA(newCAOptions(c)); err != nil {
		return nil, err
	}
	d.creds.Store(newCredentials(c.rules, c.secretsDir, d.getenv, nil))
	return notices, d.writeTrust(c)
}

// writeTrust writes the containers' files anew, with the roots that the CA has now.
func (d *daemon) writeTrust(c *config) error {
	roots, _, err := hostRoots(d.getenv)
	if err != nil {
		return err
	}
	_, err = writeClientFiles(d.muxDir, "client", clientFiles(trustBundle(d.ca.roots(), roots), c.rules))
	return err
}

// openContexts opens the planes of the host's contexts, and the port of each that has something to serve.
func (d *daemon) openContexts(c *config, n *networks, env *httpproxy.Config, clients *clients) (err error) {
	d.contexts, err = d.openContextPlanes(c, contextPlanesOptions{
		clients: clients, audit: d.audit, log: d.log, leaf: d.ca.leaf, local: d.isLocal, env: env, guard: d.guard(c),
	})
	if err != nil {
		return err
	}
	listen := listenersConfig{bind: c.bind, accepts: d.accepts, clients: clients, log: d.log}
	listen.key, listen.port = "k8s_proxy_port", c.kubePort
	d.kubePort = newPlanePort(listen)
	listen.key, listen.port = "talos_gateway_port", c.talosPort
	d.talosPort = newPlanePort(listen)
	return d.serveContexts(n)
}

// serveContexts brings the containers' kubeconfig and talosconfig up to date, and opens the port of a plane that has something to
// serve from now on.
func (d *daemon) serveContexts(n *networks) error {
	if _, err := d.contexts.writeFiles(d.config.Load(), d.ca.roots()); err != nil {
		return err
	}
	kube, talos := d.contexts.on()
	if kube {
		if err := d.kubePort.open(n); err != nil {
			return err
		}
	}
	if talos {
		return d.talosPort.open(n)
	}
	return nil
}

// contextsChanged takes a change of the host's contexts into use.
func (d *daemon) contextsChanged() {
	if err := d.serveContexts(d.networks.Load()); err != nil {
		d.log.Error("serve the contexts of the host", keyError, err)
	}
}

// openPlanes opens the listeners and builds what serves on them. The control socket comes last: who can ask it may rely
// on every port being open.
func (d *daemon) openPlanes(ctx context.Context) error {
	c := d.config.Load()
	n, err := readNetworks()
	if err != nil {
		return err
	}
	d.networks.Store(n)
	env := proxyEnvironment(d.getenv)
	if err := checkUpstreamProxies(ctx, env, c, n); err != nil {
		return err
	}
	d.upstream = env.ProxyFunc()
	files, err := openFileLimit()
	if err != nil {
		return err
	}
	clients := newClients(clientConns(files))
	d.listeners, err = openListeners(listenersConfig{
		key: "http_proxy_port", port: c.httpPort, bind: c.bind, accepts: d.accepts, clients: clients, log: d.log,
	}, n)
	if err != nil {
		return err
	}
	if err := d.openContexts(c, n, env, clients); err != nil {
		return err
	}
	d.proxy = newProxy(proxyOptions{
		ca:         d.ca,
		audit:      d.audit,
		clients:    clients,
		log:        d.log,
		policy:     d.policyOf(c, d.creds.Load()),
		health:     d.answerHealth,
		local:      d.isLocal,
		handover:   d.handover,
		healthOnly: d.httpOff() != "",
	})
	d.control, err = openControl(d.muxDir, d.controlAnswer)
	return err
}

// policyOf is what the proxy decides by until the next reload.
func (d *daemon) policyOf(c *config, creds *credentials) *policy {
	return newPolicy(c.rules, c.unmatched, creds, newDialer(dialerConfig{guard: d.guard(c), dockerHost: c.dockerHost, proxy: d.upstream}))
}

// guard keeps what c does not allow from being dialed.
func (d *daemon) guard(c *config) guard {
	return guard{
		allowed:  c.allowedNetworks,
		isOwn:    func(a netip.Addr) bool { return d.networks.Load().isOwn(a) },
		ownPorts: []uint16{c.httpPort, c.kubePort, c.talosPort},
	}
}

// handover finds the plane that a client means which asks the http plane for one of our own ports at docker_host, or at an address that we
// listen on for containers (spec 6.6).
func (d *daemon) handover(a authority) *handover {
	c := d.config.Load()
	if a.port != c.kubePort && a.port != c.talosPort {
		return nil
	}
	if ip, err := netip.ParseAddr(a.host); a.host != c.dockerHost && (err != nil || ip.IsLoopback() || !d.listensOn(ip)) {
		return nil
	}
	kube, talos := d.contexts.on()
	switch {
	case a.port == c.kubePort && kube:
		return &handover{serve: d.contexts.kube.handOver, http: true}
	case a.port == c.talosPort && talos:
		return &handover{serve: d.contexts.talos.handOver}
	}
	return nil
}

// serve runs until the first stop signal, the end of ctx or the end of a listener, then drains: nothing new is accepted,
// and what is under way has the drain time to finish. A second stop signal ends it at once with errCutShort.
func (d *daemon) serve(ctx context.Context, s signals) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx) // waited for below; each part returns when ctx is done
	defer context.AfterFunc(ctx, d.closePorts)()
	g.Go(func() error { return d.proxy.serve(d.listeners) })
	if kube := d.contexts.kube; kube != nil {
		g.Go(func() error { return d.kubePort.serve(kube.serve) })
		g.Go(func() error { kube.watch(ctx, d.contextsChanged); return nil })
	}
	if talos := d.contexts.talos; talos != nil {
		g.Go(func() error { return d.talosPort.serve(talos.serve) })
		g.Go(func() error { talos.watch(ctx, d.contextsChanged); return nil })
	}
	g.Go(func() error { return d.control.serve(ctx) })
	g.Go(func() error { d.watchNetworks(ctx); return nil })
	g.Go(func() error { d.reloads(ctx, s.reload); return nil })
	g.Go(func() error {
		defer stop()
		defer d.stopping.Store(true)
		select {
		case sig := <-s.stop:
			d.log.Info("stopping: new connections are refused", "signal", sig.String(), "drain", d.config.Load().drain.String())
		case <-ctx.Done():
		}
		return nil
	})
	return errors.Join(g.Wait(), d.drain(s))
}

// drain waits for the connections that are left, as long as the operator and the drain time allow; those that are left
// then are closed. Only the operator's second signal is an error: a tunnel may well outlive any drain time.
func (d *daemon) drain(s signals) error {
	ctx, cancel := context.WithTimeout(context.Background(), d.config.Load().drain)
	defer cancel()
	var planes sync.WaitGroup // waited for below; each part returns when ctx is done
	planes.Go(func() { d.proxy.shutdown(ctx) })
	if d.contexts.kube != nil {
		planes.Go(func() { d.contexts.kube.shutdown(ctx) })
	}
	if d.contexts.talos != nil {
		planes.Go(func() { d.contexts.talos.shutdown(ctx) })
	}
	var g errgroup.Group // waited for below; both parts return when ctx is done, which each can bring about
	g.Go(func() error {
		defer cancel()
		planes.Wait()
		return nil
	})
	g.Go(func() error {
		select {
		case <-s.stop:
			cancel()
			return errCutShort
		case <-ctx.Done():
			return nil
		}
	})
	err := g.Wait()
	if err == nil {
		d.log.Info("stopped")
	}
	return err
}

// watchNetworks follows the host's networks. Without it the daemon serves the networks that were there at its start.
func (d *daemon) watchNetworks(ctx context.Context) {
	err := watchNetworks(ctx, d.follow)
	if err != nil && ctx.Err() == nil {
		d.log.Warn("networks that come from now on are not served: restart muxproxy", keyError, err)
		d.unwatched.Store(true)
	}
}

// follow takes a new snapshot of the host's networks into use: first who is accepted, then where we listen.
func (d *daemon) follow(n *networks) {
	d.networks.Store(n)
	for _, l := range d.ports() {
		l.update(n)
	}
}

// ports are the listeners of the planes that are open.
func (d *daemon) ports() []*listeners {
	all := []*listeners{d.listeners}
	for _, p := range []*planePort{d.kubePort, d.talosPort} {
		if ln, _ := p.listeners(); ln != nil {
			all = append(all, ln)
		}
	}
	return all
}

// closePorts closes the ports that are open.
func (d *daemon) closePorts() {
	if d.listeners != nil {
		d.listeners.Close()
	}
	for _, p := range []*planePort{d.kubePort, d.talosPort} {
		if p != nil {
			p.Close()
		}
	}
}

// close gives up what is open, the lock last, so that the next daemon finds the rest free. It may be called on a
// half-opened daemon, and again.
func (d *daemon) close() {
	if d.control != nil {
		d.control.close()
	}
	d.closePorts()
	if d.audit != nil {
		if err := d.audit.close(); err != nil {
			d.log.Error("close audit log", keyError, err)
		}
	}
	if d.lock != nil {
		d.lock.release()
	}
}

// httpOff tells which flag turned the http plane off, "" where none did.
func (d *daemon) httpOff() string {
	switch {
	case d.noHTTP:
		return "--no-http"
	case d.noProxy:
		return "--no-proxy"
	}
	return ""
}

// accepts tells whether a client may talk to us.
func (d *daemon) accepts(a netip.Addr) bool {
	return d.networks.Load().accepts(a, d.config.Load().clientNetworks)
}

// isLocal tells whether a Host field means this daemon, whatever its port: loopback, docker_host, or an address that we
// listen on. Any other name is one that a web page could have pointed at us (DNS rebinding).
func (d *daemon) isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" || host == d.config.Load().dockerHost {
		return true
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	return a.IsLoopback() || d.listensOn(a)
}

// listensOn tells whether a is an address that we listen on.
func (d *daemon) listensOn(a netip.Addr) bool {
	return slices.ContainsFunc(d.listeners.addrs(), func(l netip.AddrPort) bool {
		return l.Addr() == a || l.Addr().IsUnspecified() && d.networks.Load().isOwn(a)
	})
}

// controlAnswer is what the other commands are told.
func (d *daemon) controlAnswer() controlAnswer {
	return controlAnswer{
		PID:        os.Getpid(),
		Version:    version(),
		Planes:     d.healthReport().Planes,
		Containers: newContainerView(d.config.Load(), d.creds.Load(), d.networks.Load(), d.httpOff() == "", d.contexts),
	}
}
