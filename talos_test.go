package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	versionRPC    = "/machine.MachineService/Version"
	kubeconfigRPC = "/machine.MachineService/Kubeconfig"
	cosiGet       = "/cosi.resource.State/Get"
)

func TestAnRPCReachesTheContextThatItNamesWithTheHostsCertificate(t *testing.T) {
	ca, other := newTestTalosCA(t), newTestTalosCA(t)
	prod := newTestApid(t, ca, ca, answerGRPC("0", []byte("prod")))
	dev := newTestApid(t, other, other, answerGRPC("5", []byte("dev")))
	p := newTestTalos(t, talosPlaneConfig{access: accessNoCredentials}, "prod", map[string]*talosContextYAML{
		"prod": ca.context(t, "os:admin", prod.addr), "dev": other.context(t, "os:reader", dev.addr),
	})
	if a := p.call(t, versionRPC, framed(nil), "nodes", "10.5.0.2", "nodes", "10.5.0.3"); a.status != "0" || string(a.content) != string(framed([]byte("prod"))) {
		t.Errorf("the current context: %+v", a)
	}
	if a := p.call(t, versionRPC, framed(nil), "context", "dev", "node", "10.6.0.2"); a.status != "5" || string(a.content) != string(framed([]byte("dev"))) {
		t.Errorf("a named context: %+v", a)
	}
	got := prod.take()
	if len(got) != 1 || !slices.Equal(got[0].TLS.PeerCertificates[0].Subject.Organization, []string{"os:admin"}) {
		t.Fatalf("prod got %v", got)
	}
	if got[0].Host != prod.addr || !slices.Equal(got[0].Header["Nodes"], []string{"10.5.0.2", "10.5.0.3"}) || got[0].Header.Get("Te") != "trailers" {
		t.Errorf("prod got host %q, fields %v", got[0].Host, got[0].Header)
	}
	lines := p.lines(t)
	if len(lines) != 2 {
		t.Fatalf("%d audit lines", len(lines))
	}
	l := lines[0]
	if l.Plane != "talos" || l.Context != "prod" || l.Method != versionRPC || l.Path != versionRPC || l.Host != prod.addr || l.Decision != "injected" || !l.Injected ||
		l.Code != 200 || *l.GRPC != 0 || l.In != 5 || l.Out != 9 || !slices.Equal(l.Nodes, []string{"10.5.0.2", "10.5.0.3"}) || l.Error != "" || !strings.HasPrefix(l.Client, "127.0.0.1:") {
		t.Errorf("audit line %+v", l)
	}
	if l := lines[1]; l.Context != "dev" || *l.GRPC != 5 || !slices.Equal(l.Nodes, []string{"10.6.0.2"}) {
		t.Errorf("audit line %+v", l)
	}
}

func TestWhatOnlyTheGatewayMaySayIsTakenFromRPCs(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	p.call(t, versionRPC, nil, "context", "prod", "context", "prod", "talos-role", "os:admin", "Talos-Role", "os:impersonator", "proxyfrom", "10.0.0.1", "authorization", "Basic eDp5",
		"Proxy-Authorization", "Basic eDp5", "x-sidero-signature", "s", "x-sidero-payload", "p", "grpc-timeout", "10S", "custom-bin", "AAEC", "runtime", "Talos")
	got := apid.take()[0].Header
	for name := range got {
		switch name {
		case "Te", "Content-Type", "Grpc-Timeout", "Custom-Bin", "Runtime", "User-Agent":
		default:
			t.Errorf("%s: %q arrives", name, got[name])
		}
	}
	if got.Get("Grpc-Timeout") != "10S" || got.Get("Custom-Bin") != "AAEC" || got.Get("Runtime") != "Talos" {
		t.Errorf("fields are lost: %v", got)
	}
}

