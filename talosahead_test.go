package main

import (
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"
)

// countingApid tells of each connection to it.
func countingApid(t *testing.T, ca *testTalosCA) (a *testApid, opened chan struct{}) {
	t.Helper()
	opened = make(chan struct{}, 100)
	a = newTestApid(t, ca, ca, answerGRPC("0", nil))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := a.addr
	a.addr = ln.Addr().String()
	proxyLoop(t, ln, func(net.Conn) (string, error) { opened <- struct{}{}; return addr, nil })
	return a, opened
}

func TestTheEndpointIsDialedWhileTheClientShakesHands(t *testing.T) {
	ca := newTestTalosCA(t)
	apid, opened := countingApid(t, ca)
	other := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr), "dev": ca.context(t, "os:admin", other.addr)})
	address := strings.TrimPrefix(p.url, "https://")
	shake := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	shake().Close()
	if a := p.call(t, versionRPC, nil); a.status != "0" {
		t.Fatalf("%+v", a)
	}
	<-opened
	if len(opened) > 0 {
		t.Error("it is dialed though nobody has asked for it")
	}
	conn := shake()
	<-opened // before the client has said a word
	conn.Close()
	if a := p.call(t, versionRPC, nil); a.status != "0" {
		t.Fatalf("%+v", a)
	}
	<-opened
	if len(opened) > 0 {
		t.Error("what was dialed ahead is not used")
	}
	if a := p.call(t, versionRPC, nil, "context", "dev"); a.status != "0" || len(other.take()) != 1 {
		t.Fatalf("another context: %+v", a)
	}
	<-opened
	p.recent.Store(&talosRecent{p.view.Load().upstreams["prod"], time.Now().Add(-recentUse - time.Second)})
	if a := p.dialAhead(); a != nil {
		t.Error("it is dialed long after it was used")
	}
	p.recent.Store(&talosRecent{p.view.Load().upstreams["prod"], time.Now()})
	p.write(t, talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:reader", apid.addr)}))
	if err := p.reload(p.view.Load().config); err != nil {
		t.Fatal(err)
	}
	if a := p.dialAhead(); a != nil {
		t.Error("it is dialed with what a reload has replaced")
	}
	p.recent.Store(&talosRecent{p.view.Load().upstreams["prod"], time.Now()})
	p.talosPlane.audit.close()
	p.talosPlane.audit.broken.Store(true)
	if a := p.dialAhead(); a != nil {
		t.Error("it is dialed though no RPC could pass")
	}
}

func TestWhatWasDialedAheadIsClosedWithItsClient(t *testing.T) {
	ca := newTestTalosCA(t)
	state := make(chan http.ConnState, 100)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil), func(s *http.Server) {
		s.ConnState = func(_ net.Conn, now http.ConnState) { state <- now }
	})
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	p.recent.Store(&talosRecent{p.view.Load().upstreams["prod"], time.Now()})
	a := p.dialAhead()
	<-a.done
	if a.take(t.Context(), nil) != nil {
		t.Error("it is given for another context")
	}
	a.drop()
	for now := range state {
		if now == http.StateClosed {
			break
		}
	}
	if a.take(t.Context(), a.upstream) != nil {
		t.Error("it is given after its end")
	}
	a.drop()
	var none *talosAhead
	none.drop()
	if none.take(t.Context(), nil) != nil {
		t.Error("nothing is something")
	}
	p.shutdown(t.Context())
}

func TestFewConnectionsAreDialedAheadForThoseWhoSayNothing(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", silentEndpoint(t))})
	p.recent.Store(&talosRecent{p.view.Load().upstreams["prod"], time.Now()})
	var begun []*talosAhead
	for range maxAhead + 1 {
		if a := p.dialAhead(); a != nil {
			begun = append(begun, a)
		}
	}
	if len(begun) != maxAhead {
		t.Errorf("%d are dialed", len(begun))
	}
	for _, a := range begun {
		a.drop()
	}
	p.shutdown(t.Context())
	for p.aheads.Load() > 0 { // drop does not wait
		runtime.Gosched()
	}
	a := p.dialAhead()
	if a == nil {
		t.Fatal("none is dialed when they are over")
	}
	a.drop()
	p.shutdown(t.Context())
}

func TestAConnectionDialedAheadThatIsNotUpIsReplaced(t *testing.T) {
	ca, other := newTestTalosCA(t), newTestTalosCA(t)
	rejecting := newTestApid(t, ca, other, answerGRPC("0", nil))
	good := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", rejecting.addr, good.addr)})
	p.recent.Store(&talosRecent{p.view.Load().upstreams["prod"], time.Now()})
	if a := p.call(t, versionRPC, nil); a.status != "0" || len(good.take()) != 1 {
		t.Errorf("%+v", a)
	}
}
