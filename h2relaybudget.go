package main

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// What a client may do that costs it nothing, in a second on average, and ten times that at once: frames that carry nothing (PING,
// SETTINGS, WINDOW_UPDATE, PRIORITY, empty DATA, what is unknown), and streams reset before they were answered ("rapid reset",
// CVE-2023-44487). Each frame of content that the client is sent allows for h2FramesEarned more of the first kind: bandwidth
// is measured by PING, and windows are opened in small steps.
const (
	h2FrameRate    = 1000
	h2ResetRate    = 100
	h2FramesEarned = 16
)

// How many of a relay's connections may be large at once, over all clients and of one address: what they hold, some 5 MiB each at worst, is
// bounded by it.
const (
	h2LargeMost  = 64
	h2LargeOfOne = 16
)

// h2LargeConns counts them. The zero value is ready; it may be used by all connections at once.
type h2LargeConns struct {
	mu     sync.Mutex
	all    int                // guarded by mu
	byAddr map[netip.Addr]int // guarded by mu
}

// add counts a connection of addr in, if there is room.
func (l *h2LargeConns) add(addr netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == h2LargeMost || l.byAddr[addr] == h2LargeOfOne {
		return false
	}
	if l.byAddr == nil {
		l.byAddr = map[netip.Addr]int{}
	}
	l.all++
	l.byAddr[addr]++
	return true
}

// remove counts it out.
func (l *h2LargeConns) remove(addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.byAddr[addr]--; l.byAddr[addr] == 0 {
		delete(l.byAddr, addr)
	}
}

// h2Large is a client's connection's part in that: a connection is large from its first header section, or the first that wait, of
// more than h2Buffer bytes until its end. The client's pump alone uses it.
type h2Large struct {
	conns *h2LargeConns // the relay's
	addr  netip.Addr    // of the client
	is    bool
}

// grow tells whether the connection may be large.
func (l *h2Large) grow() bool {
	l.is = l.is || l.conns.add(l.addr)
	return l.is
}

// end is for the connection's end.
func (l *h2Large) end() {
	if l.is {
		l.conns.remove(l.addr)
	}
}

// h2Budget counts down what a client may still do. take is for one goroutine, earn may be called beside it.
type h2Budget struct {
	rate   int64 // each second
	left   atomic.Int64
	filled time.Time
}

func newH2Budget(rate int64) *h2Budget {
	b := &h2Budget{rate: rate, filled: time.Now()}
	b.left.Store(10 * rate)
	return b
}

// take tells whether one more is allowed.
func (b *h2Budget) take() bool {
	if b.left.Add(-1) >= 0 {
		return true
	}
	now := time.Now()
	seconds := min(now.Sub(b.filled).Seconds(), 10)
	b.left.Store(int64(seconds * float64(b.rate)))
	b.filled = now
	return b.left.Add(-1) >= 0
}

// earn allows for n more.
func (b *h2Budget) earn(n int64) {
	if b.left.Load() < 10*b.rate {
		b.left.Add(n)
	}
}
