package main

import (
	"fmt"
	"net/netip"
	"slices"
)

// guard judges every address that is about to be dialed on behalf of a client (spec 6.6), after name resolution, so that a
// container cannot use muxproxy to reach what only the host can: its loopback, its LAN, a cloud's metadata service. It is
// a value that never changes; any number of goroutines may call check.
type guard struct {
	allowed  []netip.Prefix        // allowed_networks: "10.20.0.0/16"
	open     bool                  // all but own ports may be dialed: the operator chose the address, not a client
	isOwn    func(netip.Addr) bool // the host's own addresses at this moment
	ownPorts []uint16              // muxproxy's own ports: 18080, 18081, 18082
}

// guardError says that an address may not be dialed. It is a refusal by policy, not a failure of the network.
type guardError struct {
	addr netip.AddrPort // "169.254.169.254:80"
	why  string         // "link-local (RFC 3927)"
	own  bool           // muxproxy's own port: no setting opens it
}

// Error names the address, the reason and the config key.
func (e *guardError) Error() string {
	if e.own {
		return fmt.Sprintf("dial %q: %s: never dialed, whatever allowed_networks says", e.addr, e.why)
	}
	return fmt.Sprintf("dial %q: %s: not in allowed_networks", e.addr, e.why)
}

// check says whether ap may be dialed: nil, or a *guardError. It must be asked about the very address that is dialed.
//
// An entry of allowed_networks opens the addresses it contains as they are written, not other forms that lead to them:
// 10.0.0.0/8 opens neither 64:ff9b::10.0.0.1 nor 2002:a00:1::. The one form that it does open is the mapped
// ::ffff:10.0.0.1, for which the kernel sends the same packets as for 10.0.0.1. Own ports stay closed in every form.
func (g *guard) check(ap netip.AddrPort) error {
	a := ap.Addr().Unmap()
	if slices.Contains(g.ownPorts, ap.Port()) && g.reachesSelf(a.WithZone("")) {
		return &guardError{addr: ap, why: "a port of muxproxy itself", own: true}
	}
	if g.open || g.opens(a) {
		return nil
	}
	if why := forbidden(a); why != "" {
		return &guardError{addr: ap, why: why}
	}
	if g.isSelf(a) {
		return &guardError{addr: ap, why: "an address of this host"}
	}
	for form, v4 := range embedded(a) {
		if g.isSelf(v4) {
			return &guardError{addr: ap, why: form + " form of " + v4.String() + ", an address of this host"}
		}
	}
	return nil
}

// opens tells whether allowed_networks contains a. No prefix contains an address with a zone.
func (g *guard) opens(a netip.Addr) bool {
	return slices.ContainsFunc(g.allowed, func(p netip.Prefix) bool { return p.Contains(a) })
}

// reachesSelf tells whether a connection to a, or to an IPv4 address that a embeds, would end on this host.
func (g *guard) reachesSelf(a netip.Addr) bool {
	if g.isSelf(a) {
		return true
	}
	for _, v4 := range embedded(a) {
		if g.isSelf(v4) {
			return true
		}
	}
	return false
}

// isSelf tells whether a is this host. The unspecified address is: Linux connects 0.0.0.0 and :: to loopback.
func (g *guard) isSelf(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || g.isOwn(a)
}

// forbidden says why a may not be dialed unless the operator allows it ("loopback (RFC 1122)"), or "" where it may. It
// is a pure function of IANA's special-purpose registries; what only this host knows is guard.check's.
func forbidden(a netip.Addr) (why string) {
	if !a.IsValid() {
		return "not an address"
	}
	if a.Zone() != "" {
		return "an address with a zone"
	}
	a = a.Unmap()
	for _, r := range specialRanges {
		if !r.prefix.Contains(a) {
			continue
		}
		if r.why != "" {
			return r.why
		}
		break
	}
	for form, v4 := range embedded(a) {
		if why := forbidden(v4); why != "" {
			return form + " form of " + v4.String() + ", " + why
		}
	}
	return ""
}

// specialRange is a row of a registry. An empty why marks a range that the registry calls globally reachable.
type specialRange struct {
	prefix netip.Prefix
	why    string
}

