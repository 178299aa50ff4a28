package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// retryInterval is how long after a failure a bridge's address is bound again.
	retryInterval = time.Second
	// goneInterval is how long a listener outlives its address: a network that is made again at the same address, or an
	// engine that restarts, finds it as it was. Linux keeps such a listener working.
	goneInterval = time.Minute
	// A failed Accept is tried again after minBackoff, doubled after each further failure up to maxBackoff.
	minBackoff, maxBackoff = 5 * time.Millisecond, time.Second
	// warnInterval is the least time between two warnings of one kind: clients must not fill the log.
	warnInterval = time.Minute
)

// listenersConfig is what openListeners needs.
type listenersConfig struct {
	key     string       // the config key of the port, for errors: "http_proxy_port"
	port    uint16       // 18080; 0 takes a free one, the same on all addresses
	bind    []netip.Addr // exactly these; nil is "auto": 127.0.0.1 and the address of every container bridge
	accepts func(netip.Addr) bool
	clients *clients
	log     *slog.Logger
}

// listeners is one plane's port on all the addresses where containers find it, as one net.Listener. It follows the
// bridges that come and go, and lets in only connections whose source is accepted and has not too many already: any other
// is closed before a byte is read. Its methods may be called at once. Whoever opened it closes it.
type listeners struct {
	config listenersConfig
	listen func(netip.AddrPort) (net.Listener, error) // bindAddr
	conns  chan net.Conn                              // from the accept loops to Accept
	closed chan struct{}
	loops  sync.WaitGroup // the accept loops and keep
	retry  *time.Timer    // tells keep to reconcile

	mu       sync.Mutex
	port     uint16                   // guarded by mu: the real one
	started  bool                     // guarded by mu: changes are logged; what start finds is told by its caller
	networks *networks                // guarded by mu: the last snapshot
	open     map[netip.Addr]*openAddr // guarded by mu
	failed   map[netip.Addr]error     // guarded by mu: wanted, but not to be bound just now
	refused  int                      // guarded by mu: connections closed unread since warned
	warned   time.Time                // guarded by mu: when refusals were last warned of
}

// openAddr is an address that is bound.
type openAddr struct {
	ln   net.Listener
	gone time.Time // since when the address is not wanted any more; zero where it is
}

// acceptedConn is a connection that has been counted in as its client's; Close counts it out. The socket can be had for
// splice(2): the wrapper does nothing to its bytes.
type acceptedConn struct {
	*net.TCPConn
	release func() // counts out once, however often it is called
}

// Close closes the connection and counts it out.
func (c *acceptedConn) Close() error {
	err := c.TCPConn.Close()
	c.release()
	return err
}

// NetConn is the socket.
func (c *acceptedConn) NetConn() net.Conn { return c.TCPConn }

// openListeners binds the addresses of config.bind or, with "auto", 127.0.0.1 and the gateways of n. An address that the
// config asks for and that cannot be bound is an error; a bridge's that cannot is told by degraded and tried again.
func openListeners(config listenersConfig, n *networks) (*listeners, error) {
	l := newListeners(config)
	if err := l.start(n); err != nil {
		return nil, err
	}
	return l, nil
}

// newListeners gives listeners with no address bound.
func newListeners(config listenersConfig) *listeners {
	return &listeners{
		config: config,
		listen: bindAddr,
		conns:  make(chan net.Conn),
		closed: make(chan struct{}),
		retry:  time.NewTimer(retryInterval),
		port:   config.port,
		open:   map[netip.Addr]*openAddr{},
		failed: map[netip.Addr]error{},
	}
}

// start binds the first addresses. After an error nothing is bound.
func (l *listeners) start(n *networks) error {
	l.update(n)
	l.loops.Go(l.keep)
	required := l.config.bind
	if required == nil {
		required = []netip.Addr{loopbackAddr}
	}
	l.mu.Lock()
	l.started = true
	var errs []error
	for _, addr := range required {
		if err := l.failed[addr]; err != nil {
			errs = append(errs, l.explain(addr, err))
		}
	}
	l.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		l.Close()
		return err
	}
	return nil
}

