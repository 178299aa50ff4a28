package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"
)

// How the endpoints of a context are tried. An endpoint that is slow holds up nobody, since the next one is tried beside it.
const (
	endpointStagger = 250 * time.Millisecond // after which the next endpoint is tried too
	endpointWait    = 5 * time.Second        // for a connection and its TLS handshake
	settingsWait    = 10 * time.Second       // for the first SETTINGS after them
	endpointMemory  = 15 * time.Second       // how long an endpoint that failed is tried last
)

// talosUpstream reaches the cluster of one context: it dials its endpoints and remembers which one answered. Safe for concurrent use.
type talosUpstream struct {
	context *talosContext
	role    *talosRole // whose certificate is presented; nil presents the talosconfig's own
	dialer  *dialer    // its guard is not asked: the operator named the endpoints
	now     func() time.Time

	mu     sync.Mutex
	last   authority               // guarded by mu: the endpoint that answered last
	failed map[authority]time.Time // guarded by mu: when each failed, if it has not answered since
}

// newTalosUpstream reaches c, by way of the proxy that c or else environment names for an endpoint. role is one that the certificate is to
// have: "" presents c's own.
func newTalosUpstream(c *talosContext, role string, environment func(*url.URL) (*url.URL, error), now func() time.Time) *talosUpstream {
	u := &talosUpstream{context: c, now: now, failed: map[authority]time.Time{}}
	u.dialer = newDialer(dialerConfig{proxy: environment})
	if c.proxy != "" {
		u.dialer.proxy = func(*url.URL) (*url.URL, error) { return talosProxy(c.proxy) }
	}
	if role != "" {
		u.role = newTalosRole(role, u)
	}
	return u
}

// talosProxy reads a proxy-url that checkTalosProxy let pass; nil is none.
func talosProxy(value string) (*url.URL, error) {
	if value == "direct" {
		return nil, nil
	}
	return url.Parse(value)
}

// endpointAttempt is what one endpoint said.
type endpointAttempt struct {
	endpoint authority
	up       *h2Upstream
	err      error
}

// connect gives a connection to the first endpoint that is up, which is one that has sent its SETTINGS: with TLS 1.3 a client
// certificate that is rejected shows no earlier. hello is what the relay has to say first. The error names the context and what each
// endpoint said, and is ctx's where the client has gone.
func (u *talosUpstream) connect(ctx context.Context, hello []byte) (*h2Upstream, authority, error) {
	cert, err := u.certificate(ctx)
	if err != nil {
		return nil, authority{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	order := u.order()
	attempts := make(chan endpointAttempt, len(order))
	var running sync.WaitGroup
	start := func(endpoint authority) {
		// connect waits for it before it returns; cancel ends it.
		running.Go(func() {
			up, err := u.attempt(ctx, endpoint, cert, hello)
			attempts <- endpointAttempt{endpoint, up, err}
		})
	}
	defer func() {
		cancel()
		running.Wait()
		close(attempts)
		for late := range attempts {
			if late.up != nil {
				late.up.close()
			}
		}
	}()
	return u.firstUp(ctx, order, start, attempts)
}

// firstUp starts the attempts one after the other, the next one as soon as one has failed or endpointStagger has passed.
func (u *talosUpstream) firstUp(ctx context.Context, order []authority, start func(authority), attempts <-chan endpointAttempt) (*h2Upstream, authority, error) {
	var said []string
	next := time.NewTimer(0)
	defer next.Stop()
	for started := 0; len(said) < len(order); {
		select {
		case <-next.C:
			if started < len(order) {
				start(order[started])
				started++
				next.Reset(endpointStagger)
			}
		case a := <-attempts:
			if ctx.Err() != nil && a.up == nil {
				return nil, authority{}, ctx.Err()
			}
			u.remember(a.endpoint, a.err)
			if a.err == nil {
				return a.up, a.endpoint, nil
			}
			said = append(said, a.endpoint.String()+": "+talosCause(a.err))
			next.Reset(0)
		}
	}
	return nil, authority{}, fmt.Errorf("no Talos endpoint of context %q answers: %s", u.context.name, strings.Join(said, "; "))
}

// order gives the endpoints as they are to be tried: the one that answered last, then the others as the file has them, those that
// failed a moment ago at the end.
func (u *talosUpstream) order() []authority {
	u.mu.Lock()
	defer u.mu.Unlock()
	var first, others, bad []authority
	for _, e := range u.context.endpoints {
		failed, ok := u.failed[e]
		switch {
		case ok && u.now().Sub(failed) < endpointMemory:
			bad = append(bad, e)
		case e == u.last:
			first = append(first, e)
		default:
			others = append(others, e)
		}
	}
	return append(append(first, others...), bad...)
}

// remember keeps how an endpoint did.
func (u *talosUpstream) remember(endpoint authority, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		u.failed[endpoint] = u.now()
		return
	}
	u.last = endpoint
	delete(u.failed, endpoint)
}

// attempt connects to one endpoint.
func (u *talosUpstream) attempt(ctx context.Context, endpoint authority, cert *tls.Certificate, hello []byte) (*h2Upstream, error) {
	conn, err := u.handshake(ctx, endpoint, cert)
	if err != nil {
		return nil, err
	}
	return u.greet(ctx, conn, hello)
}

// greet waits until the endpoint that conn leads to is up.
func (u *talosUpstream) greet(ctx context.Context, conn net.Conn, hello []byte) (*h2Upstream, error) {
	ctx, cancel := context.WithTimeout(ctx, settingsWait)
	defer cancel()
	return greetH2(ctx, conn, hello)
}

// handshake opens a TLS connection to endpoint over which cert is presented.
func (u *talosUpstream) handshake(ctx context.Context, endpoint authority, cert *tls.Certificate) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, endpointWait)
	defer cancel()
	conn, err := u.dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(conn, u.tls(endpoint, cert))
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return tc, nil
}