func TestAnRPCThatCannotBeServedIsToldWhy(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	omni := ca.context(t, "os:admin", "omni.example.com")
	omni.Auth.SideroV1 = &struct{}{}
	p := newTestTalos(t, talosPlaneConfig{}, "gone", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr), "omni": omni})
	tests := []struct {
		name   string
		fields []string
		status string
		want   string
	}{
		{"an unknown context", []string{"context", "staging"}, "9", `muxproxy: no context "staging" on the host that runs muxproxy: there are "omni", "prod" (audit id `},
		{"no context, and no current one", nil, "9", `muxproxy: the RPC names no context, and the host's talosconfig has no current one: there are "omni", "prod" (audit id `},
		{"two contexts", []string{"context", "prod", "context", "omni"}, "9", "muxproxy: the metadata names more than one context (audit id "},
		{"a context that is off", []string{"context", "omni"}, "9", `muxproxy: context "omni" cannot be served: auth.siderov1: `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := p.call(t, versionRPC, framed(nil), tt.fields...)
			l := p.lines(t)
			last := l[len(l)-1]
			if a.status != tt.status || !strings.HasPrefix(a.message, tt.want) || !strings.HasSuffix(a.message, "(audit id "+last.ID+")") {
				t.Errorf("%+v, audit id %s", a, last.ID)
			}
			if last.Decision != "failed" || last.Injected || last.Code != 200 || *last.GRPC != 9 || last.Error == "" {
				t.Errorf("audit line %+v", last)
			}
		})
	}
	if got := apid.take(); len(got) > 0 {
		t.Errorf("the cluster got %v", got)
	}
	p.view.Store(&talosView{})
	if a := p.call(t, versionRPC, nil); a.status != "9" || !strings.HasPrefix(a.message, "muxproxy: there is no talosconfig on the host") {
		t.Errorf("without a talosconfig: %+v", a)
	}
}

func TestARefusalNamesTheMethodAndTheSettingThatWouldAllowIt(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{access: accessNoCredentials, context: map[string]talosContextConfig{"strict": {access: accessReadOnly}, "open": {access: accessFull}}}, "prod",
		map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr), "strict": ca.context(t, "os:admin", apid.addr), "open": ca.context(t, "os:admin", apid.addr)})
	sensitive := framed(protoMessage(1, "config", 2, "MachineConfigs.config.talos.dev"))
	tests := []struct {
		context, method string
		content         []byte
		want            string // "" passes
	}{
		{"prod", kubeconfigRPC, framed(nil), kubeconfigRPC + ` hands out a credential: refused by access = "no-credentials" for context "prod": the operator of muxproxy can set access = "full" in [talos.context."prod"]`},
		{"prod", cosiGet, sensitive, cosiGet + ` reads MachineConfigs.config.talos.dev, which may hold credentials: refused by access = "no-credentials" for context "prod": the operator of muxproxy can set access = "full" in [talos.context."prod"]`},
		{"prod", cosiGet, framed(protoMessage(2, "MemberStatuses.cluster.talos.dev")), ""},
		{"prod", cosiGet, append([]byte{1}, sensitive[1:]...), cosiGet + ` cannot be judged: its first message is compressed: refused by access = "no-credentials" for context "prod": the operator of muxproxy can set access = "full" in [talos.context."prod"]`},
		{"prod", cosiGet, sensitive[:20], cosiGet + ` cannot be judged: its first message is not whole, or too long: refused by access = "no-credentials" for context "prod": the operator of muxproxy can set access = "full" in [talos.context."prod"]`},
		{"prod", cosiGet, nil, cosiGet + ` cannot be judged: its first message is not whole, or too long: refused by access = "no-credentials" for context "prod": the operator of muxproxy can set access = "full" in [talos.context."prod"]`},
		{"prod", "/machine.MachineService/Reboot", framed(nil), ""},
		{"strict", "/machine.MachineService/Reboot", framed(nil), `/machine.MachineService/Reboot changes something: refused by access = "read-only" for context "strict": the operator of muxproxy can set access = "no-secrets" in [talos.context."strict"]`},
		{"strict", "/machine.MachineService/Read", framed(nil), `/machine.MachineService/Read gives answers that may hold keys: refused by access = "read-only" for context "strict": the operator of muxproxy can set access = "no-credentials" in [talos.context."strict"]`},
		{"open", kubeconfigRPC, framed(nil), ""},
		{"open", cosiGet, sensitive, ""},
	}
	for _, tt := range tests {
		t.Run(tt.context+" "+tt.method, func(t *testing.T) {
			a := p.call(t, tt.method, tt.content, "context", tt.context)
			got := apid.take()
			l := p.lines(t)
			last := l[len(l)-1]
			if tt.want == "" {
				if a.status != "0" || len(got) != 1 || last.Decision != "injected" {
					t.Errorf("%+v, audit line %+v", a, last)
				}
				return
			}
			if a.status != "7" || a.message != "muxproxy: "+tt.want+" (audit id "+last.ID+")" || len(got) > 0 {
				t.Errorf("%+v reached %d times", a, len(got))
			}
			if last.Decision != "denied" || last.Injected || *last.GRPC != 7 || last.Code != 200 || last.Context != tt.context || !strings.HasPrefix(last.Error, "access: ") {
				t.Errorf("audit line %+v", last)
			}
		})
	}
}

