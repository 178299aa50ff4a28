package main

import (
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
)

// kubeNames are the names by which a container finds its host, besides docker_host and the addresses that we listen on: those of
// Docker Desktop and of Podman.
var kubeNames = []string{"localhost", "host.docker.internal", "gateway.docker.internal", "host.containers.internal"}

// kubeDoor refuses what is no request of a client in a container, and takes from the others whatever would let a client say who
// arrives at the API server. It comes before anything is looked up.
//
// A browser is the client that is kept out first: with `kubectl proxy` any web page can read Secrets by a cross-site WebSocket or
// by DNS rebinding, and create objects by a simple POST.
type kubeDoor struct {
	local func(host string) bool // docker_host, loopback, an address that we listen on; any port
}

// admit judges the request itself; nil lets it in.
func (d kubeDoor) admit(r *http.Request) *refusal {
	switch {
	case fieldCount(r.Header) > headLines:
		return denied(http.StatusRequestHeaderFieldsTooLarge, "door: header", "the header section has more than 500 fields")
	case strings.Count(r.RequestURI, "&") >= maxParameters:
		return denied(http.StatusBadRequest, "door: target", "the query has more parameters than net/url reads")
	case !d.ours(r.Host):
		return denied(http.StatusForbidden, "door: host", "the Host of the request is not a name of this host: use the server of the kubeconfig that muxproxy wrote")
	case !sameSite(r) || d.blind(r):
		return denied(http.StatusForbidden, "door: cross-site", "requests of web pages of another site are refused (Origin, Sec-Fetch-Site), and those of a browser on this host that does not say: use the name localhost")
	case r.Method == http.MethodConnect || r.RequestURI == "" || r.RequestURI[0] != '/':
		return denied(http.StatusBadRequest, "door: target", "this port takes requests in origin-form only (GET /api …): put its name into NO_PROXY")
	case !validLine(r):
		return denied(http.StatusBadRequest, "door: target", "the target holds a character that servers read in different ways: escape it")
	case r.Method != strings.ToUpper(r.Method):
		return denied(http.StatusBadRequest, "door: method", "methods are case-sensitive (RFC 9110 section 9.1), but not to every server: send it in capitals")
	case echoes(r.Method):
		return denied(http.StatusForbidden, "door: TRACE", "TRACE is refused, since the answer would hold the credential of the host")
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "Impersonate-") || strings.IndexByte(name, '_') >= 0 && strings.HasPrefix(dashed(name), "Impersonate-") {
			return denied(http.StatusForbidden, "door: impersonation", "a client cannot impersonate anybody (--as, "+name+"): the request would run as the identity of the host, so it is refused. "+
				"The operator can set `as` in the kubeconfig of the host")
		}
	}
	return admitUpgrade(r)
}

// maxParameters is from how many parameters on net/url gives none of those behind: an API server built with another Go may see them.
const maxParameters = 10_000

// fieldCount counts the field lines of a header section: each costs more than its bytes.
func fieldCount(h http.Header) (n int) {
	for _, values := range h {
		n += len(values)
	}
	return n
}

// ours tells whether a Host field names this host, whatever its port.
func (d kubeDoor) ours(host string) bool {
	name, _, ok := strings.Cut(host, ":")
	if !ok || strings.Count(host, ":") == 1 {
		for _, known := range kubeNames {
			if strings.EqualFold(name, known) {
				return true
			}
		}
	}
	return host != "" && d.local(host)
}

// sameSite tells whether r may come from a browser at all: not from a page of another origin. Python's websocket-client sends an Origin that
// names the host it connects to.
func sameSite(r *http.Request) bool {
	for _, origin := range r.Header["Origin"] {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return false
		}
	}
	for _, site := range r.Header["Sec-Fetch-Site"] {
		if site != "same-origin" && site != "none" {
			return false
		}
	}
	return true
}

// blind tells whether r comes from a browser on this very host that says nothing of the page behind it: to an address that is not
// loopback, over http, Sec-Fetch-Site is not sent (Fetch Metadata §2, potentially trustworthy URLs), and a GET of no-cors has no
// Origin. Such a page cannot change the User-Agent. A browser in a container has nothing to gain: no page there is another's.
func (d kubeDoor) blind(r *http.Request) bool {
	return len(r.Header["Sec-Fetch-Site"]) == 0 && strings.HasPrefix(r.UserAgent(), "Mozilla/") && d.local(r.RemoteAddr)
}

// upgradeOf gives the protocol that r wants to change to, "" for none.
func upgradeOf(h http.Header) string {
	if len(h["Upgrade"]) == 0 || !httpguts.HeaderValuesContainsToken(h["Connection"], "Upgrade") {
		return ""
	}
	return h["Upgrade"][0]
}

