package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// proxyOptions is what newProxy needs.
type proxyOptions struct {
	ca      *certAuthority
	audit   *auditLog
	clients *clients
	log     *slog.Logger
	policy  *policy
	// health answers GET /proxy/health; a client on loopback sees more.
	health func(loopback bool) (code int, body []byte)
	// local tells whether the Host of an origin-form request is ours: loopback, docker_host, an address we listen on.
	local func(host string) bool
	// handover tells which other plane of this process an authority leads to, nil for none.
	handover func(authority) *handover
	// healthOnly refuses all but origin-form requests (--no-http).
	healthOnly bool
}

// proxy is the http plane: it reads what clients send to the proxy port, and tunnels, intercepts or refuses it.
type proxy struct {
	proxyOptions
	policy    atomic.Pointer[policy]
	intercept *interceptor
	ctx       context.Context // ends when a drain is over: everything is closed then
	stop      context.CancelFunc

	mu    sync.Mutex
	conns map[*clientConn]struct{}
	drain chan struct{}  // closed when a drain begins
	live  sync.WaitGroup // the connections' goroutines, and the HTTP/2 server's
}

func newProxy(o proxyOptions) *proxy {
	p := &proxy{proxyOptions: o, conns: make(map[*clientConn]struct{}), drain: make(chan struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.policy.Store(o.policy)
	p.intercept = newInterceptor(p)
	return p
}

// setPolicy swaps the policy: the next request of every connection follows it.
func (p *proxy) setPolicy(n *policy) {
	p.policy.Swap(n).closeIdle()
}

// serve accepts connections on ln until ln is closed, which gives nil, or fails. It is called once; shutdown follows it.
func (p *proxy) serve(ln net.Listener) error {
	p.live.Go(p.intercept.h2.run) // shutdown ends it and waits for it
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		c := p.admit(conn)
		if c == nil {
			conn.Close()
			continue
		}
		// shutdown waits for it.
		go func() {
			defer p.live.Done()
			defer p.leave(c)
			defer p.survive()
			c.serve()
		}()
	}
}

// shutdown drains: idle connections are closed at once, the others when their exchange is over; when ctx ends they are closed
// as they are. It returns when no goroutine of a connection is left.
func (p *proxy) shutdown(ctx context.Context) {
	p.mu.Lock()
	close(p.drain)
	for c := range p.conns {
		c.closeIdle()
	}
	p.mu.Unlock()
	stop := context.AfterFunc(ctx, p.cut)
	p.intercept.h2.shutdown(ctx)
	p.live.Wait()
	stop()
	p.cut()
	p.policy.Load().closeIdle()
}

// survive keeps a fault on one connection from ending the others; net/http's server does the same.
func (p *proxy) survive() {
	if fault := recover(); fault != nil {
		p.log.Error("a connection failed: please report it", keyError, fault, "stack", string(debug.Stack()))
	}
}

// cut closes everything.
func (p *proxy) cut() {
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.conn.Close()
	}
}

// draining tells whether a drain has begun.
func (p *proxy) draining() bool {
	select {
	case <-p.drain:
		return true
	default:
		return false
	}
}

// admit takes a connection in; nil once a drain has begun.
func (p *proxy) admit(conn net.Conn) *clientConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.draining() {
		return nil
	}
	c := &clientConn{p: p, conn: conn}
	c.addr, _ = netip.ParseAddrPort(conn.RemoteAddr().String())
	c.addr = netip.AddrPortFrom(c.addr.Addr().Unmap(), c.addr.Port())
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	p.conns[c] = struct{}{}
	p.live.Add(1)
	return c
}

