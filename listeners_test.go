package main

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// logBuffer collects log lines; many goroutines may write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// count tells how many lines hold s.
func (l *logBuffer) count(s string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, s) {
			n++
		}
	}
	return n
}

// testListenersConfig takes a free port, accepts all and logs to the buffer.
func testListenersConfig() (listenersConfig, *logBuffer) {
	log := &logBuffer{}
	return listenersConfig{
		key:     "http_proxy_port",
		accepts: func(netip.Addr) bool { return true },
		clients: newClients(1024),
		log:     slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}, log
}

// noBridges is a host without containers.
func noBridges() *networks { return &networks{} }

// startListeners opens listeners that the test's end closes.
func startListeners(t *testing.T, config listenersConfig, n *networks) *listeners {
	t.Helper()
	l, err := openListeners(config, n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dialTest connects to ap.
func dialTest(t *testing.T, ap string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", ap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// acceptTest takes the next connection.
func acceptTest(t *testing.T, l *listeners) *acceptedConn {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*acceptedConn)
}

// isCut tells whether the peer closed or reset conn without a byte.
func isCut(conn net.Conn) bool {
	n, err := conn.Read(make([]byte, 1))
	return n == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET))
}

func TestConnectionsAreCountedUntilTheyAreClosed(t *testing.T) {
	config, log := testListenersConfig()
	config.clients = newClients(2)
	l := startListeners(t, config, noBridges())
	addr := l.Addr().String()
	dialTest(t, addr)
	first := acceptTest(t, l)
	dialTest(t, addr)
	acceptTest(t, l)
	if !isCut(dialTest(t, addr)) {
		t.Error("a third connection is served")
	}
	if log.count("too many connections") == 0 {
		t.Error("nothing is logged of the third")
	}
	first.Close()
	first.Close()
	dialTest(t, addr)
	acceptTest(t, l)
	if !isCut(dialTest(t, addr)) {
		t.Error("a connection that was closed twice was counted out twice")
	}
}

func TestConnectionsFromElsewhereAreClosedUnread(t *testing.T) {
	config, log := testListenersConfig()
	var asked []netip.Addr
	config.accepts = func(a netip.Addr) bool { asked = append(asked, a); return false }
	l := startListeners(t, config, noBridges())
	for range 5 {
		conn := dialTest(t, l.Addr().String())
		io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n")
		if !isCut(conn) {
			t.Fatal("a client that is not accepted gets an answer")
		}
	}
	l.Close()
	if len(asked) != 5 || asked[0] != loopbackAddr {
		t.Errorf("accepts was asked of %v, want 127.0.0.1 five times", asked)
	}
	if n := log.count("level=DEBUG msg=\"client refused"); n != 5 {
		t.Errorf("%d debug lines, want 5", n)
	}
	if n := log.count("level=WARN"); n != 1 || log.count("client_networks") == 0 {
		t.Errorf("%d warnings, want 1 that names client_networks", n)
	}
	if len(config.clients.byAddr) != 0 {
		t.Error("a refused client is counted")
	}
}

func TestAcceptedConnectionsHalfClose(t *testing.T) {
	config, _ := testListenersConfig()
	l := startListeners(t, config, noBridges())
	client := dialTest(t, l.Addr().String())
	conn := acceptTest(t, l)
	client.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || len(b) != 0 {
		t.Fatalf("ReadAll = %q, %v", b, err)
	}
	io.WriteString(conn, "bye")
	conn.CloseWrite()
	if b, err := io.ReadAll(client); err != nil || string(b) != "bye" {
		t.Errorf("ReadAll = %q, %v, want bye", b, err)
	}
}

func TestPortInUseIsAnErrorWithTheWayOut(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config, _ := testListenersConfig()
	config.port = taken.Addr().(*net.TCPAddr).AddrPort().Port()
	for name, bind := range map[string][]netip.Addr{"auto": nil, "a list": {loopbackAddr}} {
		config.bind = bind
		l, err := openListeners(config, noBridges())
		if err == nil {
			l.Close()
			t.Fatalf("%s: the port is used twice", name)
		}
		for _, want := range []string{taken.Addr().String(), "http_proxy_port", "address already in use", "lsof -i :"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %q lacks %q", name, err, want)
			}
		}
	}
}

