package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// gRPC status codes (google.golang.org/grpc/codes).
const (
	grpcCancelled          = 1
	grpcPermissionDenied   = 7
	grpcResourceExhausted  = 8
	grpcFailedPrecondition = 9
	grpcInternal           = 13
	grpcUnavailable        = 14
)

// What an audit line holds of the nodes of an RPC. One for more, or for what is no name of a node, is refused, since nobody could tell
// which it was for. It is kept for as long as the RPC goes on.
const (
	maxLoggedNodes = 16 << 10 // bytes of all of them
	maxNodes       = 1 << 10
	maxLoggedNode  = 253 // a host name has no more
)

// maxKept bounds what is kept of a value that a client chose, for as long as the RPC goes on, in bytes: a header section may be 1 MiB.
const maxKept = 1 << 10

// talosConn is one client's connection to the talos plane. It is the owner of the relay's: see h2Owner for which functions run
// at once.
type talosConn struct {
	plane  *talosPlane
	client string      // "172.17.0.2:51234"
	addr   netip.Addr  // its address
	ahead  *talosAhead // for the first RPC, nil where none was dialed
	// upstream is of the first RPC that was let through: where the connection leads. All others have to be for it. judge alone sets it, and
	// open takes it back where nothing was reached.
	upstream atomic.Pointer[talosUpstream]
	endpoint atomic.Pointer[authority] // that the connection leads to; nil until it does
}

// talosRPC is what is kept of one RPC: the data of its h2Stream.
type talosRPC struct {
	event    event
	method   string // :path
	stream   bool   // it may go on for hours
	nameless bool   // it is for nodes that the audit line does not hold
	set      talosContextConfig
	context  *talosContext
	upstream *talosUpstream
}

// owner gives the relay what decides on the connection.
func (c *talosConn) owner() h2Owner {
	return h2Owner{judge: c.judge, open: c.open, forward: c.forward, ended: c.ended}
}

// judge lets an RPC through or refuses it; reads of COSI resources are judged by their first message, in a second call.
func (c *talosConn) judge(s *h2Stream) h2Verdict {
	rpc, known := s.data.(*talosRPC)
	var verdict talosVerdict
	if known {
		if !s.whole {
			verdict = talosVerdict{refused: "cannot be judged: its first message is not whole, or too long", level: accessFull}
		} else {
			verdict = judgeTalosContent(s.content)
		}
	} else {
		rpc = c.newRPC(s)
		s.data = rpc
		if c.plane.clients.beginStream(c.addr) > c.plane.clients.maxStreams() {
			return h2Verdict{refusal: rpc.fail(grpcResourceExhausted, "stream limit", "too many RPCs at once from this container: wait for some to end")}
		}
		if refusal := c.choose(rpc, s); refusal != nil {
			return h2Verdict{refusal: refusal}
		}
		verdict = judgeTalosMethod(rpc.set.access, s.field(":path"))
	}
	switch {
	case verdict.look:
		return h2Verdict{hold: true}
	case verdict.refused != "":
		return h2Verdict{refusal: rpc.deny(verdict)}
	}
	return c.admit(rpc)
}

// newRPC takes down what the audit line needs.
func (c *talosConn) newRPC(s *h2Stream) *talosRPC {
	rpc := &talosRPC{method: keptText(s.field(":path"), maxKept), event: event{
		id: newEventID(), start: s.start, plane: "talos", service: "talos", client: c.client, host: keptText(s.field(":authority"), maxKept),
	}}
	rpc.event.nodes, rpc.nameless = loggedNodes(s.fields)
	rpc.event.method, rpc.event.path = rpc.method, rpc.method
	method, listed := talosMethods[strings.ToLower(rpc.method)]
	rpc.stream = method.stream || !listed // of what nobody knows the opening line is written too
	return rpc
}

