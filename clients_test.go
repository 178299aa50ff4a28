package main

import (
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOneAddressHasBoundedConnections(t *testing.T) {
	c := newClients(3)
	a, mapped, b := netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("::ffff:172.17.0.2"), netip.MustParseAddr("172.17.0.3")
	for i := range 3 {
		if !c.connect(a) {
			t.Fatalf("connection %d is refused", i+1)
		}
	}
	if c.connect(a) || c.connect(mapped) {
		t.Error("a fourth connection is let in")
	}
	if !c.connect(b) {
		t.Error("one address uses up another's share")
	}
	c.disconnect(mapped)
	if !c.connect(a) {
		t.Error("a share that was given back cannot be used")
	}
	if c.connect(a) {
		t.Error("a refused connection was counted out")
	}
}

func TestAddressesOfOneSubnetAreClientsOfTheirOwn(t *testing.T) {
	c := newClients(1)
	if !c.connect(netip.MustParseAddr("fd00::1")) || !c.connect(netip.MustParseAddr("fd00::2")) {
		t.Error("two containers of one IPv6 network share one bound")
	}
}

func TestMintingIsABurstThenOneASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, a := newClients(1), netip.MustParseAddr("172.17.0.2")
		take := func() (n int) {
			for c.mint(a) {
				n++
			}
			return n
		}
		if n := take(); n != mintBurst {
			t.Errorf("%d leaves at once, want %d", n, mintBurst)
		}
		if !c.mint(netip.MustParseAddr("172.17.0.3")) {
			t.Error("one address uses up another's allowance")
		}
		<-time.After(mintInterval - 1)
		if n := take(); n != 0 {
			t.Errorf("%d leaves before a second has passed, want none", n)
		}
		<-time.After(1)
		if n := take(); n != 1 {
			t.Errorf("%d leaves after a second, want 1", n)
		}
		<-time.After(5 * mintInterval)
		if n := take(); n != 5 {
			t.Errorf("%d leaves after five more, want 5", n)
		}
		<-time.After(time.Hour)
		if n := take(); n != mintBurst {
			t.Errorf("%d leaves after an hour, want %d", n, mintBurst)
		}
	})
}

func TestClientsThatUseNothingAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, a := newClients(1), netip.MustParseAddr("10.0.0.0")
		for range 1000 {
			a = a.Next()
			c.connect(a)
			c.disconnect(a)
		}
		if len(c.byAddr) != 0 {
			t.Errorf("%d clients are remembered that connected and left", len(c.byAddr))
		}
		busy := a
		c.connect(busy)
		for range 1000 {
			a = a.Next()
			c.mint(a)
		}
		if len(c.byAddr) != 1001 {
			t.Errorf("%d clients within a second, want 1001: an allowance was forgotten", len(c.byAddr))
		}
		for range 2000 {
			<-time.After(mintInterval)
			a = a.Next()
			c.mint(a)
		}
		if n := len(c.byAddr); n > 128 {
			t.Errorf("%d clients are remembered though all but two have their whole allowance", n)
		}
		if c.connect(busy) {
			t.Error("a client that is connected was forgotten")
		}
	})
}

func TestClientsMayBeUsedAtOnce(t *testing.T) {
	c, a := newClients(8), netip.MustParseAddr("172.17.0.2")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if !c.connect(a) {
					t.Error("a connection within the bound is refused")
					return
				}
				c.mint(a)
				c.disconnect(a)
			}
		})
	}
	wg.Wait()
	if n := c.byAddr[a].conns; n != 0 {
		t.Errorf("%d connections are left", n)
	}
}
