package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	pluginLeeway  = 45 * time.Second // before a credential expires a new one is asked for, or a fifth of its life where that is less
	pluginRest    = time.Second      // between two runs where the first one did not help; doubled up to pluginMaxRest
	pluginMaxRest = 30 * time.Second
	pluginTrial   = time.Minute // a credential that is refused when it is younger was never any good
	execGroup     = "client.authentication.k8s.io/"
)

// kubePlugin is the exec entry of a user: a program of the host that hands out a short-lived credential, for clusters of EKS, GKE, OIDC …
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins).
type kubePlugin struct {
	apiVersion  string // "client.authentication.k8s.io/v1"
	command     string // "aws", found in PATH, or a path, which is absolute
	args        []string
	env         []string // "AWS_PROFILE=prod", added to the daemon's
	nameless    bool     // a variable of env has no name
	interactive string   // "Never", "IfAvailable", "Always"; "" is none of them
	clusterInfo bool     // the plugin is told about the cluster
	hint        string   // how to install it
}

// readPlugin reads an exec entry; dir is that of its file.
func readPlugin(t kubeTable, dir string) *kubePlugin {
	p := &kubePlugin{
		apiVersion: t.str("apiVersion"), command: t.str("command"), args: t.strs("args"),
		interactive: t.str("interactiveMode"), clusterInfo: t.flag("provideClusterInfo"), hint: t.str("installHint"),
	}
	for _, v := range t.tables("env") {
		name := v.str("name")
		p.nameless = p.nameless || name == ""
		p.env = append(p.env, name+"="+v.str("value"))
	}
	if strings.Contains(p.command, "/") {
		p.command = fromDir(dir, p.command)
	}
	if p.interactive == "" && (p.apiVersion == execGroup+"v1beta1" || p.apiVersion == execGroup+"v1alpha1") {
		p.interactive = "IfAvailable"
	}
	return p
}

// version gives "v1" or "v1beta1", "" for others.
func (p *kubePlugin) version() string {
	switch p.apiVersion {
	case execGroup + "v1", execGroup + "v1beta1":
		return strings.TrimPrefix(p.apiVersion, execGroup)
	}
	return ""
}

// check finds what is missing, as clientcmd's validateAuthInfo does.
func (p *kubePlugin) check() error {
	switch {
	case p.command == "":
		return errors.New("exec without command")
	case p.apiVersion == "":
		return errors.New("exec without apiVersion")
	case p.nameless:
		return errors.New("exec with a variable that has no name")
	case p.interactive == "":
		return errors.New("exec without interactiveMode, which apiVersion v1 wants: set IfAvailable")
	case !slices.Contains([]string{"Never", "IfAvailable", "Always"}, p.interactive):
		return errors.New("exec with an interactiveMode that is not Never, IfAvailable or Always")
	}
	return nil
}

// key tells what makes two runs of plugins the same; p may be nil.
func (p *kubePlugin) key(cluster *kubeCluster) [sha256.Size]byte {
	if p == nil {
		return [sha256.Size]byte{}
	}
	text := fmt.Sprintf("%#v", *p)
	if p.clusterInfo {
		text += fmt.Sprintf("%#v", *cluster)
	}
	return sha256.Sum256([]byte(text))
}

// kubePlugins holds what plugins gave over the loads of a kubeconfig, so that contexts of one user share it, and a kubeconfig that
// is written anew runs none. Safe for concurrent use.
type kubePlugins struct {
	mu sync.Mutex
	m  map[[sha256.Size]byte]*kubeExec
}

