package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"muxproxy/e2e/kube/cluster"
	"muxproxy/e2e/measure"
)

// world is what a run measures, and measures with.
type world struct {
	options
	ctx     context.Context
	dir     string
	token   string // that the stand-in wants
	cluster *cluster.Cluster
	host    *cluster.Host // whose kubeconfig has the real API server
	light   string        // a kubeconfig that has the stand-in as its current context "light"

	origin, load *measure.Process
	contenders   []*contender
	values       measure.Values
}

// contender is one proxy, or none.
type contender struct {
	name string
	// start makes the processes that serve the stand-in and the real API server; nil where there is no proxy. They may be one.
	start       func() (light, real endpoint, err error)
	light, real endpoint
	kubeconfig  string // for the real API server, through the contender, with the exec plugin
}

// endpoint is where a contender has an API server.
type endpoint struct {
	process *measure.Process // nil: none
	address string           // "127.0.0.1:18081"
	prefix  string           // "/contexts/light"
}

func newWorld(ctx context.Context, o options) (*world, error) {
	dir, err := os.MkdirTemp("", "muxproxy-kubebench")
	if err != nil {
		return nil, err
	}
	w := &world{options: o, ctx: ctx, dir: dir, token: "bench-" + rand.Text(), values: measure.Values{}}
	if err := w.begin(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// begin starts everything that a run needs.
func (w *world) begin() (err error) {
	clusterDir, hostDir := w.path("cluster"), w.path("host")
	if err := errors.Join(os.Mkdir(clusterDir, 0o700), os.Mkdir(hostDir, 0o700)); err != nil {
		return err
	}
	if w.cluster, err = cluster.Start(w.tools, clusterDir); err != nil {
		return err
	}
	if w.host, err = w.cluster.NewHost(hostDir); err != nil {
		return err
	}
	cert, key := w.cluster.ServingFiles()
	if w.origin, err = measure.StartRole(w.ctx, "origin", originParameters{Cert: cert, Key: key, Token: w.token}); err != nil {
		return err
	}
	if w.load, err = measure.StartRole(w.ctx, "load", struct{}{}); err != nil {
		return err
	}
	if err := w.writeKubeconfig(); err != nil {
		return err
	}
	return w.addContenders()
}

func (w *world) close() {
	for _, c := range w.contenders {
		c.end()
	}
	for _, p := range []*measure.Process{w.load, w.origin} {
		if p != nil {
			p.Stop()
		}
	}
	if w.cluster != nil {
		w.cluster.Close()
	}
	os.RemoveAll(w.dir)
}

// writeKubeconfig writes the one that has the stand-in.
func (w *world) writeKubeconfig() error {
	w.light = w.path("light")
	return os.WriteFile(w.light, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: light
clusters: [{name: light, cluster: {server: "https://%s", certificate-authority: host/ca.pem}}]
users: [{name: light, user: {token: %s}}]
contexts: [{name: light, context: {cluster: light, user: light}}]
`, w.origin.Addresses[0], w.token), 0o600)
}

// addContenders starts the proxies; the order is that of the table's columns.
func (w *world) addContenders() error {
	if w.muxproxy == "" {
		w.muxproxy = w.path("muxproxy")
		if err := w.build(); err != nil {
			return err
		}
	}
	w.contenders = []*contender{
		{name: "muxproxy", start: w.startMuxproxy},
		{name: proxy, start: w.startKubectlProxies},
		{name: "direct", light: endpoint{address: w.origin.Addresses[0]}, real: endpoint{address: w.cluster.Server}},
	}
	for _, c := range w.contenders {
		if err := c.begin(); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		c.kubeconfig = w.path("kubeconfig-" + strings.ReplaceAll(c.name, " ", "-"))
		text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: exec-token\nclusters: [{name: exec-token, cluster: {server: \"http://%s%s\"}}]\ncontexts: [{name: exec-token, context: {cluster: exec-token}}]\n", c.real.address, c.real.prefix)
		if c.start == nil {
			host, err := os.ReadFile(w.host.Kubeconfig)
			if err != nil {
				return err
			}
			c.kubeconfig = filepath.Join(filepath.Dir(w.host.Kubeconfig), "direct")
			text = strings.Replace(string(host), "current-context: cert", "current-context: exec-token", 1)
		}
		if err := os.WriteFile(c.kubeconfig, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// begin starts the contender's processes.
func (c *contender) begin() (err error) {
	if c.start != nil {
		c.light, c.real, err = c.start()
	}
	return err
}

// end ends them.
func (c *contender) end() {
	for _, e := range []endpoint{c.light, c.real} {
		if e.process != nil {
			e.process.Stop()
		}
	}
}

// build makes the program of this checkout.
func (w *world) build() error {
	module, err := exec.CommandContext(w.ctx, "go", "list", "-m", "-f", "{{.Dir}}", "muxproxy/e2e").Output()
	if err != nil {
		return fmt.Errorf("find the checkout: %w: run it in the folder e2e", err)
	}
	cmd := exec.CommandContext(w.ctx, "go", "build", "-o", w.muxproxy, ".")
	cmd.Dir = filepath.Dir(string(module))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build muxproxy: %w: %s", err, text)
	}
	return nil
}

// startMuxproxy starts the real program in a home of its own. One process serves both.
func (w *world) startMuxproxy() (light, real endpoint, err error) {
	home, err := os.MkdirTemp(w.dir, "home")
	if err != nil {
		return light, real, err
	}
	var ports [3]string
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return light, real, err
		}
	}
	config := fmt.Sprintf("http_proxy_port = %s\nk8s_proxy_port = %s\ntalos_gateway_port = %s\nbind = [\"127.0.0.1\"]\n", ports[0], ports[1], ports[2])
	err = errors.Join(os.Mkdir(filepath.Join(home, ".mux"), 0o700), os.WriteFile(filepath.Join(home, ".mux/proxy.toml"), []byte(config), 0o600))
	if err != nil {
		return light, real, err
	}
	cmd := exec.CommandContext(w.ctx, w.muxproxy, "run")
	cmd.Env = []string{"HOME=" + home, "PATH=/usr/bin:/bin", "KUBECONFIG=" + w.light + ":" + w.host.Kubeconfig}
	var log bytes.Buffer
	cmd.Stderr = &log
	p, err := measure.Start(cmd)
	if err != nil {
		return light, real, err
	}
	address := net.JoinHostPort("127.0.0.1", ports[1])
	light = endpoint{process: p, address: address, prefix: "/contexts/light"}
	real = endpoint{address: address, prefix: "/contexts/exec-token"}
	if err = light.await(w.ctx); err != nil {
		p.Stop()
		err = fmt.Errorf("%w: %s", err, log.Bytes())
	}
	return light, real, err
}

// startKubectlProxies starts one for each API server.
func (w *world) startKubectlProxies() (light, real endpoint, err error) {
	if light, err = w.startKubectlProxy(w.light, "light"); err != nil {
		return light, real, err
	}
	real, err = w.startKubectlProxy(w.host.Kubeconfig, "exec-token")
	return light, real, err
}

func (w *world) startKubectlProxy(kubeconfig, context string) (endpoint, error) {
	cmd := exec.CommandContext(w.ctx, filepath.Join(w.tools, "bin/kubectl"), "proxy", "--kubeconfig", kubeconfig, "--context", context, "--port=0")
	cmd.Env = []string{"HOME=" + w.dir, "PATH=/usr/bin:/bin"}
	p, err := measure.Start(cmd)
	if err != nil {
		return endpoint{}, err
	}
	line, err := p.Out.ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "Starting to serve on ")
	if err != nil || !ok {
		p.Stop()
		return endpoint{}, fmt.Errorf("kubectl proxy says %q: %w", line, err)
	}
	return endpoint{process: p, address: address}, nil
}

// await returns when the endpoint answers.
func (e endpoint) await(ctx context.Context) (err error) {
	// kubectl proxy listens before it has looked up the cluster: nothing but an answer tells that it is ready.
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		var res *http.Response
		if res, err = http.Get("http://" + e.address + e.prefix + "/version"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(res.Status)
		}
	}
	return fmt.Errorf("%s does not answer: %w", e.address, err)
}

// freePort gives a port of loopback that nobody listens on now.
func freePort() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	return port, err
}

// job prepares what all jobs at the stand-in have in common.
func (w *world) job(kind string, c *contender) job {
	j := w.jobAt(kind, c.light)
	if c.start == nil {
		j.CA, j.Token = w.cluster.CA(), w.token
	}
	return j
}

// realJob is one at the real API server.
func (w *world) realJob(kind string, c *contender) job {
	j := w.jobAt(kind, c.real)
	j.Real = true
	if c.start == nil {
		j.CA, j.Token = w.cluster.CA(), w.cluster.Tokens().Exec
	}
	return j
}

func (w *world) jobAt(kind string, e endpoint) job {
	j := job{Kind: kind, Address: e.address, Prefix: e.prefix, Connections: 1, Time: w.time}
	if e.process != nil {
		j.PID = e.process.PID()
	}
	return j
}

// do gives the load generator a job.
func (w *world) do(j job) (result, error) {
	var r result
	err := w.load.Ask(j, &r)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	return r, err
}
