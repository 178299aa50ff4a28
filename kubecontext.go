package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// kubeContext is one context of the host's kubeconfig, ready to be served, or with the reason why it cannot be. It never
// changes; two loads of unchanged files give contexts of one digest. What its files and its plugin say is asked when a request
// needs it, so that a file that appears later is enough.
type kubeContext struct {
	name      string   // "kind-dev"
	namespace string   // "" is the server's default
	server    *url.URL // scheme, host and a path prefix without slash at its end: "https://rancher.example.com/k8s/clusters/c-x"; nil where err is set
	err       error    // why it cannot be served; its text names the way out where there is one

	tlsServerName string   // in the handshake and on the certificate; "" is the server's host
	insecure      bool     // the certificate is not verified
	authority     kubeRoot // what verifies it
	proxy         *url.URL // its own upstream proxy, or nil
	uncompressed  bool     // answers are not to be asked for in a content coding
	auth          kubeAuthConfig
	digest        [sha256.Size]byte // of all the above and the plugin's configuration
}

// kubeRoot is a cluster's certificate authority: a file, roots that the kubeconfig holds, or with neither the system's.
type kubeRoot struct {
	file  string
	roots *x509.CertPool
}

// kubeCluster is a cluster as a file has it, with its paths made absolute.
type kubeCluster struct {
	server, tlsServerName, proxyURL string
	insecure, uncompressed          bool
	authorityFile                   string
	authorityData                   []byte
	execConfig                      json.RawMessage // what is passed to plugins; nil is null
}

// kubeUser is a user as a file has it. It holds secrets as they are and lives only while the files are read.
type kubeUser struct {
	certFile, keyFile, tokenFile string
	certData, keyData            []byte
	token, username, password    string
	as, asUID                    string
	asGroups                     []string
	asExtra                      map[string][]string
	authProvider                 string // its name; "" without one
	hasProvider                  bool
	exec                         *kubePlugin // nil without one
}

// execExtension names the extension of a cluster that is passed to plugins (client-go, client_config.go).
const execExtension = "client.authentication.k8s.io/exec"

// readCluster reads a cluster; dir is that of its file.
func readCluster(t kubeTable, dir string) *kubeCluster {
	return &kubeCluster{
		server: t.str("server"), tlsServerName: t.str("tls-server-name"), proxyURL: t.str("proxy-url"),
		insecure: t.flag("insecure-skip-tls-verify"), uncompressed: t.flag("disable-compression"),
		authorityFile: fromDir(dir, t.str("certificate-authority")), authorityData: t.data("certificate-authority-data"),
		execConfig: extensions(t)[execExtension].json("extension"),
	}
}

// readUser reads a user; dir is that of its file.
func readUser(t kubeTable, dir string) *kubeUser {
	u := &kubeUser{
		certFile: fromDir(dir, t.str("client-certificate")), certData: t.data("client-certificate-data"),
		keyFile: fromDir(dir, t.str("client-key")), keyData: t.data("client-key-data"),
		token: t.str("token"), tokenFile: fromDir(dir, t.str("tokenFile")),
		username: t.str("username"), password: t.str("password"),
		as: t.str("as"), asUID: t.str("as-uid"), asGroups: t.strs("as-groups"), asExtra: map[string][]string{},
	}
	extra := t.table("as-user-extra")
	for key := range extra.pairs {
		u.asExtra[key] = extra.strs(key)
	}
	extensions(t)
	if provider := t.table("auth-provider"); provider.has() {
		u.authProvider, u.hasProvider = provider.str("name"), true
	}
	if exec := t.table("exec"); exec.has() {
		u.exec = readPlugin(exec, dir)
	}
	return u
}