// specialRanges holds IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190; as of 2025-10-09),
// all rows whose "Globally Reachable" is not True, with the reachable rows inside them, and what those registries leave to
// others: multicast (RFC 5771, RFC 4291 §2.7) and all IPv6 space that is not global unicast (RFC 4291 §2.4: IANA assigns
// from 2000::/3 alone). The first row that contains an address decides, so exceptions come before what they except.
// https://www.iana.org/assignments/iana-ipv4-special-registry and …/iana-ipv6-special-registry
var specialRanges = []specialRange{
	{netip.MustParsePrefix("0.0.0.0/32"), "the unspecified address (RFC 1122)"},
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 791)"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private (RFC 1918)"},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared address space (RFC 6598)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback (RFC 1122)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local (RFC 3927)"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private (RFC 1918)"},
	{netip.MustParsePrefix("192.0.0.9/32"), ""},  // Port Control Protocol anycast, RFC 7723
	{netip.MustParsePrefix("192.0.0.10/32"), ""}, // TURN anycast, RFC 8155
	{netip.MustParsePrefix("192.0.0.0/24"), "IETF protocol assignments (RFC 6890)"},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation (RFC 5737)"},
	// 192.31.196.0/24, 192.52.193.0/24 and 192.175.48.0/24 (AS112, AMT) are globally reachable: no row covers them.
	{netip.MustParsePrefix("192.88.99.0/24"), "deprecated 6to4 relay anycast (RFC 7526)"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private (RFC 1918)"},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking (RFC 2544)"},
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation (RFC 5737)"},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation (RFC 5737)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast (RFC 5771)"},
	{netip.MustParsePrefix("255.255.255.255/32"), "limited broadcast (RFC 919)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112)"},

	{netip.MustParsePrefix("::/128"), "the unspecified address (RFC 4291)"},
	{netip.MustParsePrefix("::1/128"), "loopback (RFC 4291)"},
	{netip.MustParsePrefix("::/96"), "deprecated IPv4-compatible (RFC 4291)"},
	{netip.MustParsePrefix("64:ff9b::/96"), ""}, // NAT64, RFC 6052: as reachable as what it embeds
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local-use NAT64 (RFC 8215)"},
	{netip.MustParsePrefix("100::/64"), "discard-only (RFC 6666)"},
	{netip.MustParsePrefix("100:0:0:1::/64"), "dummy prefix (RFC 9780)"},
	{netip.MustParsePrefix("2001::/32"), "Teredo (RFC 4380)"},
	{netip.MustParsePrefix("2001:1::1/128"), ""},   // Port Control Protocol anycast, RFC 7723
	{netip.MustParsePrefix("2001:1::2/128"), ""},   // TURN anycast, RFC 8155
	{netip.MustParsePrefix("2001:1::3/128"), ""},   // DNS-SD registration anycast, RFC 9665
	{netip.MustParsePrefix("2001:3::/32"), ""},     // AMT, RFC 7450
	{netip.MustParsePrefix("2001:4:112::/48"), ""}, // AS112, RFC 7535
	{netip.MustParsePrefix("2001:20::/28"), ""},    // ORCHIDv2, RFC 7343
	{netip.MustParsePrefix("2001:30::/28"), ""},    // drone remote identification, RFC 9374
	{netip.MustParsePrefix("2001:2::/48"), "benchmarking (RFC 5180)"},
	{netip.MustParsePrefix("2001::/23"), "IETF protocol assignments (RFC 2928)"},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation (RFC 3849)"},
	{netip.MustParsePrefix("3fff::/20"), "documentation (RFC 9637)"},
	{netip.MustParsePrefix("5f00::/16"), "segment routing identifiers (RFC 9602)"},
	{netip.MustParsePrefix("fc00::/7"), "unique local (RFC 4193)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local (RFC 4291)"},
	{netip.MustParsePrefix("fec0::/10"), "deprecated site-local (RFC 3879)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast (RFC 4291)"},
	{netip.MustParsePrefix("2000::/3"), ""},
	{netip.MustParsePrefix("::/0"), "not global unicast (RFC 4291)"},
}

// embedding is one way in which an IPv6 address carries an IPv4 address, to which a translator or a tunnel may send.
type embedding struct {
	form    string // "NAT64"
	prefix  netip.Prefix
	at      [4]int // where the four bytes are
	inverse bool   // each bit is stored inverted
}

// embeddings are the forms with a prefix of their own. NAT64 (RFC 6052 §2.2) puts the IPv4 address behind a prefix of 48,
// 56, 64 or 96 bits and leaves out byte 8; the local-use prefix (RFC 8215) may be used with each of these lengths. A NAT64
// prefix that a network takes from its own global space cannot be told from any other address.
var embeddings = []embedding{
	{form: "IPv4-compatible", prefix: netip.MustParsePrefix("::/96"), at: [4]int{12, 13, 14, 15}},
	{form: "IPv4-translated", prefix: netip.MustParsePrefix("::ffff:0:0:0/96"), at: [4]int{12, 13, 14, 15}},
	{form: "NAT64", prefix: netip.MustParsePrefix("64:ff9b::/96"), at: [4]int{12, 13, 14, 15}},
	{form: "NAT64", prefix: netip.MustParsePrefix("64:ff9b:1::/48"), at: [4]int{6, 7, 9, 10}},
	{form: "NAT64", prefix: netip.MustParsePrefix("64:ff9b:1::/48"), at: [4]int{7, 9, 10, 11}},
	{form: "NAT64", prefix: netip.MustParsePrefix("64:ff9b:1::/48"), at: [4]int{9, 10, 11, 12}},
	{form: "NAT64", prefix: netip.MustParsePrefix("64:ff9b:1::/48"), at: [4]int{12, 13, 14, 15}},
	{form: "6to4", prefix: netip.MustParsePrefix("2002::/16"), at: [4]int{2, 3, 4, 5}},
	{form: "Teredo server", prefix: netip.MustParsePrefix("2001::/32"), at: [4]int{4, 5, 6, 7}},
	{form: "Teredo client", prefix: netip.MustParsePrefix("2001::/32"), at: [4]int{12, 13, 14, 15}, inverse: true},
}

// embedded yields the IPv4 addresses that a carries, each with the name of its form; none for an IPv4 address. ISATAP
// (RFC 5214 §6.1) has no prefix: its mark is 0000:5efe or 0200:5efe in the interface identifier under any prefix.
func embedded(a netip.Addr) func(yield func(form string, v4 netip.Addr) bool) {
	return func(yield func(string, netip.Addr) bool) {
		if a.BitLen() != 128 {
			return
		}
		b := a.As16()
		for _, e := range embeddings {
			if e.prefix.Contains(a) && !yield(e.form, e.extract(b)) {
				return
			}
		}
		if b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
			yield("ISATAP", netip.AddrFrom4([4]byte(b[12:])))
		}
	}
}

// extract reads the IPv4 address out of the bytes of an IPv6 address.
func (e embedding) extract(b [16]byte) netip.Addr {
	var v4 [4]byte
	for i, at := range e.at {
		v4[i] = b[at]
		if e.inverse {
			v4[i] = ^v4[i]
		}
	}
	return netip.AddrFrom4(v4)
}
