package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
)

// kubeRequestsFile is what the e2e module gives: requests with what the API server's own parser made of them.
var kubeRequestsFile = flag.String("kube-requests", "testdata/kuberequests.jsonl", "requests as k8s.io/apiserver reads them")

// apiRequest is a line of that file. Name is nil where the API server could not read the label selector, and so looked at no field selector.
type apiRequest struct {
	Method, Target, Verb, Group, Namespace, Resource, Subresource string
	Name                                                          *string
	IsResource                                                    bool
}

func TestRequestsAreReadAsTheAPIServerReadsThem(t *testing.T) {
	file, err := os.Open(*kubeRequestsFile)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n := 0
	for lines := bufio.NewScanner(file); lines.Scan(); n++ {
		var want apiRequest
		if err := json.Unmarshal(lines.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		path, query, ok := splitTarget(want.Target)
		q := parseKubeRequest(want.Method, path, query)
		got := apiRequest{want.Method, want.Target, q.verb, q.group, q.namespace, q.resource, q.subresource, &q.name, q.resourceful}
		if want.Name == nil {
			got.Name = nil
		}
		g, _ := json.Marshal(got)
		w, _ := json.Marshal(want)
		if !ok || string(g) != string(w) {
			t.Errorf("got  %s\nwant %s", g, w)
		}
	}
	if n < 200 {
		t.Errorf("only %d requests in %s", n, *kubeRequestsFile)
	}
}

func TestFieldSelectorNamesOneObject(t *testing.T) {
	for selector, want := range map[string]string{
		"": "", "metadata.name=a": "a", "metadata.name==a": "a", "metadata.name!=a": "", "metadata.name!==b,metadata.name=a": "", "metadata.name===a": "",
		"x=1,metadata.name=a": "a", "metadata.name=b,metadata.name=a": "a", "metadata.name=,metadata.name=a": "", `metadata.name=a\,b`: "a,b", `metadata.name=a\`: "", `metadata.name=a\x`: "",
		"metadata.name=a,x": "", "metadata.name=..": "", "metadata.name=a/b": "", "metadata.name=a%": "", ",,metadata.name=a": "a", " metadata.name=a": "",
	} {
		if got := selectedName(selector); got != want {
			t.Errorf("%q: %q, want %q", selector, got, want)
		}
	}
}

// readPlainly is a second reading of a path, after the API server's documentation and with no thought of speed.
func readPlainly(method, path string) (verb, group, namespace, resource, subresource, name string, isResource bool) {
	verb = strings.ToLower(method)
	parts := strings.Split(strings.Trim(path, "/"), "/")
	need := map[string]int{"api": 3, "apis": 4}[parts[0]]
	if need == 0 || len(parts) < need {
		return
	}
	isResource = true
	if parts[0] == "apis" {
		group = parts[1]
	}
	parts = parts[need-1:]
	if parts[0] == "watch" || parts[0] == "proxy" {
		if len(parts) == 1 {
			return
		}
		verb, parts = parts[0], parts[1:]
	} else {
		verb = map[string]string{"POST": "create", "GET": "get", "HEAD": "get", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
	}
	if parts[0] == "namespaces" && len(parts) > 1 {
		namespace = parts[1]
		if len(parts) > 2 && !slices.Contains([]string{"status", "finalize"}, parts[2]) {
			parts = parts[2:]
		}
	}
	parts = append(parts, "", "")
	resource, name = parts[0], parts[1]
	if verb != "proxy" {
		subresource = parts[2]
	}
	if name == "" && verb == "get" {
		verb = "list"
	}
	if name == "" && verb == "delete" {
		verb = "deletecollection"
	}
	return
}

func FuzzKubeRequest(f *testing.F) {
	for _, c := range kubeRequests {
		line, _, _ := strings.Cut(c.request, "\r\n")
		method, target, _ := strings.Cut(line, " ")
		f.Add(method, target)
	}
	f.Add("GET", "/api/v1/secrets?watch=1&fieldSelector=metadata.name%3Da%5C,b,x!=y")
	f.Add("GET", "/api/v1/namespaces/a/pods/b/proxy/%252e%252e/../c")
	access := map[accessLevel]*kubeAccess{}
	for level := accessFull; level <= accessReadOnly; level++ {
		access[level] = &kubeAccess{context: "c", kubeContextConfig: kubeContextConfig{access: level}}
	}
	f.Fuzz(func(t *testing.T, method, target string) {
		path, query, ok := splitTarget(target)
		if !ok {
			return
		}
		if u, err := url.ParseRequestURI(target); err == nil && strings.HasPrefix(target, "/") && (u.Path != path || u.RawQuery != query) {
			t.Errorf("%q: path %q, query %q; the standard parser has %q, %q", target, path, query, u.Path, u.RawQuery)
		}
		q := parseKubeRequest(method, path, query)
		verb, group, namespace, resource, subresource, name, isResource := readPlainly(method, path)
		if q.name != name && (verb == "list" && name == "") {
			q.name = name // by a field selector
		}
		if q.verb == "watch" && verb == "list" {
			q.verb = verb
		}
		if q.verb != verb || q.group != group || q.namespace != namespace || q.resource != resource || q.subresource != subresource || q.name != name || q.resourceful != isResource {
			t.Errorf("%s %q is read as %+v", method, target, q)
		}
		refused := false
		for level := accessFull; level <= accessReadOnly; level++ {
			f := access[level].judge(&q)
			if refused && f == nil {
				t.Errorf("%s %q: %s allows what a level below it refuses", method, target, level)
			}
			refused = f != nil
		}
		segments := strings.Split(strings.Trim(path, "/"), "/")
		if access[accessNoSecrets].judge(&q) == nil && isResource && resource == "secrets" {
			t.Errorf("%s %q reaches Secrets", method, target)
		}
		if cleanPath(&q) && q.proxied == 0 && (slices.Contains(segments, "..") || strings.Contains(path, "//") || strings.Contains(path, "%")) {
			t.Errorf("%q is called clean", target)
		}
	})
}
