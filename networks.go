package main

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// networks is a snapshot of the host's own addresses and container bridges. It never changes once made, so any number of
// goroutines may use it; watchNetworks tells when there is a newer one.
//
// Containers reach the host at the address of a bridge, never at 127.0.0.1, and host-gateway is docker0's address from
// every network: so muxproxy listens on every bridge's address and accepts the subnets of all bridges on each of them.
type networks struct {
	own     map[netip.Addr]bool // every address of every interface, without zones; loopback need not be in it
	bridges []bridge            // by name
}

// bridge is one container bridge of the host.
type bridge struct {
	name     string         // "docker0", "br-0123456789ab"
	prefixes []netip.Prefix // address and subnet, unmasked: 172.17.0.1/16; never link-local IPv6
}

// accepts tells whether a client at addr may talk to us: loopback, own, in a bridge's subnet, or in extra
// (client_networks). A LAN host that routes to a bridge's address is none of them. An address with a zone is link-local,
// where no listener is opened: never.
func (n *networks) accepts(addr netip.Addr, extra []netip.Prefix) bool {
	addr = addr.Unmap()
	if !addr.IsValid() || addr.Zone() != "" {
		return false
	}
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	return n.isOwn(addr) || slices.ContainsFunc(extra, contains) ||
		slices.ContainsFunc(n.bridges, func(b bridge) bool { return slices.ContainsFunc(b.prefixes, contains) })
}

// isOwn tells whether addr is one of the host's own addresses (loopback included).
func (n *networks) isOwn(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return addr.IsLoopback() || n.own[addr]
}

// gateways are the addresses of all bridges, on which listeners are opened: 172.17.0.1.
func (n *networks) gateways() []netip.Addr {
	var addrs []netip.Addr
	for _, b := range n.bridges {
		for _, p := range b.prefixes {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs
}

// equal tells whether two snapshots say the same.
func (n *networks) equal(o *networks) bool {
	return maps.Equal(n.own, o.own) && slices.EqualFunc(n.bridges, o.bridges, func(a, b bridge) bool {
		return a.name == b.name && slices.Equal(a.prefixes, b.prefixes)
	})
}

// isBridgeName tells whether a container engine gives such names to its bridges: Docker's default network "docker0" and
// its others, "br-" plus the first 12 hex digits of the network's id; Podman's "podman0" (netavark) and "cni-podman0". A
// router's "br-lan" is none of them.
func isBridgeName(name string) bool {
	if name == "docker0" {
		return true
	}
	if id, ok := strings.CutPrefix(name, "br-"); ok {
		return len(id) == 12 && strings.Trim(id, "0123456789abcdef") == ""
	}
	number, ok := strings.CutPrefix(strings.TrimPrefix(name, "cni-"), "podman")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}