func TestCloseEndsAcceptAndKeepsConnections(t *testing.T) {
	config, _ := testListenersConfig()
	l := startListeners(t, config, noBridges())
	addr := l.Addr().String()
	client := dialTest(t, addr)
	conn := acceptTest(t, l)
	waiting := dialTest(t, addr) // nobody takes it
	ended := make(chan error)
	go func() {
		for {
			if _, err := l.Accept(); err != nil {
				ended <- err
				return
			}
		}
	}()
	l.Close()
	l.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept = %v, want net.ErrClosed", err)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("the port is still open")
	}
	io.WriteString(conn, "x")
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
	l.update(noBridges())
	if len(l.addrs()) != 0 {
		t.Errorf("an update after Close opens %v", l.addrs())
	}
	waiting.Close()
}

// fakeHost stands for the kernel: it binds what is not taken.
type fakeHost struct {
	mu    sync.Mutex
	taken map[string]error // by address: why it cannot be bound
	bound map[string]*fakeListener
	binds int
}

func newFakeHost() *fakeHost {
	return &fakeHost{taken: map[string]error{}, bound: map[string]*fakeListener{}}
}

// take lets addr fail from now on with err, or be free again with nil.
func (h *fakeHost) take(addr string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.taken[addr] = err
}

// listener gives what is bound to addr, nil for nothing.
func (h *fakeHost) listener(addr string) *fakeListener {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bound[addr]
}

// tries tells how often something was bound, or could not be.
func (h *fakeHost) tries() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.binds
}

// fakeListener accepts nothing until it is closed; first it fails with errs.
type fakeListener struct {
	addr   netip.AddrPort
	errs   chan error
	closed chan struct{}
	host   *fakeHost
}

func (h *fakeHost) listen(ap netip.AddrPort) (net.Listener, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.binds++
	if err := h.taken[ap.Addr().String()]; err != nil {
		return nil, err
	}
	ln := &fakeListener{ap, make(chan error), make(chan struct{}), h}
	h.bound[ap.Addr().String()] = ln
	return ln, nil
}

func (l *fakeListener) Accept() (net.Conn, error) {
	select {
	case err := <-l.errs:
		return nil, err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *fakeListener) Close() error {
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	delete(l.host.bound, l.addr.Addr().String())
	close(l.closed)
	return nil
}

func (l *fakeListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// startFake starts listeners on port 18080 of a fake host.
func startFake(t *testing.T, n *networks) (*listeners, *fakeHost, *logBuffer) {
	t.Helper()
	config, log := testListenersConfig()
	config.port = 18080
	host := newFakeHost()
	l := newListeners(config)
	l.listen = host.listen
	t.Cleanup(func() { l.Close() })
	if err := l.start(n); err != nil {
		t.Fatal(err)
	}
	return l, host, log
}

// withBridge is a host with one bridge of that address, "172.18.0.1/16".
func withBridge(prefix string) *networks {
	p := netip.MustParsePrefix(prefix)
	return &networks{own: map[netip.Addr]bool{p.Addr(): true}, bridges: []bridge{{"br-0123456789ab", []netip.Prefix{p}}}}
}

// mustListen fails the test unless exactly want is bound.
func mustListen(t *testing.T, when string, l *listeners, want ...string) {
	t.Helper()
	same := func(a netip.AddrPort, s string) bool { return a.String() == s }
	if got := l.addrs(); !slices.EqualFunc(got, want, same) {
		t.Errorf("%s: listening on %v, want %v", when, got, want)
	}
}

func TestListenersFollowTheBridges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, host, log := startFake(t, noBridges())
		mustListen(t, "at the start", l, "127.0.0.1:18080")
		if log.count("listening on") != 0 {
			t.Error("the start is logged twice: its caller tells it")
		}
		l.update(withBridge("172.18.0.1/16"))
		mustListen(t, "with a bridge", l, "127.0.0.1:18080", "172.18.0.1:18080")
		if log.count("listening on 172.18.0.1:18080") != 1 {
			t.Error("the new address is not logged")
		}
		before := host.listener("172.18.0.1")
		l.update(noBridges())
		<-time.After(goneInterval - time.Second)
		mustListen(t, "while the bridge may come back", l, "127.0.0.1:18080", "172.18.0.1:18080")
		l.update(withBridge("172.18.0.1/16"))
		<-time.After(2 * goneInterval)
		if host.listener("172.18.0.1") != before {
			t.Error("the listener did not survive its bridge's re-creation")
		}
		l.update(noBridges())
		<-time.After(goneInterval + time.Second)
		mustListen(t, "when the bridge is gone for good", l, "127.0.0.1:18080")
		if host.listener("172.18.0.1") != nil {
			t.Error("its listener is left open")
		}
	})
}

