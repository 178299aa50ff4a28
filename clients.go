package main

import (
	"net/netip"
	"sync"
	"time"
)

// What one client address may mint: a burst that starts many tools at once, then a rate that a working agent stays under.
// A leaf costs some 0.1 ms, and leaves are cached, so this bounds only who asks for ever new hosts under a wildcard.
const (
	mintBurst    = 100         // leaves
	mintInterval = time.Second // one more each
)

// clients bounds what one client address may use of muxproxy: connections, over all planes, HTTP/2 streams over all of them,
// and new leaves (spec 6.10). Safe for concurrent use.
//
// A client is one whole address, in IPv6 too: all containers of one network share a /64, and one of them must not use up
// the others' share. What a container gains by taking further addresses is bounded by the open files of the process.
type clients struct {
	maxConns int // per address

	mu     sync.Mutex
	byAddr map[netip.Addr]*client // guarded by mu
	sweep  int                    // guarded by mu: byAddr is swept when it has grown to this
}

// client is what one address uses. It is dropped once it equals a new one.
type client struct {
	conns   int
	streams int
	// minted is when the allowance will be whole again: each leaf moves it by mintInterval, from now at the earliest. So
	// the allowance left at t is mintBurst - (minted - t)/mintInterval, with no timer (the generic cell rate algorithm).
	minted time.Time
}

// newClients gives bounds under which no address has more than maxConns connections.
func newClients(maxConns int) *clients {
	return &clients{maxConns: maxConns, byAddr: map[netip.Addr]*client{}, sweep: 64}
}

// connect counts a connection in; false when addr has too many: then it is not counted, and disconnect is not called.
func (c *clients) connect(addr netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.get(addr)
	if cl.conns >= c.maxConns {
		return false
	}
	cl.conns++
	return true
}

// disconnect counts a connection out, once for each connect that gave true.
func (c *clients) disconnect(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	addr = addr.Unmap()
	cl := c.byAddr[addr]
	cl.conns--
	if cl.idle(time.Now()) {
		delete(c.byAddr, addr)
	}
}

// The HTTP/2 streams that one client address may have at once: as many as it may have HTTP/1.1 connections. Those beyond are
// told so, as long as there are not as many of them again.
const (
	maxClientStreams  = 1024
	maxRefusedStreams = 1024
)

// maxStreams is how many that is: each may take a socket to an upstream, of which there are fewer where few files may be open.
func (c *clients) maxStreams() int { return min(maxClientStreams, c.maxConns) }

// beginStream counts a stream in and gives how many addr has now; endStream follows in any case.
func (c *clients) beginStream(addr netip.Addr) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := c.get(addr)
	cl.streams++
	return cl.streams
}

// endStream counts a stream out.
func (c *clients) endStream(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.get(addr).streams--
}

// mint takes one from addr's allowance of new leaves; false when it is used up: then one comes back each second.
func (c *clients) mint(addr netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl, now := c.get(addr), time.Now()
	whole := cl.minted
	if whole.Before(now) {
		whole = now
	}
	if whole = whole.Add(mintInterval); whole.Sub(now) > mintBurst*mintInterval {
		return false
	}
	cl.minted = whole
	return true
}

// get finds or makes addr's client. c.mu is held. Clients that minted and left stay until their allowance is whole; they
// are dropped when the map has doubled, so that a sweep costs no more than the insertions before it.
func (c *clients) get(addr netip.Addr) *client {
	addr = addr.Unmap()
	if cl := c.byAddr[addr]; cl != nil {
		return cl
	}
	if len(c.byAddr) >= c.sweep {
		now := time.Now()
		for a, cl := range c.byAddr {
			if cl.idle(now) {
				delete(c.byAddr, a)
			}
		}
		c.sweep = max(64, 2*len(c.byAddr))
	}
	cl := &client{}
	c.byAddr[addr] = cl
	return cl
}

// idle tells whether the client uses nothing and has its whole allowance.
func (cl *client) idle(now time.Time) bool {
	return cl.conns <= 0 && cl.streams <= 0 && !cl.minted.After(now)
}