// fromDir makes the path of a kubeconfig absolute.
func fromDir(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// newKubeContext resolves a context. What is judged, and what is left alone, is client-go's choice (clientcmd's ClientConfig and
// rest's TransportFor), faults that only show in a request included: a user that is not there is nobody, and over plain http no
// credential is sent.
func newKubeContext(name string, all *kubeEntries, s kubeSource) *kubeContext {
	entry := all.contexts[name]
	c := &kubeContext{name: name, namespace: entry.namespace}
	cluster, user := all.clusters[entry.cluster], all.users[entry.user]
	if user == nil {
		user = &kubeUser{}
	}
	if cluster == nil {
		c.err = fmt.Errorf("cluster %q is not in the kubeconfig: run kubectl config get-clusters to see those that are", entry.cluster)
		return c
	}
	err := errors.Join(c.setCluster(cluster), user.check())
	if err == nil {
		err = c.setUser(cluster, user, s)
	}
	if c.err = err; err != nil {
		c.server = nil
	}
	return c
}

// setCluster takes over what cluster says.
func (c *kubeContext) setCluster(cluster *kubeCluster) (err error) {
	c.tlsServerName, c.insecure, c.uncompressed = cluster.tlsServerName, cluster.insecure, cluster.uncompressed
	if c.server, err = parseKubeServer(cluster.server); err != nil {
		return err
	}
	if c.proxy, err = parseKubeProxy(cluster.proxyURL); err != nil {
		return err
	}
	if cluster.authorityFile != "" && len(cluster.authorityData) > 0 {
		return errors.New("certificate-authority and certificate-authority-data are both set: keep one of them")
	}
	hasAuthority := cluster.authorityFile != "" || len(cluster.authorityData) > 0
	if c.server.Scheme == "https" && hasAuthority && cluster.insecure {
		return errors.New("a certificate authority beside insecure-skip-tls-verify: keep one of them")
	}
	c.authority.file = cluster.authorityFile
	if len(cluster.authorityData) > 0 && c.server.Scheme == "https" {
		if c.authority.roots, err = parseRoots(cluster.authorityData); err != nil {
			return fmt.Errorf("certificate-authority-data: %w", err)
		}
	}
	return nil
}

// parseKubeServer reads a cluster's server. One without a scheme is http: client-go asks for a certificate authority only once
// the scheme is settled. The error shows nothing of it: it may hold a password.
func parseKubeServer(text string) (*url.URL, error) {
	if text == "" {
		return nil, errors.New("its cluster has no server")
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Host == "" {
		u, err = url.Parse("http://" + text)
		if err == nil && u.Path != "" && u.Path != "/" {
			err = errors.New("a path without a scheme")
		}
	}
	if err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("server is not the URL of an API server: write https://HOST:PORT")
	}
	u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = "", false, "", ""
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u, nil
}

// parseKubeProxy reads a proxy-url; "" is none. The error does not show it, since it may hold a password.
func parseKubeProxy(text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || !slices.Contains([]string{"http", "https", "socks5"}, u.Scheme) {
		return nil, errors.New("proxy-url is not the URL of a proxy: http://, https:// and socks5:// are known")
	}
	return u, nil
}

// parseRoots reads the certificates of a PEM text.
func parseRoots(pem []byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("no certificate in PEM form")
	}
	return roots, nil
}

// check finds contradictions in a user, as clientcmd's validateAuthInfo does.
func (u *kubeUser) check() error {
	var errs []error
	fault := func(is bool, text string) {
		if is {
			errs = append(errs, errors.New(text))
		}
	}
	fault(u.token != "" && (u.username != "" || u.password != ""), "token beside username or password: keep one of them")
	if u.certFile != "" || len(u.certData) > 0 {
		fault(u.certFile != "" && len(u.certData) > 0, "client-certificate and client-certificate-data are both set: keep one of them")
		fault(u.keyFile != "" && len(u.keyData) > 0, "client-key and client-key-data are both set: keep one of them")
		fault(u.keyFile == "" && len(u.keyData) == 0, "a client certificate without client-key or client-key-data")
	}
	fault(u.as == "" && (u.asUID != "" || len(u.asGroups) > 0 || len(u.asExtra) > 0), "as-uid, as-groups or as-user-extra without as")
	if u.exec != nil {
		fault(u.hasProvider, "auth-provider beside exec: keep one of them")
		errs = append(errs, u.exec.check())
	}
	return errors.Join(errs...)
}

// setUser takes over what user says. The secrets go behind types that do not show them.
func (c *kubeContext) setUser(cluster *kubeCluster, u *kubeUser, s kubeSource) (err error) {
	a := &c.auth
	if a.impersonate, err = u.impersonation(); err != nil {
		return err
	}
	if userinfo := c.server.User; userinfo != nil {
		password, _ := userinfo.Password() // net/http's client sends it, whatever the scheme
		a.header, a.source = basicCredential(userinfo.Username(), password), "userinfo of server"
		c.server.User = nil
	}
	if c.server.Scheme == "https" {
		err = c.setIdentity(cluster, u, s)
	}
	c.digest = digestContext(c, cluster, u)
	return err
}

// setIdentity finds what the user authenticates with.
func (c *kubeContext) setIdentity(cluster *kubeCluster, u *kubeUser, s kubeSource) error {
	a := &c.auth
	switch {
	case u.hasProvider && (u.authProvider == "gcp" || u.authProvider == "azure"):
		return fmt.Errorf("auth-provider %q has been removed from Kubernetes: use its exec plugin instead, %s", u.authProvider, providerPlugins[u.authProvider])
	case u.hasProvider:
		return fmt.Errorf("auth-provider %q is not supported: use an exec plugin instead, for OIDC kubelogin (kubectl oidc-login)", u.authProvider)
	case u.tokenFile != "" && u.username != "":
		return errors.New("tokenFile beside username: keep one of them")
	case !httpguts.ValidHeaderFieldValue(u.token):
		return errors.New("token holds a byte that no header field may hold: write it on one line")
	}
	if u.exec != nil && u.exec.version() == "" {
		return fmt.Errorf("exec plugin %q: its apiVersion is not supported: v1 and v1beta1 of client.authentication.k8s.io are", u.exec.command)
	}
	if u.token != "" {
		a.header, a.source = bearerCredential(u.token), "token"
	}
	if u.tokenFile != "" {
		a.tokenFile, a.source = u.tokenFile, "tokenFile"
	}
	if u.username != "" {
		a.header, a.source = basicCredential(u.username, u.password), "username and password"
	}
	if err := a.setCertificate(u); err != nil {
		return err
	}
	static := u.token != "" || u.tokenFile != "" || u.username != "" || a.hasCertificate()
	if u.exec == nil || static { // client-go never runs the plugin beside something static
		return nil
	}
	if u.exec.interactive == "Always" {
		return fmt.Errorf("exec plugin %q: its interactiveMode is Always, and muxproxy has no terminal to give it: set IfAvailable", u.exec.command)
	}
	var err error
	a.exec, err = s.plugin(u.exec, cluster)
	a.source = fmt.Sprintf("exec plugin %q", u.exec.command)
	return err
}