// admitUpgrade refuses upgrades but the two that Kubernetes has. Any other, h2c above all, would be a tunnel to the upstream in which
// requests are neither seen nor judged.
func admitUpgrade(r *http.Request) *refusal {
	protocol := upgradeOf(r.Header)
	if protocol == "" {
		return nil
	}
	known := strings.EqualFold(protocol, "websocket") || strings.EqualFold(protocol, "SPDY/3.1")
	if !known || len(r.Header["Upgrade"]) > 1 {
		return denied(http.StatusBadRequest, "door: upgrade", "the only upgrades are websocket and SPDY/3.1")
	}
	if r.ContentLength != 0 {
		return denied(http.StatusBadRequest, "door: upgrade", "an upgrade has no content")
	}
	return nil
}

// cleanPath tells whether a decoded path means the same to every server on its way. The API server takes it as it is, but a load
// balancer or a Rancher before it may remove dot segments, merge slashes, decode once more, send on what it has decoded (nginx's $uri: then
// "?" and "#" end the path, and control characters the line), or cut parameters off at ";" (Java), and arrive elsewhere. No name in
// Kubernetes holds "%" or "/" (k8s.io/apimachinery/pkg/api/validate/content). Behind a proxy subresource the path belongs to
// somebody else and may hold anything, as long as it cannot lead out again.
func cleanPath(q *kubeRequest) bool {
	own, rest := q.path, ""
	if q.proxied > 0 {
		own, rest = q.path[:q.proxied], q.path[q.proxied:]
	}
	if !strings.HasPrefix(own, "/") || strings.ContainsFunc(own, ambiguous) {
		return false
	}
	if strings.IndexByte(own, ' ') >= 0 && q.resourceful && strings.Contains(q.group+q.namespace+q.resource+q.subresource, " ") { // names may hold one
		return false
	}
	for i := 1; i <= len(own); {
		end := len(own)
		if j := strings.IndexByte(own[i:], '/'); j >= 0 {
			end = i + j
		}
		switch segment := own[i:end]; {
		case segment == "." || segment == "..":
			return false
		case segment == "" && end < len(own): // only a trailing slash may stand alone
			return false
		}
		i = end + 1
	}
	if rest == "" {
		return true
	}
	return staysBelow(rest) && staysBelow(escapedDots.Replace(rest))
}

// ambiguous tells whether c, decoded, stands for something else to servers that decode once too often or too seldom.
func ambiguous(c rune) bool {
	return c < ' ' || c == 0x7f || c == '%' || c == '\\' || c == '?' || c == '#' || c == ';' || c == utf8.RuneError
}

// escapedDots decodes once more what can lead out of a path, malformed escapes beside it or not.
var escapedDots = strings.NewReplacer("%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%3b", ";", "%3B", ";")

// staysBelow tells whether no dot segments of path lead above where it begins, empty segments being none; "..;x" is one to servers that
// know path parameters.
func staysBelow(path string) bool {
	depth := 0
	for segment := range strings.FieldsFuncSeq(path, func(c rune) bool { return c == '/' || c == '\\' }) {
		switch segment, _, _ = strings.Cut(segment, ";"); segment {
		case "..":
			if depth--; depth < 0 {
				return false
			}
		case ".":
		default:
			depth++
		}
	}
	return true
}

// bearerProtocol begins a WebSocket subprotocol that is a bearer token by another door
// (k8s.io/apiserver/pkg/authentication/request/websocket/protocol.go).
const bearerProtocol = "base64url.bearer.authorization.k8s.io."

// stripIdentity takes from the header section of a request whatever says who sends it, or from where: the upstream's own authentication is
// set afterwards. Audit-ID is believed by the API server. A name that differs from one of these by an underscore goes too, since servers
// behind it may take both for one.
func stripIdentity(h http.Header) {
	for name := range h {
		if isIdentity(name) || strings.IndexByte(name, '_') >= 0 && isIdentity(dashed(name)) {
			delete(h, name)
		}
	}
	if protocols := h["Sec-Websocket-Protocol"]; protocols != nil {
		h["Sec-Websocket-Protocol"] = withoutBearer(protocols)
		if len(h["Sec-Websocket-Protocol"]) == 0 {
			delete(h, "Sec-Websocket-Protocol")
		}
	}
}

// isIdentity tells whether a field, by its canonical name, says who sends a request.
func isIdentity(name string) bool {
	switch name {
	case "Authorization", "Cookie", "Forwarded", "X-Real-Ip", "Audit-Id":
		return true
	}
	for _, prefix := range []string{"Proxy-", "X-Remote-", "X-Forwarded-", "Impersonate-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// withoutBearer gives the subprotocols that are no token. Without one the lines are given as they are.
func withoutBearer(lines []string) []string {
	isBearer := func(protocol string) bool {
		protocol = strings.TrimSpace(protocol)
		return len(protocol) >= len(bearerProtocol) && strings.EqualFold(protocol[:len(bearerProtocol)], bearerProtocol)
	}
	var kept []string
	for _, line := range lines {
		var protocols []string
		for protocol := range strings.SplitSeq(line, ",") {
			if !isBearer(protocol) {
				protocols = append(protocols, strings.TrimSpace(protocol))
			}
		}
		if len(protocols) > 0 {
			kept = append(kept, strings.Join(protocols, ", "))
		}
	}
	return kept
}
