package main

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/elazarl/goproxy"

	"muxproxy/e2e/measure"
)

// proxyParameters are those of the roles "goproxy" and "reverse".
type proxyParameters struct {
	CACert, CAKey string   // files: the CA that signs leaves
	Roots         string   // file: what the origin's certificate is verified against
	Token         string   // set as "Authorization: Bearer TOKEN"
	Tunneled      []string // authorities that are not intercepted
	Idle          int      // connections to the origin that are kept; 0 is net/http's default, 2
}

// poolSize is how many idle connections to the origin most opponents keep: as many as muxproxy does.
const poolSize = 128

// transport is the opponents' way to the origin: HTTP/1.1, as muxproxy's.
func (p proxyParameters) transport() (*http.Transport, error) {
	roots, err := loadRoots(p.Roots)
	if err != nil {
		return nil, err
	}
	return &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots},
		MaxIdleConnsPerHost: p.Idle,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}, nil
}

func loadRoots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return roots, nil
}

// certStore is goproxy's store of leaves; without one it mints a leaf for every connection.
type certStore struct{ leaves sync.Map }

func (s *certStore) Fetch(host string, mint func() (*tls.Certificate, error)) (*tls.Certificate, error) {
	if leaf, ok := s.leaves.Load(host); ok {
		return leaf.(*tls.Certificate), nil
	}
	leaf, err := mint()
	if err == nil {
		s.leaves.Store(host, leaf)
	}
	return leaf, err
}

// serveGoproxy is goproxy as its documentation sets it up for production, with an ECDSA CA, whose leaves are cheaper than
// those of the RSA CA that it brings along.
func serveGoproxy(p proxyParameters) error {
	ca, err := tls.LoadX509KeyPair(p.CACert, p.CAKey)
	if err != nil {
		return err
	}
	proxy := goproxy.NewProxyHttpServer()
	if proxy.Tr, err = p.transport(); err != nil {
		return err
	}
	proxy.Logger = log.New(io.Discard, "", 0)
	proxy.CertStore = &certStore{}
	proxy.AllowHTTP2 = true
	proxy.KeepAcceptEncoding = true
	intercept := &goproxy.ConnectAction{Action: goproxy.ConnectMitm, TLSConfig: goproxy.TLSConfigFromCA(&ca)}
	proxy.OnRequest().HandleConnectFunc(func(host string, _ *goproxy.ProxyCtx) (*goproxy.ConnectAction, string) {
		if slices.Contains(p.Tunneled, host) {
			return goproxy.OkConnect, host
		}
		return intercept, host
	})
	proxy.OnRequest().DoFunc(func(r *http.Request, _ *goproxy.ProxyCtx) (*http.Request, *http.Response) {
		r.Header.Set("Authorization", "Bearer "+p.Token)
		return r, nil
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go http.Serve(ln, proxy)
	return measure.UntilEOF(ln.Addr().String())
}
