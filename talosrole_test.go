package main

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// roleApid is an endpoint whose GenerateClientConfiguration signs for roles until the time that notAfter gives, or answers with status; it
// counts how often.
type roleApid struct {
	*testApid
	asked    atomic.Int32
	status   atomic.Pointer[string]
	notAfter func() time.Time
}

func newRoleApid(t *testing.T, ca *testTalosCA, roles ...string) *roleApid {
	t.Helper()
	a := &roleApid{notAfter: func() time.Time { return time.Now().Add(time.Hour) }}
	status := "0"
	a.status.Store(&status)
	a.testApid = newTestApid(t, ca, ca, func(w http.ResponseWriter, r *http.Request) {
		content, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/grpc")
		if r.URL.Path != "/machine.MachineService/GenerateClientConfiguration" {
			w.Header().Set("Grpc-Status", "0")
			return
		}
		a.asked.Add(1)
		// roles = 1: "os:reader", crt_ttl = 2: {seconds = 1: 3600}
		want := append([]byte{0, 0, 0, 0, 16, 0x0a, 9}, "os:reader\x12\x03\x08\x90\x1c"...)
		if !bytes.Equal(content, want) || !slices.Equal(r.TLS.PeerCertificates[0].Subject.Organization, []string{"os:admin"}) || r.Header.Get("Te") != "trailers" {
			t.Errorf("asked with %x by %q", content, r.TLS.PeerCertificates[0].Subject.Organization)
		}
		if status := *a.status.Load(); status != "0" {
			w.Header().Set("Grpc-Status", status)
			w.Header().Set("Grpc-Message", "not%20authorized")
			return
		}
		crt, key := ca.issue(t, a.notAfter(), roles...)
		reply := protoMessage(1, string(protoMessage(1, "metadata", 2, "ca", 3, string(crt), 4, string(key), 5, "talosconfig")))
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write(framed(reply))
		w.Header().Set("Grpc-Status", "0")
	})
	return a
}

func TestAContextWithARolePresentsACertificateOfThatRoleAlone(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newRoleApid(t, ca, "os:reader")
	p := newTestTalos(t, talosPlaneConfig{context: map[string]talosContextConfig{"prod": {role: "os:reader"}}}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	for range 2 {
		if a := p.call(t, versionRPC, nil); a.status != "0" {
			t.Fatalf("%+v", a)
		}
	}
	if n := apid.asked.Load(); n != 1 {
		t.Errorf("the cluster was asked %d times", n)
	}
	for _, r := range apid.take() {
		if roles := r.TLS.PeerCertificates[0].Subject.Organization; r.URL.Path == versionRPC && !slices.Equal(roles, []string{"os:reader"}) {
			t.Errorf("an RPC came with %q", roles)
		}
	}
	if s := p.contexts()[0]; s.State != "on" || s.Role != "os:reader" {
		t.Errorf("state %+v", s)
	}
}

func TestAContextWithoutItsRoleIsRefusedAndNeverServedWithMore(t *testing.T) {
	ca := newTestTalosCA(t)
	tests := []struct {
		name   string
		roles  []string
		status string
		want   string
	}{
		{"the cluster refuses", []string{"os:reader"}, "7", `it answered HTTP 200, gRPC status "7": "not authorized"`},
		{"it signs for more", []string{"os:admin", "os:reader"}, "0", `it signed for the roles ["os:admin" "os:reader"]`},
		{"it signs for another", []string{"os:admin"}, "0", `it signed for the roles ["os:admin"]`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			apid := newRoleApid(t, ca, tt.roles...)
			apid.status.Store(&tt.status)
			p := newTestTalos(t, talosPlaneConfig{context: map[string]talosContextConfig{"prod": {role: "os:reader"}}}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
			for range 2 {
				a := p.call(t, versionRPC, nil)
				if a.status != "14" || !strings.Contains(a.message, `muxproxy: no certificate of role "os:reader" for context "prod": `+apid.addr+": "+tt.want) {
					t.Errorf("%+v", a)
				}
			}
			for _, r := range apid.take() {
				if r.URL.Path == versionRPC {
					t.Error("the RPC arrived")
				}
			}
			if n := apid.asked.Load(); n != 1 {
				t.Errorf("the cluster was asked %d times at once", n)
			}
			if s := p.state(); s.State != "degraded" || !strings.Contains(s.Why, "no certificate of role") {
				t.Errorf("state %v", s)
			}
		})
	}
}

func TestARolesCertificateIsRenewedBeforeItEnds(t *testing.T) {
	ca := newTestTalosCA(t)
	worker := newRoleApid(t, ca, "os:reader")
	failed := "9"
	worker.status.Store(&failed)
	apid := newRoleApid(t, ca, "os:reader")
	now := time.Now()
	end := now.Add(time.Hour).Truncate(time.Second)
	apid.notAfter = func() time.Time { return end }
	u := testUpstream(t, ca, func() time.Time { return now }, "os:reader", worker.addr, apid.addr)
	get := func(what string, asked int32) {
		t.Helper()
		cert, err := u.certificate(t.Context())
		if err != nil || !cert.Leaf.NotAfter.Equal(end) && what != "while it fails" {
			t.Fatalf("%s: %v", what, err)
		}
		if n := apid.asked.Load(); n != asked {
			t.Errorf("%s: the cluster was asked %d times, want %d", what, n, asked)
		}
	}
	get("at first", 1)
	get("again", 1)
	now = end.Add(-roleMargin - 1)
	get("just before the margin", 1)
	now, end = end.Add(-roleMargin), now.Add(2*time.Hour).Truncate(time.Second)
	get("within the margin", 2)

	now = end.Add(-time.Minute)
	apid.status.Store(&failed)
	get("while it fails", 3)
	get("while it fails", 3)
	if u.role.failing() == nil {
		t.Error("nobody is told that it fails")
	}
	now = now.Add(roleBackoff)
	get("while it fails", 4)
	now = end
	if _, err := u.certificate(t.Context()); err == nil || !strings.HasPrefix(err.Error(), `no certificate of role "os:reader" for context "prod": `) {
		t.Errorf("when it has ended: %v", err)
	}
	if got := u.order(); len(u.failed) > 0 || got[0].String() != apid.addr && got[0].String() != worker.addr {
		t.Errorf("endpoints that answer are remembered as bad: %v", u.failed)
	}
}

func TestAnAnswerThatIsNoCertificateIsRefused(t *testing.T) {
	ca := newTestTalosCA(t)
	crt, key := ca.issue(t, time.Now().Add(time.Hour), "os:reader")
	inner := protoMessage(3, string(crt), 4, string(key))
	good := framed(protoMessage(1, string(inner)))
	tests := []struct {
		name    string
		content []byte
		want    string
	}{
		{"a good one", good, ""},
		{"with other fields around", framed(append(protoMessage(9, "x"), protoMessage(1, string(inner))...)), ""},
		{"nothing", nil, "its answer is not to be understood"},
		{"cut off", good[:len(good)-1], "its answer is not to be understood"},
		{"compressed", append([]byte{1}, good[1:]...), "its answer is not to be understood"},
		{"no protobuf", framed([]byte{0xff}), "its answer is not to be understood"},
		{"no protobuf within", framed(protoMessage(1, "\xff")), "its answer is not to be understood"},
		{"empty", framed(nil), "its answer: crt: empty"},
		{"no key", framed(protoMessage(1, string(protoMessage(3, string(crt))))), "its answer: key: empty"},
	}
	role := newTalosRole("os:reader", nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			crt, key, err := roleReply(tt.content)
			if err == nil {
				_, err = role.check(crt, key)
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
