package kube

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"muxproxy/e2e/kube/cluster"
)

// inside is where a container has the clients of the suite: they are mounted, the image has none of them but python and node.
const inside = "/opt/kube"

// container runs a script in a container with the daemon's docker arguments, further ones, and nothing else but the programs.
func (d *door) container(t testing.TB, args []string, script string) string {
	t.Helper()
	return runContainer(t, append(d.DockerArgs(t), args...), script)
}

func runContainer(t testing.TB, args []string, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), matrixLimit)
	defer cancel()
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	all := append([]string{"run", "--rm", "-v", tools() + "/bin:" + inside + ":ro", "-v", testdata + ":/testdata:ro"}, args...)
	cmd := exec.CommandContext(ctx, "/usr/bin/docker", append(all, os.Getenv("E2E_IMAGE"), "bash", "-euc", "PATH=$PATH:"+inside+"\n"+script)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	seen.add("container of "+t.Name(), string(out)+stderr.String())
	if err != nil {
		t.Errorf("container: %v: %s\n%s", err, head(string(out)), head(stderr.String()))
	}
	return string(out)
}

// inContainer runs the steps in a container.
func (r *run) inContainer(t testing.TB, d *door, args []string, pods *podServer) {
	t.Helper()
	args = append([]string{"-v", r.out + ":/out", "-e", "PORT_FORWARD=" + pods.port}, args...)
	d.container(t, args, strings.Join([]string{"/testdata/matrix", r.set, inside + "/" + r.kubectl, r.context, r.namespace, "/out"}, " "))
}

func TestAContainerHasKubectlWithTheDockerArgumentsAlone(t *testing.T) {
	d := openDoor(t, nil, "")
	out := d.container(t, nil, "kubectl get pods -A -o name; kubectl config get-contexts -o name; kubectl-1.20 get namespaces -o name; kubectl --context exec-token auth whoami -o jsonpath={.status.userInfo.username}")
	for _, want := range append([]string{"namespace/kube-system", cluster.ExecUser}, contextNames()...) {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	for _, line := range d.Audit(t) {
		if line.Plane == "kube" && line.Context == "" {
			t.Errorf("an audit line without context: %+v", line)
		}
	}
}

func contextNames() []string {
	var names []string
	for name := range cluster.Contexts() {
		names = append(names, name)
	}
	return names
}

func TestKubectlDoesTheSameInAContainer(t *testing.T) {
	pods := startPodServer(t)
	want := directly(t, pods)
	d := openDoor(t, nil, "")
	for name, c := range map[string]struct {
		set, context string
		args         []string
	}{
		"as we set it": {"all", "exec-token", nil},
		// All requests then come to the http plane, which hands them over.
		"without NO_PROXY": {"few", "cert", []string{"-e", "NO_PROXY=", "-e", "no_proxy="}},
	} {
		for _, kubectl := range kubectls {
			t.Run(name+" "+kubectl, func(t *testing.T) {
				t.Parallel()
				r := newRun(t, c.set, kubectl, c.context, "")
				r.inContainer(t, d, c.args, pods)
				compare(t, want[kubectl], r.results(t))
				arrived(t, r.namespace, cluster.Contexts()[c.context])
			})
		}
	}
}

func TestPythonAndNodeDoTheSameInAContainer(t *testing.T) {
	t.Parallel()
	d := openDoor(t, nil, "")
	host, err := shared.NewHost(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// What reaches the API server directly has the host's network and its kubeconfig.
	direct := []string{"--network", "host", "-v", filepath.Dir(host.Kubeconfig) + ":/host:ro", "-e", "KUBECONFIG=/host/kubeconfig"}
	for name, command := range map[string]string{
		"python": "/usr/bin/python3 /testdata/client.py",
		"node":   "node /testdata/client.mjs /opt/clients/node_modules",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			output := func(args []string, context string) string {
				namespace := newNamespace(t)
				body := `{"metadata":{"name":"web"},"spec":{"nodeName":"node","containers":[{"name":"main","image":"e2e"}]}}`
				if err := shared.Do(t.Context(), "POST", "/api/v1/namespaces/"+namespace+"/pods", "application/json", body); err != nil {
					t.Fatal(err)
				}
				return runContainer(t, args, command+" "+context+" "+namespace)
			}
			want := output(direct, "cert")
			t.Logf("directly:\n%s", want)
			for _, context := range []string{"cert", "exec-token"} {
				if got := output(d.DockerArgs(t), context); got != want {
					t.Errorf("context %s: %s", context, firstDifference(got, want))
				}
			}
			if got := output(append(d.DockerArgs(t), "-e", "NO_PROXY=", "-e", "no_proxy="), "token"); got != want {
				t.Errorf("without NO_PROXY: %s", firstDifference(got, want))
			}
		})
	}
}

// lookAround prints all that a process of a container can see of its own and of others, mounted files included.
const lookAround = `
	env; cat /proc/mounts; ls -laR /etc/mux; find /etc/mux -type f -exec cat {} +
	for p in /proc/[0-9]*; do tr '\0' '\n' <$p/cmdline; tr '\0' '\n' <$p/environ; done
	kubectl config view --raw --flatten; cat "$KUBECONFIG"
	for context in cert exec-token token token-file exec-cert as basic; do kubectl --context $context get namespaces -v=9; done
	for context in vendor nonsense; do curl -sS --noproxy '*' http://host.docker.internal:$PORT/contexts/$context/version; done`

func TestNoCredentialIsInAContainer(t *testing.T) {
	d := openDoor(t, nil, "")
	_, port, _ := strings.Cut(d.Kube, ":")
	out := d.container(t, []string{"-e", "PORT=" + port}, "{ "+lookAround+"\n} 2>&1")
	if !strings.Contains(out, "kube-system") || !strings.Contains(out, "insecure-skip-tls-verify") {
		t.Errorf("the look around is cut short:\n%s", head(out))
	}
	// The search itself has to be able to find something.
	for _, canary := range shared.Canaries() {
		if !finds(canary) {
			t.Errorf("%.12s… is not found where it is", canary)
		}
	}
}

func finds(canary string) bool {
	var c transcript
	c.add("here", "x"+canary+"y")
	return len(c.search()) > 0
}
