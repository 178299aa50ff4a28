package main

import "net/netip"

// clients bounds what one client address may use. Safe for concurrent use.
type clients struct{}

func newClients(maxConns int) *clients { panic("stub") }

// connect counts a connection in; false when addr has too many.
func (c *clients) connect(addr netip.Addr) bool { panic("stub") }

// disconnect counts it out.
func (c *clients) disconnect(addr netip.Addr) { panic("stub") }

// mint takes one from addr's allowance of new leaves; false when it is used up.
func (c *clients) mint(addr netip.Addr) bool { panic("stub") }
