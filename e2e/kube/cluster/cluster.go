// Package cluster runs a Kubernetes cluster on loopback: etcd, a real API server with RBAC and an audit log, and a node of
// its own making that runs real processes. It is what muxproxy's kube plane is tried against, and its audit log says who arrived.
package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startLimit is how long a server may take until it answers.
const startLimit = 90 * time.Second

// Own is the User-Agent of what this package sends to the API server itself.
const Own = "e2e-cluster"

// admins is the group that may do everything.
const admins = "e2e-admins"

// Cluster is a running cluster. Its methods may be called at once, but for StopAPIServer and StartAPIServer.
type Cluster struct {
	// Server is the API server's address, "127.0.0.1:41234".
	Server string
	// Gateway is that of a proxy that takes user and password, and has the API server under GatewayPath.
	Gateway string
	// Node is where the logs and processes of pods come from.
	Node *Kubelet

	dir       string // etcd's data, certificates, logs
	tools     string // the directory with etcd and kube-apiserver
	authority *authority
	serving   pair   // of every server
	admin     pair   // of the user Admin
	tokens    Tokens // of the token users
	etcd      string // "http://127.0.0.1:41235"
	client    *http.Client
	apiserver *process
	started   []*process
	stop      context.CancelFunc
	ending    sync.WaitGroup
	closers   []io.Closer
}

// Tokens are the bearer tokens that the API server knows, and the gateway's password.
type Tokens struct {
	Token, File, Rotated, Exec, Password string
}

// process is a server's.
type process struct {
	cmd   *exec.Cmd
	log   string // a file
	ended chan struct{}
}

// Start returns when the API server is ready and the node can run pods. tools is what tools/build made; all files go to dir.
func Start(tools, dir string) (*Cluster, error) {
	c := &Cluster{dir: dir, tools: tools, tokens: newTokens()}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	steps := []func() error{
		c.writeFiles, c.startEtcd, c.StartAPIServer, c.bindAdmins,
		func() error { return c.startNode(ctx) }, c.startGateway,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

func newTokens() Tokens {
	canary := func() string { return "canary" + rand.Text() }
	return Tokens{Token: canary(), File: canary(), Rotated: canary(), Exec: canary(), Password: canary()}
}

// Close ends all processes.
func (c *Cluster) Close() {
	c.stop()
	for _, closer := range c.closers {
		_ = closer.Close()
	}
	if c.client != nil {
		c.client.CloseIdleConnections()
	}
	for _, p := range c.started {
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
	c.ending.Wait()
}

// file is a path of the cluster's own.
func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// auditPolicy has one line for each request when it ends, and one when a long one begins.
const auditPolicy = `{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[{"level":"Metadata"}]}`

// writeFiles makes the certificates and all that the API server reads.
func (c *Cluster) writeFiles() (err error) {
	if c.authority, err = newAuthority(); err != nil {
		return err
	}
	if c.serving, err = c.authority.server(); err != nil {
		return err
	}
	if c.admin, err = c.authority.user(Admin, "system:masters"); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	accounts, err := keyPEM(key)
	if err != nil {
		return err
	}
	t := c.tokens
	var known strings.Builder
	for token, user := range map[string]string{t.Token: TokenUser, t.File: FileUser, t.Rotated: RotatedUser, t.Exec: ExecUser} {
		fmt.Fprintf(&known, "%s,%s,%[2]s,%s\n", token, user, admins)
	}
	for name, text := range map[string][]byte{
		"ca.pem": c.authority.pem, "serving.pem": c.serving.cert, "serving-key.pem": c.serving.key,
		"admin.pem": c.admin.cert, "admin-key.pem": c.admin.key, "accounts-key.pem": accounts,
		"tokens.csv": []byte(known.String()), "audit-policy.json": []byte(auditPolicy),
	} {
		if err := os.WriteFile(c.file(name), text, 0o600); err != nil {
			return err
		}
	}
	c.client = &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: c.authority.pool(), Certificates: []tls.Certificate{c.admin.tls()}},
	}}
	return nil
}