// plugin gives the runner for p: that of an earlier load where there is one.
func (s *kubeSource) plugin(p *kubePlugin, cluster *kubeCluster) (*kubeExec, error) {
	info, err := execInfo(p, cluster)
	if err != nil {
		return nil, err
	}
	e := newKubeExec(p, info, *s)
	if s.plugins == nil {
		return e, nil
	}
	s.plugins.mu.Lock()
	defer s.plugins.mu.Unlock()
	if s.plugins.m == nil {
		s.plugins.m = make(map[[sha256.Size]byte]*kubeExec)
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%x %q %q %q", p.key(cluster), info, s.environ, s.pluginPath))
	if earlier := s.plugins.m[key]; earlier != nil {
		return earlier, nil
	}
	s.plugins.m[key] = e
	return e, nil
}

// execCredential is what a plugin is told, in the order in which client-go writes it: pkg/apis/clientauthentication.
type execCredential struct {
	Kind       string   `json:"kind"`
	APIVersion string   `json:"apiVersion"`
	Spec       execSpec `json:"spec"`
}

type execSpec struct {
	Cluster     *execCluster `json:"cluster,omitempty"`
	Interactive bool         `json:"interactive"`
}

type execCluster struct {
	Server                   string          `json:"server"`
	TLSServerName            string          `json:"tls-server-name,omitempty"`
	InsecureSkipTLSVerify    bool            `json:"insecure-skip-tls-verify,omitempty"`
	CertificateAuthorityData []byte          `json:"certificate-authority-data,omitempty"`
	ProxyURL                 string          `json:"proxy-url,omitempty"`
	DisableCompression       bool            `json:"disable-compression,omitempty"`
	Config                   json.RawMessage `json:"config"`
}

// execInfo gives KUBERNETES_EXEC_INFO, byte for byte what client-go gives, the newline at its end included.
func execInfo(p *kubePlugin, cluster *kubeCluster) (string, error) {
	info := execCredential{Kind: "ExecCredential", APIVersion: p.apiVersion}
	if p.clusterInfo {
		authority := cluster.authorityData
		if cluster.authorityFile != "" {
			var err error
			if authority, err = readRegular(cluster.authorityFile, maxKubeFile); err != nil {
				return "", fmt.Errorf("read certificate-authority %q: %w", cluster.authorityFile, err)
			}
		}
		proxy, _ := parseKubeProxy(cluster.proxyURL) // the context has been refused where it is none
		info.Spec.Cluster = &execCluster{
			Server: execServer(cluster.server), TLSServerName: cluster.tlsServerName, InsecureSkipTLSVerify: cluster.insecure,
			CertificateAuthorityData: authority, DisableCompression: cluster.uncompressed, Config: cluster.execConfig,
		}
		if proxy != nil {
			info.Spec.Cluster.ProxyURL = proxy.String()
		}
	}
	var text bytes.Buffer
	if err := json.NewEncoder(&text).Encode(info); err != nil {
		return "", fmt.Errorf("exec plugin %q: what it is told about the cluster is no JSON", p.command)
	}
	return text.String(), nil
}

// execServer gives the server as client-go tells it: as it stands, or without query and fragment where it has a path.
func execServer(server string) string {
	u, err := url.ParseRequestURI(server)
	if err != nil || u.Opaque != "" || len(u.Path) <= 1 {
		return server
	}
	u.RawQuery, u.Fragment = "", ""
	return u.String()
}

// kubeExec runs a plugin and keeps what it gave. Safe for concurrent use: at most one run is under way, and who comes meanwhile waits
// for it, or goes on with a credential that is about to expire.
type kubeExec struct {
	// Set once.
	plugin  *kubePlugin
	environ []string // whole, KUBERNETES_EXEC_INFO included
	path    string   // PATH in which the command is found
	log     *slog.Logger
	invoke  func(context.Context) ([]byte, error) // runs the process and gives what it printed; a test puts its own here

	running chan struct{} // holds one token while the plugin runs or its outcome is written

	mu      sync.Mutex // guards the rest
	now     *kubeCredential
	renew   time.Time     // when now is to be renewed; zero: only once it is refused
	refused bool          // now was refused by the API server: it is used while there is no other
	failed  error         // of the last run; nil after one that gave something
	rest    time.Duration // the last pause: 0, or pluginRest to pluginMaxRest
	resume  time.Time     // before that there is no further run: the last one failed, or followed a refusal
}

func newKubeExec(p *kubePlugin, info string, s kubeSource) *kubeExec {
	e := &kubeExec{plugin: p, log: s.log, running: make(chan struct{}, 1), path: s.pluginPath}
	e.environ = slices.Clone(s.environ)
	if e.path != "" {
		e.environ = append(e.environ, "PATH="+e.path)
	} else if s.getenv != nil {
		e.path = s.getenv("PATH")
	}
	e.environ = append(append(e.environ, p.env...), "KUBERNETES_EXEC_INFO="+info)
	e.invoke = e.process
	return e
}

// current gives a credential that is valid, and runs the plugin where there is none. The error is that of the plugin, at once while it
// rests after a failure, or ctx's.
func (e *kubeExec) current(ctx context.Context) (*kubeCredential, error) {
	cred, due, err := e.state(time.Now())
	if !due {
		return cred, err
	}
	return e.run(ctx, cred)
}

// state gives what can be had without a run, and whether a run is due.
func (e *kubeExec) state(now time.Time) (cred *kubeCredential, due bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now != nil && !e.now.expired(now) {
		cred = e.now
	}
	switch {
	case cred != nil && !e.refused && (e.renew.IsZero() || now.Before(e.renew)):
		return cred, false, nil
	case !now.Before(e.resume):
		return cred, true, nil
	case cred != nil:
		return cred, false, nil
	case e.failed != nil:
		return nil, false, fmt.Errorf("%w (it is run again in %s)", e.failed, e.resume.Sub(now).Round(time.Second))
	}
	return nil, true, nil
}

// renewed gives another credential than used, which the API server has refused, or nil where there is none to be had now. A 401 may
// have another reason than the credential, so used is kept until there is a better one; and where that is refused as well, the
// plugin rests.
func (e *kubeExec) renewed(ctx context.Context, used *kubeCredential) *kubeCredential {
	e.mu.Lock()
	now := time.Now()
	if e.now != nil && e.now != used || now.Before(e.resume) {
		defer e.mu.Unlock()
		if e.now == used {
			return nil
		}
		return e.now
	}
	e.refused = true
	if now.Sub(used.since) > pluginTrial {
		e.rest = 0
	}
	e.mu.Unlock()
	cred, err := e.run(ctx, nil)
	if err != nil || cred == used {
		return nil
	}
	return cred
}

// pause makes the next run wait. e.mu is held.
func (e *kubeExec) pause(now time.Time) {
	e.rest = min(max(2*e.rest, pluginRest), pluginMaxRest)
	e.resume = now.Add(e.rest)
}

// run runs the plugin, or waits for the run that is under way; with a credential that still holds it does not wait. A run goes on when
// the client that caused it leaves: others may want its outcome, and a person may be in the middle of a login.
func (e *kubeExec) run(ctx context.Context, holds *kubeCredential) (*kubeCredential, error) {
	if holds != nil {
		select {
		case e.running <- struct{}{}:
		default:
			return holds, nil
		}
	} else {
		select {
		case e.running <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer func() { <-e.running }()
	if cred, due, err := e.state(time.Now()); !due { // while this one waited another one ran it
		return cred, err
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pluginWait)
	defer cancel()
	output, err := e.invoke(ctx)
	var cred *kubeCredential
	if err == nil {
		cred, err = readExecCredential(output, e.plugin.apiVersion, began)
	}
	if err != nil {
		err = fmt.Errorf("exec plugin %q: %w", e.plugin.command, err)
	}
	return e.keep(cred, err, holds)
}

// keep takes over the outcome of a run.
func (e *kubeExec) keep(cred *kubeCredential, err error, holds *kubeCredential) (*kubeCredential, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	if e.failed = err; err != nil {
		e.pause(now)
		e.log.Warn("no credential", keyError, err) // once a run, whatever becomes of the requests that wait for it
		if holds != nil && !holds.expired(now) {
			return holds, nil
		}
		return nil, err
	}
	if e.refused {
		e.pause(now)
	} else {
		e.rest, e.resume = 0, time.Time{}
	}
	e.now, e.renew, e.refused = cred, time.Time{}, false
	if !cred.expires.IsZero() {
		life := cred.expires.Sub(cred.since)
		e.renew = cred.expires.Add(-min(pluginLeeway, life/5))
	}
	return cred, nil
}

// readExecCredential reads what a plugin printed. No error shows any of it.
func readExecCredential(output []byte, apiVersion string, began time.Time) (*kubeCredential, error) {
	doc, err := parseKubeDocument(output)
	if err != nil || !doc.table().has() {
		return nil, errors.New("printed something else than an ExecCredential")
	}
	t := doc.table()
	version, kind, status := t.str("apiVersion"), t.str("kind"), t.table("status")
	token, cert, key := status.str("token"), status.str("clientCertificateData"), status.str("clientKeyData")
	expires := status.str("expirationTimestamp")
	switch {
	case doc.err != nil || kind != "ExecCredential":
		return nil, errors.New("printed something else than an ExecCredential")
	case version != apiVersion:
		return nil, fmt.Errorf("printed an ExecCredential of another apiVersion than %q", apiVersion)
	case !status.has():
		return nil, errors.New("printed an ExecCredential without status")
	case token == "" && cert == "" && key == "":
		return nil, errors.New("printed neither a token nor a client certificate")
	case (cert == "") != (key == ""):
		return nil, errors.New("printed a client certificate without its key, or a key alone")
	case !httpguts.ValidHeaderFieldValue(token):
		return nil, errors.New("printed a token with a byte that no header field may hold")
	}
	cred := &kubeCredential{since: began}
	if token != "" {
		cred.header = bearerCredential(token)
	}
	if expires != "" {
		if cred.expires, err = time.Parse(time.RFC3339, expires); err != nil {
			return nil, errors.New("printed an expirationTimestamp that is no time of RFC 3339")
		}
	}
	if cert != "" {
		if cred.cert, err = parsePair([]byte(cert), []byte(key)); err != nil {
			return nil, err
		}
		cred.expires = earlier(cred.expires, certificateEnd(cred.cert))
	}
	if cred.expired(time.Now()) {
		return nil, fmt.Errorf("gave a credential that expired at %s: log in again, or set the clock", cred.expires.UTC().Format(time.RFC3339))
	}
	return cred, nil
}
