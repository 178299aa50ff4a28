// Package talos shows that real talosctl, and grpc-go, work through the gateway with no certificate: on the host and in containers.
package talos

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"muxproxy/e2e/apid"
	"muxproxy/e2e/testbed"
)

// The endpoints of the clusters: loopback addresses of their own, since a context may leave out the port, which is 50000.
const (
	prodEndpoint     = "127.78.0.20"
	labDead          = "127.78.0.31" // nobody listens
	labRejects       = "127.78.0.32" // takes no client certificate
	labGood          = "127.78.0.33"
	labSilent        = "127.78.0.34" // accepts and says nothing
	agingEndpoint    = "127.78.0.50" // sends GOAWAY every two seconds
	restartsEndpoint = "127.78.0.60" // is stopped and started by tests
	frozenEndpoint   = "127.78.0.70" // is cut off
)

// nodes are what the clusters have. The second context names both.
var nodes = []string{"10.5.0.2", "10.5.0.3"}

// snapshotSize is that of the etcd database, about.
const snapshotSize = 90 << 20

// world is what all cases share: two clusters, a daemon that has contexts for them, and talosconfigs.
type world struct {
	dir      string
	prod     *apid.Cluster // of the contexts prod, strict, secrets, full and reader
	lab      *apid.Cluster // of lab, slow, dead
	restarts *apid.Endpoint
	bigFile  []byte
	daemon   *testbed.Daemon
	direct   string // talosconfig with the certificates, for comparisons
	gateway  string // what gen-configs wrote, for clients on the host
	port     string // of the gateway
	seen     transcript
	reader   apid.Identity
}

// TestAll runs all cases in one world: its parts end with it.
func TestAll(t *testing.T) {
	w := &world{dir: t.TempDir()}
	w.startClusters(t)
	w.writeTalosconfig(t)
	w.startDaemon(t)
	q, h := w.startQuiet(t), w.startHalfOpen(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, w) })
	}
	t.Run("a stream survives 45 s of quiet", func(t *testing.T) { q.check(t, w) })
	t.Run("who is gone without a word is noticed", func(t *testing.T) { h.check(t, w) })
	t.Run("no credential was ever seen", w.searchEverything)
}

// cases are run in this order: what disturbs the clusters comes last.
var cases = []struct {
	name string
	run  func(*testing.T, *world)
}{
	{"commands", testCommands},
	{"streams", testStreams},
	{"refusals", testRefusals},
	{"contexts", testContexts},
	{"endpoints", testEndpoints},
	{"metadata", testMetadata},
	{"matrix", testMatrix},
	{"document", testDocument},
	{"load", testLoad},
	{"lifetime", testLifetime},
}

func (w *world) startClusters(t *testing.T) {
	t.Helper()
	tables := filepath.Join("..", "..")
	w.prod, w.lab = newCluster(t, tables), newCluster(t, tables)
	w.bigFile = bigText(10 << 20)
	w.prod.Put("/var/log/big", w.bigFile)
	w.prod.AddEvent("etcd", "Health check successful")
	w.lab.Kernel.Add("kern:    info: this is lab")
	var err error
	if w.prod.Snapshot, err = apid.NewSnapshot(w.dir, snapshotSize); err != nil {
		t.Fatal(err)
	}
	if w.lab.Snapshot, err = apid.NewSnapshot(w.dir, 3<<20); err != nil {
		t.Fatal(err)
	}
	serve(t, w.prod, prodEndpoint, apid.EndpointOptions{})
	serve(t, w.prod, agingEndpoint, apid.EndpointOptions{MaxConnectionAge: 2 * time.Second})
	serve(t, w.prod, frozenEndpoint, apid.EndpointOptions{})
	w.restarts = serve(t, w.prod, restartsEndpoint, apid.EndpointOptions{})
	serve(t, w.lab, labRejects, apid.EndpointOptions{Reject: true})
	serve(t, w.lab, labGood, apid.EndpointOptions{})
	serveSilence(t, labSilent)
	if w.reader, err = w.prod.Authority.Client(time.Hour, "os:reader"); err != nil {
		t.Fatal(err)
	}
}

func newCluster(t *testing.T, tables string) *apid.Cluster {
	t.Helper()
	c, err := apid.NewCluster(tables, nodes...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t *testing.T, c *apid.Cluster, host string, o apid.EndpointOptions) *apid.Endpoint {
	t.Helper()
	e, err := c.Serve(net.JoinHostPort(host, "50000"), o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// serveSilence accepts connections and never says anything.
func serveSilence(t *testing.T, host string) {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "50000"))
	if err != nil {
		t.Fatal(err)
	}
	var accepted sync.WaitGroup
	accepted.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
		}
	})
	t.Cleanup(func() { ln.Close(); accepted.Wait() })
}

// bigText is text of which no part is like another.
func bigText(size int) []byte {
	var b []byte
	for digest := sha256.Sum256(nil); len(b) < size; digest = sha256.Sum256(digest[:]) {
		b = fmt.Appendf(b, "%x\n", digest)
	}
	return b[:size]
}

// contexts are those of the host's talosconfig, with its certificates.
func (w *world) contexts() []apid.Context {
	prod := func(name, endpoint string) apid.Context {
		return apid.Context{Name: name, Endpoints: []string{endpoint}, Nodes: nodes[:1], CA: w.prod.Authority.PEM, Identity: w.prod.Admin}
	}
	lab := func(name string, endpoints ...string) apid.Context {
		return apid.Context{Name: name, Endpoints: endpoints, Nodes: nodes, CA: w.lab.Authority.PEM, Identity: w.lab.Admin}
	}
	omni := apid.Context{Name: "omni", Endpoints: []string{"https://omni.example.com:443"}, Extra: "        auth:\n            siderov1:\n                identity: a@example.com\n"}
	return []apid.Context{
		prod("prod", prodEndpoint), prod("strict", prodEndpoint), prod("secrets", prodEndpoint), prod("full", prodEndpoint), prod("reader", prodEndpoint),
		prod("aging", net.JoinHostPort(agingEndpoint, "50000")), prod("restarts", restartsEndpoint), prod("frozen", frozenEndpoint),
		lab("lab", labDead, labRejects, labGood), lab("slow", labSilent, labGood), lab("dead", labDead, labRejects), omni,
	}
}

func (w *world) writeTalosconfig(t *testing.T) {
	t.Helper()
	w.direct = w.write(t, "talosconfig", apid.Talosconfig(w.contexts()...))
}

func (w *world) write(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (w *world) startDaemon(t *testing.T) {
	t.Helper()
	w.daemon = testbed.Start(t, testbed.Options{Roots: testbed.NewCA(t).PEM, Config: fmt.Sprintf(`
[talos]
talosconfig = %q
[talos.context.strict]
access = "read-only"
[talos.context.secrets]
access = "no-secrets"
[talos.context.full]
access = "full"
[talos.context.reader]
access = "full"
role = "os:reader"
`, w.direct)})
	// Writing the containers' files is print-docker-args' work too.
	w.daemon.DockerArgs(t)
	text, err := os.ReadFile(filepath.Join(w.daemon.Home, ".mux/talos/config"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "host.docker.internal:")
	w.port, _, _ = strings.Cut(rest, "\n")
	// The file is the containers' but for the host's name.
	w.gateway = w.write(t, "gateway.yaml", []byte(strings.ReplaceAll(string(text), "host.docker.internal", "localhost")))
}
