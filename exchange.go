package main

import (
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"strings"
	"sync"
	"time"
)

// reply is the way back to the client: reply1 over HTTP/1.1, reply2 over HTTP/2.
type reply interface {
	// inform passes a 1xx on, if the client's version has them.
	inform(code int, h http.Header) error
	// begin writes the head of res, whose fields are clean; it need not be sent before flush or end.
	begin(res *http.Response)
	// Write writes content.
	io.Writer
	flush() error
	// end writes what follows the content.
	end(trailer http.Header) error
}

// exchange is one request of a client and its answer. What it says of itself goes into event, which is written when
// the upstream's last byte has been read and before it is handed on (spec section 11).
type exchange struct {
	c        *clientConn
	r        *http.Request
	body     *requestBody
	reply    reply
	event    event
	shape    string // of refusals: rule.errorShape
	injected bool
	audited  bool
	broken   bool   // the answer did not arrive whole: the client must not take it for whole
	next     func() // what the connection is used for after a CONNECT
	// upgraded gives the client's connection as a stream once an upgrade is agreed on; nil where there are no upgrades.
	upgraded func() stream

	interim sync.Mutex // held while an interim answer is passed on; guards decided
	decided bool       // no further one is
}

// newExchange begins the exchange for r, which is for host.
func (c *clientConn) newExchange(r *http.Request, host string) *exchange {
	return &exchange{c: c, r: r, event: event{
		id: newEventID(), start: time.Now(), plane: "http", client: c.addr.String(),
		method: r.Method, host: host, path: r.RequestURI,
	}}
}

// send passes the request on to up and its answer back.
func (x *exchange) send(up *upstream) {
	x.event.decision = decisionForwarded
	if x.injected {
		x.event.decision, x.event.injected = decisionInjected, true
	}
	res, err := up.RoundTrip(x.r)
	x.endInterim()
	var unsent *connectError
	x.event.sent = !errors.As(err, &unsent)
	if err != nil {
		x.refuse(upstreamRefusal(x.event.host, err))
		return
	}
	defer res.Body.Close()
	upgrade := res.Header.Get("Upgrade")
	cleanAnswer(res.Header, x.injected)
	if res.StatusCode == http.StatusNoContent {
		delete(res.Header, "Content-Length") // RFC 9110 §8.6; some client might wait for it
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.upgrade(res, upgrade)
		return
	}
	x.answer(res)
}

// refuse answers with f.
func (x *exchange) refuse(f *refusal) {
	x.event.decision, x.event.err = f.decision, f.cause
	if f.code == 0 {
		x.broken = true
		x.audit()
		return
	}
	if p, ok := x.reply.(*reply1); ok && f.code == http.StatusBadRequest {
		p.close = true // what stands behind a malformed request may be part of it
	}
	x.answer(f.response(x.r, x.shape, x.event.id))
}

// answer hands res on piece by piece as it comes.
func (x *exchange) answer(res *http.Response) {
	x.event.code = res.StatusCode
	if isStream(res.Header) {
		x.opened()
	}
	x.reply.begin(res)
	if bodyless(res) || res.ContentLength == 0 {
		x.audit()
		io.Copy(io.Discard, res.Body) // to its end, so that the connection can be kept
		x.finish(res)
		return
	}
	// A head whose content is at hand goes out together with it.
	if (res.ContentLength < 0 || buffered(res.Body) == 0) && x.reply.flush() != nil {
		x.lost(errClientLeft.Error())
		return
	}
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := res.Body.Read(buf[:])
		x.event.out += int64(n)
		if err != nil && err != io.EOF {
			x.lost("upstream: truncated answer")
			x.reply.Write(buf[:n]) // what came is handed on, but never an end
			x.reply.flush()
			return
		}
		if err == io.EOF || x.event.out == res.ContentLength {
			x.audit()
		}
		if n > 0 {
			if _, werr := x.reply.Write(buf[:n]); werr != nil {
				x.lost(errClientLeft.Error())
				return
			}
		}
		if err == io.EOF {
			x.finish(res)
			return
		}
		if x.reply.flush() != nil {
			x.lost(errClientLeft.Error())
			return
		}
	}
}

// finish ends an answer that came whole.
func (x *exchange) finish(res *http.Response) {
	cleanAnswer(res.Trailer, x.injected)
	if x.reply.end(res.Trailer) != nil {
		x.broken = true
	}
}

// lost ends an answer that breaks off.
func (x *exchange) lost(why string) {
	if x.r.Context().Err() != nil && !x.audited {
		why = errClientLeft.Error()
	}
	x.broken = true
	x.event.err = why
	x.audit()
}

// upgrade relays bytes once the upstream has agreed to WebSocket.
func (x *exchange) upgrade(res *http.Response, protocol string) {
	upstream, ok := res.Body.(stream)
	if !ok || x.upgraded == nil || !websocketUpgrade(x.r) || !strings.EqualFold(protocol, "websocket") {
		x.refuse(failed(http.StatusBadGateway, "upstream: 101 unasked", "the upstream switched to a protocol that nobody asked for"))
		return
	}
	res.Header["Connection"] = []string{"Upgrade"}
	res.Header["Upgrade"] = []string{"websocket"}
	x.opened()
	x.event.code = res.StatusCode
	x.reply.begin(res)
	x.broken = true // there is no next request
	if x.reply.flush() == nil {
		x.event.in, x.event.out = relay(x.c.p.ctx, x.upgraded(), upstream)
	}
	x.audit()
}

// opened writes the opening line of something long, unless its line is another's to write.
func (x *exchange) opened() {
	if x.audited {
		return
	}
	e := x.event
	e.open, e.code = true, 0
	x.c.p.audit.write(&e)
}

// audit writes the exchange's line, once.
func (x *exchange) audit() {
	if x.audited {
		return
	}
	x.audited = true
	if x.body != nil {
		x.event.in += x.body.read.Load()
	}
	x.c.p.audit.write(&x.event)
}

// errDecided is an interim answer that comes when the exchange no longer waits for its answer.
var errDecided = errors.New("interim answer too late")

// got1xx passes an interim answer on: see httptrace.ClientTrace. The HTTP/2 Transport may call it, in a goroutine of its own, when
// RoundTrip has given up already, and net/http panics where a handler that has returned is written to.
func (x *exchange) got1xx(code int, h textproto.MIMEHeader) error {
	x.interim.Lock()
	defer x.interim.Unlock()
	if x.decided {
		return errDecided
	}
	cleanAnswer(http.Header(h), x.injected)
	h.Del("Content-Length") // as in a 204
	return x.reply.inform(code, http.Header(h))
}

// endInterim says that no interim answer is passed on any more.
func (x *exchange) endInterim() {
	x.interim.Lock()
	defer x.interim.Unlock()
	x.decided = true
}

// isStream tells whether an answer may go on for hours: server-sent events and gRPC.
func isStream(h http.Header) bool {
	t := h.Get("Content-Type")
	return strings.HasPrefix(t, "text/event-stream") || strings.HasPrefix(t, "application/grpc")
}
