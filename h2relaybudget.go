package main

import (
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

// h2LargeConns is how many of a relay's connections may be large at once: what they hold, some 5 MiB each at worst, is bounded by it
// over all clients.
const h2LargeConns = 64

// h2Large is a client's connection's part in that: a connection is large from its first header section, or the first that wait, of
// more than h2Buffer bytes until its end. The client's pump alone uses it.
type h2Large struct {
	conns *atomic.Int32 // the relay's
	is    bool
}

// grow tells whether the connection may be large.
func (l *h2Large) grow() bool {
	if !l.is {
		if l.is = l.conns.Add(1) <= h2LargeConns; !l.is {
			l.conns.Add(-1)
		}
	}
	return l.is
}

// end is for the connection's end.
func (l *h2Large) end() {
	if l.is {
		l.conns.Add(-1)
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
