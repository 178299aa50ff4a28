package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// kubeExchange is one request of a client and its answer. It is the ResponseWriter that the context's ReverseProxy writes to, and what
// the proxy's hooks find by the request's connection: so one proxy serves all requests of a context. What the exchange says of itself
// goes into event, which is written when the upstream's last byte has been read and before it is handed on (spec section 11).
type kubeExchange struct {
	http.ResponseWriter
	ctx     context.Context // of the request
	k       *kubePlane
	c       *servedContext // nil until it is known
	q       kubeRequest
	prefix  string // "/contexts/prod": what stands before every path that the client is told
	target  string // request target for the API server: "/api/v1/pods?watch=1"
	event   event
	request kubeContent // of the client
	answer  kubeAnswer  // of the upstream
	flushes bool        // the answer is of unknown length: each piece is sent when it comes
	share   kubeShare   // of the memory for contents that are held
	audited bool
}

// serveHTTP answers one request.
func (k *kubePlane) serveHTTP(w http.ResponseWriter, r *http.Request) {
	k.live.Add(1)
	defer k.live.Done()
	conn := r.Context().Value(kubeConnKey{}).(*kubeConn)
	x := &kubeExchange{ResponseWriter: w, ctx: r.Context(), k: k}
	x.event = event{id: newEventID(), start: time.Now(), plane: "kube", client: r.RemoteAddr, method: r.Method, path: r.RequestURI}
	x.share = k.held.share(r.RemoteAddr)
	defer x.share.release()
	conn.exchange = x
	defer x.end(r)
	if conn.handed {
		toOriginForm(w, r, k.door.local)
	}
	if f := x.admit(r); f != nil {
		r.Header = nil // a client that does not read the refusal shall not keep it
		x.refuse(r, f)
		return
	}
	x.c.used.Store(true)
	x.event.injected, x.event.decision = x.c.injected, decisionForwarded
	if x.c.injected {
		x.event.decision = decisionInjected
	}
	x.take(r)
	x.c.proxy.ServeHTTP(x, r)
}

// toOriginForm makes a request in absolute-form to one of our names, as a client that ignores NO_PROXY sends it to the http plane, one
// in origin-form. What such a client sends next may be for anybody, so the connection is not used again.
func toOriginForm(w http.ResponseWriter, r *http.Request, local func(string) bool) {
	if r.URL.Scheme != "http" || r.Method == http.MethodConnect || !local(r.URL.Host) {
		return
	}
	r.RequestURI = originForm(r)
	w.Header().Set("Connection", "close")
}

// admit judges the request from its first line to its content; nil lets it go to x.c.
func (x *kubeExchange) admit(r *http.Request) *refusal {
	if f := x.k.door.admit(r); f != nil {
		return f
	}
	s := x.k.serving.Load()
	x.c, x.prefix, x.target = s.route(r.RequestURI)
	x.event.path = x.target
	if x.c == nil {
		return s.unserved(x.prefix)
	}
	x.event.service, x.event.context = x.c.name, x.c.name
	if x.c.off != nil {
		return failed(http.StatusBadGateway, "context: off", "context "+strconv.Quote(x.c.name)+" cannot be served; its operator sees why in the log and the health of muxproxy")
	}
	x.event.host = x.c.server.Host
	path, query, ok := splitTarget(x.target)
	x.q = parseKubeRequest(r.Method, path, query)
	x.q.upgrade = upgradeOf(r.Header) != ""
	x.event.verb, x.event.resource, x.event.namespace = x.q.verb, x.q.String(), x.q.namespace
	if !ok || !cleanPath(&x.q) {
		return denied(http.StatusBadRequest, "door: ambiguous path", "the path holds a dot segment, an empty segment, a malformed or doubled escape or a character (backslash, ?, #, ;, controls) that servers read in different ways: send it in its plain form")
	}
	if (x.c.access.access != accessFull || len(x.c.access.rules) > 0) && overridesMethod(r.Header) {
		return denied(http.StatusBadRequest, "door: method override", "method override fields are not allowed here: use the method itself")
	}
	if f := x.c.access.judge(&x.q); f != nil {
		return f
	}
	stripIdentity(r.Header)
	if x.q.writesSecret() {
		if f := x.c.access.judgeSecret(&x.q, r, &x.share); f != nil {
			return f
		}
	}
	if err := x.k.audit.ready(); err != nil {
		return failed(http.StatusBadGateway, "audit log", "the audit log cannot be written, so no credential is used: the operator has to see to it")
	}
	return nil
}

