package kube

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// timedGets runs `kubectl get` ten times over and prints the milliseconds of each: a program that has just been started, with its own
// discovery cache, as agents use it. The context has an exec plugin.
const timedGets = `
export KUBECACHEDIR=$(mktemp -d)
kubectl --context exec-token get namespaces -o name >/dev/null
for i in 1 2 3 4 5 6 7 8 9 10; do
	start=${EPOCHREALTIME/[.,]/}
	kubectl --context exec-token get namespaces -o name >/dev/null
	echo $(( (${EPOCHREALTIME/[.,]/} - start) / 100 ))
done
rm -rf "$KUBECACHEDIR"`

// TestAFreshKubectlInAContainer says how long one takes, beside one on the host that has the credential itself; that is
// measured, not judged.
func TestAFreshKubectlInAContainer(t *testing.T) {
	d := openDoor(t, nil, "")
	host, err := shared.NewHost(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var contained, direct []int
	for range 3 {
		contained = append(contained, tenths(t, d.container(t, nil, timedGets))...)
		cmd := exec.Command("bash", "-euc", timedGets)
		cmd.Env = []string{"PATH=" + tools() + "/bin:" + os.Getenv("PATH"), "KUBECONFIG=" + host.Kubeconfig, "HOME=" + t.TempDir()}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		direct = append(direct, tenths(t, string(out))...)
	}
	c, h := median(contained), median(direct)
	t.Logf("a fresh kubectl get: %.1f ms in a container, %.1f ms on the host with the credential: %.2f times faster", c, h, h/c)
}

// tenths reads numbers of tenths of a millisecond, ten of them.
func tenths(t *testing.T, out string) []int {
	t.Helper()
	var all []int
	for _, word := range strings.Fields(out) {
		n, err := strconv.Atoi(word)
		if err != nil {
			t.Fatalf("%q", out)
		}
		all = append(all, n)
	}
	if len(all) != 10 {
		t.Fatalf("%d runs: %q", len(all), out)
	}
	return all
}

// median gives milliseconds.
func median(tenths []int) float64 {
	slices.Sort(tenths)
	return float64(tenths[len(tenths)/2]) / 10
}
