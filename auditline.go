package main

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// maxLogged bounds each logged value, in bytes before escaping.
const maxLogged = 1 << 10

// maxMethod bounds the method likewise: no client that means well has one so long, and a flood of long lines would push evidence
// out of the log.
const maxMethod = 32

// maxRPC bounds it on the talos plane, where it is the path of an RPC: "/machine.MachineService/GenerateClientConfiguration".
const maxRPC = 96

// appendEvent appends e as one line: a JSON object with the fields in a fixed order, and a newline. now ends the
// request. Written by hand, since every request waits for its line: it allocates nothing once b has grown.
func appendEvent(b []byte, e *event, now time.Time) []byte {
	b = append(b, `{"timestamp":"`...)
	b = e.start.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z")
	b = append(b, '"')
	b = appendText(b, `,"id":`, e.id)
	b = appendText(b, `,"plane":`, e.plane)
	b = appendText(b, `,"service":`, e.service)
	b = appendText(b, `,"client":`, e.client)
	if e.session != "" {
		b = appendText(b, `,"session":`, e.session)
	}
	bound := maxMethod
	if e.plane == "talos" {
		bound = maxRPC
	}
	b = appendQuoted(append(b, `,"method":`...), cutText(e.method, bound))
	b = appendText(b, `,"host":`, loggedHost(e.host))
	b = appendText(b, `,"path":`, loggedPath(e.path))
	b = append(b, `,"auth_injected":`...)
	b = strconv.AppendBool(b, e.injected)
	b = appendText(b, `,"decision":`, e.decision)
	// An opening line is written before the answer has ended well or not: it claims no code.
	code := e.code
	if e.open {
		code = 0
	}
	b = appendNumber(b, `,"response_code":`, int64(code))
	b = appendNumber(b, `,"duration_ms":`, now.Sub(e.start).Milliseconds())
	b = appendNumber(b, `,"bytes_in":`, e.in)
	b = appendNumber(b, `,"bytes_out":`, e.out)
	b = appendText(b, `,"error":`, e.err)
	if e.context != "" {
		b = appendText(b, `,"context":`, e.context)
	}
	if e.plane == "kube" {
		b = appendText(b, `,"verb":`, e.verb)
		b = appendText(b, `,"resource":`, e.resource)
		b = appendText(b, `,"namespace":`, e.namespace)
	}
	b = appendTalos(b, e)
	if e.open {
		b = append(b, `,"open":true`...)
	}
	b = appendOwn(b, e)
	return append(b, '}', '\n')
}

// appendTalos appends what only events of the talos plane have.
func appendTalos(b []byte, e *event) []byte {
	if e.grpcStatus != nil {
		b = appendNumber(b, `,"grpc_status":`, int64(*e.grpcStatus))
	}
	if e.plane != "talos" {
		return b
	}
	b = append(b, `,"nodes":[`...)
	for i, node := range e.nodes {
		if i == 0 {
			b = appendText(b, "", node)
		} else {
			b = appendText(b, ",", node)
		}
	}
	return append(b, ']')
}

// appendOwn appends what only lines of the log about itself have.
func appendOwn(b []byte, e *event) []byte {
	if e.suppressed > 0 {
		b = appendNumber(b, `,"suppressed":`, int64(e.suppressed))
	}
	if e.dropped > 0 {
		b = appendNumber(b, `,"dropped":`, int64(e.dropped))
	}
	if e.torn != "" {
		b = append(b, `,"torn":`...)
		b = appendQuoted(b, e.torn)
	}
	return b
}

// appendNumber appends name as it is (`,"bytes_in":`) and n.
func appendNumber(b []byte, name string, n int64) []byte {
	return strconv.AppendInt(append(b, name...), n, 10)
}

// appendText appends name as it is (`,"id":`) and the value, cut, as a JSON string.
func appendText(b []byte, name, value string) []byte {
	return appendQuoted(append(b, name...), cutText(value, maxLogged))
}

// cutText gives at most bound bytes of s, and no half of a rune.
func cutText(s string, bound int) string {
	if len(s) <= bound {
		return s
	}
	end := bound
	for end > bound-utf8.UTFMax && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end]
}

// appendQuoted appends s as a JSON string (RFC 8259 §7). Whatever is not printable is escaped: control characters, C1
// ones too, line separators, and what reorders or hides text in a terminal. A byte that is not UTF-8 becomes the four
// characters \xff.
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for i := 0; i < len(s); {
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\\x`...)
			b = appendHex(b, rune(s[i]), 2)
		case r == '"' || r == '\\':
			b = append(b, '\\', s[i])
		case r >= ' ' && r < 0x7f || n > 1 && unicode.IsPrint(r):
			b = append(b, s[i:i+n]...)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = appendHex(append(b, `\u`...), high, 4)
			b = appendHex(append(b, `\u`...), low, 4)
		default:
			b = appendHex(append(b, `\u`...), r, 4)
		}
		i += n
	}
	return append(b, '"')
}

// appendHex appends the last digits hex digits of r.
func appendHex(b []byte, r rune, digits int) []byte {
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[r>>shift&0xf])
	}
	return b
}

// loggedPath gives the path of a request target (RFC 9112 §3.2) without what may be a credential: the query, and of an
// absolute-form target the whole authority, whose host the event has. "http://u:p@h/a?b" becomes "/a".
func loggedPath(target string) string {
	scheme, rest, absolute := strings.Cut(target, "://")
	switch {
	case strings.HasPrefix(target, "/"): // origin-form: what looks like a URL in it is data
	case !absolute || strings.ContainsAny(scheme, "/?@"):
		target = loggedHost(target) // authority-form, "*", or nothing valid
	default:
		host := strings.IndexAny(rest, "/?")
		if host < 0 {
			return ""
		}
		target = rest[host:]
	}
	path, _, _ := strings.Cut(target, "?")
	return path
}

// loggedHost gives host without userinfo: "h:443" of "u:p@h:443".
func loggedHost(host string) string { return host[strings.LastIndexByte(host, '@')+1:] }
