package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestForbiddenFollowsTheRegistries(t *testing.T) {
	refused := map[string][]string{
		"loopback":                          {"127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"},
		"unspecified":                       {"0.0.0.0", "::", "::ffff:0.0.0.0"},
		"this network":                      {"0.0.0.1", "0.255.255.255"},
		"private":                           {"10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "::ffff:10.0.0.1"},
		"shared":                            {"100.64.0.0", "100.127.255.255"},
		"link-local":                        {"169.254.169.254", "fe80::1", "febf::1", "::ffff:169.254.169.254"},
		"protocol":                          {"192.0.0.8", "192.0.0.11", "192.0.0.170", "192.0.0.255", "2001:1::4", "2001:4:111::1", "2001:1ff::1", "2001:40::1", "2001:10::1"},
		"documentation":                     {"192.0.2.1", "198.51.100.1", "203.0.113.255", "2001:db8::1", "3fff::1", "3fff:fff::1"},
		"6to4 relay":                        {"192.88.99.1"},
		"benchmarking":                      {"198.18.0.1", "198.19.255.255", "2001:2::1"},
		"multicast":                         {"224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"},
		"broadcast":                         {"255.255.255.255"},
		"reserved":                          {"240.0.0.1", "255.255.255.254"},
		"unique local":                      {"fc00::1", "fd00::1", "fdff:ffff::1", "fd00:ec2::254"},
		"site-local":                        {"fec0::1"},
		"discard":                           {"100::1"},
		"dummy":                             {"100:0:0:1::1"},
		"segment routing":                   {"5f00::1"},
		"compatible":                        {"::127.0.0.1", "::8.8.8.8", "::2"},
		"not global":                        {"::ffff:0:127.0.0.1", "4000::1", "e000::1", "200::1", "100:0:0:2::1", "1::"},
		"local-use":                         {"64:ff9b:1::8.8.8.8", "64:ff9b:1:ffff::1"},
		"Teredo":                            {"2001::1", "2001:0:7f00:1::", "2001:0:808:808:8000:63bf:f7f7:f7f7"},
		"NAT64 form of 127.0.0.1, loopback": {"64:ff9b::127.0.0.1", "64:ff9b::7f00:1"},
		"NAT64 form of 169.254.169.254, link-local": {"64:ff9b::169.254.169.254"},
		"6to4 form of 127.0.0.1, loopback":          {"2002:7f00:1::", "2002:7f00:1::1"},
		"6to4 form of 10.0.0.1, private":            {"2002:a00:1:5::9"},
		"ISATAP form of 192.168.1.1, private":       {"2600::5efe:192.168.1.1", "2600::200:5efe:192.168.1.1"},
		"zone":                                      {"fe80::1%eth0", "2600::1%lo"},
	}
	for why, addrs := range refused {
		for _, s := range addrs {
			if got := forbidden(netip.MustParseAddr(s)); !strings.Contains(got, why) {
				t.Errorf("forbidden(%s) = %q, want %q in it", s, got, why)
			}
		}
	}
	if forbidden(netip.Addr{}) == "" {
		t.Error("the zero address may be dialed")
	}
}

func TestForbiddenLeavesGlobalAddressesOpen(t *testing.T) {
	for _, s := range []string{
		"8.8.8.8", "1.0.0.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
		"169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0",
		"192.0.0.9", "192.0.0.10", "192.31.196.1", "192.52.193.1", "192.175.48.1", "192.88.98.255", "192.88.100.0",
		"192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "203.0.112.255", "223.255.255.255",
		"2000::", "2001:1::1", "2001:1::2", "2001:1::3", "2001:3::1", "2001:4:112::1", "2001:20::1", "2001:2f:ffff::1",
		"2001:30::1", "2001:3f::1", "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", "2620:4f:8000::1",
		"2606:4700::1111", "3ffe::1", "3fff:1000::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
		"2600::5efe:8.8.8.8", "2600::100:5efe:127.0.0.1",
	} {
		if why := forbidden(netip.MustParseAddr(s)); why != "" {
			t.Errorf("forbidden(%s) = %q, want it open", s, why)
		}
	}
}

// testGuard is a guard on a host that owns 198.41.0.4, 2600::4 and docker0's 172.17.0.1.
func testGuard(allowed ...string) *guard {
	own := map[netip.Addr]bool{
		netip.MustParseAddr("198.41.0.4"): true,
		netip.MustParseAddr("2600::4"):    true,
		netip.MustParseAddr("172.17.0.1"): true,
	}
	g := &guard{isOwn: func(a netip.Addr) bool { return own[a] }, ownPorts: []uint16{18080, 18081, 18082}}
	for _, s := range allowed {
		g.allowed = append(g.allowed, netip.MustParsePrefix(s))
	}
	return g
}

func TestGuardCheck(t *testing.T) {
	tests := []struct {
		rule    string
		allowed []string
		addr    string
		want    string // in the error, "" for none
	}{
		{"a global address is open", nil, "8.8.8.8:443", ""},
		{"a private address is closed", nil, "10.0.0.1:443", "private"},
		{"the host's own global address is closed", nil, "198.41.0.4:443", "address of this host"},
		{"so is its mapped form", nil, "[::ffff:198.41.0.4]:443", "address of this host"},
		{"and its NAT64 form", nil, "[64:ff9b::198.41.0.4]:443", "NAT64 form of 198.41.0.4"},
		{"and its 6to4 form", nil, "[2002:c629:4::1]:443", "6to4 form of 198.41.0.4"},
		{"and its IPv6 address", nil, "[2600::4]:443", "address of this host"},
		{"a prefix opens what it contains", []string{"10.0.0.0/8"}, "10.1.2.3:443", ""},
		{"a mapped address is the IPv4 address it maps", []string{"10.0.0.0/8"}, "[::ffff:10.1.2.3]:443", ""},
		{"a prefix opens nothing beside it", []string{"10.0.0.0/16"}, "10.1.0.0:443", "private"},
		{"an IPv4 prefix opens no NAT64 form", []string{"10.0.0.0/8"}, "[64:ff9b::10.0.0.1]:443", "NAT64"},
		{"an IPv4 prefix opens no 6to4 form", []string{"10.0.0.0/8"}, "[2002:a00:1::]:443", "6to4"},
		{"an IPv4 prefix opens no compatible form", []string{"0.0.0.0/0"}, "[::10.0.0.1]:443", "compatible"},
		{"an IPv6 prefix opens the form as written", []string{"64:ff9b::/96"}, "[64:ff9b::10.0.0.1]:443", ""},
		{"an IPv6 prefix opens no IPv4 address", []string{"::/0"}, "[::ffff:10.0.0.1]:443", "private"},
		{"an own address can be opened", []string{"198.41.0.4/32"}, "198.41.0.4:443", ""},
		{"loopback can be opened", []string{"127.0.0.0/8", "::1/128"}, "[::1]:5432", ""},
		{"no prefix opens a zone", []string{"fe80::/10"}, "[fe80::1%eth0]:443", "zone"},
		{"own ports stay closed on loopback", []string{"0.0.0.0/0"}, "127.0.0.1:18080", "muxproxy itself"},
		{"own ports stay closed on all of loopback", []string{"0.0.0.0/0"}, "127.9.9.9:18081", "muxproxy itself"},
		{"own ports stay closed on IPv6 loopback", []string{"::/0"}, "[::1]:18082", "muxproxy itself"},
		{"own ports stay closed on the unspecified address", []string{"0.0.0.0/0"}, "0.0.0.0:18080", "muxproxy itself"},
		{"own ports stay closed on the IPv6 unspecified address", []string{"::/0"}, "[::]:18080", "muxproxy itself"},
		{"own ports stay closed on a bridge", []string{"172.17.0.0/16"}, "172.17.0.1:18080", "muxproxy itself"},
		{"own ports stay closed on mapped loopback", []string{"0.0.0.0/0", "::/0"}, "[::ffff:127.0.0.1]:18080", "muxproxy itself"},
		{"own ports stay closed on compatible loopback", []string{"::/0"}, "[::127.0.0.1]:18080", "muxproxy itself"},
		{"own ports stay closed on translated loopback", []string{"::/0"}, "[::ffff:0:127.0.0.1]:18080", "muxproxy itself"},
		{"own ports stay closed through NAT64", []string{"::/0"}, "[64:ff9b::198.41.0.4]:18080", "muxproxy itself"},
		{"own ports stay closed through local-use NAT64 /96", []string{"::/0"}, "[64:ff9b:1::127.0.0.1]:18080", "muxproxy itself"},
		{"own ports stay closed through local-use NAT64 /48", []string{"::/0"}, "[64:ff9b:1:c629:0:400:abcd:1]:18080", "muxproxy itself"},
		{"own ports stay closed through local-use NAT64 /56", []string{"::/0"}, "[64:ff9b:1:ac6:29:4:abcd:1]:18080", "muxproxy itself"},
		{"own ports stay closed through local-use NAT64 /64", []string{"::/0"}, "[64:ff9b:1:abcd:c6:2900:400:0]:18080", "muxproxy itself"},
		{"own ports stay closed through 6to4", []string{"::/0"}, "[2002:7f00:1::1]:18080", "muxproxy itself"},
		{"own ports stay closed through a Teredo server", []string{"::/0"}, "[2001:0:7f00:1::]:18080", "muxproxy itself"},
		{"own ports stay closed through a Teredo client", []string{"::/0"}, "[2001:0:808:808:0:0:80ff:fffe]:18080", "muxproxy itself"},
		{"own ports stay closed through ISATAP", []string{"::/0"}, "[2600::5efe:127.0.0.1]:18080", "muxproxy itself"},
		{"own ports stay closed with a zone", []string{"::/0"}, "[2600::4%eth0]:18080", "muxproxy itself"},
		{"own port numbers of others are open", nil, "8.8.8.8:18080", ""},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			err := testGuard(tt.allowed...).check(netip.MustParseAddrPort(tt.addr))
			if tt.want == "" {
				if err != nil {
					t.Fatalf("check(%s) = %v, want none", tt.addr, err)
				}
				return
			}
			var refusal *guardError
			if !errors.As(err, &refusal) {
				t.Fatalf("check(%s) = %v, want a guardError", tt.addr, err)
			}
			if s := err.Error(); !strings.Contains(s, tt.want) || !strings.Contains(s, "allowed_networks") {
				t.Errorf("check(%s) = %q, want %q and allowed_networks in it", tt.addr, s, tt.want)
			}
			if own := tt.want == "muxproxy itself"; refusal.own != own {
				t.Errorf("check(%s): own = %v, want %v", tt.addr, refusal.own, own)
			}
		})
	}
}

