package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"muxproxy/e2e/apid"
	"muxproxy/e2e/measure"
)

// world is what a run measures, and measures with.
type world struct {
	options
	ctx        context.Context
	dir        string
	module     string // the checkout
	cluster    *apid.Cluster
	authority  *apid.Authority
	node       *measure.Process // nil where the cluster is the node
	address    string           // of the node
	load       load
	contenders []*contender
	all        []*measurement
	values     measure.Values
}

// contender is one gateway, or none.
type contender struct {
	name    string
	start   func() (*contender, error) // another process of it; nil where there is none
	process *measure.Process
	address string
	tls     *tls.Config // of its clients
}

// cpuTime is what the gateway has used so far.
func (c *contender) cpuTime() time.Duration {
	if c.process == nil {
		return 0
	}
	return measure.CPUTime(c.process.PID())
}

func newWorld(ctx context.Context, o options) (*world, error) {
	dir, err := os.MkdirTemp("", "talosbench")
	if err != nil {
		return nil, err
	}
	w := &world{options: o, ctx: ctx, dir: dir, all: measurements(), values: measure.Values{}}
	if err := w.begin(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// begin starts everything that a run needs.
func (w *world) begin() (err error) {
	if w.module, err = checkout(w.ctx); err != nil {
		return err
	}
	// The cluster is the node of grpc-go's ends; of the other it has the identities alone.
	if w.cluster, err = apid.NewCluster(w.module, "10.5.0.2"); err != nil {
		return err
	}
	w.cluster.Forget()
	w.authority = w.cluster.Authority
	server, err := w.authority.Server("localhost", "127.0.0.1")
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		"root.pem": w.authority.PEM, "client.pem": w.cluster.Admin.Cert, "client-key.pem": w.cluster.Admin.Key, "server.pem": server.Cert, "server-key.pem": server.Key,
	} {
		if err := os.WriteFile(w.path(name), text, 0o600); err != nil {
			return err
		}
	}
	if err := w.startNode(); err != nil {
		return err
	}
	return w.addContenders()
}

// startNode starts the node and chooses the load generator.
func (w *world) startNode() error {
	if w.ends == "grpc" {
		w.load = grpcLoad{}
		e, err := w.cluster.Serve("127.0.0.1:0", apid.EndpointOptions{Hosts: []string{"localhost"}})
		if err != nil {
			return err
		}
		w.address = e.Address()
		return nil
	}
	w.load = rawLoad{}
	var err error
	if w.node, err = measure.StartRole(w.ctx, "node", w.parameters()); err == nil {
		w.address = w.node.Addresses[0]
	}
	return err
}

// parameters are those of a role. The gateways' own certificate is the node's: what signs it is not what is measured.
func (w *world) parameters() parameters {
	return parameters{
		Cert: w.path("server.pem"), Key: w.path("server-key.pem"), Roots: w.path("root.pem"),
		ClientCert: w.path("client.pem"), ClientKey: w.path("client-key.pem"), Bulk: w.bulk, Node: w.address,
	}
}

// addContenders starts the gateways; the order is that of the table's columns.
func (w *world) addContenders() error {
	if w.muxproxy == "" {
		w.muxproxy = w.path("muxproxy")
		if err := w.build(); err != nil {
			return err
		}
	}
	role := func(name string) func() (*contender, error) {
		return func() (*contender, error) {
			p, err := measure.StartRole(w.ctx, name, w.parameters())
			if err != nil {
				return nil, err
			}
			return &contender{name: name, process: p, address: p.Addresses[0], tls: &tls.Config{RootCAs: w.authority.Pool(), ServerName: "localhost", NextProtos: []string{"h2"}}}, nil
		}
	}
	for _, start := range []func() (*contender, error){w.startMuxproxy, role(byGRPC), role(byCopy)} {
		c, err := start()
		if err != nil {
			return err
		}
		c.start = start
		w.contenders = append(w.contenders, c)
	}
	direct, err := w.parameters().client()
	w.contenders = append(w.contenders, &contender{name: "direct", address: w.address, tls: direct})
	return err
}

// checkout is the directory of muxproxy's own module.
func checkout(ctx context.Context) (string, error) {
	module, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "muxproxy/e2e").Output()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w: run it in the folder e2e", err)
	}
	return filepath.Dir(string(module)), nil
}

// build makes the program of this checkout.
func (w *world) build() error {
	cmd := exec.CommandContext(w.ctx, "go", "build", "-o", w.muxproxy, ".")
	cmd.Dir = w.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build muxproxy: %w: %s", err, text)
	}
	return nil
}

// startMuxproxy starts the real program in a home of its own.
func (w *world) startMuxproxy() (*contender, error) {
	home, err := os.MkdirTemp(w.dir, "home")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf("http_proxy_port = %s\ntalos_gateway_port = %s\nbind = [\"127.0.0.1\"]\n\n[talos]\ntalosconfig = %q\n", ports[0], ports[1], w.path("talosconfig"))
	talosconfig := apid.Talosconfig(apid.Context{Name: "bench", Endpoints: []string{w.address}, Nodes: []string{"10.5.0.2"}, CA: w.authority.PEM, Identity: w.cluster.Admin})
	err = errors.Join(os.Mkdir(filepath.Join(home, ".mux"), 0o700), os.WriteFile(w.path("talosconfig"), talosconfig, 0o600),
		os.WriteFile(filepath.Join(home, ".mux/proxy.toml"), []byte(config), 0o600))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(w.ctx, w.muxproxy, "run", "--no-kube")
	cmd.Env = []string{"HOME=" + home}
	address := net.JoinHostPort("127.0.0.1", ports[1])
	p, err := measure.StartListening(w.ctx, cmd, address)
	if err != nil {
		return nil, err
	}
	roots, err := os.ReadFile(filepath.Join(home, ".mux/proxy-ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	return &contender{name: "muxproxy", process: p, address: address, tls: &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"h2"}}}, nil
}

// freePorts gives ports of loopback that nobody listens on now.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		ports = append(ports, port)
	}
	return ports, nil
}

func (w *world) close() {
	for _, c := range w.contenders {
		if c.process != nil {
			c.process.Stop()
		}
	}
	if w.node != nil {
		w.node.Stop()
	}
	if w.cluster != nil {
		w.cluster.Close()
	}
	os.RemoveAll(w.dir)
}
