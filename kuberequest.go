package main

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// kubeRequest is what the API server takes a request to be: what it authorizes, and so what access levels and rules judge. It is
// read from the method, the decoded path and the query alone, exactly as k8s.io/apiserver/pkg/endpoints/request.RequestInfo v0.37
// reads them; a differential test in the e2e module holds both against each other.
//
//	GET    /api/v1/namespaces/dev/pods/web-0/log        get    pods/log of web-0 in dev
//	GET    /apis/apps/v1/deployments?watch=1            watch  deployments.apps in all namespaces
//	POST   /api/v1/namespaces/dev/pods                  create pods in dev; the name is in the content, so name is ""
//	DELETE /api/v1/namespaces/dev/pods                  deletecollection
//	GET    /version                                     get, no resource
type kubeRequest struct {
	verb        string // "list"; of a path that is no resource the method in lower case; "" for a method that Kubernetes does not have
	group       string // "apps"; "" is the core group
	namespace   string // "" for cluster-wide requests
	resource    string // "pods"; "" only where the path names no resource
	subresource string // "log"
	name        string // "" where the path has none
	method      string // "GET"
	path        string // decoded: "/api/v1/pods"
	upgrade     bool   // asks for WebSocket or SPDY; parseKubeRequest does not set it
	proxied     int    // where in path the rest that a proxy subresource passes on begins: behind "/proxy/"; 0 for none

	// resourceful is the API server's IsResourceRequest. It and an empty resource come together where a path ends behind its
	// special verb, "/api/v1/watch", which the API server answers with an error.
	resourceful bool
}

// String gives the resource as the audit log and refusals name it: "pods/exec", "deployments.apps/scale".
func (q *kubeRequest) String() string {
	s := q.resource
	if q.group != "" {
		s += "." + q.group
	}
	if q.subresource != "" {
		s += "/" + q.subresource
	}
	return s
}

// kubeSegments bounds the path segments that mean something: prefix, group, version, verb, "namespaces", a namespace, and a
// resource with name and subresource.
const kubeSegments = 9

// segments are the first segments of a path, with where each ends. It is a value, so that reading a path allocates nothing.
type segments struct {
	text  [kubeSegments]string
	end   [kubeSegments]int
	count int // of all segments that are kept
}

// splitKubePath cuts a decoded path at its slashes, those at both ends left out.
func splitKubePath(path string) (s segments) {
	start, stop := 0, len(path)
	for start < stop && path[start] == '/' {
		start++
	}
	for stop > start && path[stop-1] == '/' {
		stop--
	}
	if start == stop {
		return s
	}
	for s.count < kubeSegments {
		end := stop
		if i := strings.IndexByte(path[start:stop], '/'); i >= 0 {
			end = start + i
		}
		s.text[s.count], s.end[s.count] = path[start:end], end
		s.count++
		if end == stop {
			break
		}
		start = end + 1
	}
	return s
}

// resourceful tells whether a path is that of a resource: prefix, group but for the core group, version, and something more.
func (s *segments) resourceful() bool {
	return s.count >= 3 && s.text[0] == "api" || s.count >= 4 && s.text[0] == "apis"
}

// parseKubeRequest reads a request of the API server. path is decoded, query is not.
func parseKubeRequest(method, path, query string) kubeRequest {
	q := kubeRequest{method: method, path: path}
	s := splitKubePath(path)
	if !s.resourceful() {
		q.verb = strings.ToLower(method)
		return q
	}
	q.resourceful = true
	at := 2 // behind prefix and version
	if s.text[0] == "apis" {
		q.group, at = s.text[1], 3
	}
	if s.text[at] == "watch" || s.text[at] == "proxy" {
		if at+1 == s.count { // the API server answers it with an error
			q.verb = strings.ToLower(method)
			return q
		}
		q.verb = s.text[at]
		at++
	} else {
		q.verb = kubeVerb(method)
	}
	if s.text[at] == "namespaces" && at+1 < s.count {
		q.namespace = s.text[at+1]
		if at+2 < s.count && s.text[at+2] != "status" && s.text[at+2] != "finalize" {
			at += 2
		}
	}
	q.parts(&s, at)
	q.nameless(query)
	return q
}

// kubeVerb is the verb of a method, before it is known whether the path names an object.
func kubeVerb(method string) string {
	switch method {
	case "POST":
		return "create"
	case "GET", "HEAD":
		return "get"
	case "PUT":
		return "update"
	case "PATCH":
		return "patch"
	case "DELETE":
		return "delete"
	}
	return ""
}

