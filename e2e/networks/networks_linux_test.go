// Package networks shows muxproxy on a host whose container bridges come and go, in a network namespace of its own. It
// needs Linux, root and iproute2, but no container engine: bridges are made as the engines make them.
package networks

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// role says what a process of this test binary is: "" starts the tests in a new network namespace, roleHost runs them
// there, rolePeer is another machine or a container, in one more namespace.
const (
	role     = "MUXPROXY_E2E_ROLE"
	roleHost = "host"
	rolePeer = "peer"
)

// beforeReturn is how long before `docker network create` returns the kernel announces the address of the new bridge, as
// measured with Docker 20.10: so long may muxproxy take.
const beforeReturn = 85 * time.Millisecond

// dialLimit is how long a single attempt may take.
const dialLimit = 2 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case roleHost:
		os.Exit(m.Run())
	case rolePeer:
		servePeer(os.Stdin, os.Stdout)
		return
	}
	cmd := again(roleHost, os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a network namespace:", err)
		os.Exit(1)
	}
}

// again is this test binary once more, in a network namespace of its own, which ends with it.
func again(as string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), role+"="+as)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	return cmd
}

// servePeer obeys one line at a time: "ip …" runs ip, "dial ADDRESS" connects and asks for health. Each is answered with
// one line.
func servePeer(in io.Reader, out io.Writer) {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		what, rest, _ := strings.Cut(lines.Text(), " ")
		if what == "dial" {
			fmt.Fprintln(out, dial(rest, dialLimit))
			continue
		}
		text, err := exec.Command("ip", strings.Fields(rest)...).CombinedOutput()
		fmt.Fprintf(out, "%v %q\n", err, text)
	}
}

// dial asks address for health: "served", "cut" where the connection ends without a byte, "closed" where there is none.
func dial(address string, limit time.Duration) string {
	conn, err := net.DialTimeout("tcp", address, limit)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "closed"
	}
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, "GET /proxy/health HTTP/1.1\r\nHost: host.docker.internal\r\nConnection: close\r\n\r\n")
	text, err := io.ReadAll(conn)
	switch {
	case strings.HasPrefix(string(text), "HTTP/1.1 200 "):
		return "served"
	case len(text) == 0 && (err == nil || errors.Is(err, syscall.ECONNRESET)):
		return "cut"
	}
	return fmt.Sprintf("%q, %v", text, err)
}

// peer is a process in a namespace of its own, joined to the host by a veth pair.
type peer struct {
	in  io.Writer
	out *bufio.Reader
}

// startPeer joins a peer to the host: its end is eth0 with the address given, the host's end is called port.
func startPeer(t *testing.T, port, address string) *peer {
	t.Helper()
	cmd := again(rolePeer)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	p := &peer{in, bufio.NewReader(out)}
	ip(t, "link add %s type veth peer name eth0 netns %d", port, cmd.Process.Pid)
	ip(t, "link set %s up", port)
	p.ip(t, "addr add %s dev eth0", address)
	p.ip(t, "link set eth0 up")
	return p
}

func (p *peer) ask(t *testing.T, line string) string {
	t.Helper()
	fmt.Fprintln(p.in, line)
	answer, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

func (p *peer) ip(t *testing.T, format string, args ...any) {
	t.Helper()
	if answer := p.ask(t, "ip "+fmt.Sprintf(format, args...)); !strings.HasPrefix(answer, "<nil>") {
		t.Fatal(answer)
	}
}

// mustDial fails the test unless dialing address, from p or (nil) from the host, ends as want.
func mustDial(t *testing.T, why string, p *peer, address, want string) {
	t.Helper()
	got := ""
	if p == nil {
		got = dial(address, dialLimit)
	} else {
		got = p.ask(t, "dial "+address)
	}
	if got != want {
		t.Errorf("%s: %s is %s, want %s", why, address, got, want)
	}
}

// ip runs iproute2 on the host.
func ip(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	if text, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", line, err, text)
	}
}

// addBridge makes a bridge as a container engine does: the address comes last.
func addBridge(t *testing.T, name, address string) {
	t.Helper()
	ip(t, "link add %s type bridge", name)
	ip(t, "link set %s up", name)
	ip(t, "addr add %s dev %s", address, name)
}