// splitTarget gives the decoded path and the query of a request target; false where an escape is malformed.
func splitTarget(target string) (path, query string, ok bool) {
	path, query, _ = strings.Cut(target, "?")
	if strings.IndexByte(path, '%') < 0 {
		return path, query, true
	}
	plain, err := url.PathUnescape(path)
	return plain, query, err == nil
}

// unserved is the refusal of a request for a context that there is not.
func (s *kubeServing) unserved(prefix string) *refusal {
	switch {
	case s.source == nil:
		return failed(http.StatusBadGateway, "no kubeconfig", "the host has no kubeconfig that can be served: its operator sees why in the log and the health of muxproxy")
	case prefix == "":
		return denied(http.StatusNotFound, "no current context", "the kubeconfig of the host has no current context: use /contexts/NAME, as the kubeconfig that muxproxy wrote does")
	}
	return denied(http.StatusNotFound, "no such context", "no such context is served: take one of those that the kubeconfig which muxproxy wrote has now")
}

// take puts what counts a request's content in its place, and makes sure that a client which waits for nothing more can be cut off.
func (x *kubeExchange) take(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	x.request.ReadCloser, x.request.x = r.Body, x
	r.Body = &x.request
}

// newKubeProxy makes the forwarder of one context, for all its requests.
func newKubeProxy(transport http.RoundTripper, errors *log.Logger) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: transport,
		// Rewrite, never Director: that runs before the fields are removed which the client's Connection names, so that a client could drop
		// what it adds (Rancher GHSA-pvxj-25m6-7vqr).
		Rewrite:        func(p *httputil.ProxyRequest) { exchangeOf(p.In.Context()).rewrite(p) },
		ModifyResponse: func(res *http.Response) error { return exchangeOf(res.Request.Context()).receive(res) },
		ErrorHandler:   func(_ http.ResponseWriter, r *http.Request, err error) { exchangeOf(r.Context()).fail(r, err) },
		BufferPool:     kubeBuffers{},
		ErrorLog:       errors,
	}
}

// kubeBuffers lends the buffers that content is copied through.
type kubeBuffers struct{}

func (kubeBuffers) Get() []byte  { return copyBuffers.Get().(*[copyBuffer]byte)[:] }
func (kubeBuffers) Put(b []byte) { copyBuffers.Put((*[copyBuffer]byte)(b)) }

// rewrite points the request at the API server, with its target byte for byte. Trailer fields are not passed on: nothing in Kubernetes
// has them, and they could name whom the request is from.
func (x *kubeExchange) rewrite(p *httputil.ProxyRequest) {
	out, server := p.Out, x.c.server
	out.Host = server.Host
	*out.URL = url.URL{Scheme: server.Scheme, Host: server.Host, Opaque: "//" + server.Host + server.EscapedPath() + x.target}
	out.Trailer = nil
	if out.Body != nil {
		out.Body = p.In.Body // which tells how much is at hand, as ReverseProxy's wrapper does not
	}
}

// receive makes an answer fit for the client, and has it counted.
func (x *kubeExchange) receive(res *http.Response) error {
	x.event.sent, x.event.code = true, res.StatusCode
	delete(res.Header, "Alt-Svc") // an invitation around the proxy
	delete(res.Header, "Set-Cookie")
	delete(res.Trailer, "Set-Cookie")
	if location := res.Header["Location"]; location != nil {
		x.relocate(res.Header)
	}
	x.answer.ReadCloser, x.answer.x, x.answer.left = res.Body, x, res.ContentLength
	if res.StatusCode == http.StatusSwitchingProtocols {
		return x.switchProtocols(res)
	}
	if x.request.pending() {
		// The server has answered before it has read all: the rest must not be read as the next request.
		x.Header().Set("Connection", "close")
	}
	x.moveHeader(res)
	if bodyless(res) || res.ContentLength == 0 {
		x.audit()
		return nil
	}
	if x.streams(res) {
		x.opened()
	}
	res.Body = &x.answer
	// ReverseProxy flushes answers of unknown length by a timer and with a goroutine each; Write does it without.
	x.flushes, res.ContentLength = res.ContentLength < 0, max(res.ContentLength, 0)
	return nil
}

// moveHeader gives the answer's header section to the client as it is. net/http's server would add fields that are not there.
func (x *kubeExchange) moveHeader(res *http.Response) {
	h := x.Header()
	for name, values := range res.Header {
		h[name] = values
	}
	for _, name := range []string{"Content-Type", "Date"} {
		if _, ok := h[name]; !ok {
			h[name] = nil
		}
	}
	res.Header = nil
}

// streams tells whether an answer may go on for hours: a watch, a log that is followed, server-sent events of something behind /proxy/.
func (x *kubeExchange) streams(res *http.Response) bool {
	return x.q.verb == "watch" || x.q.subresource == "log" && asksFor(x.target, "follow") || isStream(x.Header())
}

