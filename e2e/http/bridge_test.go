package http

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// docker runs a command of the engine and gives what it printed.
func docker(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("/usr/bin/docker", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("docker %q: %v: %s", args, err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// healthAt asks the daemon for its health at one address, at once and once.
func healthAt(address string) error {
	// A connection of its own: one that is kept from before would hide a listener that is gone.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	answer, err := client.Get("http://" + address + "/proxy/health")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Status)
	}
	return nil
}

func TestANetworkIsServedWhenItsCreationReturns50Times(t *testing.T) {
	_, port, _ := net.SplitHostPort(theWorld(t).main.proxy)
	remove := []string{"network", "rm"}
	t.Cleanup(func() { docker(t, remove...) })
	for i := range 50 {
		remove = append(remove, docker(t, "network", "create", "--subnet", fmt.Sprintf("10.201.%d.0/24", i), fmt.Sprintf("bridge-%d", i)))
		if err := healthAt(fmt.Sprintf("10.201.%d.1:%s", i, port)); err != nil {
			t.Errorf("network %d: %v", i, err)
		}
	}
}

func TestANetworkMadeAgainAtItsAddressIsServedWhenItsCreationReturns(t *testing.T) {
	_, port, _ := net.SplitHostPort(theWorld(t).main.proxy)
	for i := range 5 {
		docker(t, "network", "create", "--subnet", "10.202.0.0/24", "again")
		err := healthAt("10.202.0.1:" + port)
		docker(t, "network", "rm", "again")
		if err != nil {
			t.Errorf("time %d: %v", i, err)
		}
	}
}

func TestAContainerOfAUserDefinedNetworkReachesTheProxyByItsName(t *testing.T) {
	w := theWorld(t)
	docker(t, "network", "create", "--subnet", "10.203.0.0/24", "own")
	t.Cleanup(func() { docker(t, "network", "rm", "own") })
	out := w.main.container(t, []string{"--network", "own"}, `
		getent hosts host.docker.internal
		curl -sS -o /dev/null -w '%{http_code} user\n' https://api.github.com/user
		curl -sS -o /dev/null -w '%{http_code} own bridge\n' --noproxy '*' http://10.203.0.1:18080/proxy/health -H 'Host: host.docker.internal'`)
	has(t, out, "200 user", "200 own bridge")
	if line := w.main.lastLine(t, "api.github.com"); !strings.HasPrefix(line.Client, "10.203.0.") {
		t.Errorf("the audit line's client is %q, want the container's own address", line.Client)
	}
}

func TestAContainerWithoutABridgeReachesTheProxyThroughTheHostsNetwork(t *testing.T) {
	w := theWorld(t)
	// host-gateway is docker0's address, which is one of the host's own there.
	has(t, w.main.container(t, []string{"--network", "host"}, `curl -sS -o /dev/null -w '%{http_code} user\n' https://api.github.com/user`), "200 user")
}
