package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

// recorded reads the kernel's answer as recorded (Linux 6.18, amd64) in a network namespace made by:
//
//	ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip addr add fd00:17::1/64 dev docker0
//	ip link add veth1 type veth peer name in1; ip link set veth1 master docker0 up; ip link set in1 up
//	ip link add br-0123456789ab type bridge; ip addr add 172.18.0.1/16 dev br-0123456789ab, with the port veth2
//	ip link add br-fedcba987654 type bridge; ip addr add 172.19.0.1/16 dev br-fedcba987654, with the port veth3
//	ip tuntap add mode tap eth1; ip link set eth1 master br-fedcba987654
//	ip link add br-lan type bridge; ip addr add 192.168.1.1/24 dev br-lan
//	ip link add podman1 type bridge; ip addr add 10.89.0.1/24 dev podman1
//	ip tuntap add mode tap cni-podman0; ip addr add 10.88.0.1/16 dev cni-podman0
//	ip tuntap add mode tun tun9; ip addr add 10.9.0.1 peer 10.9.0.2/32 dev tun9 (and 2600:9::1 peer 2600:9::2/128)
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "netlink", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRecordedInterfacesGiveTheContainerBridges(t *testing.T) {
	n, err := parseNetworks(recorded(t, "links.bin"), recorded(t, "addrs.bin"))
	if err != nil {
		t.Fatal(err)
	}
	want := &networks{own: map[netip.Addr]bool{}, bridges: []bridge{
		{"br-0123456789ab", []netip.Prefix{netip.MustParsePrefix("172.18.0.1/16")}},
		{"docker0", []netip.Prefix{netip.MustParsePrefix("172.17.0.1/16"), netip.MustParsePrefix("fd00:17::1/64")}},
		{"podman1", []netip.Prefix{netip.MustParsePrefix("10.89.0.1/24")}},
	}}
	for _, s := range []string{
		"127.0.0.1", "::1", "172.17.0.1", "fd00:17::1", "172.18.0.1", "172.19.0.1", "192.168.1.1", "10.89.0.1", "10.88.0.1",
		"10.9.0.1", "2600:9::1", "fe80::4e3:7bff:fe8c:e846", "fe80::eca6:4cff:fef3:a0f8",
	} {
		want.own[netip.MustParseAddr(s)] = true
	}
	if !n.equal(want) {
		t.Errorf("got  %v\nwant %v", n, want)
	}
	gateways := []string{"172.18.0.1", "172.17.0.1", "fd00:17::1", "10.89.0.1"}
	if got := n.gateways(); !slices.EqualFunc(got, gateways, func(a netip.Addr, s string) bool { return a.String() == s }) {
		t.Errorf("gateways() = %v, want %v", got, gateways)
	}
}

func TestBridgeIsServedOnlyIfAllItsPortsAreVeth(t *testing.T) {
	addrs := []linkAddr{{2, netip.MustParsePrefix("172.17.0.1/16")}, {2, netip.MustParsePrefix("fe80::1/64")}}
	tests := map[string]struct {
		links map[int32]link
		want  int
	}{
		"no port":                  {map[int32]link{2: {"docker0", "bridge", 0}}, 1},
		"veth ports":               {map[int32]link{2: {"docker0", "bridge", 0}, 3: {"veth1", "veth", 2}, 4: {"veth2", "veth", 2}}, 1},
		"a physical port":          {map[int32]link{2: {"docker0", "bridge", 0}, 3: {"eth0", "", 2}}, 0},
		"a physical among veths":   {map[int32]link{2: {"docker0", "bridge", 0}, 3: {"veth1", "veth", 2}, 4: {"eth0", "", 2}}, 0},
		"a vlan port":              {map[int32]link{2: {"docker0", "bridge", 0}, 3: {"eth0.7", "vlan", 2}}, 0},
		"another bridge's port":    {map[int32]link{2: {"docker0", "bridge", 0}, 3: {"eth0", "", 4}, 4: {"br-lan", "bridge", 0}}, 1},
		"not of kind bridge":       {map[int32]link{2: {"docker0", "dummy", 0}}, 0},
		"not an engine's name":     {map[int32]link{2: {"br-lan", "bridge", 0}}, 0},
		"a port of unknown bridge": {map[int32]link{3: {"veth1", "veth", 2}}, 0},
	}
	for name, tt := range tests {
		n := newNetworks(tt.links, addrs)
		if len(n.gateways()) != tt.want {
			t.Errorf("%s: gateways() = %v, want %d", name, n.gateways(), tt.want)
		}
	}
}

func TestBrokenNetlinkMessagesAreErrors(t *testing.T) {
	links, addrs := recorded(t, "links.bin"), recorded(t, "addrs.bin")
	interrupted := slices.Clone(links)
	interrupted[6] |= flagInterrupted
	if _, err := parseNetworks(interrupted, addrs); !errors.Is(err, errInterrupted) {
		t.Errorf("an interrupted dump: %v", err)
	}
	longAttr := slices.Clone(links)
	longAttr[syscall.SizeofNlMsghdr+syscall.SizeofIfInfomsg+1] = 0xff
	for name, dump := range map[string][2][]byte{
		"cut links":              {links[:len(links)/2], addrs},
		"cut addresses":          {links, addrs[:len(addrs)/2+6]},
		"an attribute too long":  {longAttr, addrs},
		"a message too short":    {{20, 0, 0, 0, syscall.RTM_NEWLINK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, addrs},
		"an address of 5 bytes":  {links, message(syscall.RTM_NEWADDR, 8, 9, 0, syscall.IFA_ADDRESS, 0, 1, 2, 3, 4, 5, 0, 0, 0)},
		"a master of 2 bytes":    {message(syscall.RTM_NEWLINK, 16, 6, 0, syscall.IFLA_MASTER, 0, 1, 2, 0, 0), addrs},
		"an attribute too short": {message(syscall.RTM_NEWLINK, 16, 3, 0, syscall.IFLA_MASTER, 0), addrs},
	} {
		if n, err := parseNetworks(dump[0], dump[1]); err == nil {
			t.Errorf("%s gives %v, want an error", name, n)
		}
	}
}

// message is a netlink message with a zeroed header of size bytes before attrs.
func message(kind byte, size int, attrs ...byte) []byte {
	body := append(make([]byte, size), attrs...)
	return append([]byte{byte(syscall.SizeofNlMsghdr + len(body)), 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, body...)
}

func FuzzParseNetworks(f *testing.F) {
	f.Add(recorded(f, "links.bin"), recorded(f, "addrs.bin"))
	f.Add(message(syscall.RTM_NEWLINK, 16, 6, 0, 10, 0, 1, 2, 0, 0), message(syscall.RTM_NEWADDR, 8, 8, 0, 1, 0, 1, 2, 3, 4))
	f.Fuzz(func(t *testing.T, links, addrs []byte) {
		n, err := parseNetworks(links, addrs)
		if err != nil {
			return
		}
		for _, b := range n.bridges {
			if !isBridgeName(b.name) {
				t.Errorf("%q is taken for a container bridge", b.name)
			}
		}
		for _, a := range n.gateways() {
			if !n.own[a] {
				t.Errorf("gateway %s is not an own address", a)
			}
		}
	})
}
