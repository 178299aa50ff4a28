package talos

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// testMetadata: what of a client's metadata arrives at the node.
func testMetadata(t *testing.T, w *world) {
	conn := w.dialGateway(t)
	binary := string([]byte{0, 1, 0xff, '\n', 0x80})
	ask := func(t *testing.T, more ...string) map[string][]string {
		t.Helper()
		before := len(w.prod.Calls(versionMethod))
		if err := askVersion(in(t, "prod", more...), conn); err != nil {
			t.Fatal(err)
		}
		calls := w.prod.Calls(versionMethod)
		if len(calls) != before+1 {
			t.Fatalf("%d calls arrived", len(calls)-before)
		}
		return lastOf(calls).Metadata
	}
	t.Run("what speaks of identity never does", func(t *testing.T) {
		got := ask(t, "talos-role", "os:admin", "talos-role", "os:reader", "proxyfrom", "10.5.0.9", "authorization", "Basic eDp5", "Authorization", "Bearer x")
		for _, key := range []string{"talos-role", "proxyfrom", "authorization"} {
			if values, ok := got[key]; ok {
				t.Errorf("%s: %q", key, values)
			}
		}
	})
	t.Run("all else does, in order and with duplicates", func(t *testing.T) {
		got := ask(t, "nodes", nodes[0], "x-two", "one", "x-two", "two", "x-empty", "", "x-raw-bin", binary, "runtime", "Talos", "x-large", strings.Repeat("y", 100<<10))
		for key, want := range map[string][]string{"nodes": nodes[:1], "x-two": {"one", "two"}, "x-empty": {""}, "x-raw-bin": {binary}, "runtime": {"Talos"}} {
			if !slices.Equal(got[key], want) {
				t.Errorf("%s: %q, want %q", key, got[key], want)
			}
		}
		if large := got["x-large"]; len(large) != 1 || !bytes.Equal([]byte(large[0]), bytes.Repeat([]byte("y"), 100<<10)) {
			t.Errorf("100 KB did not arrive")
		}
		if agent := got["user-agent"]; len(agent) != 1 || !strings.HasPrefix(agent[0], "grpc-go/") {
			t.Errorf("user-agent: %q", agent)
		}
	})
	t.Run("the authority is the endpoint's", func(t *testing.T) {
		if got := ask(t)[":authority"]; len(got) != 1 || !strings.HasPrefix(got[0], prodEndpoint) {
			t.Errorf("%q", got)
		}
	})
}