// choose finds the context that an RPC names by the metadata "context", which talosctl sends where its context has a "cluster", or
// else the current one.
func (c *talosConn) choose(rpc *talosRPC, s *h2Stream) *h2Refusal {
	v := c.plane.view.Load()
	if v.file == nil {
		return rpc.fail(grpcFailedPrecondition, "no talosconfig", "there is no talosconfig on the host that runs muxproxy")
	}
	name, named, agreed := contextField(s.fields)
	switch rpc.context = v.file.find(name); {
	case !agreed:
		return rpc.fail(grpcFailedPrecondition, "two contexts", "the metadata names more than one context")
	case !named:
		if rpc.context = v.file.currentContext(); rpc.context == nil {
			return rpc.fail(grpcFailedPrecondition, "no context", "the RPC names no context, and the host's talosconfig has no current one: there are "+v.file.names())
		}
	case rpc.context == nil:
		return rpc.fail(grpcFailedPrecondition, "unknown context", fmt.Sprintf("no context %q on the host that runs muxproxy: there are %s", cutText(name, maxMethod), v.file.names()))
	}
	if rpc.nameless {
		return rpc.fail(grpcResourceExhausted, "too many nodes", "the RPC is for more nodes, or longer names, than an audit line holds, or for what is no name: name fewer at a time")
	}
	rpc.event.context = rpc.context.name
	rpc.set, rpc.upstream = v.config.of(rpc.context.name), v.upstreams[rpc.context.name]
	if err := rpc.context.problem(c.plane.now()); err != nil {
		return rpc.fail(grpcFailedPrecondition, "context off", fmt.Sprintf("context %q cannot be served: %s", rpc.context.name, err))
	}
	return nil
}

// admit lets an RPC through that no policy refuses, if it can share the connection's upstream and will have its audit line. A connection
// that was opened before the context changed has the old identity, and may lead to another cluster than the one that the RPC was judged
// for: the client has to open another.
func (c *talosConn) admit(rpc *talosRPC) h2Verdict {
	if err := c.plane.audit.ready(); err != nil {
		return h2Verdict{refusal: rpc.fail(grpcUnavailable, "audit log", "the audit log cannot be written: the operator of muxproxy has to see to it")}
	}
	leads := c.upstream.Load()
	if leads == nil {
		leads = rpc.upstream
		c.upstream.Store(leads)
	}
	switch name := leads.context.name; {
	case name != rpc.context.name:
		return h2Verdict{refusal: rpc.fail(grpcFailedPrecondition, "another context", fmt.Sprintf("this connection leads to context %q: open another one", name))}
	case leads != rpc.upstream:
		return h2Verdict{leave: true, refusal: rpc.fail(grpcUnavailable, "context changed", fmt.Sprintf("the endpoints, the certificate or the role of context %q have changed: try again, over another connection", name))}
	}
	return h2Verdict{}
}

// open connects to the cluster of the first RPC that was let through.
func (c *talosConn) open(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
	rpc := s.data.(*talosRPC)
	up, endpoint, err := rpc.upstream.useAhead(ctx, c.ahead, hello)
	if up == nil {
		up, endpoint, err = rpc.upstream.connect(ctx, hello)
	}
	if err != nil {
		c.upstream.Store(nil) // another one may be reached, as after a change of the talosconfig
		return nil, &h2Refusal{status: grpcUnavailable, message: "muxproxy: " + err.Error()}
	}
	c.endpoint.Store(&endpoint)
	c.plane.recent.Store(&talosRecent{rpc.upstream, c.plane.now()})
	return up, nil
}

// forward gives the header section for the upstream: without what the gateway alone may say, and addressed to the endpoint. apid runs an
// RPC with "proxyfrom" itself, whatever node it names, and believes "talos-role" of those that may impersonate.
func (c *talosConn) forward(s *h2Stream) []hpack.HeaderField {
	rpc := s.data.(*talosRPC)
	endpoint := c.endpoint.Load().String()
	rpc.event.host, rpc.event.injected, rpc.event.decision = endpoint, true, decisionInjected
	if rpc.stream {
		opening := rpc.event
		opening.open = true
		c.plane.audit.write(&opening)
	}
	fields := slices.DeleteFunc(s.fields, func(f hpack.HeaderField) bool { return ownField(f.Name) })
	addressed := false
	for i := range fields {
		switch fields[i].Name {
		case ":authority":
			fields[i].Value, addressed = endpoint, true
		case ":scheme":
			fields[i].Value = "https"
		}
	}
	if !addressed { // there was a host field in its place
		fields = slices.Insert(fields, 0, hpack.HeaderField{Name: ":authority", Value: endpoint})
	}
	return fields
}

// ended writes the audit line of an RPC.
func (c *talosConn) ended(s *h2Stream, end h2End) {
	e := &s.data.(*talosRPC).event
	e.code, e.in, e.out = end.httpStatus, end.in, end.out
	status := endStatus(end)
	e.grpcStatus = &status
	if cause := endCause(end); e.err == "" && cause != "" {
		e.err = cause
		if end.cause != h2ClientReset && end.cause != h2ClientGone {
			e.sent, e.decision = e.injected, decisionFailed
		}
	}
	if e.decision == "" { // it ended before anything was decided on
		e.decision = decisionFailed
	}
	if end.cause == h2Refused && e.code == 0 {
		e.code = http.StatusOK
	}
	c.plane.audit.write(e)
	c.plane.clients.endStream(c.addr)
}

