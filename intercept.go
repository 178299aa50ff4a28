package main

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// interceptor ends TLS for the hosts that have a rule and sets their credential on each request.
type interceptor struct {
	p   *proxy
	tls *tls.Config // one for all connections, so that sessions can be resumed
	h2  *http2Server
}

// interceptConn is what the TLS server reads a client's handshake from; it carries the leaf to serve, whatever SNI asks for.
type interceptConn struct {
	*prefixedConn
	leaf   *tls.Certificate
	served *intercepted  // set after the handshake
	over   chan struct{} // closed when an HTTP/2 connection has ended
	idle   *time.Timer   // closes an HTTP/2 connection; used by http2Server.state alone
}

func newInterceptor(p *proxy) *interceptor {
	i := &interceptor{p: p, h2: newHTTP2Server(p.log)}
	i.tls = &tls.Config{
		MinVersion:       tls.VersionTLS12,
		NextProtos:       []string{"h2", "http/1.1"},
		CurvePreferences: localCurves(),
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return hello.Conn.(*interceptConn).leaf, nil
		},
	}
	return i
}

// localCurves are the key exchanges between a container and its own host: without the post-quantum ML-KEM, which takes a fifth of what a
// new connection costs, since what could be recorded there holds no credential. Towards upstreams it stays on.
func localCurves() []tls.CurveID {
	return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
}

// intercepted is one intercepted connection.
type intercepted struct {
	i        *interceptor
	c        *clientConn
	a        authority // of the CONNECT
	host     string    // its Host field: "api.github.com"
	otherSNI bool      // the handshake named another host
	requests gate      // of HTTP/2
}

// accept answers 200 to the CONNECT x; TLS comes next. The CONNECT itself leaves a line only where nothing comes of it.
func (i *interceptor) accept(c *clientConn, h *http1Conn, x *exchange, a authority) {
	leaf, f := i.leaf(c, a)
	if f != nil {
		h.refuseConnect(x, f)
		return
	}
	early, err := h.established(c.conn)
	if err != nil {
		x.event.decision = decisionFailed
		x.lost(errClientLeft.Error())
		return
	}
	conn := &interceptConn{prefixedConn: &prefixedConn{Conn: c.conn, early: early}, leaf: leaf, over: make(chan struct{})}
	x.next = func() { i.serve(c, conn, x, a) }
}

// serve ends TLS and serves the requests inside.
func (i *interceptor) serve(c *clientConn, conn *interceptConn, x *exchange, a authority) {
	tc := tls.Server(conn, i.tls)
	// A deadline, not a context, for which Handshake would start a goroutine: when c.ctx ends, the socket is closed.
	conn.SetDeadline(time.Now().Add(headWait))
	if err := tc.Handshake(); err != nil {
		i.refuseHandshake(x, conn, err)
		return
	}
	conn.SetDeadline(time.Time{})
	state := tc.ConnectionState()
	s := &intercepted{i: i, c: c, a: a, host: hostField(a, 443)}
	s.otherSNI = state.ServerName != "" && !strings.EqualFold(state.ServerName, a.host)
	defer tc.Close()
	if state.NegotiatedProtocol == "h2" {
		conn.served = s
		i.h2.serve(tc)
		return
	}
	c.loop(newHTTP1Conn(tc), s.host, s.handle)
}

// leaf mints or finds the leaf for a's host, within what a client may have minted.
func (i *interceptor) leaf(c *clientConn, a authority) (*tls.Certificate, *refusal) {
	if !i.p.ca.cached(a.host) && !i.p.clients.mint(c.addr.Addr()) {
		return nil, denied(http.StatusTooManyRequests, "minting limit", "too many new host names from this container: try again in a minute")
	}
	leaf, err := i.p.ca.leaf(a.host)
	if err != nil {
		i.p.log.Warn("no leaf", "host", a.host, keyError, err)
		return nil, failed(http.StatusBadGateway, "no leaf", "no certificate for this host: the operator of muxproxy finds the reason in its log")
	}
	return leaf, nil
}

