package main

import (
	"context"
	"crypto/tls"
	"sync"
	"time"
)

const (
	// recentUse is for how long after a connection to a context the next client is taken to want the same.
	recentUse = time.Minute
	// aheadWait is how long a connection that was dialed ahead waits for its first RPC. apid closes one that says nothing after 120 s.
	aheadWait = 10 * time.Second
	// maxAhead is how many such connections there may be: whoever opens connections and says nothing is not to have as many opened to a cluster.
	maxAhead = 16
)

// talosRecent is the upstream that was connected to last.
type talosRecent struct {
	upstream *talosUpstream
	at       time.Time
}

// talosAhead is a connection to an endpoint that is dialed while a client still shakes hands with the gateway, since the next client
// mostly wants what the last one did: the two handshakes take as long as one. Nothing is said on it but TLS. It belongs to one
// client's connection.
type talosAhead struct {
	upstream *talosUpstream
	endpoint authority
	cancel   context.CancelFunc
	done     chan struct{} // closed when the handshake is over

	mu    sync.Mutex
	conn  *tls.Conn // guarded by mu: nil before done, after an error, and once it was taken or closed
	ended bool      // guarded by mu: by drop or aheadWait
}

// dialAhead dials for a client that has just connected; nil where there is nothing to guess from, or where the audit log could not tell of
// an RPC. drop has to follow.
func (p *talosPlane) dialAhead() *talosAhead {
	r := p.recent.Load()
	if r == nil || p.now().Sub(r.at) > recentUse || p.view.Load().upstreams[r.upstream.context.name] != r.upstream || p.audit.ready() != nil {
		return nil
	}
	if p.aheads.Add(1) > maxAhead {
		p.aheads.Add(-1)
		return nil
	}
	a := &talosAhead{upstream: r.upstream, endpoint: r.upstream.order()[0], done: make(chan struct{})}
	var ctx context.Context
	ctx, a.cancel = context.WithTimeout(context.Background(), aheadWait)
	context.AfterFunc(ctx, func() {
		a.end()
		p.aheads.Add(-1)
	})
	p.live.Go(func() { // shutdown waits for it; drop ends it
		defer close(a.done)
		a.dial(ctx)
	})
	return a
}

// dial makes the connection.
func (a *talosAhead) dial(ctx context.Context) {
	cert, err := a.upstream.certificate(ctx)
	if err != nil {
		return
	}
	conn, err := a.upstream.handshake(ctx, a.endpoint, cert)
	if err != nil {
		if ctx.Err() == nil {
			a.upstream.remember(a.endpoint, err)
		}
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		h2Close(conn)
		return
	}
	a.conn = conn
}

// take gives the connection for a use of u, nil where there is none soon. It may be called on nil.
func (a *talosAhead) take(ctx context.Context, u *talosUpstream) *tls.Conn {
	if a == nil || a.upstream != u {
		return nil
	}
	soon := time.NewTimer(endpointStagger)
	defer soon.Stop()
	select {
	case <-a.done:
	case <-soon.C:
	case <-ctx.Done():
	}
	a.mu.Lock()
	conn := a.conn
	a.conn = nil
	a.mu.Unlock()
	a.cancel() // it has its use, or comes too late for one
	return conn
}

// useAhead gives what connect does, from a connection that was dialed ahead; nil where there is none that is up.
func (u *talosUpstream) useAhead(ctx context.Context, a *talosAhead, hello []byte) (*h2Upstream, authority, error) {
	conn := a.take(ctx, u)
	if conn == nil {
		return nil, authority{}, nil
	}
	up, err := u.greet(ctx, conn, hello)
	if ctx.Err() == nil {
		u.remember(a.endpoint, err)
	}
	return up, a.endpoint, err
}

// drop closes the connection unless it was taken. It may be called on nil, and again.
func (a *talosAhead) drop() {
	if a != nil {
		a.cancel()
	}
}

// end closes the connection unless it was taken.
func (a *talosAhead) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	if a.conn != nil {
		h2Close(a.conn)
		a.conn = nil
	}
}
