package main

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
)

// dialer opens connections to what clients name, behind the address guard, through an upstream proxy where configured.
type dialer struct{}

type dialerConfig struct {
	allowed  []netip.Prefix
	isOwn    func(netip.Addr) bool
	ownPorts []uint16
	proxy    func(*url.URL) (*url.URL, error)
}

func newDialer(c dialerConfig) *dialer { panic("stub") }

func (d *dialer) dial(ctx context.Context, a authority) (net.Conn, error) { panic("stub") }

var _ http.RoundTripper = (*upstream)(nil)