func TestACOSIReadIsHeldUntilItsFirstMessageIsWhole(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{access: accessNoCredentials}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	plain, sensitive := framed(protoMessage(1, "a", 2, "MemberStatuses.cluster.talos.dev")), framed(protoMessage(1, "a", 2, "OSRootSecrets.secrets.talos.dev"))
	tests := []struct {
		name    string
		content io.Reader
		status  string
	}{
		{"a plain type byte by byte", iotest.OneByteReader(bytes.NewReader(plain)), "0"},
		{"a sensitive type byte by byte", iotest.OneByteReader(bytes.NewReader(sensitive)), "7"},
		{"a plain type with others behind", bytes.NewReader(append(bytes.Clone(plain), sensitive...)), "0"},
		{"a sensitive type with others behind", bytes.NewReader(append(bytes.Clone(sensitive), plain...)), "7"},
		{"an empty message before", bytes.NewReader(append(framed(nil), sensitive...)), "7"},
		{"a message that is too long", bytes.NewReader(framed(protoMessage(9, strings.Repeat("x", maxCOSIMessage), 2, "OSRootSecrets.secrets.talos.dev"))), "7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := p.client(t)
			if a := p.stream(t, tr, cosiGet, tt.content); a.status != tt.status {
				t.Errorf("%+v", a)
			}
			if got := len(apid.take()); (got == 1) != (tt.status == "0") {
				t.Errorf("%d RPCs arrive", got)
			}
		})
	}
}

func TestTheAuditLineTellsHowAnRPCEnded(t *testing.T) {
	ca := newTestTalosCA(t)
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", "10.5.0.2")})
	tests := []struct {
		name      string
		forwarded bool
		end       h2End
		decision  string
		status    int
		err       string
	}{
		{"answered", true, h2End{cause: h2Answered, httpStatus: 200, grpcStatus: 5}, "injected", 5, ""},
		{"no endpoint", false, h2End{cause: h2Refused, grpcStatus: 14}, "failed", 14, "no endpoint answers"},
		{"cancelled", true, h2End{cause: h2ClientReset, reset: http2.ErrCodeCancel, grpcStatus: -1}, "injected", 1, "client reset: CANCEL"},
		{"cancelled while it waits", false, h2End{cause: h2ClientReset, reset: http2.ErrCodeCancel, grpcStatus: -1}, "failed", 1, "client reset: CANCEL"},
		{"the client left", true, h2End{cause: h2ClientGone, grpcStatus: -1}, "injected", 1, "client left"},
		{"refused", true, h2End{cause: h2UpstreamReset, reset: http2.ErrCodeRefusedStream, grpcStatus: -1}, "failed", 14, "upstream reset: REFUSED_STREAM"},
		{"cancelled by the node", true, h2End{cause: h2UpstreamReset, reset: http2.ErrCodeCancel, grpcStatus: -1}, "failed", 1, "upstream reset: CANCEL"},
		{"too much", true, h2End{cause: h2UpstreamReset, reset: http2.ErrCodeEnhanceYourCalm, grpcStatus: -1}, "failed", 8, "upstream reset: ENHANCE_YOUR_CALM"},
		{"lost", true, h2End{cause: h2UpstreamLost, grpcStatus: 14}, "failed", 14, "upstream lost"},
		{"malformed", true, h2End{cause: h2Malformed, reset: http2.ErrCodeProtocol, grpcStatus: -1}, "failed", 13, "protocol error: PROTOCOL_ERROR"},
		{"cut", true, h2End{cause: h2Cut, grpcStatus: -1}, "failed", 14, "cut by the end of the drain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &talosConn{plane: p.talosPlane, client: "127.0.0.1:1"}
			c.endpoint.Store(&authority{"10.5.0.2", 50000})
			s := &h2Stream{fields: []hpack.HeaderField{{Name: ":path", Value: versionRPC}, {Name: ":authority", Value: "host.docker.internal:18082"}}}
			if v := c.judge(s); v.hold || v.refusal != nil {
				t.Fatalf("%+v", v)
			}
			if tt.forwarded {
				c.forward(s)
			}
			c.ended(s, tt.end)
			lines := p.lines(t)
			l := lines[len(lines)-1]
			if l.Decision != tt.decision || l.Error != tt.err || l.Injected != tt.forwarded || *l.GRPC != tt.status || (l.Host == "10.5.0.2:50000") != tt.forwarded {
				t.Errorf("%+v", l)
			}
		})
	}
}