// explain says what the operator can do about a required address that cannot be bound. l.mu is held.
func (l *listeners) explain(addr netip.Addr, err error) error {
	hint := "see bind and " + l.config.key
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = fmt.Sprintf("set another %s, or stop the program that `lsof -i :%d` shows", l.config.key, l.port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = "bind names an address that this host does not have"
	case errors.Is(err, syscall.EACCES):
		hint = fmt.Sprintf("set %s to 1024 or above", l.config.key)
	}
	return fmt.Errorf("listen on %q: %w: %s", netip.AddrPortFrom(addr, l.port), err, hint)
}

// update follows a new snapshot of the host's networks: new bridges are bound before it returns.
func (l *listeners) update(n *networks) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.networks = n
	l.reconcile()
}

// keep reconciles whenever something is due, until Close.
func (l *listeners) keep() {
	for {
		select {
		case <-l.closed:
			return
		case <-l.retry.C:
			l.mu.Lock()
			l.reconcile()
			l.mu.Unlock()
		}
	}
}

// reconcile makes the bound addresses those that are wanted, as far as it can. l.mu is held.
func (l *listeners) reconcile() {
	if l.isClosed() {
		return
	}
	wanted := l.wanted()
	l.closeGone(wanted)
	failed := map[netip.Addr]error{}
	for _, addr := range wanted {
		if l.open[addr] != nil {
			continue
		}
		if err := l.openAddr(addr); err != nil {
			failed[addr] = err
			if l.failed[addr] == nil && l.started {
				l.config.log.Warn("not listening on "+netip.AddrPortFrom(addr, l.port).String()+": trying again", "error", err)
			}
		}
	}
	l.failed = failed
	if len(failed) > 0 || slices.ContainsFunc(l.openAddrs(), func(a netip.Addr) bool { return !l.open[a].gone.IsZero() }) {
		l.retry.Reset(retryInterval)
	}
}

// wanted are the addresses that should be bound, the required ones first. l.mu is held.
func (l *listeners) wanted() []netip.Addr {
	if l.config.bind != nil {
		return l.config.bind
	}
	return append([]netip.Addr{loopbackAddr}, l.networks.gateways()...)
}

// closeGone closes the listeners that are not wanted any more: after goneInterval, so that a network may come back, but
// at once where the host still has the address, which is then a LAN's: its bridge got a port that is no container's. An
// established connection is not affected. l.mu is held.
func (l *listeners) closeGone(wanted []netip.Addr) {
	now := time.Now()
	for addr, o := range l.open {
		switch {
		case slices.Contains(wanted, addr):
			o.gone = time.Time{}
			continue
		case o.gone.IsZero():
			o.gone = now
		}
		if now.Sub(o.gone) >= goneInterval || l.networks.isOwn(addr) {
			delete(l.open, addr)
			o.ln.Close()
			l.config.log.Info("no longer listening on " + o.ln.Addr().String())
		}
	}
}

// openAddr binds one more address and accepts on it. l.mu is held.
func (l *listeners) openAddr(addr netip.Addr) error {
	ln, err := l.listen(netip.AddrPortFrom(addr, l.port))
	if err != nil {
		return err
	}
	if l.port == 0 {
		l.port = ln.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	l.open[addr] = &openAddr{ln: ln}
	if l.started {
		l.config.log.Info("listening on " + ln.Addr().String())
	}
	l.loops.Go(func() { l.acceptFrom(ln) })
	return nil
}

// acceptFrom hands what ln accepts to Accept until ln is closed. It ends with no other error: where descriptors run out
// (EMFILE, ENFILE) connections wait in the kernel's queue until some are closed.
func (l *listeners) acceptFrom(ln net.Listener) {
	var backoff time.Duration
	var warned time.Time
	for {
		conn, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			if now := time.Now(); now.Sub(warned) >= warnInterval {
				warned = now
				l.config.log.Warn("connections wait: accept fails", "address", ln.Addr().String(), "error", err)
			}
			backoff = min(max(2*backoff, minBackoff), maxBackoff)
			l.pause(backoff)
			continue
		}
		backoff = 0
		if conn = l.admit(conn); conn == nil {
			continue
		}
		select {
		case l.conns <- conn:
		case <-l.closed:
			conn.Close()
		}
	}
}

