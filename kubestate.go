package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	probeEvery = 30 * time.Second // between two probes of a context, while somebody asks for its health
	probeAsked = time.Minute      // how long one question for the health has contexts probed
	probeWait  = 5 * time.Second  // for an answer
)

// kubeContextState is how one context does, for /proxy/health on loopback.
type kubeContextState struct {
	Name       string    `json:"name"`
	Current    bool      `json:"current,omitempty"`
	State      string    `json:"state"`                // "on", "off", "degraded"
	Why        string    `json:"why,omitempty"`        // "auth-provider gcp: …", "the API server answers 401"
	Access     string    `json:"access"`               // "no-credentials"
	Credential string    `json:"credential,omitempty"` // `exec plugin "aws"`; "" where requests are anonymous
	Expires    time.Time `json:"expires,omitzero"`     // of the credential in use, where that is known
	Probe      string    `json:"probe,omitempty"`      // "ok", "answers 401", "connect"; "" where the context has not been used
	Probed     time.Time `json:"probed,omitzero"`
}

// state is how the plane does, and each context. It makes no connection: probes that it asks for are made by watch, and told the next
// time.
func (k *kubePlane) state() (planeState, []kubeContextState) {
	k.probes.Store(time.Now().Unix())
	s := k.serving.Load()
	var contexts []kubeContextState
	on := 0
	for _, c := range s.order {
		state := c.state()
		state.Current = c == s.current
		contexts = append(contexts, state)
		if state.State == "on" {
			on++
		}
	}
	switch {
	case s.source == nil:
		return planeState{State: "off", Why: s.err.Error()}, contexts
	case len(contexts) == 0:
		return planeState{State: "off", Why: "no context is served: see contexts in [kube] and the kubeconfig"}, contexts
	case s.err != nil:
		return planeState{State: "degraded", Why: "contexts are served as they were: " + s.err.Error()}, contexts
	case on < len(contexts):
		return planeState{State: "degraded", Why: fmt.Sprintf("%d of %d contexts are served", on, len(contexts))}, contexts
	}
	return planeState{State: "on"}, contexts
}

// state is how the context does.
func (c *servedContext) state() kubeContextState {
	s := kubeContextState{Name: c.name, State: "on", Access: c.access.access.String()}
	if c.off != nil {
		s.State, s.Why = "off", c.off.Error()
		return s
	}
	var err error
	s.Credential, s.Expires, err = c.upstream.credential()
	s.Probe, s.Probed = c.probe.last()
	switch {
	case err != nil:
		s.State, s.Why = "degraded", err.Error()
	case !s.Expires.IsZero() && time.Now().After(s.Expires):
		s.State, s.Why = "degraded", "the credential has expired"
	case s.Probe != "" && s.Probe != "ok":
		s.State, s.Why = "degraded", "the API server "+s.Probe
	}
	return s
}

// kubeProbe is the last answer of an API server to a question for its health. Safe for concurrent use.
type kubeProbe struct {
	mu     sync.Mutex
	answer string    // guarded by mu: "ok", "answers 500", "does not answer: time-out"
	at     time.Time // guarded by mu
}

func (p *kubeProbe) last() (string, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answer, p.at
}

// probe asks the API servers of the contexts that have been used whether they are ready, if somebody wants to know; all at once, and no
// longer than probeWait. Others are let be: a probe might run a plugin that opens a browser.
func (k *kubePlane) probe(ctx context.Context) {
	now := time.Now()
	if now.Sub(time.Unix(k.probes.Load(), 0)) > probeAsked {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	var all sync.WaitGroup // waited for below; each part ends with ctx
	for _, c := range k.serving.Load().order {
		if _, at := c.probe.last(); c.off == nil && c.used.Load() && now.Sub(at) >= probeEvery {
			all.Go(func() { c.ask(ctx) })
		}
	}
	all.Wait()
}

// ask makes one probe. /readyz may be forbidden to the host's identity, or not there on an old server; /version is for everybody.
func (c *servedContext) ask(ctx context.Context) {
	answer := c.get(ctx, "/readyz")
	if answer == "answers 403" || answer == "answers 404" {
		answer = c.get(ctx, "/version")
	}
	if errors.Is(ctx.Err(), context.Canceled) { // the plane ends
		return
	}
	c.probe.mu.Lock()
	defer c.probe.mu.Unlock()
	c.probe.answer, c.probe.at = answer, time.Now()
}

// get asks for path: "ok", "answers 500", "does not answer: connect".
func (c *servedContext) get(ctx context.Context, path string) string {
	r := (&http.Request{
		Method: http.MethodGet, Header: http.Header{}, Host: c.server.Host, ProtoMajor: 1, ProtoMinor: 1,
		URL: &url.URL{Scheme: c.server.Scheme, Host: c.server.Host, Opaque: "//" + c.server.Host + c.server.EscapedPath() + path},
	}).WithContext(ctx)
	res, err := c.upstream.RoundTrip(r)
	if err != nil {
		why := "time-out"
		var failure *kubeError
		if errors.As(err, &failure) {
			why = failure.cause
		}
		return "does not answer: " + why
	}
	discard(res)
	if res.StatusCode != http.StatusOK {
		return fmt.Sprintf("answers %d", res.StatusCode)
	}
	return "ok"
}

// tellEvery is the least time between two warnings about one context: a client must not fill the log.
const tellEvery = time.Minute

// tell says to the operator why a request to c was not answered: as a warning, but only once in a while.
func (k *kubePlane) tell(c *servedContext, err error) {
	var failure *kubeError
	if !errors.As(err, &failure) { // the client's own doing
		return
	}
	now, last := time.Now().Unix(), c.told.Load()
	if now-last >= int64(tellEvery/time.Second) && c.told.CompareAndSwap(last, now) {
		k.log.Warn("kube: a request failed", keyError, err)
		return
	}
	k.log.Debug("kube: a request failed", keyError, err)
}

// kubeDenials gives the refusals of one attempt one audit id: kubectl tries exec by WebSocket and, when that is refused, by SPDY. Safe
// for concurrent use.
type kubeDenials struct {
	mu   sync.Mutex
	last map[kubeAttempt]kubeDenial // guarded by mu
}

// kubeAttempt is what the two requests of one attempt have in common: the client's address and the request target.
type kubeAttempt struct {
	client netip.Addr
	target uint64 // hashed: it may be long
}

type kubeDenial struct {
	id string
	at time.Time
}

const (
	sameAttempt = 5 * time.Second // within which two refusals are of one attempt
	maxDenials  = 256             // that are remembered
)

var attemptSeed = maphash.MakeSeed()

// idFor gives id, or that of an earlier refusal of the same attempt. client is "172.17.0.2:51234".
func (d *kubeDenials) idFor(client, target, id string, now time.Time) string {
	port, _ := netip.ParseAddrPort(client)
	attempt := kubeAttempt{port.Addr(), maphash.String(attemptSeed, target)}
	d.mu.Lock()
	defer d.mu.Unlock()
	if before, ok := d.last[attempt]; ok && now.Sub(before.at) < sameAttempt {
		return before.id
	}
	if d.last == nil || len(d.last) >= maxDenials {
		d.last = make(map[kubeAttempt]kubeDenial)
	}
	d.last[attempt] = kubeDenial{id, now}
	return id
}

// stampFiles tells how the files are now, so that a change is seen: all that a writer changes, as one text.
func stampFiles(files []string) string {
	var b strings.Builder
	for _, file := range files {
		id, err := statID(file)
		fmt.Fprintln(&b, file, id, err)
	}
	return b.String()
}
