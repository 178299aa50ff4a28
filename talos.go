package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// talosPlaneOptions is what openTalosPlane needs.
type talosPlaneOptions struct {
	config     talosPlaneConfig
	getenv     func(string) string // for TALOSCONFIG and TALOS_HOME
	home       string              // "/home/u"
	dockerHost string              // whose leaf is served
	port       uint16              // that containers dial
	leaf       func(host string) (*tls.Certificate, error)
	clients    *clients // whose RPCs are bounded
	audit      *auditLog
	log        *slog.Logger
	// environment gives the proxy that the daemon's environment names for a URL, nil for none: httpproxy.Config.ProxyFunc.
	environment func(*url.URL) (*url.URL, error)
	now         func() time.Time
}

// talosPlane is the gateway for talosctl: it ends TLS, and relays each connection to an endpoint of the context that its RPCs name,
// over a connection of its own that the host's client certificate opens (talos.md, "Recommended design").
type talosPlane struct {
	talosPlaneOptions
	tls   *tls.Config // one for all connections, so that sessions can be resumed
	relay h2Relay
	view  atomic.Pointer[talosView]
	// recent is what dialAhead guesses by.
	recent atomic.Pointer[talosRecent]
	aheads atomic.Int32 // connections that were dialed ahead and are not used yet

	mu       sync.Mutex
	shaking  map[net.Conn]struct{} // guarded by mu: those whose handshake is not over
	draining bool                  // guarded by mu
	told     map[string]bool       // guarded by mu: what announce told the last time
	live     sync.WaitGroup        // the connections' goroutines
}

// openTalosPlane reads the talosconfig. There may be none: state says so, and the plane takes one into use that comes later. The error is
// that of a talosconfig that the config names and that cannot be read.
func openTalosPlane(o talosPlaneOptions) (*talosPlane, error) {
	p := &talosPlane{talosPlaneOptions: o, shaking: map[net.Conn]struct{}{}}
	p.tls = &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		NextProtos:                  []string{"h2"},
		CurvePreferences:            localCurves(),
		GetCertificate:              p.certificate,
		DynamicRecordSizingDisabled: true,
	}
	v, err := p.load(o.config)
	if err != nil {
		return nil, err
	}
	p.view.Store(v)
	return p, nil
}

// certificate gives the leaf of docker_host whatever name is asked for, but for localhost: a client that uses another name should be
// told by its own check.
func (p *talosPlane) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "localhost" {
		return p.leaf("localhost")
	}
	return p.leaf(p.dockerHost)
}

// serve accepts connections on ln until ln is closed, which gives nil, or fails. It is called once; shutdown follows it.
func (p *talosPlane) serve(ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go p.handOver(conn) // shutdown waits for it
	}
}

// handOver serves one connection until it is over: one that serve accepted, or one that the http plane was asked to open to this
// plane's port. RemoteAddr must be the client's.
func (p *talosPlane) handOver(conn net.Conn) {
	defer conn.Close()
	if !p.enter(conn) {
		return
	}
	defer p.live.Done()
	defer p.survive()
	ahead := p.dialAhead()
	defer ahead.drop()
	tc := tls.Server(conn, p.tls)
	ctx, cancel := context.WithTimeout(context.Background(), headWait)
	err := tc.HandshakeContext(ctx)
	cancel()
	p.shaken(conn)
	switch {
	case err != nil:
		p.log.Debug("talos: TLS handshake", "client", conn.RemoteAddr().String(), keyError, err)
		return
	case tc.ConnectionState().NegotiatedProtocol != "h2":
		p.log.Debug("talos: the client does not speak HTTP/2", "client", conn.RemoteAddr().String())
		return
	}
	c := &talosConn{plane: p, client: conn.RemoteAddr().String(), ahead: ahead}
	from, _ := netip.ParseAddrPort(c.client)
	c.addr = from.Addr()
	err = p.relay.serve(tc, c.owner())
	if fault, ok := errors.AsType[*h2Fault](err); ok {
		p.log.Error("a connection failed: please report it", keyError, fault, "stack", string(fault.stack))
	} else if err != nil {
		p.log.Debug("talos: connection ended", "client", c.client, keyError, err)
	}
}

// enter counts a connection in; false once a drain has begun.
func (p *talosPlane) enter(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining {
		return false
	}
	p.shaking[conn] = struct{}{}
	p.live.Add(1)
	return true
}

// shaken says that the handshake on conn is over: from now on the relay ends it.
func (p *talosPlane) shaken(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.shaking, conn)
}

// survive keeps a fault on one connection from ending the others.
func (p *talosPlane) survive() {
	if fault := recover(); fault != nil {
		p.log.Error("a connection failed: please report it", keyError, fault, "stack", string(debug.Stack()))
	}
}

// shutdown drains: no RPC is begun any more, those under way may end, and when ctx ends they are cut. It returns when no goroutine
// of a connection is left.
func (p *talosPlane) shutdown(ctx context.Context) {
	p.mu.Lock()
	p.draining = true
	for conn := range p.shaking {
		conn.Close()
	}
	p.mu.Unlock()
	p.relay.shutdown(ctx)
	p.live.Wait()
}

// clientConfig is the containers' talosconfig; ca are the CA roots in PEM. It changes when the host's talosconfig does: see changed.
func (p *talosPlane) clientConfig(ca []byte) []byte {
	return containerTalosconfig(p.view.Load().file, p.dockerHost, p.port, ca)
}