// refuseHandshake ends a connection on which no TLS came about. To a client that speaks plain HTTP it says so.
func (i *interceptor) refuseHandshake(x *exchange, conn net.Conn, err error) {
	var record tls.RecordHeaderError
	cause := "tls handshake with the client"
	if errors.As(err, &record) {
		cause = "not TLS on an intercepted port"
		conn.SetDeadline(time.Now().Add(lingerWait))
		conn.Write([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nmuxproxy: TLS is spoken here\n"))
	}
	x.event.decision, x.event.err, x.event.code = decisionDenied, cause, http.StatusBadRequest
	x.audit()
}

// names tells whether host, a Host field, is the CONNECT authority.
func (s *intercepted) names(host string) bool {
	if host == s.host {
		return true
	}
	a, err := parseAuthority(host, 443)
	return err == nil && a == s.a
}

// handle answers one request of an intercepted connection.
func (s *intercepted) handle(x *exchange) {
	defer x.audit() // whatever happens
	x.event.path = x.r.RequestURI
	n := s.i.p.policy.Load()
	d := n.rules.request(s.a, x.r.Method, x.r.RequestURI)
	if d.rule != nil {
		x.event.service, x.shape = d.rule.service, d.rule.errorShape
	}
	if f := s.mismatch(x.r); f != nil {
		x.refuse(f)
		return
	}
	if f := x.policyRefusal(d); f != nil {
		x.refuse(f)
		return
	}
	cred, f := s.credential(n, d, x.r)
	if f != nil {
		x.refuse(f)
		return
	}
	s.authenticate(x, d, cred)
	target := x.r.RequestURI
	if d.rule != nil && d.rule.dropQuery != "" {
		target = dropParameter(target, d.rule.dropQuery)
	}
	x.target("https", s.host, target)
	x.send(n.upstream(d.rule))
}

// mismatch refuses a request that is not for the CONNECT authority (RFC 9110 §7.4), or not in a form for it.
func (s *intercepted) mismatch(r *http.Request) *refusal {
	fields := r.Header["Host"] // only HTTP/2 leaves it there
	switch {
	case r.Method == "CONNECT":
		return denied(http.StatusBadRequest, "CONNECT inside", "there is no CONNECT inside an intercepted connection")
	case !strings.HasPrefix(r.RequestURI, "/") && (r.RequestURI != "*" || r.Method != "OPTIONS"):
		return denied(http.StatusBadRequest, "request target", "an intercepted connection takes requests in origin-form")
	case !validLine(r):
		return denied(http.StatusBadRequest, "request line", "the method is no token, or the target holds a blank, a control byte or #, which servers read in different ways")
	case r.ProtoMajor == 2 && oddLength(r):
		return denied(http.StatusBadRequest, "content length", "the Content-Length field is malformed")
	case s.otherSNI, r.Host != "" && !s.names(r.Host), r.Host == "" && r.ProtoAtLeast(1, 1),
		len(fields) > 1, len(fields) == 1 && !s.names(fields[0]):
		return denied(http.StatusMisdirectedRequest, "authority mismatch", "the host of the request or of its TLS handshake differs from the CONNECT authority "+s.a.String()+": open a connection for each host")
	}
	delete(r.Header, "Host")
	return nil
}

// oddLength tells whether a request over HTTP/2 has a Content-Length that is not its length in plain digits: net/http's server takes
// such a one for 0 and lets the content come.
func oddLength(r *http.Request) bool {
	lengths := r.Header["Content-Length"]
	return len(lengths) > 1 || len(lengths) == 1 && lengths[0] != strconv.FormatInt(r.ContentLength, 10)
}

// credential finds what d wants set; nil where nothing is to be set.
func (s *intercepted) credential(n *policy, d decision, r *http.Request) (*credential, *refusal) {
	if d.rule == nil || len(d.rule.sources) == 0 {
		if hasPlaceholder(r, d.rule) {
			return nil, failed(http.StatusBadGateway, "placeholder", "the request carries a placeholder, but no rule adds a credential to it")
		}
		return nil, nil
	}
	cred, err := n.creds.find(d.rule)
	switch {
	case errors.Is(err, errNoCredential) && d.rule.builtin && !hasPlaceholder(r, d.rule):
		return nil, nil
	case errors.Is(err, errNoCredential):
		return nil, failed(http.StatusBadGateway, "no credential", "no credential for \""+d.rule.service+"\": "+n.creds.howTo(d.rule))
	case err != nil:
		return nil, failed(http.StatusBadGateway, "credential unusable", "the credential for \""+d.rule.service+"\" cannot be used: "+err.Error())
	case d.action == actionInject && echoes(r.Method):
		return nil, denied(http.StatusForbidden, "TRACE", "TRACE is refused where a credential would be added, since the answer would hold it")
	}
	if err := s.i.p.audit.ready(); err != nil && d.action == actionInject {
		return nil, failed(http.StatusBadGateway, "audit log", "the audit log cannot be written, so no credential is used: the operator of muxproxy finds the reason in its log")
	}
	return cred, nil
}

// echoes tells whether the answer to a request of this method may be the request itself, with the credential in it: TRACE (RFC 9110 §9.3.8),
// TRACK, which is its name on old servers, and both in any case, since there are servers that do not mind it.
func echoes(method string) bool {
	return strings.EqualFold(method, "TRACE") || strings.EqualFold(method, "TRACK")
}

// authenticate cleans the request's header and trailer sections and, where d injects, sets the credential's field. A rule that
// only forwards still takes the client's own auth away.
func (s *intercepted) authenticate(x *exchange, d decision, cred *credential) {
	cleanRequest(x.r)
	rule := d.rule
	x.body.clean = func(h http.Header) { cleanTrailer(h, cred != nil, rule) }
	cleanTrailer(x.r.Trailer, cred != nil, rule)
	if cred == nil {
		return
	}
	stripAuth(x.r.Header, rule)
	if d.action != actionInject {
		return
	}
	delete(x.r.Header, "Cookie")
	cred.set(x.r.Header)
	x.injected = true
}

// serveHTTP2 serves one request of an intercepted HTTP/2 connection, called by net/http's server in a goroutine of its own.
func (s *intercepted) serveHTTP2(w http.ResponseWriter, r *http.Request) {
	x := s.c.newExchange(r, s.host)
	ctx := httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error { return x.got1xx(code, h) },
	})
	x.r = r.WithContext(ctx)
	x.body = body2(r, x.r)
	answer := &reply2{w: w, rc: http.NewResponseController(w)}
	x.reply = answer
	addr := s.c.addr.Addr()
	streams := s.i.p.clients.beginStream(addr)
	defer s.i.p.clients.endStream(addr)
	if f := s.excess(streams, r); f != nil {
		r.Header, x.r.Header = nil, nil // a client that does not read the refusal shall not keep them
		x.refuse(f)
	} else {
		s.handle(x)
		if !x.broken {
			answer.linger(r.Context(), x.body)
		}
	}
	if x.broken {
		panic(http.ErrAbortHandler)
	}
}

// excess refuses a stream beyond what its client address may have at once, now streams, and a header section with more fields
// than HTTP/1.1 lets through. Far beyond, the stream is reset: nothing waits for the client to read an answer.
func (s *intercepted) excess(streams int, r *http.Request) *refusal {
	most := s.i.p.clients.maxStreams()
	switch {
	case streams > most+maxRefusedStreams:
		return &refusal{decision: decisionDenied, cause: "stream limit"}
	case streams > most:
		return denied(http.StatusTooManyRequests, "stream limit", "too many requests at once from this container: wait for some to end")
	case fieldCount(r.Header) > headLines:
		return denied(http.StatusRequestHeaderFieldsTooLarge, "malformed request", "the header section has more than 500 fields")
	}
	return nil
}
