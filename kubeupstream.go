package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"
)

const (
	kubePatience  = 10 * time.Second // with a silent connection: see secondTry; and between two pings of an HTTP/2 connection
	kubePing      = 5 * time.Second  // for the answer to a ping
	maxReplayable = 1 << 20          // bytes of content that are kept to be sent once more
)

// kubeUpstream sends requests to the API server of one context with the host's authentication: an http.RoundTripper. It goes to
// what the operator configured, so the address guard does not apply (spec 6.6); only muxproxy's own ports stay closed.
//
// Requests share a pool of HTTP/1.1 connections, watches and followed logs HTTP/2 connections, where hundreds of them need few; an
// upgrade, WebSocket or SPDY, has an HTTP/1.1 connection to itself. Safe for concurrent use.
type kubeUpstream struct {
	// Set once.
	context *kubeContext
	dialer  *dialer
	auth    *kubeAuth
	root    *kubeFile // the cluster's certificate authority; nil where it is no file

	link atomic.Pointer[kubeLink] // the one in use
	mu   sync.Mutex               // guards what follows, and writes of link
	// roots are what root said last.
	roots *x509.CertPool
}

// kubeLink is the connections that were made with one client certificate and one certificate authority. When either changes, new
// requests take a new link; the old one's idle connections are closed, and what runs over it runs to its end, since an API server
// asks who is there only when a request begins.
type kubeLink struct {
	up    *upstream
	cert  *tls.Certificate
	roots *x509.CertPool
	since time.Time     // of the credential
	turn  chan struct{} // holds a token while a stream looks for its connection: see stream
}

// stream sends r over HTTP/2. One request at a time looks for its connection: a Transport dials for each that finds none, so that a
// hundred watches that begin at once would have a hundred connections. Who has waited for long goes ahead all the same.
func (l *kubeLink) stream(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	leave := func() {}
	late := time.NewTimer(kubePing)
	defer late.Stop()
	select {
	case l.turn <- struct{}{}:
		leave = sync.OnceFunc(func() { <-l.turn })
	case <-late.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	out := r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { leave() }}))
	res, err := l.up.roundTrip2(out)
	leave()
	if errors.Is(err, errNoHTTP2) {
		return l.up.pooled(r)
	}
	return res, err
}

// kubeUpstreamOptions are what all contexts share.
type kubeUpstreamOptions struct {
	proxy *httpproxy.Config // the operator's environment; nil: none. A context's proxy-url counts before it
	guard guard             // for its own ports and addresses
}

// newKubeUpstream makes the upstream of a context that has no err. Nothing is opened or run before the first request.
func newKubeUpstream(c *kubeContext, o kubeUpstreamOptions) *kubeUpstream {
	o.guard.open = true
	config := dialerConfig{guard: o.guard}
	switch {
	case c.proxy != nil:
		config.proxy = func(*url.URL) (*url.URL, error) { return c.proxy, nil }
	case o.proxy != nil:
		config.proxy = o.proxy.ProxyFunc()
	}
	u := &kubeUpstream{context: c, dialer: newDialer(config), auth: newKubeAuth(c.auth), roots: c.authority.roots}
	if c.authority.file != "" && c.server.Scheme == "https" {
		u.root = &kubeFile{path: c.authority.file}
	}
	return u
}

// RoundTrip sends r with the host's authentication in the place of the client's, which the caller has removed. r.URL.Scheme and
// r.URL.Host are the context's server's, and r.URL.Opaque is "//" + host + target. r's header is left as it is, so that it never holds
// a credential. Content of a known and small length is kept, so that the request can be sent once more: after a 401, with a renewed
// credential, and where a connection turned out to be dead. The errors are a *kubeError; or the client's own: its context's, and
// errClientContent.
func (u *kubeUpstream) RoundTrip(r *http.Request) (*http.Response, error) {
	content, err := keepContent(r)
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	cred, err := u.auth.current(ctx)
	if err != nil {
		closeBody(r)
		return nil, u.explain(ctx, &credentialError{err})
	}
	res, err := u.try(r, cred, content, kubeFileAge)
	if refusedIdentity(res, err) {
		if next := u.auth.renewed(ctx, cred); next != nil && content != nil {
			if res != nil {
				discard(res)
			}
			res, err = u.try(r, next, content, 0)
		}
	}
	if err != nil {
		return nil, u.explain(ctx, err)
	}
	res.Request = r
	return res, nil
}