// startEtcd needs no peer, yet etcd listens for some.
func (c *Cluster) startEtcd() error {
	client, err := freeAddress()
	if err != nil {
		return err
	}
	peer, err := freeAddress()
	if err != nil {
		return err
	}
	c.etcd = "http://" + client
	p, err := c.start("etcd", "--data-dir", c.file("etcd"), "--listen-client-urls", c.etcd, "--advertise-client-urls", c.etcd,
		// The API server waits for these before it begins a watch.
		"--experimental-watch-progress-notify-interval=100ms", "--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "default=http://"+peer)
	if err != nil {
		return err
	}
	return p.await("etcd", func() error { return get(http.DefaultClient, c.etcd+"/health") })
}

// StartAPIServer starts the API server, again on the same port where it ran before, and returns when it is ready. A
// certificate of Admin may name another user in X-Remote-User: a forwarder that lets that through is found out.
func (c *Cluster) StartAPIServer() error {
	if c.Server == "" {
		var err error
		if c.Server, err = freeAddress(); err != nil {
			return err
		}
	}
	_, port, _ := net.SplitHostPort(c.Server)
	p, err := c.start("kube-apiserver",
		"--etcd-servers", c.etcd, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--secure-port", port,
		"--tls-cert-file", c.file("serving.pem"), "--tls-private-key-file", c.file("serving-key.pem"), "--cert-dir", c.dir,
		"--client-ca-file", c.file("ca.pem"), "--token-auth-file", c.file("tokens.csv"), "--authorization-mode=RBAC",
		"--requestheader-client-ca-file", c.file("ca.pem"), "--requestheader-allowed-names", Admin,
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--kubelet-certificate-authority", c.file("ca.pem"), "--kubelet-client-certificate", c.file("admin.pem"), "--kubelet-client-key", c.file("admin-key.pem"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file", c.file("accounts-key.pem"),
		"--service-account-signing-key-file", c.file("accounts-key.pem"), "--service-cluster-ip-range=10.96.0.0/16",
		// No controller makes the default service accounts, without which this one lets no pod be created.
		"--disable-admission-plugins=ServiceAccount",
		"--audit-policy-file", c.file("audit-policy.json"), "--audit-log-path", c.file("audit.log"))
	if err != nil {
		return err
	}
	c.apiserver = p
	return p.await("kube-apiserver", func() error { return get(c.client, "https://"+c.Server+"/readyz") })
}

// StopAPIServer kills the API server.
func (c *Cluster) StopAPIServer() {
	_ = c.apiserver.cmd.Process.Kill()
	<-c.apiserver.ended
}

// start runs one of the tools; what it says goes to a log in dir.
func (c *Cluster) start(tool string, args ...string) (*process, error) {
	log, err := os.OpenFile(c.file(tool+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{cmd: exec.Command(filepath.Join(c.tools, "bin", tool), args...), log: log.Name(), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	c.started = append(c.started, p)
	return p, nil
}

// await returns when check gives nil.
func (p *process) await(what string, check func() error) error {
	deadline := time.NewTimer(startLimit)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			text, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %s: %s", what, p.cmd.ProcessState, text[max(0, len(text)-3000):])
		case <-deadline.C:
			return fmt.Errorf("%s does not answer: %w", what, err)
		}
	}
}

// get asks for a URL that answers 200.
func get(client *http.Client, url string) error {
	res, err := client.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", url, res.Status, text)
	}
	return err
}

// bindAdmins lets the group of the token users do everything.
func (c *Cluster) bindAdmins() error {
	return c.Do(context.Background(), "POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", "application/json", fmt.Sprintf(
		`{"metadata":{"name":%q},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"Group","name":%[1]q}]}`, admins))
}

// Do sends the API server a request as Admin; an error is anything but success.
func (c *Cluster) Do(ctx context.Context, method, path, contentType, body string) error {
	res, err := c.Send(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, text)
	}
	return err
}

// Send sends the API server a request as Admin. The caller closes the answer's body.
func (c *Cluster) Send(ctx context.Context, method, path, contentType, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.Server+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", Own)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return c.client.Do(req)
}

// Canaries are all secrets of the host's kubeconfig: what no container may see. A key counts by its lines.
func (c *Cluster) Canaries() []string {
	t := c.tokens
	all := []string{t.Token, t.File, t.Rotated, t.Exec, t.Password}
	for line := range bytes.Lines(c.admin.key) {
		if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("-----")) && len(line) > 40 {
			all = append(all, string(line))
		}
	}
	return all
}

// CA is the root of all servers, as PEM.
func (c *Cluster) CA() []byte { return c.authority.pem }

// Tokens gives what the users of the kubeconfig have.
func (c *Cluster) Tokens() Tokens { return c.tokens }

// ServingFiles are the files of the certificate and key that all servers on 127.0.0.1 may have.
func (c *Cluster) ServingFiles() (cert, key string) {
	return c.file("serving.pem"), c.file("serving-key.pem")
}

// freeAddress gives an address of loopback on which nobody listens.
func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), errors.Join(ln.Close())
}