func (p *proxy) leave(c *clientConn) {
	c.cancel()
	c.conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// handle answers one request to the proxy port: CONNECT, absolute-form, or origin-form to muxproxy itself.
func (c *clientConn) handle(h *http1Conn, x *exchange) {
	switch {
	case x.r.URL.Host == "" && x.r.Method != "CONNECT":
		c.handleOwn(x)
	case c.p.healthOnly:
		x.refuse(denied(http.StatusForbidden, "http plane off", "the http plane is off (--no-http)"))
	case x.r.Method == "CONNECT":
		c.handleConnect(h, x)
	default:
		c.handlePlain(x)
	}
}

// handleOwn answers origin-form requests: health and the CA. They are no client's business with an upstream, so they
// leave no audit line.
func (c *clientConn) handleOwn(x *exchange) {
	x.audited = true
	code, contentType, content := http.StatusNotFound, "text/plain; charset=utf-8", []byte("muxproxy: this is a proxy: set HTTPS_PROXY to it\n")
	path, _, _ := strings.Cut(x.r.RequestURI, "?")
	switch {
	case x.r.Method != "GET" && x.r.Method != "HEAD", !c.p.local(x.r.Host):
	case path == "/proxy/health":
		code, content = c.p.health(c.addr.Addr().IsLoopback())
		contentType = "application/json"
	case path == "/proxy/ca.pem":
		code, contentType, content = http.StatusOK, "application/x-pem-file", c.p.ca.roots()
	}
	x.answer(localResponse(x.r, code, contentType, content))
}

// handlePlain passes on a request in absolute-form. Over plain http nothing is ever injected.
func (c *clientConn) handlePlain(x *exchange) {
	a, err := parseAuthority(x.r.URL.Host, schemePort(x.r.URL.Scheme))
	if err != nil {
		x.refuse(denied(http.StatusBadRequest, "malformed authority", "the host of the request is malformed"))
		return
	}
	x.event.host = hostField(a, 443)
	if x.r.URL.Scheme != "http" {
		x.refuse(denied(http.StatusBadRequest, "absolute-form not of http", "use CONNECT for https"))
		return
	}
	if !validLine(x.r) {
		x.refuse(denied(http.StatusBadRequest, "request line", "the target holds #, which servers read in different ways"))
		return
	}
	if x.r.URL.User != nil {
		x.refuse(denied(http.StatusBadRequest, "userinfo in the target", "a request target holds no user name or password (RFC 9110 section 4.2.4)"))
		return
	}
	if echoes(x.r.Method) {
		x.refuse(denied(http.StatusForbidden, "TRACE", "TRACE is refused: an upstream proxy would echo its own credential"))
		return
	}
	if to := c.p.handover(a); to != nil && to.http {
		c.handPlain(x, to, a)
		return
	}
	n := c.p.policy.Load()
	target := originForm(x.r)
	d := n.rules.connect(a)
	if d.action == actionIntercept {
		d = n.rules.request(a, x.r.Method, target)
	}
	if d.rule != nil {
		x.event.service, x.shape = d.rule.service, d.rule.errorShape
	}
	if f := x.policyRefusal(d); f != nil {
		x.refuse(f)
		return
	}
	cleanRequest(x.r)
	ruled := n.rules.naming(a.host)
	if len(ruled) > 0 {
		stripAuth(x.r.Header, ruled...)
	}
	x.body.clean = func(h http.Header) { cleanTrailer(h, len(ruled) > 0, ruled...) }
	x.target("http", hostField(a, 80), target)
	x.send(n.upstream(d.rule))
}

// originForm gives the origin-form of an absolute-form target, byte for byte (RFC 9112 §3.2.2).
func originForm(r *http.Request) string {
	_, rest, _ := strings.Cut(r.RequestURI, "://")
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		if rest[i] == '?' {
			return "/" + rest[i:]
		}
		return rest[i:]
	}
	if r.Method == "OPTIONS" {
		return "*"
	}
	return "/"
}

// hostField is the Host field for a: without the scheme's own port.
func hostField(a authority, port uint16) string {
	s := a.String()
	if a.port == port {
		s = strings.TrimSuffix(s, ":"+strconv.Itoa(int(port)))
	}
	return s
}