// refusedIdentity tells whether the server, or a TLS proxy before it, would have taken another credential.
func refusedIdentity(res *http.Response, err error) bool {
	if err == nil {
		return res.StatusCode == http.StatusUnauthorized
	}
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // an alert: crypto/tls, conn.go
}

// keptContent is content that can be sent more than once; nil is content that cannot.
type keptContent []byte

// keepContent reads r's content where it is small and there is memory for it. Content of unknown length may be one half of a conversation.
func keepContent(r *http.Request) (keptContent, error) {
	if !hasBody(r) {
		return keptContent{}, nil
	}
	if r.ContentLength <= 0 || r.ContentLength > maxReplayable {
		return nil, nil
	}
	if from, ok := r.Body.(interface{ keep(n int64) bool }); ok && !from.keep(r.ContentLength) {
		return nil, nil
	}
	content := make(keptContent, r.ContentLength)
	_, err := io.ReadFull(r.Body, content)
	r.Body.Close()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errClientContent, err)
	}
	return content, nil
}

// body gives the content to be sent once.
func (k keptContent) body() io.ReadCloser {
	if len(k) == 0 {
		return http.NoBody
	}
	return &keptBody{bytes.NewReader(k)}
}

// keptBody is content that is at hand: upstream asks for Buffered.
type keptBody struct{ *bytes.Reader }

func (b *keptBody) Buffered() int { return b.Len() }
func (b *keptBody) Close() error  { return nil }

// try sends r once with cred, or twice where the connection was dead. Files are looked at again where that was longer ago than age.
func (u *kubeUpstream) try(r *http.Request, cred *kubeCredential, content keptContent, age time.Duration) (*http.Response, error) {
	l, err := u.linkFor(cred, age)
	if err != nil {
		closeBody(r)
		return nil, &credentialError{err}
	}
	out := *r
	out.Header = maps.Clone(r.Header)
	u.dress(out.Header, cred)
	if content != nil {
		out.Body = content.body()
		out.GetBody = func() (io.ReadCloser, error) { return content.body(), nil }
		delete(out.Header, "Expect") // the content is here already
	}
	if r.Header["Upgrade"] != nil || r.URL.Scheme != "https" || !streams(r) {
		return l.up.pooled(&out)
	}
	res, err := l.stream(&out)
	var connect *connectError
	if err != nil && content != nil && r.Context().Err() == nil && !errors.As(err, &connect) {
		res, err = l.stream(&out) // the connection was found dead; the Transport makes another one
	}
	return res, err
}

// dress puts the host's authentication into h.
func (u *kubeUpstream) dress(h http.Header, cred *kubeCredential) {
	if cred.header != nil {
		cred.header.set(h)
	}
	maps.Copy(h, u.context.auth.impersonate)
	if u.context.uncompressed {
		delete(h, "Accept-Encoding")
	}
}

// streams tells whether the answer to r goes on and on: a watch or a followed log. It need not know every form: what it misses
// takes a connection of the pool for its time.
func streams(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	target := requestTarget(r.URL)
	path, _, _ := strings.Cut(target, "?")
	return strings.Contains(path, "/watch/") || asksFor(target, "watch") || asksFor(target, "follow")
}

// asksFor tells whether the query of target has key, and not as false. The API server takes all but these for true (apimachinery,
// conversion/queryparams).
func asksFor(target, key string) bool {
	_, query, _ := strings.Cut(target, "?")
	if !strings.Contains(query, key) && !strings.Contains(query, "%") {
		return false
	}
	values, _ := url.ParseQuery(query)
	v, ok := values[key]
	return ok && v[0] != "0" && !strings.EqualFold(v[0], "false")
}