// naiveRegistry is the two registries once more, as text, each row with what it says of global reachability; the longest
// prefix decides. It is written apart from specialRanges so that a slip in one of them shows.
const naiveRegistry = `
0.0.0.0/0 yes|0.0.0.0/8 no|10.0.0.0/8 no|100.64.0.0/10 no|127.0.0.0/8 no|169.254.0.0/16 no|172.16.0.0/12 no|192.0.0.0/24 no
192.0.0.0/29 no|192.0.0.8/32 no|192.0.0.9/32 yes|192.0.0.10/32 yes|192.0.0.170/32 no|192.0.0.171/32 no|192.0.2.0/24 no
192.31.196.0/24 yes|192.52.193.0/24 yes|192.88.99.0/24 no|192.168.0.0/16 no|192.175.48.0/24 yes|198.18.0.0/15 no
198.51.100.0/24 no|203.0.113.0/24 no|224.0.0.0/4 no|240.0.0.0/4 no|255.255.255.255/32 no
::/0 no|2000::/3 yes|::1/128 no|::/128 no|::ffff:0:0/96 no|64:ff9b::/96 yes|64:ff9b:1::/48 no|100::/64 no|100:0:0:1::/64 no
2001::/23 no|2001::/32 no|2001:1::1/128 yes|2001:1::2/128 yes|2001:1::3/128 yes|2001:2::/48 no|2001:3::/32 yes
2001:4:112::/48 yes|2001:10::/28 no|2001:20::/28 yes|2001:30::/28 yes|2001:db8::/32 no|2002::/16 yes|2620:4f:8000::/48 yes
3fff::/20 no|5f00::/16 no|fc00::/7 no|fe80::/10 no|ff00::/8 no`

