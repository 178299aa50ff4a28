package fidelity

import (
	"slices"
	"strings"
	"sync/atomic"
)

// difference is one thing in which what came through the proxy is not what came directly.
type difference struct {
	client   *client
	injected bool      // the host is one whose rule adds a credential
	x        *exchange // what was asked for
	part     string    // "request", "answer", "interim", "trailer of the request", "connections" …
	what     string    // "method", "content", "field names", or a field's name in lower case after "field "
	direct   []string  // nil: not there
	proxied  []string
	before   *message // the whole message as it came directly
	after    *message
}

// tolerance is a difference that the contract allows, and the sentence that does.
type tolerance struct {
	name   string
	allows func(d *difference) bool
	used   atomic.Int64
}

// hopByHopNames are fields that concern one connection only (RFC 9110 §7.6.1).
var hopByHopNames = []string{"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "http2-settings"}

func hopByHop(name string) bool { return slices.Contains(hopByHopNames, name) }

func (d *difference) fieldName() string {
	name, _ := strings.CutPrefix(d.what, "field ")
	return name
}

// tolerances are all there are. One that no exchange needs is out of date, and fails the test.
var tolerances = []*tolerance{
	{name: "6.4: case and order of field names are not kept", allows: func(d *difference) bool { return d.what == "field names" }},
	{name: "6.4: chunk sizes and extensions are not kept", allows: func(d *difference) bool { return d.what == "chunks" }},
	{name: "6.4: hop-by-hop fields of a request are not kept", allows: func(d *difference) bool {
		return d.part == "request" && hopByHop(d.fieldName()) && d.fieldName() != "transfer-encoding"
	}},
	{name: "6.4: hop-by-hop fields of an answer are not kept", allows: func(d *difference) bool {
		return d.part == "answer" && hopByHop(d.fieldName()) && d.fieldName() != "transfer-encoding"
	}},
	{name: "6.4: a hop-by-hop field is one that Connection names", allows: func(d *difference) bool {
		return d.proxied == nil && hasToken(d.before.fields, "connection", d.fieldName())
	}},
	{name: "6.4: content of no told length in HTTP/2 is in chunks in HTTP/1.1", allows: func(d *difference) bool {
		return d.client.h2 && d.x.chunked && d.part == "request" && d.fieldName() == "transfer-encoding" && d.direct == nil && get(d.before.fields, "content-length") == nil
	}},
	{name: "6.4: content to the end of a connection comes in chunks on one that stays", allows: func(d *difference) bool {
		return d.x.ends && d.part == "answer" && d.fieldName() == "transfer-encoding" && d.direct == nil && get(d.before.fields, "content-length") == nil
	}},
	{name: "6.4: a hop-by-hop field's value is the next hop's own", allows: func(d *difference) bool {
		return d.part == "answer" && d.fieldName() == "transfer-encoding" && len(d.direct) == 1 && len(d.proxied) == 1 && strings.EqualFold(d.direct[0], d.proxied[0])
	}},
	{name: "6.4: the answer to HEAD has no coding of a transfer", allows: func(d *difference) bool {
		return d.x.method == "HEAD" && d.part == "answer" && d.fieldName() == "transfer-encoding" && d.proxied == nil
	}},
	{name: "6.4: POST, PUT and PATCH without content tell their length 0", allows: func(d *difference) bool {
		return d.part == "request" && d.fieldName() == "content-length" && d.direct == nil && slices.Equal(d.proxied, []string{"0"}) &&
			slices.Contains([]string{"POST", "PUT", "PATCH"}, d.x.method)
	}},
	{name: "6.4: Cache-Control beside Pragma in a request", allows: func(d *difference) bool { return d.part == "request" && pragma(d) }},
	{name: "6.4: Cache-Control beside Pragma in an answer", allows: func(d *difference) bool { return d.part == "answer" && pragma(d) }},
	{name: "6.4: obs-fold is not kept", allows: func(d *difference) bool {
		return len(d.direct) == 1 && len(d.proxied) == 1 && strings.Contains(d.direct[0], "\r\n") && unfolded(d.direct[0]) == d.proxied[0]
	}},
	{name: "6.4: Alt-Svc is dropped", allows: func(d *difference) bool { return d.part == "answer" && d.fieldName() == "alt-svc" && d.proxied == nil }},
	{name: "6.4: over HTTP/2 muxproxy answers 100-continue itself", allows: func(d *difference) bool {
		return d.client.h2 && get(d.x.fields, "expect") != nil && d.what == "codes" && slices.Equal(with100(d.direct), with100(d.proxied))
	}},
	{name: "6.4: over HTTP/2 the upstream is asked for no 100-continue, since muxproxy answered", allows: func(d *difference) bool {
		return d.client.h2 && d.part == "request" && (d.fieldName() == "expect" && d.proxied == nil || d.what == "content" && d.x.refusesExpect())
	}},
	{name: "6.4: content that the upstream refused before it was sent does not go on to it", allows: func(d *difference) bool {
		return !d.client.h2 && d.part == "request" && d.what == "content" && d.x.refusesExpect() && d.before.content == "true" && d.after.content == "false"
	}},
	{name: "6.4: HTTP/2's Cookie fields are one in HTTP/1.1 (RFC 9113 §8.2.3)", allows: func(d *difference) bool {
		return d.client.h2 && d.part == "request" && d.fieldName() == "cookie" && len(d.proxied) == 1 && strings.Join(d.direct, "; ") == d.proxied[0]
	}},
	{name: "6.2: the rule's field is set", allows: func(d *difference) bool {
		return d.injected && d.part == "request" && d.fieldName() == ruleField && slices.Equal(d.proxied, []string{credential})
	}},
	{name: "6.2: the client's own auth fields are removed", allows: func(d *difference) bool {
		return d.injected && d.part == "request" && d.proxied == nil && (d.fieldName() == "authorization" || d.fieldName() == "x-api-key")
	}},
	{name: "6.2: an injected request loses Cookie", allows: func(d *difference) bool {
		return d.injected && d.part == "request" && d.fieldName() == "cookie" && d.proxied == nil
	}},
	{name: "6.2: the answer to an injected request loses Set-Cookie", allows: func(d *difference) bool {
		return d.injected && d.part == "answer" && d.fieldName() == "set-cookie" && d.proxied == nil
	}},
}

func pragma(d *difference) bool {
	return d.fieldName() == "cache-control" && d.direct == nil && slices.Equal(d.proxied, []string{"no-cache"}) && slices.Equal(get(d.before.fields, "pragma"), []string{"no-cache"})
}

// unfolded joins the lines of a folded value by one blank.
func unfolded(value string) string {
	parts := strings.Split(value, "\r\n")
	for i := range parts {
		parts[i] = strings.Trim(parts[i], " \t")
	}
	return strings.Join(parts, " ")
}

func with100(codes []string) []string {
	return slices.DeleteFunc(slices.Clone(codes), func(c string) bool { return c == "100" })
}

func (x *exchange) refusesExpect() bool { return x.early && get(x.fields, "expect") != nil }

// judge gives the differences that no tolerance allows.
func judge(all []*difference) []*difference {
	return slices.DeleteFunc(all, func(d *difference) bool {
		for _, t := range tolerances {
			if t.allows(d) {
				t.used.Add(1)
				return true
			}
		}
		return false
	})
}
