package cluster

import (
	"crypto/subtle"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// GatewayPath is the path under which the gateway has the API server, as Rancher has.
const GatewayPath = "/k8s/clusters/c-1"

// startGateway serves a proxy in front of the API server that takes user and password, which the API server itself no
// longer does: it sends requests on as Admin, who impersonates the user.
func (c *Cluster) startGateway() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.Gateway = ln.Addr().String()
	upstream := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.authority.pool(), Certificates: []tls.Certificate{c.admin.tls()}}}
	proxy := &httputil.ReverseProxy{Transport: upstream, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "https", Host: c.Server})
		r.Out.Header.Del("Authorization")
		r.Out.Header.Set("Impersonate-User", BasicUser)
		r.Out.Header.Set("Impersonate-Group", admins)
	}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != BasicUser || subtle.ConstantTimeCompare([]byte(password), []byte(c.tokens.Password)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="gateway"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	s := &http.Server{
		Handler: http.StripPrefix(GatewayPath, handler), ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{c.serving.tls()}},
	}
	c.ending.Go(func() { _ = s.ServeTLS(ln, "", "") })
	c.closers = append(c.closers, s, closer(upstream.CloseIdleConnections))
	return nil
}

// closer makes an io.Closer of a function.
type closer func()

func (f closer) Close() error { f(); return nil }