// pause waits, but no longer than until Close.
func (l *listeners) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.closed:
	}
}

// admit counts conn in, or closes it unread and gives nil.
func (l *listeners) admit(conn net.Conn) net.Conn {
	tcp := conn.(*net.TCPConn)
	addr := tcp.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	if !l.config.accepts(addr) {
		l.refuse(tcp, addr, "its address is not in client_networks, nor this host's or a container bridge's")
		return nil
	}
	if !l.config.clients.connect(addr) {
		l.refuse(tcp, addr, "it has too many connections")
		return nil
	}
	return &acceptedConn{TCPConn: tcp, release: sync.OnceFunc(func() { l.config.clients.disconnect(addr) })}
}

// refuse closes a connection unread and tells it: each at debug, and the first of a minute as a warning, with how many
// there were since the last one.
func (l *listeners) refuse(conn net.Conn, addr netip.Addr, why string) {
	defer conn.Close()
	l.config.log.Debug("client refused: "+why, "client", addr.String())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused++
	if now := time.Now(); now.Sub(l.warned) >= warnInterval {
		l.config.log.Warn("client refused: "+why, "client", addr.String(), "count", l.refused)
		l.warned, l.refused = now, 0
	}
}

// Accept gives the next connection that is let in, an *acceptedConn. After Close the error is net.ErrClosed; there is no
// other.
func (l *listeners) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Addr gives the first of addrs.
func (l *listeners) Addr() net.Addr {
	if addrs := l.addrs(); len(addrs) > 0 {
		return net.TCPAddrFromAddrPort(addrs[0])
	}
	return &net.TCPAddr{Port: int(l.config.port)}
}

// addrs are the addresses that are bound, sorted: 127.0.0.1:18080, 172.17.0.1:18080.
func (l *listeners) addrs() []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	var addrs []netip.AddrPort
	for _, a := range l.openAddrs() {
		addrs = append(addrs, netip.AddrPortFrom(a, l.port))
	}
	return addrs
}

// degraded says at which addresses containers cannot find us though they should, sorted:
// "172.17.0.1:18080: bind: address already in use". An address of bind may also be bound before the host has it.
func (l *listeners) degraded() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, addr := range l.wanted() {
		ap := netip.AddrPortFrom(addr, l.port)
		if err := l.failed[addr]; err != nil {
			lines = append(lines, fmt.Sprintf("%s: %v", ap, err))
		} else if !addr.IsUnspecified() && !l.networks.isOwn(addr) {
			lines = append(lines, fmt.Sprintf("%s: this host does not have the address", ap))
		}
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// Close closes all addresses and waits for the accept loops; connections that were accepted live on. It may be called
// again. The error is always nil.
func (l *listeners) Close() error {
	l.mu.Lock()
	if !l.isClosed() {
		close(l.closed)
	}
	for addr, o := range l.open {
		delete(l.open, addr)
		o.ln.Close()
	}
	l.mu.Unlock()
	l.loops.Wait()
	l.retry.Stop()
	return nil
}

// isClosed tells whether Close was called. l.mu is held.
func (l *listeners) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// openAddrs are the keys of l.open, sorted. l.mu is held.
func (l *listeners) openAddrs() []netip.Addr {
	var addrs []netip.Addr
	for a := range l.open {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// loopbackAddr is where the host's own processes find us, and where Docker Desktop forwards containers to.
var loopbackAddr = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// bindAddr opens a listener on one address, which the host need not have yet where the system allows that.
func bindAddr(ap netip.AddrPort) (net.Listener, error) {
	config, network := net.ListenConfig{Control: freebind}, "tcp4"
	if ap.Addr().Is6() {
		network = "tcp6"
	}
	ln, err := config.Listen(context.Background(), network, ap.String())
	var op *net.OpError
	if errors.As(err, &op) { // it repeats the address
		return nil, op.Err
	}
	return ln, err
}

// openFileLimit is how many descriptors the process may have open. It is the hard limit, less one: package syscall raises
// the soft limit at the start of every Go program, for itself and not for the programs it runs (syscall/rlimit.go).
func openFileLimit() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read limit of open files: %w", os.NewSyscallError("getrlimit", err))
	}
	return limit.Cur, nil
}