// parts reads resource, name and subresource, which begin with segment at.
func (q *kubeRequest) parts(s *segments, at int) {
	q.resource = s.text[at]
	if at+1 < s.count {
		q.name = s.text[at+1]
	}
	if q.verb == "proxy" { // /api/v1/proxy/namespaces/x/pods/y/rest, which API servers had until 1.10
		if at+1 < s.count {
			q.proxied = s.end[at+1]
		}
		return
	}
	if at+2 < s.count {
		q.subresource = s.text[at+2]
		if q.subresource == "proxy" {
			q.proxied = s.end[at+2]
		}
	}
}

// nameless reads what a request without a name in its path means: get is list or watch, which a field selector may restrict to one
// object, and delete is deletecollection.
func (q *kubeRequest) nameless(query string) {
	switch {
	case q.name != "":
	case q.verb == "delete":
		q.verb = "deletecollection"
	case q.verb == "get":
		q.verb = "list"
		if !strings.Contains(query, "%") && !strings.Contains(query, "watch") && !strings.Contains(query, "fieldSelector") {
			return // most queries; what is looked for below cannot be in it
		}
		values, _ := url.ParseQuery(query)
		if watch, ok := values["watch"]; ok && watch[0] != "0" && !strings.EqualFold(watch[0], "false") {
			q.verb = "watch"
		}
		if selectors, ok := values["fieldSelector"]; ok && decimal(values["timeoutSeconds"]) && decimal(values["limit"]) {
			q.name = selectedName(selectors[0])
		}
	}
}

// decimal tells whether a parameter of a list can be read as a number, or is not there. Where one cannot the API server forgets the
// other parameters too, and then refuses the request. (So it does where a label selector is malformed, which is not looked at here:
// the name that a rule is then judged by is that of a request which fails.)
func decimal(values []string) bool {
	if len(values) == 0 {
		return true
	}
	_, err := strconv.ParseInt(values[0], 10, 64)
	return err == nil
}

// selectedName is the name to which a field selector restricts a list, "a" of "status.phase=Running,metadata.name=a"; "" where it does
// not, or where it is malformed (k8s.io/apimachinery/pkg/fields/selector.go).
func selectedName(selector string) (name string) {
	terms := splitTerms(selector)
	slices.Sort(terms) // as there: of two names the first in this order is the one
	found := false
	for _, term := range terms {
		if term == "" {
			continue
		}
		i := strings.IndexByte(term, '=')
		if i < 0 {
			return ""
		}
		negated := i > 0 && term[i-1] == '!'
		value, ok := unescapeTerm(strings.TrimPrefix(term[i+1:], negatedTrim(negated)))
		if !ok {
			return ""
		}
		if !negated && term[:i] == "metadata.name" && !found {
			name, found = value, true
		}
	}
	if name == "." || name == ".." || strings.ContainsAny(name, "/%") { // content.IsPathSegmentName
		return ""
	}
	return name
}

// negatedTrim is what may follow the first "=" of a term as part of its operator: "==" is one, "!==" is not.
func negatedTrim(negated bool) string {
	if negated {
		return ""
	}
	return "="
}

// splitTerms cuts a field selector at its commas, but for those behind a backslash.
func splitTerms(selector string) (terms []string) {
	start, escaped := 0, false
	for i := range len(selector) {
		switch {
		case escaped:
			escaped = false
		case selector[i] == '\\':
			escaped = true
		case selector[i] == ',':
			terms = append(terms, selector[start:i])
			start = i + 1
		}
	}
	return append(terms, selector[start:])
}

// unescapeTerm gives the value of a term: "\\", "\," and "\=" are escapes, any other backslash and a bare "," or "=" are errors.
func unescapeTerm(s string) (string, bool) {
	if !strings.ContainsAny(s, `\,=`) {
		return s, true
	}
	var b strings.Builder
	escaped := false
	for _, c := range s {
		special := c == '\\' || c == ',' || c == '='
		switch {
		case escaped && !special, !escaped && (c == ',' || c == '='):
			return "", false
		case !escaped && c == '\\':
			escaped = true
			continue
		}
		escaped = false
		b.WriteRune(c)
	}
	return b.String(), !escaped
}

// reads tells whether the method is one that changes nothing.
func (q *kubeRequest) reads() bool { return q.method == http.MethodGet || q.method == http.MethodHead }
