package main

import "errors"

// authority is the host and port that a client named and that muxproxy dials (RFC 3986 §3.2 without userinfo).
// host is a lower-case ASCII name without a trailing dot ("api.github.com"), or an IP literal as
// netip.Addr.String gives it ("::1", without brackets).
type authority struct {
	host string
	port uint16
}

// String gives "api.github.com:443", "[::1]:443".
func (a authority) String() string { panic("stub") }

// isIP tells whether the host is an IP literal.
func (a authority) isIP() bool { panic("stub") }

var errAuthority = errors.New("stub")

// parseAuthority reads "HOST[:PORT]"; port is used where s names none.
func parseAuthority(s string, port uint16) (authority, error) { panic("stub") }
