package main

import (
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

func TestAConnectionFromBeforeAChangeTakesNoRPCsAnyMore(t *testing.T) {
	ca, other := newTestTalosCA(t), newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", []byte("apid")))
	second := newTestApid(t, other, other, answerGRPC("0", []byte("second")))
	same := ca.context(t, "os:admin", apid.addr)
	proxied := *same
	proxied.ProxyURL = "direct"
	moved := *same
	moved.Endpoints = append(slices.Clone(same.Endpoints), second.addr)
	trusting := *same
	trusting.CA = base64.StdEncoding.EncodeToString(append(ca.pem(), other.pem()...))
	noted := *same
	noted.Nodes = []string{"10.5.0.9"}
	tests := []struct {
		name   string
		now    *talosContextYAML
		config talosPlaneConfig
		gone   bool
	}{
		{"nothing", same, talosPlaneConfig{}, false},
		{"its nodes, which only containers read", &noted, talosPlaneConfig{}, false},
		{"its level", same, talosPlaneConfig{access: accessReadOnly}, false},
		{"its certificate", ca.context(t, "os:reader", apid.addr), talosPlaneConfig{}, true},
		{"its cluster", other.context(t, "os:admin", second.addr), talosPlaneConfig{}, true},
		{"its endpoints", &moved, talosPlaneConfig{}, true},
		{"what its endpoints are trusted by", &trusting, talosPlaneConfig{}, true},
		{"its proxy", &proxied, talosPlaneConfig{}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": same})
			tr := p.client(t)
			if a := p.callOn(t, tr, versionRPC, nil); a.status != "0" {
				t.Fatalf("before: %+v", a)
			}
			p.write(t, talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": tt.now}))
			tt.config.talosconfig = p.file
			if err := p.reload(tt.config); err != nil {
				t.Fatal(err)
			}
			apid.take()
			a := p.callOn(t, tr, versionRPC, nil)
			if !tt.gone {
				if a.status != "0" {
					t.Errorf("after: %+v", a)
				}
				return
			}
			if got := apid.take(); a.status != "14" || !strings.HasPrefix(a.message, `muxproxy: the endpoints, the certificate or the role of context "prod" have changed: try again, over another connection (audit id `) || len(got) > 0 {
				t.Errorf("on the old connection: %+v, %d arrive", a, len(got))
			}
			if a := p.callOn(t, tr, versionRPC, nil); a.status != "0" {
				t.Errorf("the next one, for which the client had to connect anew: %+v", a)
			}
		})
	}
}

func TestAChangeWhileAnEndpointIsDialedLetsNothingThroughToTheOldOne(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	c := &talosConn{plane: p.talosPlane}
	rpc := func() *h2Stream { return &h2Stream{fields: []hpack.HeaderField{{Name: ":path", Value: versionRPC}}} }
	if v := c.judge(rpc()); v.refusal != nil {
		t.Fatalf("%+v", v.refusal)
	}
	p.write(t, talosconfigText(t, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.6.0.2")}))
	if err := p.reload(talosPlaneConfig{talosconfig: p.file}); err != nil {
		t.Fatal(err)
	}
	if v := c.judge(rpc()); v.refusal == nil || v.refusal.status != grpcUnavailable || !v.leave {
		t.Errorf("%+v", v)
	}
}

func TestOneClientHasABoundOfRPCsAtOnceOverAllItsConnections(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	p.clients = newClients(2)
	judge := func(addr string) (*talosConn, *h2Stream, h2Verdict) {
		c := &talosConn{plane: p.talosPlane, addr: netip.MustParseAddr(addr)}
		s := &h2Stream{fields: []hpack.HeaderField{{Name: ":path", Value: versionRPC}}}
		return c, s, c.judge(s)
	}
	c, s, _ := judge("172.17.0.2")
	judge("172.17.0.2")
	over, third, v := judge("172.17.0.2")
	if v.refusal == nil || v.refusal.status != grpcResourceExhausted {
		t.Errorf("the third: %+v", v)
	}
	if _, _, v := judge("172.17.0.3"); v.refusal != nil {
		t.Errorf("another client: %+v", v.refusal)
	}
	over.ended(third, h2End{cause: h2Refused})
	c.ended(s, h2End{})
	if _, _, v := judge("172.17.0.2"); v.refusal != nil {
		t.Errorf("after one has ended: %+v", v.refusal)
	}
}

func TestLittleIsKeptOfAnRPCThatGoesOn(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{access: accessFull}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	c := &talosConn{plane: p.talosPlane}
	c.endpoint.Store(&authority{"10.5.0.2", 50000})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	var kept []any
	for range 64 {
		s := &h2Stream{fields: []hpack.HeaderField{
			{Name: ":path", Value: "/" + strings.Repeat("p", h2FieldsLimit/4)}, {Name: ":authority", Value: strings.Repeat("a", h2FieldsLimit/4)},
			{Name: "nodes", Value: "10.5.0.2" + strings.Repeat(" ", h2FieldsLimit/4)},
		}}
		c.judge(s)
		kept = append(kept, s.data)
	}
	if after := heap(); after > before+1<<20 {
		t.Errorf("%d bytes are kept of %d RPCs", after-before, len(kept))
	}
	runtime.KeepAlive(kept)
}

func TestAnRPCIsAddressedToTheEndpointHoweverTheClientNamesIt(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	for _, name := range []string{":authority", "host"} {
		c := &talosConn{plane: p.talosPlane}
		c.endpoint.Store(&authority{"10.5.0.2", 50000})
		s := &h2Stream{fields: []hpack.HeaderField{{Name: ":path", Value: versionRPC}, {Name: name, Value: "10.5.0.99"}}}
		c.judge(s)
		fields := c.forward(s)
		slices.SortFunc(fields, func(a, b hpack.HeaderField) int { return strings.Compare(a.Name, b.Name) })
		want := []hpack.HeaderField{{Name: ":authority", Value: "10.5.0.2:50000"}, {Name: ":path", Value: versionRPC}}
		if !slices.Equal(fields, want) {
			t.Errorf("named by %s: %v", name, fields)
		}
	}
	both := []hpack.HeaderField{{Name: ":path", Value: versionRPC}, {Name: ":authority", Value: "a"}, {Name: "host", Value: "a"}}
	c := &talosConn{plane: p.talosPlane}
	c.endpoint.Store(&authority{"10.5.0.2", 50000})
	s := &h2Stream{fields: both}
	c.judge(s)
	if fields := c.forward(s); len(fields) != 2 {
		t.Errorf("named by both: %v", fields)
	}
}

func TestAnEndpointThatIsNotTheClustersGetsNoRPC(t *testing.T) {
	ca, other := newTestTalosCA(t), newTestTalosCA(t)
	old := newTestApid(t, ca, ca, answerGRPC("0", nil), func(s *http.Server) {
		s.TLSConfig.MinVersion, s.TLSConfig.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	})
	tests := []struct {
		name, endpoint, want string
	}{
		{"TLS 1.2", old.addr, "protocol version"},
		{"a certificate of another authority", newTestApid(t, other, ca, answerGRPC("0", nil)).addr, "not signed by the ca of the talosconfig"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", tt.endpoint)})
			if a := p.call(t, versionRPC, nil); a.status != "14" || !strings.Contains(a.message, tt.want) {
				t.Errorf("%+v", a)
			}
		})
	}
}
