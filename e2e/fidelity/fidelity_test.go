// Package fidelity sends the same exchanges directly and through muxproxy, by several clients, to an origin that records every
// byte, and compares what arrived at both ends.
package fidelity

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"muxproxy/e2e/testbed"
)

// The hosts: a file rule adds a credential to requests to the first; the second is a built-in service that has none.
const (
	injectedHost = "injected.example.com"
	passiveHost  = "sentry.io"

	ruleField  = "private-token"
	credential = "glpat-canary-fidelity"
)

const rules = `[[rule]]
service = "injected"
hosts = ["` + injectedHost + `"]
header = "PRIVATE-TOKEN"
format = "{}"
file = "injected"
`

func startDaemon(t *testing.T, ca *testbed.CA) *testbed.Daemon {
	t.Helper()
	return testbed.Start(t, testbed.Options{
		Hosts: []string{injectedHost, passiveHost, tunnelHost}, Roots: ca.PEM, Secrets: map[string]string{"injected": credential}, Config: rules,
	})
}

// tunnelHost is one that no rule names.
const tunnelHost = "tunnel.example.org"

func TestExchangesAreTheSameDirectlyAndThroughTheProxy(t *testing.T) {
	ca := testbed.NewCA(t)
	o := newOrigin(t, ca)
	d := startDaemon(t, ca)
	if n := len(exchanges); n < 100 {
		t.Errorf("%d exchanges", n)
	}
	direct := way{addr: net.JoinHostPort(testbed.Address(), "443"), roots: d.Roots, pool: d.Pool(t)}
	proxied := way{proxy: d.Proxy, roots: d.Roots, pool: direct.pool}
	// Those that take longest come first.
	clients := []client{curlClient(true), curlClient(false), nodeClient(t), goClient(true), goClient(false), rawClient()}
	t.Run("by", func(t *testing.T) {
		for i := range clients {
			c := &clients[i]
			t.Run(c.String(), func(t *testing.T) {
				t.Parallel()
				for _, host := range []string{injectedHost, passiveHost} {
					direct, proxied := direct, proxied
					direct.host, proxied.host = host, host
					for n := range exchanges {
						compareExchange(t, o, c, direct, proxied, n)
					}
				}
			})
		}
	})
	for _, l := range tolerances {
		if l.used.Load() == 0 {
			t.Errorf("no exchange needs the tolerance %q", l.name)
		} else {
			t.Logf("%5d × %s", l.used.Load(), l.name)
		}
	}
}

// compareExchange has c do exchange n both ways.
func compareExchange(t *testing.T, o *origin, c *client, direct, proxied way, n int) {
	x := &exchanges[n]
	for who := range strings.SplitSeq(x.cannot, ", ") {
		if who != "" && strings.Contains(c.String(), who) {
			return
		}
	}
	mark := func(w way) string { return fmt.Sprintf("%d %s %s", n, c, w) }
	t.Run(direct.host+" "+x.name, func(t *testing.T) {
		cmp := &comparison{difference: difference{client: c, injected: direct.host == injectedHost, x: x}}
		before, after := c.do(t, direct, x, mark(direct)), c.do(t, proxied, x, mark(proxied))
		for i := range before {
			cmp.answersTo(before[i], after[i])
		}
		cmp.requests(o.take(t, mark(direct), len(before)), o.take(t, mark(proxied), len(before)))
		for _, d := range judge(cmp.found) {
			t.Error(d)
		}
	})
}
