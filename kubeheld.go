package main

import (
	"net/netip"
	"sync"
)

const (
	maxHeld      = 64 << 20 // bytes of content that are held for all clients at once
	maxHeldByOne = 16 << 20 // for one client address
)

// kubeHeld bounds the memory of contents that are held: of Secrets while they are judged, and of small requests which may have to be sent
// once more. A client may have a thousand connections, and take as long as it likes. Safe for concurrent use.
type kubeHeld struct {
	parsing sync.Mutex // held while YAML is parsed: its nodes take fifty times the memory of its text

	mu  sync.Mutex
	all int64                // guarded by mu
	by  map[netip.Addr]int64 // guarded by mu; no entry for 0
}

// kubeShare is what one exchange holds. Used by one goroutine at a time.
type kubeShare struct {
	held   *kubeHeld
	client netip.Addr
	bytes  int64
}

// share begins with nothing; client is "172.17.0.2:51234".
func (h *kubeHeld) share(client string) kubeShare {
	port, _ := netip.ParseAddrPort(client)
	return kubeShare{held: h, client: port.Addr()}
}

// hold takes n bytes more, until release; false where the client, or all together, have too much already.
func (s *kubeShare) hold(n int64) bool {
	h := s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all+n > maxHeld || h.by[s.client]+n > maxHeldByOne {
		return false
	}
	if h.by == nil {
		h.by = make(map[netip.Addr]int64)
	}
	h.all += n
	h.by[s.client] += n
	s.bytes += n
	return true
}

// release gives all back.
func (s *kubeShare) release() {
	if s.bytes == 0 {
		return
	}
	h := s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= s.bytes
	if h.by[s.client] -= s.bytes; h.by[s.client] == 0 {
		delete(h.by, s.client)
	}
	s.bytes = 0
}