// retryLimit is how long one attempt of within may take. A new IPv6 address can be dialed before the kernel has its local
// route (that is left to a work queue): such a connection looks for a neighbour that nobody is, the next one succeeds.
const retryLimit = 200 * time.Millisecond

// within waits until dialing address from the host ends as want, and gives how long that took.
func within(t *testing.T, limit time.Duration, address, want string) time.Duration {
	t.Helper()
	start, tick := time.Now(), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for got := dial(address, retryLimit); got != want; got = dial(address, retryLimit) {
		if time.Since(start) > limit {
			t.Fatalf("%s is %s after %v, want %s", address, got, limit, want)
		}
		<-tick.C
	}
	return time.Since(start)
}

// startMuxproxy runs muxproxy with an empty home until the test ends.
func startMuxproxy(t *testing.T) {
	t.Helper()
	ip(t, "link set lo up")
	program, home := os.Getenv("MUXPROXY_BIN"), t.TempDir()
	if program == "" {
		t.Fatal("MUXPROXY_BIN is not set: build the program and name it there, or start this with e2e/run http")
	}
	cmd := exec.Command(program, "run")
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("muxproxy run: %v", err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	within(t, 10*time.Second, "127.0.0.1:18080", "served")
}

func TestHostWhoseNetworksComeAndGo(t *testing.T) {
	startMuxproxy(t)
	addBridge(t, "docker0", "172.17.0.1/16")
	within(t, time.Second, "172.17.0.1:18080", "served")

	t.Run("a new network is served before its engine tells of it, 50 times", func(t *testing.T) {
		var took []time.Duration
		for i := range 50 {
			name, address := fmt.Sprintf("br-%012x", 0xabcdef000+i), fmt.Sprintf("10.200.%d.1", i)
			addBridge(t, name, address+"/24")
			took = append(took, within(t, beforeReturn, address+":18080", "served"))
			if i%2 == 0 {
				ip(t, "link del %s", name)
			}
		}
		slices.Sort(took)
		t.Logf("from the address to the answer: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	})

	t.Run("a network that is made again is served before its engine tells of it", func(t *testing.T) {
		ip(t, "link del br-%012x", 0xabcdef000+49)
		addBridge(t, "br-0123456789ab", "10.200.49.1/24")
		within(t, beforeReturn, "10.200.49.1:18080", "served")
	})

	t.Run("IPv6 is served before the bridge has a carrier", func(t *testing.T) {
		ip(t, "addr add fd00:17::1/64 dev docker0 nodad")
		within(t, time.Second, "[fd00:17::1]:18080", "served")
	})

	t.Run("a container reaches every bridge", func(t *testing.T) {
		p := startPeer(t, "veth1", "172.17.0.2/16")
		ip(t, "link set veth1 master docker0")
		p.ip(t, "route add default via 172.17.0.1")
		within(t, time.Second, "172.17.0.1:18080", "served")
		mustDial(t, "its own bridge", p, "172.17.0.1:18080", "served")
		mustDial(t, "another bridge", p, "10.200.1.1:18080", "served")
	})

	t.Run("a LAN host that routes to a bridge is cut unread", func(t *testing.T) {
		p := startPeer(t, "eth0", "192.168.7.9/24")
		ip(t, "addr add 192.168.7.1/24 dev eth0")
		p.ip(t, "route add 172.17.0.0/16 via 192.168.7.1")
		mustDial(t, "the bridge's address", p, "172.17.0.1:18080", "cut")
		mustDial(t, "the LAN address", p, "192.168.7.1:18080", "closed")
	})

	t.Run("a bridge with a port that is no container's is not served", func(t *testing.T) {
		addBridge(t, "br-lan", "192.168.8.1/24")
		addBridge(t, "br-fedcba987654", "192.168.9.1/24")
		within(t, time.Second, "192.168.9.1:18080", "served")
		mustDial(t, "br-lan", nil, "192.168.8.1:18080", "closed")
		ip(t, "tuntap add mode tap eth1")
		ip(t, "link set eth1 master br-fedcba987654")
		within(t, time.Second, "192.168.9.1:18080", "closed")
	})
}
