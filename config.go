package main

import (
	"net/netip"
	"time"
)

// config is a validated configuration: every field has its effective value, paths are absolute, names are normalised.
type config struct {
	file            string       // the file it came from, "" where there is none
	muxDir          string       // "/home/u/.mux"
	secretsDir      string       // "/home/u/.secrets"
	httpPort        uint16       // 18080
	kubePort        uint16       // 18081
	talosPort       uint16       // 18082
	bind            []netip.Addr // nil is "auto"
	clientNetworks  []netip.Prefix
	dockerHost      string // "host.docker.internal"
	noProxy         []string
	caConstraints   bool
	caEphemeral     bool
	allowedNetworks []netip.Prefix
	unmatched       action // actionTunnel or actionDeny
	drain           time.Duration
	audit           auditConfig
	rules           []*rule // in the order in which they are asked: the file's, then the built-in ones that the file leaves on
}

type auditConfig struct {
	path    string // absolute
	maxSize int64  // bytes; 0: never rotated
	keep    int    // rotated files kept
}

// loadConfig reads file, or takes the defaults where file is "" . home expands "~". The error is a configError with all problems.
func loadConfig(file, muxDir, home string) (*config, error) { panic("stub") }

// ruleHosts are the names that the certificate authority must cover: the exact hosts of all rules that intercept, and
// for "*.example.com" the name "example.com"; sorted, without duplicates; plus dockerHost and "localhost".
func (c *config) caHosts() []string { panic("stub") }
