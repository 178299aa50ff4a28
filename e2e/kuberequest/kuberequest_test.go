// Package kuberequest holds the reading of requests in the kube plane against the API server's own: k8s.io/apiserver's RequestInfo
// says of generated requests what they are, and a test of the main module, which cannot be imported, is run with that.
package kuberequest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/klog/v2"
)

var (
	count = flag.Int("requests", 20000, "how many requests are generated")
	keep  = flag.String("keep", "", "write the requests to this file, the main module's testdata/kuberequests.jsonl, and do no more")
)

// line is what the main module's test reads.
type line struct {
	Method, Target, Verb, Group, Namespace, Resource, Subresource string
	Name                                                          *string
	IsResource                                                    bool
}

// read asks the API server's parser; false where net/http would not take the target.
func read(method, target string) (l line, ok bool) {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return l, false
	}
	resolver := request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	info, _ := resolver.NewRequestInfo(&http.Request{Method: method, URL: u}) // with an error, what is known so far
	l = line{method, target, info.Verb, info.APIGroup, info.Namespace, info.Resource, info.Subresource, &info.Name, info.IsResourceRequest}
	if _, err := labels.Parse(u.Query().Get("labelSelector")); err != nil {
		l.Name = nil
	}
	return l, true
}

// generator makes requests: some plain, most with something odd about them.
type generator struct{ *rand.Rand }

func (g generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g generator) method() string {
	return g.pick("GET", "GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "FROB", "get", "CONNECT")
}

func (g generator) target() string {
	var path []string
	if g.IntN(20) > 0 {
		path = append(path, g.pick("api", "api", "apis", "apis", "API", "oapi", "version", "healthz", "logs", ""))
	}
	words := []string{"v1", "v1", "apps", "watch", "proxy", "namespaces", "namespaces", "namespaces", "dev", "kube-system", "secrets", "pods", "pods", "web-0", "exec", "log", "token", "serviceaccounts",
		"status", "finalize", "nodes", "certificates.k8s.io", "secrets", "", "..", ".", "a b", "%", "Namespaces", "é"}
	for range g.IntN(10) {
		path = append(path, words[g.IntN(len(words))])
	}
	target := "/" + g.escape(strings.Join(path, "/"))
	if g.IntN(5) == 0 {
		target += "/"
	}
	if g.IntN(2) == 0 {
		target += "?" + g.query()
	}
	return target
}

// escape escapes what must be, and now and then what need not be.
func (g generator) escape(path string) string {
	var b strings.Builder
	often := g.pick("never", "never", "seldom", "often")
	for i := range len(path) {
		c := path[i]
		must := c <= ' ' || c >= 0x7f || c == '%' || c == '?' || c == '#'
		if must || often == "often" && g.IntN(3) == 0 || often == "seldom" && g.IntN(15) == 0 {
			fmt.Fprintf(&b, g.pick("%%%02x", "%%%02X"), c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (g generator) query() string {
	var pairs []string
	for range g.IntN(4) {
		pairs = append(pairs, g.pick(
			"watch=1", "watch=0", "watch=true", "watch=FALSE", "watch=", "watch", "Watch=1", "%77atch=1", "watch=0&watch=1", "follow=true", "watch;=1", "watch=%zz",
			"timeoutSeconds=5", "timeoutSeconds=x", "timeoutSeconds=", "limit=500", "limit=1e3", "resourceVersion=0", "continue=x", "shardSelector=x",
			"labelSelector=a%3Db", "labelSelector=a+in+(b,c)", "labelSelector=%3D%3D", "labelSelector=",
			"fieldSelector="+url.QueryEscape(g.selector()), "fieldSelector="+url.QueryEscape(g.selector()), "fieldSelector="+url.QueryEscape(g.selector())))
	}
	return strings.Join(pairs, "&")
}

func (g generator) selector() string {
	var terms []string
	for range g.IntN(4) {
		terms = append(terms, g.pick("metadata.name", "metadata.name", "metadata.namespace", "status.phase", "", " metadata.name")+
			g.pick("=", "=", "==", "!=", "===", "!==", "", "=!", ">")+g.pick("a", "b", "", "..", ".", "x/y", "x%y", `a\,b`, `a\=b`, `a\\`, `a\`, `a\x`, "a=b", "é"))
	}
	return strings.Join(terms, g.pick(",", ",", ",,"))
}

func TestRequestsAreReadAsTheAPIServerReadsThem(t *testing.T) {
	klog.SetOutput(io.Discard)
	klog.LogToStderr(false)
	seed := rand.Uint64()
	g := generator{rand.New(rand.NewPCG(seed, 1))}
	seen := map[string]bool{}
	var lines bytes.Buffer
	for len(seen) < *count {
		l, ok := read(g.method(), g.target())
		if text, err := json.Marshal(l); ok && err == nil && !seen[string(text)] {
			seen[string(text)] = true
			lines.Write(append(text, '\n'))
		}
	}
	file := *keep
	if file == "" {
		file = filepath.Join(t.TempDir(), "requests.jsonl")
	}
	if err := os.WriteFile(file, lines.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if *keep != "" {
		return
	}
	cmd := exec.Command("go", "test", "-count=1", "-run", "^TestRequestsAreReadAsTheAPIServerReadsThem$", "-v", ".", "-kube-requests", file)
	cmd.Dir = "../.."
	output, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(output, []byte("--- PASS: TestRequestsAreReadAsTheAPIServerReadsThem")) {
		t.Fatalf("seed %d: %v\n%.5000s", seed, err, output)
	}
}
