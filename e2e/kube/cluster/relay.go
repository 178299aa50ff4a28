package cluster

import (
	"net"
	"sync"
)

// Relay hands on connections to the API server, until it is told to freeze those that it has.
type Relay struct {
	// Address is where it listens.
	Address string

	server string
	ln     net.Listener
	served sync.WaitGroup

	mu     sync.Mutex
	conns  []net.Conn    // both ends of all connections; guarded by mu
	frozen chan struct{} // closed by Freeze for the connections that there are; guarded by mu
}

// NewRelay starts a relay. The caller closes it.
func (c *Cluster) NewRelay() (*Relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{Address: ln.Addr().String(), server: c.Server, ln: ln, frozen: make(chan struct{})}
	r.served.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			r.served.Go(func() { r.serve(client) })
		}
	})
	return r, nil
}

// Freeze stops handing on anything, the end included, on the connections that there are. New ones work.
func (r *Relay) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.frozen)
	r.frozen = make(chan struct{})
}

// Close ends all connections, frozen ones too.
func (r *Relay) Close() error {
	err := r.ln.Close()
	r.mu.Lock()
	for _, conn := range r.conns {
		conn.Close()
	}
	r.mu.Unlock()
	r.served.Wait()
	return err
}

func (r *Relay) serve(client net.Conn) {
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		client.Close()
		return
	}
	r.mu.Lock()
	r.conns = append(r.conns, client, server)
	frozen := r.frozen
	r.mu.Unlock()
	var copying sync.WaitGroup
	copying.Go(func() { relay(server, client, frozen) })
	copying.Go(func() { relay(client, server, frozen) })
	copying.Wait()
}

// relay hands on what comes from one side. Once frozen, it reads no more and leaves both open.
func relay(to, from net.Conn, frozen <-chan struct{}) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-frozen:
			return
		default:
		}
		if n > 0 {
			_, _ = to.Write(buffer[:n])
		}
		if err != nil {
			to.Close()
			return
		}
	}
}
