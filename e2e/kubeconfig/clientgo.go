// Package kubeconfig compares how muxproxy and client-go read kubeconfigs.
package kubeconfig

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"

	"golang.org/x/net/http/httpguts"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/pkg/apis/clientauthentication"
	"k8s.io/client-go/pkg/apis/clientauthentication/install"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/transport"
)

// Result is what a list of kubeconfigs comes to. The main module's test has the same type.
type Result struct {
	Error    bool               `json:"error,omitempty"` // nothing can be loaded
	Current  string             `json:"current,omitempty"`
	Contexts map[string]Context `json:"contexts,omitempty"`
}

// Context is what a context comes to: where its requests go and what they carry.
type Context struct {
	Error         bool                `json:"error,omitempty"` // no request can be sent
	Server        string              `json:"server,omitempty"`
	Namespace     string              `json:"namespace,omitempty"`
	ServerName    string              `json:"serverName,omitempty"`
	Insecure      bool                `json:"insecure,omitempty"`
	Roots         string              `json:"roots,omitempty"` // name of the certificate authority
	Proxy         string              `json:"proxy,omitempty"`
	Uncompressed  bool                `json:"uncompressed,omitempty"`
	Authorization string              `json:"authorization,omitempty"`
	Impersonate   map[string][]string `json:"impersonate,omitempty"`
	Certificate   string              `json:"certificate,omitempty"` // name of the client certificate
	Exec          *Exec               `json:"exec,omitempty"`
}

// Exec is a plugin as it would be run.
type Exec struct {
	Command string   `json:"command"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
	Info    string   `json:"info"` // KUBERNETES_EXEC_INFO
}

// ClientGo reads the files, which are in dir, as kubectl does.
func ClientGo(dir string, files []string, keys Keys) Result {
	rules := &clientcmd.ClientConfigLoadingRules{}
	for _, file := range files {
		rules.Precedence = append(rules.Precedence, filepath.Join(dir, file))
	}
	raw, err := rules.Load()
	if err != nil {
		return Result{Error: true}
	}
	r := Result{Current: raw.CurrentContext, Contexts: map[string]Context{}}
	for name, context := range raw.Contexts {
		if name == "" {
			continue
		}
		c, err := contextOf(rules, raw, name, keys)
		if err != nil {
			c = &Context{Error: true}
		}
		c.Namespace = context.Namespace
		r.Contexts[name] = *c
	}
	return r
}

// contextOf does what kubectl --context NAME does up to its first request.
func contextOf(rules *clientcmd.ClientConfigLoadingRules, raw *api.Config, name string, keys Keys) (*Context, error) {
	config, err := clientcmd.NewNonInteractiveClientConfig(*raw, name, &clientcmd.ConfigOverrides{}, rules).ClientConfig()
	if err != nil {
		return nil, err
	}
	server, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	if server.Scheme != "https" && server.Scheme != "http" || server.Hostname() == "" {
		return nil, errors.New("no server")
	}
	c := &Context{ServerName: config.ServerName, Insecure: config.Insecure, Uncompressed: config.DisableCompression}
	if err := c.setPlugin(config, keys); err != nil {
		return nil, err
	}
	settings, err := config.TransportConfig()
	if err != nil {
		return nil, err
	}
	if server.Scheme == "https" {
		if err := c.setTLS(settings, keys); err != nil {
			return nil, err
		}
	}
	request := &http.Request{Method: "GET", URL: server, Header: http.Header{}}
	if config.Proxy != nil {
		proxy, err := config.Proxy(request)
		if err != nil {
			return nil, err
		}
		c.Proxy = proxy.String()
	}
	if err := c.setHeader(settings, request); err != nil {
		return nil, err
	}
	bare := *server
	bare.User, bare.RawQuery, bare.Fragment = nil, "", ""
	bare.Path, bare.RawPath = strings.TrimRight(bare.Path, "/"), strings.TrimRight(bare.RawPath, "/")
	c.Server = bare.String()
	return c, nil
}

// setPlugin finds whether a plugin would be run, and with what. It is taken out of config then: this is no place to run it.
func (c *Context) setPlugin(config *rest.Config, keys Keys) error {
	p := config.ExecProvider
	if p == nil {
		return nil
	}
	settings, err := config.TransportConfig() // judges it
	if err != nil {
		return err
	}
	config.ExecProvider = nil
	if settings.HasTokenAuth() || settings.HasBasicAuth() || settings.HasCertAuth() {
		return nil
	}
	if p.InteractiveMode == api.AlwaysExecInteractiveMode {
		return errors.New("standard input is not a terminal")
	}
	c.Exec = &Exec{Command: p.Command, Args: p.Args}
	for _, v := range p.Env {
		c.Exec.Env = append(c.Exec.Env, v.Name+"="+v.Value)
	}
	credential := &clientauthentication.ExecCredential{}
	if p.ProvideClusterInfo {
		with := rest.CopyConfig(config)
		with.ExecProvider = p
		if credential.Spec.Cluster, err = rest.ConfigToExecCluster(with); err != nil {
			return err
		}
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	version, err := schema.ParseGroupVersion(p.APIVersion)
	if err != nil {
		return err
	}
	info, err := runtime.Encode(serializer.NewCodecFactory(scheme).LegacyCodec(version), credential)
	c.Exec.Info = keys.Hide(string(info))
	return err
}

// setTLS does what a handshake asks for.
func (c *Context) setTLS(settings *transport.Config, keys Keys) error {
	config, err := transport.TLSConfigFor(settings)
	if err != nil || config == nil {
		return err
	}
	c.Roots = keys.Roots(config.RootCAs)
	if config.GetClientCertificate == nil || c.Exec != nil {
		return nil
	}
	cert, err := config.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err == nil && len(cert.Certificate) > 0 {
		c.Certificate = keys.Name(cert.Certificate[0])
	}
	return err
}

// recorder is a transport that sends nothing.
type recorder struct{ header http.Header }

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.header = request.Header
	return &http.Response{StatusCode: 200, Body: io.NopCloser(bytes.NewReader(nil))}, nil
}

// setHeader records what a request carries.
func (c *Context) setHeader(settings *transport.Config, request *http.Request) error {
	var r recorder
	rt, err := transport.HTTPWrappersForConfig(settings, &r)
	if err != nil {
		return err
	}
	if _, err := rt.RoundTrip(request); err != nil {
		return err
	}
	c.Authorization = r.header.Get("Authorization")
	if u := request.URL.User; u != nil && c.Authorization == "" { // net/http's client does it
		password, _ := u.Password()
		c.Authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password))
	}
	for name, values := range r.header {
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return fmt.Errorf("invalid value of %s", name)
			}
		}
		if strings.HasPrefix(name, "Impersonate-") {
			if c.Impersonate == nil {
				c.Impersonate = map[string][]string{}
			}
			c.Impersonate[name] = values
		}
	}
	return nil
}

// pool is the set of one certificate.
func pool(cert *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(cert)
	return p
}