func TestAConnectionLeadsToOneContextAlone(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	contexts := map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr), "dev": ca.context(t, "os:admin", apid.addr)}
	p := newTestTalos(t, talosPlaneConfig{access: accessNoCredentials}, "prod", contexts)
	tr := p.client(t)
	if a := p.callOn(t, tr, kubeconfigRPC, nil, "context", "prod"); a.status != "7" {
		t.Errorf("a refused one: %+v", a)
	}
	if a := p.callOn(t, tr, versionRPC, nil, "context", "dev"); a.status != "0" {
		t.Errorf("the first that passes: %+v", a)
	}
	a := p.callOn(t, tr, versionRPC, nil, "context", "prod")
	if a.status != "9" || !strings.HasPrefix(a.message, `muxproxy: this connection leads to context "dev": open another one (audit id `) {
		t.Errorf("another context: %+v", a)
	}
	if a := p.callOn(t, tr, versionRPC, nil, "context", "dev"); a.status != "0" {
		t.Errorf("the same context: %+v", a)
	}
	if err := p.reload(talosPlaneConfig{talosconfig: p.file, context: map[string]talosContextConfig{"dev": {role: "os:reader"}}}); err != nil {
		t.Fatal(err)
	}
	if a := p.callOn(t, tr, versionRPC, nil, "context", "dev"); a.status != "14" || !strings.Contains(a.message, "the role of context") {
		t.Errorf("after its role has changed: %+v", a)
	}
}

func TestAStreamHasAnOpeningLine(t *testing.T) {
	ca := newTestTalosCA(t)
	release := make(chan struct{})
	apid := newTestApid(t, ca, ca, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		w.Write(framed([]byte("line")))
		w.(http.Flusher).Flush()
		<-release
		w.Header().Set("Grpc-Status", "0")
	})
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	for _, method := range []string{"/machine.MachineService/Logs", "/machine.MachineService/FromTheFuture"} {
		before := len(p.lines(t))
		done := make(chan rpcAnswer, 1)
		tr := p.client(t)
		go func() { done <- p.callOn(t, tr, method, framed(nil)) }()
		release <- struct{}{}
		if a := <-done; a.status != "0" {
			t.Errorf("%s: %+v", method, a)
		}
		lines := p.lines(t)[before:]
		if len(lines) != 2 || !lines[0].Open || lines[1].Open || lines[0].ID != lines[1].ID || lines[0].Code != 0 || lines[1].Code != 200 || !lines[0].Injected || lines[0].GRPC != nil {
			t.Errorf("%s: audit lines %+v", method, lines)
		}
	}
}

func TestNoRPCPassesWhileTheAuditLogCannotBeWritten(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	if err := p.talosPlane.audit.close(); err != nil {
		t.Fatal(err)
	}
	p.talosPlane.audit.broken.Store(true)
	if a := p.call(t, versionRPC, nil); a.status != "14" || !strings.HasPrefix(a.message, "muxproxy: the audit log cannot be written") {
		t.Errorf("%+v", a)
	}
	if got := apid.take(); len(got) > 0 {
		t.Errorf("the cluster got %v", got)
	}
}

