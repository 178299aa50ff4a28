package main

import (
	"context"
	"net/netip"
	"testing"
)

// testNetworks is a host with a LAN address and two bridges.
func testNetworks() *networks {
	return &networks{
		own: map[netip.Addr]bool{
			netip.MustParseAddr("192.168.7.5"): true,
			netip.MustParseAddr("172.17.0.1"):  true,
			netip.MustParseAddr("172.18.0.1"):  true,
			netip.MustParseAddr("fd00:17::1"):  true,
			netip.MustParseAddr("fe80::5"):     true,
		},
		bridges: []bridge{
			{"br-0123456789ab", []netip.Prefix{netip.MustParsePrefix("172.18.0.1/16")}},
			{"docker0", []netip.Prefix{netip.MustParsePrefix("172.17.0.1/24"), netip.MustParsePrefix("fd00:17::1/64")}},
		},
	}
}

func TestOnlyTheHostItsContainersAndClientNetworksAreAccepted(t *testing.T) {
	extra := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}
	tests := map[string]bool{
		"127.0.0.1":          true,
		"127.8.8.8":          true,
		"::1":                true,
		"::ffff:127.0.0.1":   true,
		"192.168.7.5":        true, // own
		"172.17.0.1":         true, // own, and a bridge's
		"172.17.0.255":       true,
		"::ffff:172.17.0.9":  true,
		"172.18.255.3":       true,
		"fd00:17::99":        true,
		"10.7.1.1":           true, // client_networks
		"192.168.7.6":        false,
		"172.17.1.1":         false, // outside docker0's /24
		"172.19.0.2":         false,
		"fd00:17:0:1::1":     false,
		"10.8.0.1":           false,
		"8.8.8.8":            false,
		"0.0.0.0":            false,
		"fe80::5%eth0":       false,
		"fd00:17::99%docker": false,
		"fe80::6":            false,
	}
	for addr, want := range tests {
		if got := testNetworks().accepts(netip.MustParseAddr(addr), extra); got != want {
			t.Errorf("accepts(%s) = %v, want %v", addr, got, want)
		}
	}
	if testNetworks().accepts(netip.Addr{}, extra) {
		t.Error("a client without an address is accepted")
	}
	if testNetworks().accepts(netip.MustParseAddr("10.7.1.1"), nil) {
		t.Error("10.7.1.1 is accepted without client_networks")
	}
}

func TestOwnAddressesAreKnownInEachForm(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "192.168.7.5": true, "::ffff:192.168.7.5": true, "fe80::5%eth0": true,
		"172.17.0.1": true, "172.17.0.2": false, "192.168.7.6": false, "8.8.8.8": false,
	} {
		if got := testNetworks().isOwn(netip.MustParseAddr(addr)); got != want {
			t.Errorf("isOwn(%s) = %v, want %v", addr, got, want)
		}
	}
}

func TestBridgeNamesAreThoseOfContainerEngines(t *testing.T) {
	for name, want := range map[string]bool{
		"docker0": true, "br-0123456789ab": true, "br-ffffffffffff": true, "podman0": true, "podman12": true, "cni-podman0": true,
		"docker1": false, "docker": false, "br-lan": false, "br-0123456789a": false, "br-0123456789abc": false,
		"br-0123456789AB": false, "br-0123456789ag": false, "br0123456789abc": false, "podman": false, "podmanx": false,
		"podman0x": false, "cni-podman": false, "cni-cni-podman0": false, "cni-docker0": false, "virbr0": false, "lxdbr0": false, "": false,
	} {
		if got := isBridgeName(name); got != want {
			t.Errorf("isBridgeName(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestSnapshotsThatDifferAreNotEqual(t *testing.T) {
	n := testNetworks()
	if !n.equal(testNetworks()) {
		t.Error("two equal snapshots differ")
	}
	changes := map[string]func(*networks){
		"an own address":   func(n *networks) { n.own[netip.MustParseAddr("10.0.0.1")] = true },
		"a bridge gone":    func(n *networks) { n.bridges = n.bridges[1:] },
		"a bridge's name":  func(n *networks) { n.bridges[0].name = "podman0" },
		"a bridge's range": func(n *networks) { n.bridges[0].prefixes[0] = netip.MustParsePrefix("172.18.0.1/24") },
	}
	for what, change := range changes {
		o := testNetworks()
		change(o)
		if n.equal(o) {
			t.Errorf("%s goes unseen", what)
		}
	}
}

func TestSnapshotOfThisHostKnowsLoopback(t *testing.T) {
	n, err := readNetworks()
	if err != nil {
		t.Fatal(err)
	}
	if loopback := netip.MustParseAddr("127.0.0.1"); !n.own[loopback] || !n.accepts(loopback, nil) {
		t.Errorf("127.0.0.1 is not in %v", n.own)
	}
}

func TestWatchTellsTheFirstSnapshotAndEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	seen, ended := make(chan *networks, 1), make(chan error, 1)
	go func() { ended <- watchNetworks(ctx, func(n *networks) { seen <- n }) }()
	if n := <-seen; !n.own[netip.MustParseAddr("127.0.0.1")] {
		t.Errorf("the first snapshot lacks 127.0.0.1: %v", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watchNetworks = %v, want nil", err)
	}
}
