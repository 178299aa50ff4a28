// Package kube tries the kube plane with kubectl, old and new, and with other clients, against a real API server. Its
// audit log is the oracle for who arrived.
package kube

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"muxproxy/e2e/kube/cluster"
	"muxproxy/e2e/testbed"
)

// answerLimit is how long an answer may take that comes at once where nothing is wrong.
const answerLimit = 30 * time.Second

// shared is the cluster of all cases, made by TestMain.
var shared *cluster.Cluster

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

func runAll(m *testing.M) int {
	dir, err := os.MkdirTemp("", "e2e-kube")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := nameHost(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if shared, err = cluster.Start(tools(), dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer shared.Close()
	// Several cases wait more than they work.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, found := range seen.search() {
		fmt.Println("--- FAIL: canary:", found)
		code = 1
	}
	return code
}

// tools is the directory that tools/build made.
func tools() string { return os.Getenv("E2E_KUBE") }

// nameHost gives this machine the name that it has for containers: their kubeconfig is used here too. The suite has a hosts file of its own.
func nameHost() error {
	hosts, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer hosts.Close()
	_, err = fmt.Fprintln(hosts, "127.0.0.1 host.docker.internal")
	return err
}

// door is a daemon with the host that it serves.
type door struct {
	*testbed.Daemon
	host *cluster.Host
}

// openDoor runs a daemon until the test ends. The kubeconfig has a context for each of servers; lines are more of the config's [kube] table.
func openDoor(t testing.TB, servers map[string]string, lines string) *door {
	t.Helper()
	host, err := shared.NewHost(t.TempDir())
	if err == nil {
		err = host.WriteConfig(servers)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := testbed.Start(t, testbed.Options{Roots: shared.CA(), Config: fmt.Sprintf("[kube]\nkubeconfig = %q\n%s", host.Kubeconfig, lines)})
	t.Cleanup(func() {
		seen.add("output of the daemon of "+t.Name(), d.Stderr())
		seen.addFiles(t, filepath.Join(d.Home, ".mux"))
	})
	return &door{Daemon: d, host: host}
}

// kubeconfig is what containers get.
func (d *door) kubeconfig() string { return filepath.Join(d.Home, ".mux/kube/config") }

// url is a path of a context at the daemon's port.
func (d *door) url(context, path string) string {
	return "http://" + d.Kube + "/contexts/" + context + path
}

// arrivals are the API server's audit lines of requests whose URI holds text; they are waited for until there are at least n.
func arrivals(t testing.TB, text string, n int) []cluster.Arrival {
	t.Helper()
	var all []cluster.Arrival
	testbed.Eventually(t, "arrival of "+text, answerLimit, func() (err error) {
		if all, err = shared.Arrivals(text); err == nil && len(all) < n {
			err = fmt.Errorf("%d of %d", len(all), n)
		}
		return err
	})
	return all
}

// head cuts a long text for a message.
func head(text string) string {
	if len(text) > 3000 {
		text = text[:3000] + "…"
	}
	return strings.TrimSpace(text)
}
