package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
)

// policy is all that a reload replaces, as one value that never changes.
type policy struct {
	rules      *ruleSet
	creds      *credentials
	dialer     *dialer
	dockerHost string
}

// proxyOptions is what newProxy needs.
type proxyOptions struct {
	ca      *certAuthority
	audit   *auditLog
	clients *clients
	log     *slog.Logger
	policy  *policy
	// health answers origin-form GET /proxy/health; loopback clients see more.
	health func(loopback bool) (code int, body []byte)
	// local tells whether the Host of an origin-form request may be answered: loopback, docker_host, an address we listen on.
	local func(host string) bool
	// accepts says whether a client address may talk to us at all.
	accepts func(netip.Addr) bool
}

// proxy is the http plane.
type proxy struct{}

func newProxy(o proxyOptions) *proxy { panic("stub") }

// setPolicy swaps the policy; requests under way keep the old one.
func (p *proxy) setPolicy(n *policy) { panic("stub") }

// serve accepts on ln until ctx is done, then returns once it accepts no more; connections live on until drain.
func (p *proxy) serve(ctx context.Context, ln net.Listener) error { panic("stub") }

// drain waits until all connections are done; when ctx ends it closes them and waits.
func (p *proxy) drain(ctx context.Context) { panic("stub") }

var _ http.Handler