func TestTheGatewaySpeaksHTTP2AloneUnderTheNamesThatContainersUse(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	crt, key := ca.issue(t, time.Now().Add(time.Hour), "os:admin")
	pair, err := tls.X509KeyPair(crt, key)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		config *tls.Config
		want   string // of the error
	}{
		{"docker_host", &tls.Config{ServerName: "host.docker.internal", NextProtos: []string{"h2"}}, ""},
		{"localhost", &tls.Config{ServerName: "localhost", NextProtos: []string{"h2"}}, ""},
		{"TLS 1.2", &tls.Config{ServerName: "localhost", NextProtos: []string{"h2"}, MaxVersion: tls.VersionTLS12}, ""},
		{"another name", &tls.Config{ServerName: "api.github.com", NextProtos: []string{"h2"}}, "valid for host.docker.internal"},
		{"TLS 1.1", &tls.Config{ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "protocol version"},
		{"a client certificate", &tls.Config{ServerName: "localhost", NextProtos: []string{"h2"}, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			t.Error("a client certificate is asked for")
			return &pair, nil
		}}, ""},
	}
	for i := range tests {
		tt := &tests[i] // a tls.Config is not copied
		t.Run(tt.name, func(t *testing.T) {
			tt.config.RootCAs = p.ca
			conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), tt.config)
			if err == nil {
				conn.Close()
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for _, protocols := range [][]string{nil, {"http/1.1"}} { // crypto/tls lets both pass
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{ServerName: "localhost", RootCAs: p.ca, NextProtos: protocols})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("a client that offers %q got %d bytes, %v", protocols, n, err)
		}
	}
}

func TestADrainLetsRPCsEndAndTakesNoMore(t *testing.T) {
	ca := newTestTalosCA(t)
	begun, release := make(chan struct{}), make(chan struct{})
	apid := newTestApid(t, ca, ca, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
		answerGRPC("0", []byte("late"))(w, r)
	})
	p := openTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.url = "https://" + ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- p.serve(ln) }()
	shaking, err := net.Dial("tcp", ln.Addr().String()) // whose handshake does not come
	if err != nil {
		t.Fatal(err)
	}
	defer shaking.Close()
	done := make(chan rpcAnswer, 1)
	tr := p.client(t)
	go func() { done <- p.callOn(t, tr, versionRPC, framed(nil)) }()
	<-begun
	ln.Close()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); p.shutdown(t.Context()) }()
	if _, err := shaking.Read(make([]byte, 1)); err == nil {
		t.Error("a connection without a handshake is kept")
	}
	select {
	case <-ended:
		t.Error("the drain does not wait for the RPC")
	default:
	}
	close(release)
	if a := <-done; a.status != "0" {
		t.Errorf("the RPC under way: %+v", a)
	}
	<-ended
	client, server := net.Pipe()
	p.handOver(server)
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("a connection after the drain: %v", err)
	}
}

func TestAnRPCIsForNoMoreNodesThanItsAuditLineHolds(t *testing.T) {
	ca := newTestTalosCA(t)
	apid := newTestApid(t, ca, ca, answerGRPC("0", nil))
	p := newTestTalos(t, talosPlaneConfig{}, "prod", map[string]*talosContextYAML{"prod": ca.context(t, "os:admin", apid.addr)})
	named := func(n, size int) (fields []string) {
		for i := range n {
			fields = append(fields, "nodes", fmt.Sprintf("%0*d", size, i))
		}
		return fields
	}
	tests := []struct {
		name    string
		fields  []string
		status  string
		last    string
		arrives int
	}{
		{"as many as it holds", named(maxLoggedNodes/16, 15), "0", "000000000001023", 1},
		{"one more", named(maxLoggedNodes/16+1, 15), "8", "and more", 0},
		{"one behind others", append(named(maxLoggedNodes/16, 15), "node", "10.5.0.2"), "8", "and more", 0},
		{"a name as long as there are", named(1, maxLoggedNode), "0", fmt.Sprintf("%0*d", maxLoggedNode, 0), 1},
		{"a longer one", named(1, maxLoggedNode+1), "8", "and more", 0},
		{"a thousand short ones and more", named(maxNodes+1, 4), "8", "and more", 0},
		{"none", []string{"nodes", ""}, "8", "and more", 0},
		{"bytes that no name holds", []string{"nodes", "10.5.0.2\xff"}, "8", "and more", 0},
		{"an address with a zone and a port", []string{"node", "[fe80::1%eth0]:50000"}, "0", "[fe80::1%eth0]:50000", 1},
	}
	for _, tt := range tests {
		a := p.call(t, versionRPC, nil, tt.fields...)
		lines := p.lines(t)
		nodes := lines[len(lines)-1].Nodes
		if got := len(apid.take()); a.status != tt.status || got != tt.arrives || nodes[len(nodes)-1] != tt.last {
			t.Errorf("%s: %+v, %d arrive, the last of %d nodes is %q", tt.name, a, got, len(nodes), nodes[len(nodes)-1])
		}
	}
}