func TestBridgeThatTurnsIntoALanIsClosedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, host, _ := startFake(t, withBridge("172.18.0.1/16"))
		lan := withBridge("172.18.0.1/16")
		lan.bridges = nil // it got a physical port
		l.update(lan)
		mustListen(t, "with a physical port", l, "127.0.0.1:18080")
		if host.listener("172.18.0.1") != nil {
			t.Error("its listener is left open")
		}
	})
}

func TestBridgeThatCannotBeBoundIsToldAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, host, log := startFake(t, noBridges())
		host.take("172.18.0.1", syscall.EADDRINUSE)
		l.update(withBridge("172.18.0.1/16"))
		mustListen(t, "while it is taken", l, "127.0.0.1:18080")
		if got := l.degraded(); len(got) != 1 || got[0] != "172.18.0.1:18080: address already in use" {
			t.Errorf("degraded() = %q", got)
		}
		<-time.After(10*retryInterval + retryInterval/2)
		if n := host.tries(); n < 10 || n > 13 {
			t.Errorf("bound %d times in ten seconds, want once a second", n)
		}
		if n := log.count("not listening on 172.18.0.1:18080"); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		host.take("172.18.0.1", nil)
		<-time.After(retryInterval)
		mustListen(t, "once it is free", l, "127.0.0.1:18080", "172.18.0.1:18080")
		if got := l.degraded(); len(got) != 0 {
			t.Errorf("degraded() = %q, want none", got)
		}
		binds := host.tries()
		<-time.After(time.Minute)
		if host.tries() != binds {
			t.Error("it is bound again and again")
		}
	})
}

func TestBindListIsBoundExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, _ := testListenersConfig()
		config.port, config.bind = 18080, []netip.Addr{netip.MustParseAddr("192.168.7.5"), netip.MustParseAddr("0.0.0.0")}
		host := newFakeHost()
		l := newListeners(config)
		l.listen = host.listen
		defer l.Close()
		if err := l.start(withBridge("172.18.0.1/16")); err != nil {
			t.Fatal(err)
		}
		mustListen(t, "with a list", l, "0.0.0.0:18080", "192.168.7.5:18080")
		if got := l.degraded(); len(got) != 1 || !strings.Contains(got[0], "192.168.7.5:18080: this host does not have") {
			t.Errorf("degraded() = %q, want the address that the host does not have", got)
		}
		l.update(testNetworks())
		<-time.After(2 * goneInterval)
		mustListen(t, "after an update", l, "0.0.0.0:18080", "192.168.7.5:18080")
		if got := l.degraded(); len(got) != 0 {
			t.Errorf("degraded() = %q, want none", got)
		}
	})
}

func TestAcceptBacksOffWhenDescriptorsRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, host, log := startFake(t, noBridges())
		start := time.Now()
		for range 12 {
			host.listener("127.0.0.1").errs <- &net.OpError{Op: "accept", Err: syscall.EMFILE}
		}
		synctest.Wait()
		// 5+10+20+40+80+160+320+640 ms, then 1 s each: the twelfth error is taken after eleven pauses.
		if got, want := time.Since(start), 1275*time.Millisecond+3*time.Second; got != want {
			t.Errorf("twelve failures took %v, want %v", got, want)
		}
		if n := log.count("accept fails"); n != 1 {
			t.Errorf("%d warnings, want 1", n)
		}
		start = time.Now()
		l.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("Close waits %v for a pause", d)
		}
	})
}

func TestOpenFileLimitIsRead(t *testing.T) {
	if n, err := openFileLimit(); err != nil || n < 64 {
		t.Errorf("openFileLimit() = %d, %v", n, err)
	}
}