// tls is how TLS is done with endpoint, as apid demands it: TLS 1.3, "h2" and a client certificate
// (internal/app/apid/main.go of Talos). It gives no session tickets.
func (u *talosUpstream) tls(endpoint authority, cert *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{"h2"},
		ServerName:                  endpoint.host,
		RootCAs:                     u.context.roots,
		DynamicRecordSizingDisabled: true,
		// Whichever issuers the server names: it says more about a certificate that it rejects than about none.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	}
}

// dial connects to endpoint, through a proxy where one is to be used.
func (u *talosUpstream) dial(ctx context.Context, endpoint authority) (net.Conn, error) {
	var via *url.URL
	if u.dialer.proxy != nil {
		var err error
		if via, err = u.dialer.proxy(&url.URL{Scheme: "https", Host: endpoint.String()}); err != nil {
			return nil, errors.New("the proxy for it is not to be understood")
		}
	}
	if via == nil {
		return u.dialer.proxied.DialContext(ctx, "tcp", endpoint.String())
	}
	return u.dialer.dialThrough(ctx, via, endpoint)
}

// certificate gives what is presented to the cluster. A role whose certificate cannot be had is an error: the talosconfig's own
// is never presented in its place.
func (u *talosUpstream) certificate(ctx context.Context) (*tls.Certificate, error) {
	if u.role == nil {
		return u.context.cert, nil
	}
	return u.role.certificate(ctx)
}

// roleName gives the role that the presented certificate has, "" where it is the talosconfig's own.
func (u *talosUpstream) roleName() string {
	if u.role == nil {
		return ""
	}
	return u.role.name
}

// maxCause bounds what is told of one endpoint, in bytes.
const maxCause = 200

// talosCause says in short why an endpoint could not be used.
func talosCause(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	var alert tls.AlertError
	var unverified *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.As(err, &dns):
		return "the name does not resolve"
	case errors.As(err, &unverified):
		return "its certificate: " + cutText(verifyCause(unverified.Err), maxCause)
	case errors.As(err, &op) && op.Op == "remote error", errors.As(err, &alert):
		return "rejects the client certificate or the handshake: " + cutText(err.Error(), maxCause)
	case op != nil && op.Op == "dial":
		return cutText(op.Err.Error(), maxCause)
	}
	return cutText(err.Error(), maxCause)
}

// verifyCause says why a server's certificate does not hold.
func verifyCause(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "not signed by the ca of the talosconfig"
	}
	return strings.TrimPrefix(err.Error(), "x509: ")
}
