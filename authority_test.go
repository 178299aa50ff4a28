package main

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseAuthorityGivesOneSpelling(t *testing.T) {
	long := strings.Repeat("a.", 126) + "a" // 253 bytes
	tests := []struct{ in, want string }{
		{"api.github.com:443", "api.github.com:443"},
		{"api.github.com", "api.github.com:443"},
		{"API.GitHub.COM:8443", "api.github.com:8443"},
		{"api.github.com.", "api.github.com:443"},
		{"api.github.com.:80", "api.github.com:80"},
		{"localhost:1", "localhost:1"},
		{"a_b.example:65535", "a_b.example:65535"},
		{"bücher.example:443", "xn--bcher-kva.example:443"},
		{"BÜCHER.example", "xn--bcher-kva.example:443"},
		{"ａｐｉ。github.com", "api.github.com:443"},
		{"api.github.com。", "api.github.com:443"},
		{"127.0.0.1:80", "127.0.0.1:80"},
		{"127.0.0.1.:80", "127.0.0.1:80"},
		{"１２７.0.0.1:80", "127.0.0.1:80"},
		{"[::1]:443", "[::1]:443"},
		{"[::1]", "[::1]:443"},
		{"[2001:DB8:0::1]:8080", "[2001:db8::1]:8080"},
		{"[::ffff:10.0.0.1]:443", "10.0.0.1:443"},
		{"[64:ff9b::7f00:1]", "[64:ff9b::7f00:1]:443"},
		{"1password.com", "1password.com:443"},
		{"4.example", "4.example:443"},
		{"0xg.example.0xzz", "0xg.example.0xzz:443"},
		{long, long + ":443"},
		{long + ".:1", long + ":1"},
		{strings.Repeat("a", 63) + ".example", strings.Repeat("a", 63) + ".example:443"},
	}
	for _, tt := range tests {
		got, err := parseAuthority(tt.in, 443)
		if err != nil || got.String() != tt.want {
			t.Errorf("parseAuthority(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

// refusedAuthorities are texts that parseAuthority refuses, each with a part of the reason it gives.
var refusedAuthorities = []struct{ in, why string }{
	{"", "empty label"},
	{".", "empty label"},
	{"..", "empty label"},
	{":443", "empty label"},
	{"a..example", "empty label"},
	{".example", "empty label"},
	{"example..:1", "empty label"},
	{"user@example.com:443", "userinfo"},
	{"user:hunter2@example.com", "userinfo"},
	{"pässhunter2@example.com", "userinfo"},
	{"exa mple.com", "not allowed"},
	{" example.com", "not allowed"},
	{"example.com\t:443", "not allowed"},
	{"example.com\x00", "not allowed"},
	{"example.com\r\nx:1", "not allowed"},
	{"example.com/x", "not allowed"},
	{"example.com?x", "not allowed"},
	{"example.com#x", "not allowed"},
	{`example.com\x`, "not allowed"},
	{"%61pi.github.com", "not allowed"},
	{"*.github.com", "not allowed"},
	{"a,b.example", "not allowed"},
	{"\xff.example", "UTF-8"},
	{"a\u2488b.example", "idna"}, // ⒈ holds a dot
	{"xn--a\u00e4.example", "idna"},
	{"example.com:", "no decimal"},
	{"example.com:+443", "no decimal"},
	{"example.com:-1", "no decimal"},
	{"example.com: 443", "no decimal"},
	{"example.com:443 ", "no decimal"},
	{"example.com:0x1bb", "no decimal"},
	{"example.com:https", "no decimal"},
	{"example.com:４43", "no decimal"},
	{"example.com:0", "port 0"},
	{"example.com:65536", "over 65535"},
	{"example.com:18446744073709552059", "over 65535"},
	{"::1", "needs brackets"},
	{"::1:443", "needs brackets"},
	{"2001:db8::1", "needs brackets"},
	{"[::1", "no ] after ["},
	{"[]:443", "no IPv6"},
	{"[127.0.0.1]:443", "no IPv6"},
	{"[fe80::1%eth0]:443", "no IPv6"},
	{"[fe80::1%25eth0]:443", "no IPv6"},
	{"[example.com]", "no IPv6"},
	{"[::1]443", "text after ]"},
	{"[::1].:443", "text after ]"},
	{"[::1]]:443", "text after ]"},
	{"2130706433", "four decimal"},
	{"017700000001", "four decimal"},
	{"0x7f000001", "four decimal"},
	{"0X7F000001", "four decimal"},
	{"127.1", "four decimal"},
	{"127.0.1", "four decimal"},
	{"0177.0.0.1", "four decimal"},
	{"0x7f.1", "four decimal"},
	{"0x7f.0.0.0x1", "four decimal"},
	{"127.0.0.0x", "four decimal"},
	{"127.0.0.01", "four decimal"},
	{"127.0.0.256", "four decimal"},
	{"1.2.3.4.5", "four decimal"},
	{"example.1", "four decimal"},
	{"２１３０７０６４３３", "four decimal"},
	{strings.Repeat("a", 64) + ".example", "longer than 63"},
	{strings.Repeat("a.", 127) + "a", "longer than 253"},
	{strings.Repeat("ü", 62) + ".example", "longer than 63"},
	{strings.Repeat("a", 1025), "longer than 1024"},
}

func TestParseAuthorityRefusesWhatCanBeReadTwoWays(t *testing.T) {
	for _, tt := range refusedAuthorities {
		got, err := parseAuthority(tt.in, 443)
		if !errors.Is(err, errAuthority) || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("parseAuthority(%q) = %q, %v; want an error with %q", tt.in, got, err, tt.why)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows userinfo: %v", err)
		}
	}
	if got, err := parseAuthority("example.com", 0); err == nil {
		t.Errorf("no port at all gave %q", got)
	}
}

func TestAuthorityTellsIPLiterals(t *testing.T) {
	for in, want := range map[string]bool{
		"127.0.0.1": true, "[::1]": true, "[::ffff:1.2.3.4]": true,
		"example.com": false, "1password.com": false, "beef.cafe": false, "0xg.0xzz": false,
	} {
		a, err := parseAuthority(in, 443)
		if err != nil || a.isIP() != want {
			t.Errorf("isIP(%q) = %v, %v; want %v", in, a.isIP(), err, want)
		}
	}
}

func FuzzParseAuthority(f *testing.F) {
	for _, s := range []string{
		"api.github.com:443", "API.GITHUB.COM.", "[::1]:443", "[::ffff:1.2.3.4]", "127.0.0.1:80", "0x7f.1", "bücher.example",
		"xn--bcher-kva.example", "ａｐｉ。github.com", "a@b", "[fe80::1%0]:1", "a..b", "2130706433", "example.com:65536", "ß.de", "\u212a.com",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAuthority(s, 443)
		if err != nil {
			if a != (authority{}) || !errors.Is(err, errAuthority) {
				t.Fatalf("parseAuthority(%q) = %q with error %v", s, a, err)
			}
			return
		}
		if again, err := parseAuthority(a.String(), 1); err != nil || again != a {
			t.Fatalf("%q is read as %q, and that as %q, %v", s, a, again, err)
		}
		for i := range len(a.host) {
			if c := a.host[i]; c <= ' ' || c >= 0x7f || c >= 'A' && c <= 'Z' {
				t.Fatalf("%q gives host %q with byte %q", s, a.host, c)
			}
		}
		addr, err := netip.ParseAddr(a.host)
		if a.isIP() != (err == nil) || a.isIP() && (addr.String() != a.host || addr.Zone() != "" || addr.Is4In6()) {
			t.Fatalf("%q gives host %q, isIP %v, netip %v", s, a.host, a.isIP(), addr)
		}
		if a.port == 0 || a.host == "" || len(a.host) > maxHost || strings.HasSuffix(a.host, ".") {
			t.Fatalf("%q gives %q", s, a)
		}
	})
}
