package main

import (
	"net/url"
	"strings"
)

// targetPath is the path of a request target in origin-form ("/a/b" of "/a/b?c=d"), byte for byte, or "*" of "OPTIONS *".
func targetPath(target string) string {
	path, _, _ := strings.Cut(target, "?")
	return path
}

// ambiguity says why an upstream may read the path as another one than the patterns do, "" if it cannot: dot segments,
// empty segments, backslashes and NUL once the escapes are decoded, escapes that are none, and bytes that RFC 3986
// §3.3 allows in no path and that a server may cut the target at. A dot segment with a parameter ("/..;x/") counts
// as one, because servlet containers drop the parameter first.
func ambiguity(path string) string {
	if path == "*" {
		return ""
	}
	if !strings.HasPrefix(path, "/") {
		return "the path does not start with /"
	}
	for i := range len(path) {
		if c := path[i]; c <= ' ' || c == '#' || c == 0x7f {
			return "the path holds a blank, a control byte or #"
		}
	}
	decoded, err := url.PathUnescape(path)
	switch {
	case err != nil:
		return "the path holds a % that starts no escape"
	case strings.ContainsAny(decoded, "\\\x00"):
		return `the path holds \ or NUL`
	case strings.Contains(decoded, "//"):
		return "the path holds //"
	case hasDotSegment(decoded):
		return "the path holds a . or .. segment"
	}
	return ""
}

func hasDotSegment(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." {
			return true
		}
	}
	return false
}

// comparablePath gives equal strings for paths that RFC 3986 §6.2.2 calls equivalent: escapes of unreserved characters are
// decoded ("/%61" is "/a"), the digits of the others are upper case ("%2f" is "%2F", and stays data within its segment).
// A "%" that starts no escape stays as it is; what it then stands before may look like one, so ambiguity comes first.
func comparablePath(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' && i+2 < len(path) && isHex(path[i+1]) && isHex(path[i+2]) {
			escape := strings.ToUpper(path[i : i+3])
			i += 2
			if c = unhex(escape[1])<<4 | unhex(escape[2]); !isUnreserved(c) {
				b.WriteString(escape)
				continue
			}
		}
		b.WriteByte(c)
	}
	return b.String()
}

// matchPath tells whether a path fits a pattern, both as comparablePath gives them. "*" stands for any bytes of one segment,
// as the pattern's last byte for any rest: "/*/*/info/refs", "/api/v4/*" (also "/api/v4/", not "/api/v4").
// Stars never cross "/", so a segment's star need not be tried again once the next segment is reached.
func matchPath(pattern, path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false // "*" has no path to compare
	}
	p, i := 0, 0
	star, taken := -1, 0 // the last star's place in pattern, and the end of what it stands for in path
	for i < len(path) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			if p == len(pattern)-1 {
				return true
			}
			star, taken = p, i
			p++
		case p < len(pattern) && pattern[p] == path[i]:
			p, i = p+1, i+1
		case star >= 0 && path[taken] != '/':
			taken++
			p, i = star+1, taken
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// unhex gives the value of an upper-case hexadecimal digit.
func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c - 'A' + 10
}

// isUnreserved tells the characters that mean the same escaped or not (RFC 3986 §2.3).
func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