// handleConnect tunnels, intercepts or refuses a CONNECT (RFC 9110 §9.3.6).
func (c *clientConn) handleConnect(h *http1Conn, x *exchange) {
	a, err := parseAuthority(x.r.RequestURI, 443)
	if err != nil {
		x.event.path = ""
		h.refuseConnect(x, denied(http.StatusBadRequest, "malformed authority", "CONNECT takes HOST:PORT"))
		return
	}
	x.event.host, x.event.path = hostField(a, 443), ""
	if x.r.Body != http.NoBody { // RFC 9110 §9.3.6: what it would mean is nowhere said
		h.refuseConnect(x, denied(http.StatusBadRequest, "CONNECT with content", "CONNECT has no content"))
		return
	}
	if to := c.p.handover(a); to != nil {
		c.handConnect(h, x, to)
		return
	}
	n := c.p.policy.Load()
	d := n.rules.connect(a)
	switch d.action {
	case actionIntercept:
		x.event.service = d.rule.service
		c.p.intercept.accept(c, h, x, a)
	case actionTunnel:
		c.tunnel(h, x, n, a)
	default:
		h.refuseConnect(x, x.policyRefusal(d))
	}
}

// tunnel opens a tunnel to a: the upstream is dialed before the client is told 200.
func (c *clientConn) tunnel(h *http1Conn, x *exchange, n *policy, a authority) {
	conn, err := n.dialer.dial(c.ctx, a)
	if err != nil {
		h.refuseConnect(x, upstreamRefusal(a.host, err))
		return
	}
	x.event.decision, x.event.code = decisionTunneled, http.StatusOK
	x.opened()
	x.next = func() { c.relayTunnel(x, conn) }
	early, err := h.established(c.conn)
	if err == nil && len(early) > 0 {
		var n int
		n, err = conn.Write(early)
		x.event.in = int64(n)
	}
	if err != nil {
		c.conn.Close() // the relay ends at once, and says so
	}
}

// relayTunnel relays bytes between the client and conn until both are done.
func (c *clientConn) relayTunnel(x *exchange, conn net.Conn) {
	in, out := relay(c.p.ctx, c.conn, conn)
	x.event.in += in
	x.event.out = out
	x.audit()
}

// established answers 200 to a CONNECT and gives what the client sent early.
func (h *http1Conn) established(conn net.Conn) (early []byte, err error) {
	h.endWatch()
	conn.SetDeadline(time.Time{})
	if n := h.br.Buffered(); n > 0 { // else it would keep the reader's buffer for as long as the connection
		early, _ = h.br.Peek(n)
	}
	_, err = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
	return early, err
}

// refuseConnect answers a CONNECT with f. The text stands in the status line too: many clients show nothing else.
func (h *http1Conn) refuseConnect(x *exchange, f *refusal) {
	if f.code == 0 {
		x.refuse(f)
		return
	}
	x.event.decision, x.event.err = f.decision, f.cause
	res := f.response(x.r, "git", x.event.id)
	res.Status = strconv.Itoa(f.code) + " " + f.text
	x.reply.(*reply1).close = true
	x.answer(res)
}

// policyRefusal is the refusal that d calls for, nil where it lets the request pass.
func (x *exchange) policyRefusal(d decision) *refusal {
	switch d.action {
	case actionDeny:
		return denied(http.StatusForbidden, "policy: "+d.reason, "refused by "+d.reason)
	case actionBadTarget:
		return denied(http.StatusBadRequest, "ambiguous path", "the path holds a dot segment, an empty segment, a backslash, NUL or a malformed escape, which servers read in different ways: send it in its plain form")
	}
	if d.strict && overridesMethod(x.r.Header) {
		return denied(http.StatusBadRequest, "method override", "method override fields are not allowed here: use the method itself")
	}
	return nil
}

// target points the request at scheme://host with the request target as it is.
func (x *exchange) target(scheme, host, target string) {
	x.r.Host = host
	x.r.URL.Scheme, x.r.URL.Host = scheme, host
	x.r.URL.Opaque = "//" + host + target
}
