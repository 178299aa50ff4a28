package main

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// All of 127.0.0.0/8 can be bound on Linux, so that its addresses can stand for bridges and clients.

func TestEachBridgeAddressIsServed(t *testing.T) {
	config, _ := testListenersConfig()
	n := &networks{own: map[netip.Addr]bool{}}
	l := startListeners(t, config, n)
	port := l.addrs()[0].Port()
	n = &networks{own: n.own, bridges: []bridge{
		{"docker0", []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}},
		{"podman0", []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}},
	}}
	l.update(n)
	for _, s := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		ap := netip.AddrPortFrom(netip.MustParseAddr(s), port)
		dialTest(t, ap.String())
		if got := acceptTest(t, l).LocalAddr().String(); got != ap.String() {
			t.Errorf("accepted at %s, want %s", got, ap)
		}
	}
	if conn, err := net.Dial("tcp", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.4"), port).String()); err == nil {
		conn.Close()
		t.Error("127.0.0.4 is open though it is no bridge")
	}
}

func TestSourceDecidesNotTheAddressDialed(t *testing.T) {
	config, _ := testListenersConfig()
	config.accepts = func(a netip.Addr) bool { return a != netip.MustParseAddr("127.0.0.9") }
	l := startListeners(t, config, noBridges())
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	conn, err := dialer.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !isCut(conn) {
		t.Error("127.0.0.9 is served")
	}
	dialTest(t, l.Addr().String())
	acceptTest(t, l)
}

func TestAddressCanBeBoundBeforeTheHostHasIt(t *testing.T) {
	addrs := []string{"198.51.100.7:0"}
	if ln, err := net.Listen("tcp6", "[::1]:0"); err == nil { // a kernel may be without IPv6
		ln.Close()
		addrs = append(addrs, "[2001:db8::7]:0")
	}
	for _, s := range addrs {
		ln, err := bindAddr(netip.MustParseAddrPort(s))
		if err != nil {
			t.Errorf("bind %s: %v", s, err)
			continue
		}
		ln.Close()
	}
}

func TestOpenFilesMayBeAsManyAsTheHardLimitAllows(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if n, err := openFileLimit(); err != nil || n+1 < limit.Max {
		t.Errorf("openFileLimit() = %d, %v, want %d", n, err, limit.Max)
	}
}
