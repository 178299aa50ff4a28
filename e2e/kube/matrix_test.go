package kube

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"muxproxy/e2e/kube/cluster"
)

// matrixLimit is how long one run of testdata/matrix may take.
const matrixLimit = 8 * time.Minute

// kubectls are the programs by their names in the tools.
var kubectls = []string{"kubectl", "kubectl-1.20"}

// run is one run of testdata/matrix.
type run struct {
	set, kubectl, context string
	namespace             string // its own; it is what tells two runs apart
	kubeconfig            string
	out                   string // the directory with what each step printed
}

// result is how one step ended.
type result struct{ stdout, stderr, exit string }

// newRun begins a run with a namespace that no other has.
func newRun(t testing.TB, set, kubectl, context, kubeconfig string) *run {
	t.Helper()
	namespaces.Lock()
	defer namespaces.Unlock()
	namespaces.n++
	return &run{set: set, kubectl: kubectl, context: context, kubeconfig: kubeconfig, namespace: fmt.Sprintf("run%02d", namespaces.n), out: t.TempDir()}
}

// namespaces counts those that were used.
var namespaces struct {
	sync.Mutex
	n int
}

// onHost runs the steps on this machine.
func (r *run) onHost(t testing.TB, pods *podServer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), matrixLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "testdata/matrix", r.set, filepath.Join(tools(), "bin", r.kubectl), r.context, r.namespace, r.out)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.Getenv("TMPDIR"), "KUBECONFIG=" + r.kubeconfig, "PORT_FORWARD=" + pods.port}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("matrix: %v: %s", err, head(string(out)))
	}
}

// results reads what the steps left, without what differs from run to run.
func (r *run) results(t testing.TB) map[string]result {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.out, "*.exit"))
	if err != nil || len(files) == 0 {
		t.Fatalf("the run left nothing: %v", err)
	}
	all := map[string]result{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".exit")
		all[name] = result{stdout: r.read(t, name+".stdout"), stderr: r.read(t, name+".stderr"), exit: strings.TrimSpace(r.read(t, name+".exit"))}
	}
	return all
}

// read gives a file of the run with all that differs from run to run replaced.
func (r *run) read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(r.out, name))
	if err != nil {
		t.Fatal(err)
	}
	seen.add(r.kubectl+" in context "+r.context+", "+name, string(text))
	s := strings.ReplaceAll(withoutManagedFields(string(text)), r.namespace, "NAMESPACE")
	for _, c := range changing {
		s = c.pattern.ReplaceAllString(s, c.with)
	}
	return s
}

