package main

import (
	"context"
	"net/netip"
)

// bridge is one container bridge of the host.
type bridge struct {
	name     string         // "docker0", "br-0123456789ab"
	prefixes []netip.Prefix // address and subnet: 172.17.0.1/16
}

// networks is a snapshot of the host's own addresses and container bridges. It never changes once made.
type networks struct {
	own     map[netip.Addr]bool
	bridges []bridge
}

// readNetworks takes a snapshot: netlink on Linux, net.InterfaceAddrs (no bridges) elsewhere.
func readNetworks() (*networks, error) { panic("stub") }

// watchNetworks calls changed with a new snapshot after each change until ctx is done.
func watchNetworks(ctx context.Context, changed func(*networks)) error { panic("stub") }

// accepts tells whether a client at addr may talk to us: loopback, own, in a bridge's subnet, or in extra.
func (n *networks) accepts(addr netip.Addr, extra []netip.Prefix) bool { panic("stub") }

// isOwn tells whether addr is one of the host's own addresses (loopback included).
func (n *networks) isOwn(addr netip.Addr) bool { panic("stub") }

// gateways are the addresses of all bridges, in which listeners are opened.
func (n *networks) gateways() []netip.Addr { panic("stub") }
