package main

import (
	"crypto/tls"
	"errors"
	"time"
)

// certAuthority holds the authorities (section 7) and mints leaves. Safe for concurrent use.
type certAuthority struct{}

// caOptions is what opening the CA needs.
type caOptions struct {
	dir           string   // mux-dir
	hosts         []string // names the constraints must permit, lower case
	unconstrained bool     // ca_constraints = false
	ephemeral     bool
	fresh         bool // gen-configs --new-ca
	readOnly      bool // beside a running daemon: add no authority, error if something is missing
	now           func() time.Time
}

var errCAReadOnly = errors.New("stub")

// openCA loads or creates the authorities under ca.lock, rewrites proxy-ca.pem from the key file. notices are lines for the operator.
func openCA(o caOptions) (ca *certAuthority, notices []string, err error) { panic("stub") }

// cover adds an authority for hosts that none covers, and a successor 30 days before one ends. added names the hosts new to running clients.
func (ca *certAuthority) cover(hosts []string) (added []string, err error) { panic("stub") }

// leaf gives the certificate chain (leaf, intermediate) for host, minted once, cached. minted tells whether it had to be made.
// cached reports whether leaf would find host in its cache.
func (ca *certAuthority) leaf(host string) (*tls.Certificate, error) { panic("stub") }
func (ca *certAuthority) cached(host string) bool                    { panic("stub") }

// roots is proxy-ca.pem: the roots of all authorities, PEM.
func (ca *certAuthority) roots() []byte { panic("stub") }
