package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// authority is the host and port that a client named and that muxproxy dials (RFC 3986 §3.2 without userinfo).
// host is a lower-case ASCII name without a trailing dot ("api.github.com"), or an IP literal as
// netip.Addr.String gives it ("::1", without brackets). Two spellings of one destination give equal values, so
// authorities are compared with ==. Every value comes from parseAuthority.
type authority struct {
	host string
	port uint16
}

// errAuthority is in the chain of every error of parseAuthority; a client that sent such a name gets 400.
var errAuthority = errors.New("parse authority")

const (
	maxHost      = 253  // bytes of a DNS name without its trailing dot (RFC 1035 §2.3.4)
	maxLabel     = 63   // bytes of one label of it
	maxAuthority = 1024 // bytes of the text: a 253 byte name takes up to four times that before idna
)

// String gives "api.github.com:443", "[::1]:443". parseAuthority reads it back as the same value.
func (a authority) String() string {
	return net.JoinHostPort(a.host, strconv.Itoa(int(a.port)))
}

// isIP tells whether the host is an IP literal. A host whose last label is a number is always one, since
// parseAuthority refuses the others.
func (a authority) isIP() bool {
	return strings.Contains(a.host, ":") || isNumber(lastLabel(a.host))
}

// parseAuthority reads "HOST[:PORT]"; port is used where s names none. It refuses whatever two parsers could read
// as two hosts: userinfo, escapes, blanks, zones, and the forms of IPv4 addresses that inet_aton takes and
// RFC 6943 §3.1.1 warns of ("127.1", "0177.0.0.1", "0x7f.1", "2130706433"). An IPv4-mapped IPv6 address is taken as
// the IPv4 address it stands for. The error wraps errAuthority; it shows s without its userinfo.
func parseAuthority(s string, port uint16) (authority, error) {
	a, err := readAuthority(s, port)
	if err != nil {
		return authority{}, fmt.Errorf("%w %q: %w", errAuthority, shownAuthority(s), err)
	}
	return a, nil
}

// readAuthority is parseAuthority with the bare cause as its error, for those who name the text themselves.
func readAuthority(s string, port uint16) (authority, error) {
	host, portText, err := splitAuthority(s)
	if err == nil && portText != "" {
		port, err = parsePort(portText[1:])
	}
	if err == nil && port == 0 {
		err = errors.New("port 0")
	}
	if err == nil {
		host, err = canonicalHost(host)
	}
	if err != nil {
		return authority{}, err
	}
	return authority{host: host, port: port}, nil
}

// splitAuthority parts "[::1]:443" into "[::1]" and ":443"; the second is "" where s names no port.
func splitAuthority(s string) (host, port string, err error) {
	if len(s) > maxAuthority {
		return "", "", fmt.Errorf("longer than %d bytes", maxAuthority)
	}
	if strings.Contains(s, "@") { // told before any cause that would quote a part of it
		return "", "", errors.New("userinfo before the host")
	}
	end := strings.LastIndexByte(s, ':')
	if strings.HasPrefix(s, "[") {
		end = strings.IndexByte(s, ']') + 1
		if end == 0 {
			return "", "", errors.New("no ] after [")
		}
		if end < len(s) && s[end] != ':' {
			return "", "", errors.New("text after ]")
		}
	}
	if end < 0 || end == len(s) {
		return s, "", nil
	}
	return s[:end], s[end:], nil
}

// parsePort reads 1 to 65535 in decimal digits alone: strconv takes a sign.
func parsePort(s string) (uint16, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("the port is no decimal number")
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, errors.New("the port is over 65535")
	}
	return uint16(n), nil
}

// canonicalHost gives the one spelling of a name or of an IP literal; an IPv6 one stands in brackets, which are taken off.
func canonicalHost(s string) (string, error) {
	if strings.HasPrefix(s, "[") {
		addr, err := netip.ParseAddr(s[1 : len(s)-1])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", errors.New("no IPv6 address without a zone in the brackets")
		}
		return addr.Unmap().String(), nil
	}
	if strings.Contains(s, ":") {
		return "", errors.New("a colon in the host: an IPv6 address needs brackets")
	}
	name, err := asciiName(s)
	if err != nil {
		return "", err
	}
	if !isNumber(lastLabel(name)) {
		return name, nil
	}
	addr, err := netip.ParseAddr(name)
	if err != nil {
		return "", errors.New("neither a name nor an IPv4 address of four decimal numbers")
	}
	return addr.String(), nil
}

// asciiName lower-cases a DNS name, takes its trailing dot off and checks its labels. Names outside ASCII go through the
// Lookup profile of IDNA (RFC 5891 §5, UTS 46), which also maps full-width letters, digits and dots.
func asciiName(s string) (string, error) {
	if !utf8.ValidString(s) { // idna would put U+FFFD there
		return "", errors.New("the host is no valid UTF-8")
	}
	name := strings.ToLower(s)
	if !isASCII(s) {
		var err error
		if name, err = idna.Lookup.ToASCII(s); err != nil {
			return "", err
		}
	}
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxHost {
		return "", fmt.Errorf("the host is longer than %d bytes", maxHost)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" {
			return "", errors.New("an empty label in the host")
		}
		if len(label) > maxLabel {
			return "", fmt.Errorf("a label of the host is longer than %d bytes", maxLabel)
		}
	}
	for i := range len(name) {
		if !isNameByte(name[i]) {
			return "", fmt.Errorf("the byte %q is not allowed in a host", name[i])
		}
	}
	return name, nil
}

// isNameByte tells the bytes of a lower-case DNS name. "_" is no host name by RFC 952, yet resolvers and services use it.
func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

func lastLabel(name string) string {
	return name[strings.LastIndexByte(name, '.')+1:]
}

// isNumber tells whether inet_aton would read the label as a number: "7", "0177", "0x7f", "0x" (WHATWG URL "ends in a number").
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return label != "" && strings.Trim(label, "0123456789") == ""
}

// shownAuthority is what an error may show of the text: what stands before "@" may be a password.
func shownAuthority(s string) string {
	s = s[strings.LastIndexByte(s, '@')+1:]
	if len(s) > maxHost {
		s = s[:maxHost]
	}
	return s
}