// endStatus is the status that an RPC ended with: the one that the client was told, or else what gRPC makes of it ("gRPC over HTTP2",
// "Errors").
func endStatus(end h2End) int {
	switch {
	case end.grpcStatus >= 0:
		return end.grpcStatus
	case end.cause == h2ClientReset || end.cause == h2ClientGone:
		return grpcCancelled
	case end.cause == h2Cut || end.reset == http2.ErrCodeRefusedStream:
		return grpcUnavailable
	case end.reset == http2.ErrCodeCancel:
		return grpcCancelled
	case end.reset == http2.ErrCodeEnhanceYourCalm:
		return grpcResourceExhausted
	}
	return grpcInternal
}

// endCause says in the audit line what became of an RPC that the upstream did not answer to its end; "" of one that it did.
func endCause(end h2End) string {
	switch end.cause {
	case h2Refused:
		return "no endpoint answers"
	case h2ClientReset:
		return "client reset: " + end.reset.String()
	case h2ClientGone:
		return errClientLeft.Error()
	case h2UpstreamReset:
		return "upstream reset: " + end.reset.String()
	case h2UpstreamLost:
		return "upstream lost"
	case h2Malformed:
		return "protocol error: " + end.reset.String()
	case h2Cut:
		return "cut by the end of the drain"
	}
	return ""
}

// deny refuses by policy: the text names the method, and the setting that would let it through.
func (rpc *talosRPC) deny(v talosVerdict) *h2Refusal {
	rpc.event.decision, rpc.event.err = decisionDenied, "access: "+rpc.set.access.String()
	name := rpc.context.name
	return &h2Refusal{status: grpcPermissionDenied, message: fmt.Sprintf(
		"muxproxy: %s %s: refused by access = %q for context %q: the operator of muxproxy can set access = %q in [talos.context.%s] (audit id %s)",
		cutText(rpc.method, maxRPC), v.refused, rpc.set.access, name, v.level, strconv.Quote(name), rpc.event.id)}
}

// fail refuses what no policy refuses, and yet cannot be done.
func (rpc *talosRPC) fail(status int, cause, text string) *h2Refusal {
	rpc.event.decision, rpc.event.err = decisionFailed, cause
	return &h2Refusal{status: status, message: fmt.Sprintf("muxproxy: %s (audit id %s)", text, rpc.event.id)}
}

// judgeTalosContent judges a COSI read by the beginning of its content.
func judgeTalosContent(content []byte) talosVerdict {
	message, whole, err := cosiMessage(content)
	switch {
	case err != nil:
		return talosVerdict{refused: "cannot be judged: " + err.Error(), level: accessFull}
	case !whole:
		return talosVerdict{refused: "cannot be judged: " + errCOSIMalformed.Error(), level: accessFull}
	}
	return judgeTalosType(message)
}

// ownField tells the fields that a client's RPC may not carry on: who it is, and what the gateway itself is told.
func ownField(name string) bool {
	switch name {
	case "talos-role", "proxyfrom", "authorization", "proxy-authorization", "context", "host":
		return true
	}
	return strings.HasPrefix(name, "x-sidero-")
}

// contextField gives the value of the metadata "context"; agreed is false where there are several that differ.
func contextField(fields []hpack.HeaderField) (name string, named, agreed bool) {
	agreed = true
	for _, f := range fields {
		if f.Name == "context" {
			agreed = agreed && (!named || f.Value == name)
			name, named = f.Value, true
		}
	}
	return name, named, agreed
}

// loggedNodes gives the nodes that an RPC is for: the metadata "nodes", once for each, or "node". more tells that these are not all.
func loggedNodes(fields []hpack.HeaderField) (nodes []string, more bool) {
	room := maxLoggedNodes
	for _, f := range fields {
		if f.Name != "nodes" && f.Name != "node" {
			continue
		}
		if room -= len(f.Value) + 1; room < 0 || len(nodes) == maxNodes || len(f.Value) > maxLoggedNode || !nodeName(f.Value) {
			return append(nodes, "and more"), true
		}
		nodes = append(nodes, strings.Clone(f.Value))
	}
	return nodes, false
}

// nodeName tells whether s can be a host name or an address, with a port or a zone: what an audit line need not escape.
func nodeName(s string) bool {
	return s != "" && strings.IndexFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(".:-_[]%", c)
	}) < 0
}

// keptText is a copy of s, cut as cutText does: a part of s would keep all of it in memory.
func keptText(s string, bound int) string { return strings.Clone(cutText(s, bound)) }