// naiveOpen judges a by naiveRegistry and by the hex digits of the address.
func naiveOpen(t *testing.T, a netip.Addr) bool {
	t.Helper()
	best, open := -1, false
	for _, row := range strings.FieldsFunc(naiveRegistry, func(r rune) bool { return r == '|' || r == '\n' }) {
		text, verdict, _ := strings.Cut(row, " ")
		p, err := netip.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		if p.Contains(a) && p.Bits() > best {
			best, open = p.Bits(), verdict == "yes"
		}
	}
	if !open || a.Is4() {
		return open
	}
	hex := strings.ReplaceAll(a.StringExpanded(), ":", "")
	inner := ""
	switch {
	case strings.HasPrefix(hex, "0064ff9b"), hex[16:24] == "00005efe", hex[16:24] == "02005efe":
		inner = hex[24:]
	}
	if inner != "" && !naiveOpen(t, addrOfHex(t, inner)) {
		return false
	}
	return !strings.HasPrefix(hex, "2002") || naiveOpen(t, addrOfHex(t, hex[4:12]))
}

// addrOfHex reads "7f000001" as 127.0.0.1.
func addrOfHex(t *testing.T, s string) netip.Addr {
	t.Helper()
	return netip.MustParseAddr("::ffff:" + s[:4] + ":" + s[4:]).Unmap()
}

func FuzzForbiddenAgreesWithTheNaiveList(f *testing.F) {
	for _, s := range []string{
		"8.8.8.8", "192.0.0.9", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::1.1.1.1", "64:ff9b:1::1", "2002:7f00:1::1",
		"2002:808:808::5efe:127.0.0.1", "2001:0:7f00:1::", "2001:20::1", "2001:1::3", "2600::200:5efe:192.168.1.1", "3fff::1", "fd00::1",
	} {
		f.Add(netip.MustParseAddr(s).AsSlice())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		if got, want := forbidden(a) == "", naiveOpen(t, a.Unmap()); got != want {
			t.Errorf("%s: open is %v, want %v (%q)", a, got, want, forbidden(a))
		}
	})
}