// linkFor gives the link for cred, a new one where the certificate or the authority has changed. A request that got its credential
// before another one changed it takes the newer link.
func (u *kubeUpstream) linkFor(cred *kubeCredential, age time.Duration) (*kubeLink, error) {
	l := u.link.Load()
	if l != nil && u.root == nil && (l.cert == cred.cert || cred.since.Before(l.since)) {
		return l, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.readRoots(age); err != nil && u.roots == nil {
		return nil, err
	}
	l = u.link.Load()
	if l != nil && l.roots == u.roots && (l.cert == cred.cert || cred.since.Before(l.since)) {
		return l, nil
	}
	next := &kubeLink{up: u.newLink(cred.cert), cert: cred.cert, roots: u.roots, since: cred.since, turn: make(chan struct{}, 1)}
	u.link.Store(next)
	if l != nil {
		l.up.closeIdle()
	}
	return next, nil
}

// newLink makes the connections of a link. u.mu is held.
func (u *kubeUpstream) newLink(cert *tls.Certificate) *upstream {
	config := &tls.Config{RootCAs: u.roots, ServerName: u.context.tlsServerName, InsecureSkipVerify: u.context.insecure}
	if cert != nil {
		// Whatever authorities the server names: those of a proxy before it are not all.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	up := newUpstreamTLS(u.dialer, config)
	up.patience = kubePatience
	up.h2.HTTP2 = &http.HTTP2Config{SendPingTimeout: kubePatience, PingTimeout: kubePing}
	return up
}

// readRoots reads the file of the certificate authority if it has changed; what it said before holds while it is of no use. u.mu is
// held.
func (u *kubeUpstream) readRoots(age time.Duration) error {
	if u.root == nil {
		return nil
	}
	_, err := u.root.read(age, func(data []byte) error {
		roots, err := parseRoots(data)
		if err == nil {
			u.roots = roots
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("load certificate-authority %q: %w", u.root.path, err)
	}
	return nil
}

// closeIdle closes all connections that no request uses.
func (u *kubeUpstream) closeIdle() {
	if l := u.link.Load(); l != nil {
		l.up.closeIdle()
	}
}

// credential tells what the context authenticates with and until when that is good, as far as it is known: no plugin is run for it.
// source is "client certificate", `exec plugin "aws"`, or "" where requests are anonymous. err says why requests fail for want of a
// credential or of a certificate authority.
func (u *kubeUpstream) credential() (source string, expires time.Time, err error) {
	source = u.auth.source
	u.mu.Lock()
	err = u.readRoots(kubeFileAge)
	if u.roots != nil {
		err = nil
	}
	u.mu.Unlock()
	if err != nil {
		return source, time.Time{}, err
	}
	cred, err := u.auth.known()
	if cred != nil {
		expires = cred.expires
	}
	return source, expires, err
}

// discard reads the little that an error answer holds, so that its connection is kept.
func discard(res *http.Response) {
	io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	res.Body.Close()
}

// credentialError is a credential or a certificate authority that is not to be had.
type credentialError struct{ err error }

func (e *credentialError) Error() string { return e.err.Error() }
func (e *credentialError) Unwrap() error { return e.err }

// kubeError is a request that was not answered. Its Error is for the operator, and tells all but secrets; code and text are for
// the client, cause for the audit log: constant sentences.
type kubeError struct {
	code  int    // 502 or 504
	cause string // "connect"
	text  string // "the API server cannot be reached: …"
	err   error
}

func (e *kubeError) Error() string { return e.err.Error() }
func (e *kubeError) Unwrap() error { return e.err }

// explain tells what err means for the client. What the client itself did stays as it is.
func (u *kubeUpstream) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, errClientContent) {
		return err
	}
	e := &kubeError{code: http.StatusBadGateway, err: fmt.Errorf("context %q: %w", u.context.name, err)}
	var cred *credentialError
	var dns *net.DNSError
	var tlsErr *handshakeError
	var own *guardError
	switch {
	case errors.As(err, &cred):
		e.cause, e.text = "credential", "muxproxy has no credential for this context at the moment: the operator finds the reason in its log"
	case errors.As(err, &own):
		e.cause, e.text = "loop", "the server of this context is muxproxy itself: its operator has to correct the kubeconfig"
	case errors.As(err, &dns):
		e.cause, e.text = "dns", "the name of the API server does not resolve on the host that runs muxproxy: try again later"
	case timedOut(err):
		e.code, e.cause, e.text = http.StatusGatewayTimeout, "time-out", "the API server did not answer in time: try again later"
	case errors.As(err, &tlsErr):
		e.cause, e.text = "tls handshake", "the TLS handshake with the API server failed: the operator finds the reason in muxproxy's log"
	case isOpError(err):
		e.cause, e.text = "connect", "the API server cannot be reached from the host that runs muxproxy: try again later"
	default:
		e.cause, e.text = "broken off", "the connection to the API server broke off before it had answered: see what has become of the request before it is sent again"
	}
	return e
}