// switchProtocols lets an upgrade through that the client asked for, by an upstream that gives a stream.
func (x *kubeExchange) switchProtocols(res *http.Response) error {
	body, ok := res.Body.(io.ReadWriteCloser)
	if !ok || !x.q.upgrade {
		return errUnasked
	}
	x.opened()
	res.Body = &kubeStream{ReadWriteCloser: body, x: x}
	return nil
}

// errUnasked is an upstream that switched to a protocol that nobody asked for.
var errUnasked = errors.New("101 unasked")

// fail answers what the upstream, or the way to it, did not.
func (x *kubeExchange) fail(r *http.Request, err error) {
	if errors.Is(err, errUnasked) {
		x.refuse(r, failed(http.StatusBadGateway, "upstream: 101 unasked", "the API server switched to a protocol that nobody asked for"))
		return
	}
	var unsent *connectError
	var unauthenticated *credentialError
	x.event.sent = !errors.As(err, &unsent) && !errors.As(err, &unauthenticated)
	x.event.injected = x.event.injected && unauthenticated == nil
	x.k.tell(x.c, err)
	var failure *kubeError
	if errors.As(err, &failure) {
		x.refuse(r, failed(failure.code, failure.cause, failure.text))
		return
	}
	x.refuse(r, upstreamRefusal(x.c.server.Host, err)) // the client's own doing
}

// refuse answers with f as the API server would, so that kubectl shows its text.
func (x *kubeExchange) refuse(r *http.Request, f *refusal) {
	x.event.decision, x.event.err, x.event.code = f.decision, f.cause, f.code
	if f.decision == decisionDenied && x.q.entersPod() {
		x.event.id = x.k.denied.idFor(r.RemoteAddr, r.RequestURI, x.event.id, x.event.start)
	}
	x.audit()
	if f.code == 0 {
		panic(http.ErrAbortHandler) // the client has left, or all is cut
	}
	content := statusOf(f, x.event.id)
	h := x.Header()
	h["Content-Type"] = []string{"application/json"}
	h["Content-Length"] = []string{strconv.Itoa(len(content))}
	h["Cache-Control"] = []string{"no-store"}
	if f.code == http.StatusTooManyRequests {
		h["Retry-After"] = []string{"1"} // without it client-go does not try again
	}
	x.ResponseWriter.WriteHeader(f.code)
	x.ResponseWriter.Write(content) // a client that has left needs no answer
}

// opened writes the opening line of something long.
func (x *kubeExchange) opened() {
	e := x.event
	e.open, e.code = true, 0
	x.k.audit.write(&e)
}

// audit writes the exchange's line, once.
func (x *kubeExchange) audit() {
	if x.audited {
		return
	}
	x.audited = true
	x.event.in += x.request.read.Load()
	x.event.out += x.answer.read.Load()
	x.k.audit.write(&x.event)
}

// end writes the line of an exchange that broke off: the client has left, or all was cut.
func (x *kubeExchange) end(r *http.Request) {
	if !x.audited && x.event.err == "" && x.event.code != http.StatusSwitchingProtocols {
		x.event.err = errClientLeft.Error()
	}
	x.audit()
}

// WriteHeader passes a status on; interim answers are cleaned like the final one.
func (x *kubeExchange) WriteHeader(code int) {
	if code < 200 && code != http.StatusSwitchingProtocols {
		h := x.Header()
		delete(h, "Set-Cookie")
		delete(h, "Alt-Svc")
	}
	x.ResponseWriter.WriteHeader(code)
	x.flush()
}

// Unwrap lets http.ResponseController find what x does not do itself.
func (x *kubeExchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// flushBelow is how much content may be at hand for a flush to be put off: more comes at once, so it goes out together with that.
const flushBelow = 4 << 10

// Write passes content on.
func (x *kubeExchange) Write(p []byte) (int, error) {
	n, err := x.ResponseWriter.Write(p)
	if err == nil {
		x.flush()
	}
	return n, err
}

// flush sends what has been written of an answer that comes bit by bit.
func (x *kubeExchange) flush() {
	if x.flushes && buffered(x.answer.ReadCloser) < flushBelow {
		x.ResponseWriter.(http.Flusher).Flush() // net/http's always is one
	}
}

// Hijack gives the client's connection as a stream, with what the client sent early: ReverseProxy looks at the connection alone.
func (x *kubeExchange) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(x.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(time.Time{})
	if n := rw.Reader.Buffered(); n > 0 {
		early, _ := rw.Reader.Peek(n)
		conn = &prefixedConn{Conn: conn, early: early}
	}
	return conn, rw, nil
}
