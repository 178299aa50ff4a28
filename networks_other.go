//go:build !linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// readNetworks takes a snapshot of the host's own addresses. There are no bridges: Docker Desktop and its like run
// containers in a virtual machine and forward their connections to 127.0.0.1.
func readNetworks() (*networks, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("read network interfaces: %w", err)
	}
	n := &networks{own: map[netip.Addr]bool{}}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			n.own[p.Addr().Unmap()] = true
		}
	}
	return n, nil
}

// watchNetworks calls changed with a new snapshot within 10 s of each change until ctx is done, which gives nil; the
// first call comes at once. It calls changed from its own goroutine, one call at a time.
func watchNetworks(ctx context.Context, changed func(*networks)) error {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	var last *networks
	for {
		if n, err := readNetworks(); err == nil && (last == nil || !n.equal(last)) {
			last = n
			changed(n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// freebind changes nothing: only Linux binds addresses that the host does not have yet without privilege.
func freebind(_, _ string, _ syscall.RawConn) error { return nil }
