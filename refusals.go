package main

import (
	"net/netip"
	"sync"
	"time"
)

// How many refusals of one client get an audit line in one second, and of how many clients they are counted apart;
// those beyond share one count.
const (
	maxRefusals       = 20
	maxRefusedClients = 1024
)

// refusals bounds the audit lines that a client can have written by being refused, so that it cannot fill the disk or
// push evidence out of the log. Safe for concurrent use.
type refusals struct {
	now    func() time.Time
	report func(*event) // writes a line; called with mu held

	mu      sync.Mutex // guards what follows
	clients map[netip.Addr]*refusalCount
	opened  map[string]bool // ids with an opening line and no closing line yet
	closed  bool
}

// refusalCount counts the refusals of one client in the second that its first one began.
type refusalCount struct {
	client     string // "172.17.0.2", "other clients"
	plane      string // of the first one
	since      time.Time
	written    int
	suppressed int
	timer      *time.Timer // ends the second
}

// newRefusals counts; report writes the line that tells what was left out.
func newRefusals(now func() time.Time, report func(*event)) *refusals {
	return &refusals{now: now, report: report, clients: make(map[netip.Addr]*refusalCount), opened: make(map[string]bool)}
}

// admit tells whether e gets its line. Only refusals may not: a denied request, or a failed one that no upstream can have seen;
// and a closing line always follows its opening line.
func (r *refusals) admit(e *event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.open {
		r.opened[e.id] = true
		return true
	}
	if r.opened[e.id] { // a crash and a refusal must not look the same
		delete(r.opened, e.id)
		return true
	}
	refused := e.decision == decisionDenied || e.decision == decisionFailed && !e.injected && !e.sent
	if !refused || r.closed {
		return true
	}
	count := r.count(e)
	if count.written == maxRefusals {
		count.suppressed++
		return false
	}
	count.written++
	return true
}

// count gives the count of e's client in the present second, and starts one where there is none. mu is held.
func (r *refusals) count(e *event) *refusalCount {
	// The zero address stands for clients beyond the bound, and for what is no address.
	port, _ := netip.ParseAddrPort(e.client)
	addr := port.Addr().Unmap()
	if count := r.clients[addr]; count != nil {
		return count
	}
	name := addr.String()
	if len(r.clients) >= maxRefusedClients || !addr.IsValid() {
		addr, name = netip.Addr{}, "other clients"
	}
	if count := r.clients[addr]; count != nil {
		return count
	}
	count := &refusalCount{client: name, plane: e.plane, since: r.now()}
	count.timer = time.AfterFunc(time.Second, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.end(addr)
	})
	r.clients[addr] = count
	return count
}

// end forgets the second of the client at addr, and reports what got no line in it. mu is held.
func (r *refusals) end(addr netip.Addr) {
	count := r.clients[addr]
	delete(r.clients, addr)
	if count != nil && count.suppressed > 0 {
		r.report(&event{
			id: newEventID(), start: count.since, plane: count.plane, client: count.client, decision: decisionDenied,
			suppressed: count.suppressed, err: "refusals of this client beyond 20 in one second",
		})
	}
}

// close reports what is still to report and counts no more.
func (r *refusals) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for addr, count := range r.clients {
		count.timer.Stop()
		r.end(addr)
	}
}