// withoutManagedFields leaves out who set which field of an object, in JSON and YAML: the order is by the second of each change, and by name
// within one.
func withoutManagedFields(text string) string {
	var kept strings.Builder
	block := "" // the indent of one that is left out; "" outside: none begins a line
	for line := range strings.Lines(text) {
		bare := strings.TrimLeft(line, " ")
		if block != "" && (strings.HasPrefix(line, block+" ") || strings.HasPrefix(line, block+"- ")) {
			continue
		}
		last := block != "" && strings.HasPrefix(bare, "]")
		block = ""
		if bare == "managedFields:\n" || bare == "\"managedFields\": [\n" {
			block = line[:len(line)-len(bare)]
		} else if !last {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestManagedFieldsAreLeftOut(t *testing.T) {
	for text, want := range map[string]string{
		"metadata:\n  managedFields:\n  - apiVersion: v1\n    fieldsV1:\n      f:status: {}\n  - manager: x\n  name: web\nspec: {}\n":  "metadata:\n  name: web\nspec: {}\n",
		"{\n  \"metadata\": {\n    \"managedFields\": [\n      {\n        \"a\": []\n      }\n    ],\n    \"name\": \"web\"\n  }\n}\n": "{\n  \"metadata\": {\n    \"name\": \"web\"\n  }\n}\n",
	} {
		if got := withoutManagedFields(text); got != want {
			t.Errorf("%s", got)
		}
	}
}

// changing is what two runs of the same command may differ in.
var changing = []struct {
	pattern *regexp.Regexp
	with    string
}{
	// Resources that another run has defined meanwhile; those of one's own have NAMESPACE there by now.
	{regexp.MustCompile(`(?m)^.*\brun\d+\.example\.com\b.*\n`), ""},
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d(\.\d+)?( [+-]\d{4})?(Z|\b)`), "TIME"},
	{regexp.MustCompile(`\b[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [+-]\d{4}`), "TIME"},
	{regexp.MustCompile(`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`), "UID"},
	{regexp.MustCompile(`("?resourceVersion"?: ?)"\d+"`), "${1}VERSION"},
	{regexp.MustCompile(`\b(10\.96\.\d+\.\d+)\b`), "CLUSTERIP"},
	{regexp.MustCompile(`/(LIVE|MERGED)-\d+`), "/$1-N"},
	{regexp.MustCompile(`\b(LIVE|MERGED)-\d+`), "$1-N"},
	{regexp.MustCompile(`/tmp/[^ ]*?(LIVE|MERGED)`), "TMP/$1"},
	// Ages, and the blanks of a column that is as wide as they are.
	{regexp.MustCompile(`(?m)(^|\s)(\d+[hms]){1,2}(\s+|$)`), "${1}AGE "},
	{regexp.MustCompile(`<(unknown|invalid)>`), "AGE"},
	{regexp.MustCompile(` {2,}`), "  "},
}

// compare fails for each step that ended otherwise than its like in the direct run.
func compare(t *testing.T, direct, through map[string]result) {
	t.Helper()
	for name, got := range through {
		want, ok := direct[name]
		switch {
		case !ok:
			t.Errorf("step %q was not run directly", name)
		case got.exit != want.exit:
			t.Errorf("step %q ended with %s, directly with %s\nsaid:     %s\ndirectly: %s", name, got.exit, want.exit, head(got.stderr), head(want.stderr))
		case got.stdout != want.stdout:
			t.Errorf("step %q printed otherwise: %s", name, firstDifference(got.stdout, want.stdout))
		}
	}
}

// firstDifference names the first line in which two texts differ.
func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		line := func(all []string) string {
			if i < len(all) {
				return fmt.Sprintf("%q", head(all[i]))
			}
			return "nothing"
		}
		if line(g) != line(w) {
			return fmt.Sprintf("line %d of %d/%d\nhas:      %s\ndirectly: %s", i+1, len(g), len(w), line(g), line(w))
		}
	}
	return "nothing"
}

// podServer is what listens in all pods: an HTTP server on loopback.
type podServer struct{ port string }

func startPodServer(t testing.TB) *podServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/greeting", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello from the pod") })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		for range 8 << 20 / 64 {
			fmt.Fprintf(w, "%063d\n", 7)
		}
	})
	s := &http.Server{Handler: mux}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(ln) })
	t.Cleanup(func() { s.Close(); serving.Wait() })
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return &podServer{port: port}
}

// baseline is what the steps end with where nothing is between kubectl and the API server.
var baseline struct {
	sync.Mutex
	results map[string]map[string]result // by kubectl
}

// directly runs all steps against the API server itself, once for all tests.
func directly(t testing.TB, pods *podServer) map[string]map[string]result {
	t.Helper()
	baseline.Lock()
	defer baseline.Unlock()
	if baseline.results != nil {
		return baseline.results
	}
	host, err := shared.NewHost(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var runs []*run
	var running sync.WaitGroup
	for _, kubectl := range kubectls {
		r := newRun(t, "all", kubectl, "cert", host.Kubeconfig)
		runs = append(runs, r)
		running.Go(func() { r.onHost(t, pods) })
	}
	running.Wait()
	all := map[string]map[string]result{}
	for _, r := range runs {
		all[r.kubectl] = r.results(t)
	}
	baseline.results = all
	return all
}

// arrived fails unless all requests in a namespace were done as one user.
func arrived(t *testing.T, namespace, user string) {
	t.Helper()
	all := arrivals(t, "/namespaces/"+namespace+"/", 1)
	for i := range all {
		// The API server asks itself too, and the node says that pods run.
		if all[i].Who() != user && all[i].Who() != "system:apiserver" && all[i].UserAgent != cluster.Own {
			t.Errorf("%s %s arrived as %q, want %q", all[i].Verb, all[i].RequestURI, all[i].Who(), user)
			return
		}
	}
}

// An old kubectl drops the path of its server before a raw path, and so speaks to the current context, which is at "/".
func TestKubectlSendsRawPathsToItsContextUnlessItIsOld(t *testing.T) {
	d := openDoor(t, nil, "")
	for kubectl, want := range map[string]string{"kubectl": cluster.TokenUser, "kubectl-1.20": cluster.Contexts()["cert"]} {
		path, marker := mark("/api/v1/namespaces")
		cmd := exec.CommandContext(t.Context(), filepath.Join(tools(), "bin", kubectl), "--context", "token", "get", "--raw", path)
		cmd.Env = []string{"HOME=" + t.TempDir(), "KUBECONFIG=" + d.kubeconfig()}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", kubectl, err, head(string(out)))
			continue
		}
		if user := arrivals(t, marker, 1)[0].Who(); user != want {
			t.Errorf("%s: arrived as %q, want %q", kubectl, user, want)
		}
	}
}

func TestKubectlDoesTheSameThroughEachContextAsDirectly(t *testing.T) {
	pods := startPodServer(t)
	want := directly(t, pods)
	d := openDoor(t, nil, "")
	for context, user := range cluster.Contexts() {
		// All steps through "exec-token" are run in containers.
		set := "few"
		if context == "cert" {
			set = "all"
		}
		for _, kubectl := range kubectls {
			t.Run(context+" "+kubectl, func(t *testing.T) {
				t.Parallel()
				r := newRun(t, set, kubectl, context, d.kubeconfig())
				r.onHost(t, pods)
				compare(t, want[kubectl], r.results(t))
				arrived(t, r.namespace, user)
			})
		}
	}
}
