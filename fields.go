package main

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// hopByHop are the fields that concern one connection only (RFC 9110 §7.6.1), with the proxy's own.
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// removeHopByHop takes from h the hop-by-hop fields and those that its Connection field names.
func removeHopByHop(h http.Header) {
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// cleanRequest makes the header section of a client's request fit for the upstream: hop-by-hop fields go, but for an upgrade to
// WebSocket on HTTP/1.1 and for "te: trailers", which gRPC servers ask for.
func cleanRequest(r *http.Request) {
	upgrade := websocketUpgrade(r)
	trailers := httpguts.HeaderValuesContainsToken(r.Header["Te"], "trailers")
	removeHopByHop(r.Header)
	if upgrade {
		r.Header["Connection"] = []string{"Upgrade"}
		r.Header["Upgrade"] = []string{"websocket"}
	}
	if trailers {
		r.Header["Te"] = []string{"trailers"}
		if r.ProtoMajor == 1 {
			r.Header["Connection"] = append(r.Header["Connection"], "TE")
		}
	}
}

// websocketUpgrade tells whether r asks for WebSocket (RFC 6455 §4.1), the only upgrade that is passed on. It has no content:
// an answer 101 would come while that is still being read from the connection that it turns into a stream.
func websocketUpgrade(r *http.Request) bool {
	return r.Method == "GET" && !hasBody(r) && r.ProtoAtLeast(1, 1) && r.ProtoMajor == 1 &&
		httpguts.HeaderValuesContainsToken(r.Header["Connection"], "upgrade") &&
		len(r.Header["Upgrade"]) == 1 && strings.EqualFold(r.Header["Upgrade"][0], "websocket")
}

// cleanAnswer makes the header or trailer section of an upstream's answer fit for the client. Alt-Svc would invite it to
// HTTP/3 around the proxy (RFC 7838); a cookie in the answer to an injected request is a credential.
func cleanAnswer(h http.Header, injected bool) {
	removeHopByHop(h)
	delete(h, "Alt-Svc")
	if injected {
		delete(h, "Set-Cookie")
	}
}

// stripAuth takes every auth field out of a header or trailer section: the usual ones and those of the rules. A name that
// differs from one of them by an underscore goes too: CGI and WSGI servers take both for one (RFC 3875 §4.1.18).
func stripAuth(h http.Header, rules ...*rule) {
	delete(h, "Authorization")
	delete(h, "X-Api-Key")
	delete(h, "Proxy-Authorization")
	for _, r := range rules {
		for i := range r.sources {
			delete(h, r.sources[i].field)
		}
	}
	for name := range h {
		if strings.IndexByte(name, '_') >= 0 && isAuth(dashed(name), rules) {
			delete(h, name)
		}
	}
}

// isAuth tells whether name is an auth field: see stripAuth.
func isAuth(name string, rules []*rule) bool {
	if name == "Authorization" || name == "X-Api-Key" || name == "Proxy-Authorization" {
		return true
	}
	for _, r := range rules {
		for i := range r.sources {
			if r.sources[i].field == name {
				return true
			}
		}
	}
	return false
}

// dashed gives "X-Api-Key" for "x_api_key".
func dashed(name string) string {
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}

// cleanTrailer takes from a trailer section what may not stand there (RFC 9110 §6.5.1): framing, routing and, where auth says so,
// all that authenticates.
func cleanTrailer(h http.Header, auth bool, rules ...*rule) {
	removeHopByHop(h)
	delete(h, "Host")
	delete(h, "Content-Length")
	if auth {
		stripAuth(h, rules...)
		delete(h, "Cookie")
	}
}

// hasPlaceholder tells whether an auth field of r is a placeholder of ours, in clear or, after Basic, in base64. rule may be nil.
func hasPlaceholder(r *http.Request, rule *rule) bool {
	if fieldHasPlaceholder(r.Header["Authorization"]) || fieldHasPlaceholder(r.Header["X-Api-Key"]) {
		return true
	}
	if rule == nil {
		return false
	}
	for i := range rule.sources {
		if fieldHasPlaceholder(r.Header[rule.sources[i].field]) {
			return true
		}
	}
	return false
}

func fieldHasPlaceholder(values []string) bool {
	for _, v := range values {
		if strings.Contains(v, placeholderMark) {
			return true
		}
		scheme, rest, ok := strings.Cut(strings.TrimSpace(v), " ")
		if !ok || !strings.EqualFold(scheme, "basic") {
			continue
		}
		// A decoder that stops at the first odd byte still gives what came before it.
		decoded, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		if strings.Contains(string(decoded), placeholderMark) {
			return true
		}
	}
	return false
}

// overridesMethod tells whether a header section names another method than the request's own in a field that some frameworks obey.
func overridesMethod(h http.Header) bool {
	for name := range h {
		switch dashed(name) {
		case "X-Http-Method-Override", "X-Http-Method", "X-Method-Override":
			return true
		}
	}
	return false
}

// dropParameter takes the parameter name out of a request target's query, whichever of the separators servers know stands
// around it; all other bytes stay as they are.
func dropParameter(target, name string) string {
	path, query, ok := strings.Cut(target, "?")
	if !ok {
		return target
	}
	kept, sep := path, "?"
	for query != "" {
		pair, rest, next := query, "", ""
		if i := strings.IndexAny(query, "&;"); i >= 0 {
			pair, next, rest = query[:i], query[i:i+1], query[i+1:]
		}
		key, _, _ := strings.Cut(pair, "=")
		if plain, err := url.QueryUnescape(key); err != nil || !strings.EqualFold(plain, name) {
			kept += sep + pair
			sep = next
		}
		query = rest
	}
	return kept
}

// validLine tells whether method and target make a request line that every server reads alike (RFC 9112 §3). HTTP/2 frames let
// blanks through in both, and the standard parsers "#" in the target.
func validLine(r *http.Request) bool {
	return httpguts.ValidHeaderFieldName(r.Method) && !strings.ContainsFunc(r.RequestURI, func(c rune) bool {
		return c <= ' ' || c == '#' || c == 0x7f
	})
}
