package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// doubts tells whether r had better not go over c, and closes c then: it has been idle for longer than the upstream is patient, so
// that whatever lies between may have forgotten it without a word, and a request that may not be sent twice would be lost.
func (u *upstream) doubts(c *upstreamConn, r *http.Request) bool {
	if u.patience == 0 || safe(r) || time.Since(c.idleSince) < u.patience {
		return false
	}
	c.abort()
	return true
}

// timedOut tells whether err is a time-out.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// safe tells whether r changes nothing (RFC 9110 §9.2.1).
func safe(r *http.Request) bool { return r.Method == "GET" || r.Method == "HEAD" }

// reuse sends r over a connection of the pool.
func (u *upstream) reuse(c *upstreamConn, r *http.Request) (*http.Response, error) {
	if u.patience == 0 || !safe(r) || hasBody(r) {
		return c.roundTrip(r)
	}
	t := &secondTry{u: u, first: c, r: r, done: make(chan struct{})}
	timer := time.AfterFunc(u.patience, t.run)
	res, err := c.roundTrip(r)
	if timer.Stop() {
		return res, err
	}
	return t.settle(res, err)
}

// secondTry sends a GET once more over a fresh connection if no answer has begun within the upstream's patience: the connection that
// it was sent over may be frozen, with the server gone or the network changed, and neither end would tell before minutes have
// passed. It may also be that the answer takes its time. So the first try goes on, and the first answer that begins is the answer.
type secondTry struct {
	u     *upstream
	first *upstreamConn
	r     *http.Request
	won   atomic.Bool   // one of the two has begun to be answered
	done  chan struct{} // closed when run has ended

	// Written by run before done is closed.
	res *http.Response
	err error
	// Of the second try; written before it begins.
	cancel atomic.Pointer[context.CancelFunc]
}

// run is the second try. It runs on the timer's goroutine, and settle waits for it.
func (t *secondTry) run() {
	defer close(t.done)
	ctx, cancel := context.WithCancel(t.r.Context())
	t.cancel.Store(&cancel)
	if t.won.Load() {
		cancel()
	}
	t.res, t.err = t.u.fresh(t.r.WithContext(ctx), upstreamKey{t.r.URL.Scheme, t.r.URL.Host})
	switch {
	case t.err != nil:
		cancel()
		// Nothing is there any more; a server that refuses may still be about to answer.
		if timedOut(t.err) && t.won.CompareAndSwap(false, true) {
			t.first.abort()
		}
	case t.won.CompareAndSwap(false, true):
		t.first.abort()
	default:
		t.res.Body.Close()
		cancel()
	}
}

// settle is told what came of the first try and gives what came of both. Until the content of the second try's answer has been
// read its context lives on; it ends with that of the request.
func (t *secondTry) settle(res *http.Response, err error) (*http.Response, error) {
	if err == nil && t.won.CompareAndSwap(false, true) {
		if cancel := t.cancel.Load(); cancel != nil {
			(*cancel)()
		}
		<-t.done
		return res, nil
	}
	if err == nil {
		res.Body.Close()
	}
	<-t.done
	if t.err == nil {
		t.res.Request = t.r
	}
	return t.res, t.err
}
