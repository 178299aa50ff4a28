package talos

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"muxproxy/e2e/apid"
)

// testContexts: several contexts through the one port, each with its own identity.
func testContexts(t *testing.T, w *world) {
	t.Run("each context reaches its own cluster", func(t *testing.T) {
		for name, cluster := range map[string]interface{ Handshakes() int }{"prod": w.prod, "lab": w.lab} {
			before := cluster.Handshakes()
			if err := askVersion(in(t, name), w.dialGateway(t)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if cluster.Handshakes() == before {
				t.Errorf("%s: its cluster saw nobody", name)
			}
		}
	})
	t.Run("without a name the current context is meant", func(t *testing.T) {
		conn := w.dialGateway(t)
		before := len(w.prod.Calls(versionMethod))
		if err := askVersion(t.Context(), conn); err != nil || len(w.prod.Calls(versionMethod)) != before+1 {
			t.Errorf("%v", err)
		}
	})
	t.Run("a second context on one connection is refused", func(t *testing.T) {
		conn := w.dialGateway(t)
		if err := askVersion(in(t, "prod"), conn); err != nil {
			t.Fatal(err)
		}
		if err := askVersion(in(t, "lab"), conn); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%v", err)
		}
		if err := askVersion(in(t, "prod"), conn); err != nil {
			t.Errorf("the connection is no good any more: %v", err)
		}
	})
	t.Run("a context that cannot be served says why", func(t *testing.T) {
		for name, word := range map[string]string{"omni": "siderov1", "nothing": "nothing"} {
			err := askVersion(in(t, name), w.dialGateway(t))
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	t.Run("a certificate of the client's own changes nothing", func(t *testing.T) {
		cert, err := w.reader.TLS()
		if err != nil {
			t.Fatal(err)
		}
		conn := dialTLS(t, "localhost:"+w.port, &tls.Config{RootCAs: w.daemon.Pool(t), Certificates: []tls.Certificate{cert}})
		if err := askVersion(in(t, "prod"), conn); err != nil {
			t.Fatal(err)
		}
		if last := lastOf(w.prod.Calls(versionMethod)); last.Serial != w.prod.Admin.Serial() {
			t.Errorf("arrived with the certificate %s of roles %v", last.Serial, last.Roles)
		}
	})
	t.Run("containers get contexts and no credential", func(t *testing.T) {
		got := w.runAll(t, container, versions[1].variable, `cat $TALOSCONFIG`, `talosctl config contexts`, `talosctl config info`)
		if text := got[0].stdout; strings.Contains(text, "crt:") || strings.Contains(text, "key:") || !strings.Contains(text, "cluster: prod") || !strings.Contains(text, "proxy-url: direct") {
			t.Errorf("the container's talosconfig:\n%s", text)
		}
		for _, c := range w.contexts() {
			if !strings.Contains(got[1].stdout, c.Name) {
				t.Errorf("no context %q in\n%s", c.Name, got[1].stdout)
			}
		}
		if got[2].code != 0 {
			t.Errorf("%+v", got[2])
		}
	})
	t.Run("the proxy variables do not matter", func(t *testing.T) {
		for _, v := range versions {
			got := w.runAll(t, container, v.variable,
				`unset NO_PROXY no_proxy; talosctl version`, `NO_PROXY='*' talosctl version`, `unset HTTPS_PROXY https_proxy; talosctl version`,
				`unset NO_PROXY no_proxy; talosctl -e host.docker.internal:`+w.port+`,host.docker.internal:`+w.port+` version`)
			for i, a := range got {
				if a.code != 0 {
					t.Errorf("talosctl %s, %d: %+v", v.name, i, a)
				}
			}
		}
	})
	t.Run("the audit line of an RPC tells who asked what of whom", func(t *testing.T) {
		w.run(t, gateway, versions[0].variable, `talosctl --context lab memory`)
		l := w.line(t, func(l line) bool { return l.Method == "/machine.MachineService/Memory" && l.Context == "lab" })
		if l.grpc() != 0 || !slices.Equal(l.Nodes, nodes) || !l.Injected || l.Decision != "injected" || l.In == 0 || l.Out == 0 || l.Duration <= 0 {
			t.Errorf("%+v", l)
		}
		w.run(t, gateway, versions[0].variable, `talosctl kubeconfig k`)
		l = w.line(t, func(l line) bool { return strings.HasSuffix(l.Method, "/Kubeconfig") && l.Decision == "denied" })
		if l.grpc() != codePermissionDenied || l.Injected {
			t.Errorf("%+v", l)
		}
	})
	t.Run("a new talosconfig is taken without a restart", w.testReload)
}

// testReload: a context is added to the host's file, and goes away.
func (w *world) testReload(t *testing.T) {
	before, err := os.ReadFile(w.direct)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(text []byte) {
		path := filepath.Join(w.dir, "new")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path, w.direct); err != nil {
			t.Fatal(err)
		}
	}
	await := func(good bool) {
		t.Helper()
		deadline := time.Now().Add(answerLimit)
		for {
			err := askVersion(in(t, "fresh"), w.dialGateway(t))
			if (err == nil) == good {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("context fresh: %v", err)
			}
		}
	}
	await(false)
	fresh := w.contexts()[0]
	fresh.Name = "fresh"
	replace(apid.Talosconfig(append(w.contexts(), fresh)...))
	await(true)
	replace(before)
	await(false)
}

func lastOf[T any](all []T) (last T) {
	if len(all) > 0 {
		last = all[len(all)-1]
	}
	return last
}