// providerPlugins names what came in the place of a provider.
var providerPlugins = map[string]string{
	"gcp":   "gke-gcloud-auth-plugin (gcloud container clusters get-credentials)",
	"azure": "kubelogin (kubelogin convert-kubeconfig)",
}

// setCertificate takes over a client certificate. One that the kubeconfig holds is judged at once, files when they are needed.
func (a *kubeAuthConfig) setCertificate(u *kubeUser) error {
	if u.certFile == "" && len(u.certData) == 0 {
		return nil
	}
	if a.source != "" {
		a.source += " and "
	}
	a.source += "client certificate"
	if u.certFile != "" || u.keyFile != "" {
		a.pair = newKubePair(u)
		return nil
	}
	var err error
	a.cert, err = parsePair(u.certData, u.keyData)
	return err
}

// parsePair makes a client certificate of PEM texts. The error shows nothing of them.
func parsePair(cert, key []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, errors.New("the client certificate and its key cannot be used: one is not in PEM form, or they do not belong together")
	}
	return &pair, nil
}

// impersonation gives the fields that ask the API server to act for another (transport/round_trippers.go), nil for none.
func (u *kubeUser) impersonation() (http.Header, error) {
	if u.as == "" {
		return nil, nil
	}
	h := http.Header{"Impersonate-User": {u.as}}
	if u.asUID != "" {
		h["Impersonate-Uid"] = []string{u.asUID}
	}
	if len(u.asGroups) > 0 {
		h["Impersonate-Group"] = u.asGroups
	}
	for key, values := range u.asExtra {
		name := http.CanonicalHeaderKey("Impersonate-Extra-" + escapeFieldName(key))
		h[name] = append(h[name], values...)
	}
	for name, values := range h {
		if !slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			continue
		}
		return nil, fmt.Errorf("%s: a value holds a byte that no header field may hold", name)
	}
	return h, nil
}

// escapeFieldName escapes what a field name may not hold, as client-go does: "a/b" is "a%2Fb".
func escapeFieldName(key string) string {
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; c == '%' || !httpguts.ValidHeaderFieldName(string(rune(c))) || c >= 0x80 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// digestContext tells contexts apart that were made of different text. It is a digest, since that text holds secrets.
func digestContext(c *kubeContext, cluster *kubeCluster, u *kubeUser) [sha256.Size]byte {
	var text bytes.Buffer
	fmt.Fprintf(&text, "%q %q %q %#v", c.name, c.namespace, c.server, *cluster)
	user := *u
	user.exec = nil
	fmt.Fprintf(&text, "%#v %x", user, u.exec.key(cluster))
	return sha256.Sum256(text.Bytes())
}

// serviceAccount is where a pod finds its service account.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// inClusterKubeconfig gives one context for the service account of the pod that muxproxy runs in, as rest.InClusterConfig finds it.
func inClusterKubeconfig(s kubeSource, files []string) (*kubeconfig, error) {
	dir := s.account
	if dir == "" {
		dir = serviceAccount
	}
	host, port := s.getenv("KUBERNETES_SERVICE_HOST"), s.getenv("KUBERNETES_SERVICE_PORT")
	token := filepath.Join(dir, "token")
	if _, err := readRegular(token, maxKubeFile); err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("%w %s, and for the service account of a pod", errNoKubeconfig, strings.Join(files, ", "))
	}
	namespace, _ := readRegular(filepath.Join(dir, "namespace"), maxKubeFile)
	all := newKubeEntries()
	all.contexts["in-cluster"] = kubeContextEntry{"in-cluster", "in-cluster", strings.TrimSpace(string(namespace))}
	all.clusters["in-cluster"] = &kubeCluster{server: "https://" + net.JoinHostPort(host, port), authorityFile: filepath.Join(dir, "ca.crt")}
	all.users["in-cluster"] = &kubeUser{tokenFile: token}
	return &kubeconfig{current: "in-cluster", files: files, contexts: []*kubeContext{newKubeContext("in-cluster", all, s)}}, nil
}
