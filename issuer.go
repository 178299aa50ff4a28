package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// issuers is a list of issuers, oldest first: the order of the key file. The list that a certAuthority holds never changes.
type issuers []*issuer

// find gives the oldest issuer of the asked kind that covers host and is valid from and until the two times; nil where none is.
func (l issuers) find(host string, unconstrained bool, from, until time.Time) *issuer {
	for _, i := range l {
		if i.unconstrained() == unconstrained && i.covers(host) && i.validAt(from) && i.validAt(until) {
			return i
		}
	}
	return nil
}

// rootsPEM gives the roots of the issuers that have not ended, without any comment, since not every client reads one.
func (l issuers) rootsPEM(now time.Time) (out []byte) {
	for _, i := range l {
		if now.Before(i.end()) {
			out = append(out, certificatePEM(i.root.Raw)...)
		}
	}
	return out
}

// end is when the issuer's certificates end.
func (i *issuer) end() time.Time { return i.intermediate.NotAfter }

// validAt tells whether t is in the issuer's lifetime.
func (i *issuer) validAt(t time.Time) bool {
	return !t.Before(i.intermediate.NotBefore) && t.Before(i.end())
}

// unconstrained tells whether the intermediate may sign for every name. check holds that nothing lies between.
func (i *issuer) unconstrained() bool { return len(i.intermediate.PermittedDNSDomains) == 0 }

// covers tells whether host is a permitted name or lies below one (RFC 5280 section 4.2.1.10).
func (i *issuer) covers(host string) bool {
	return i.unconstrained() || slices.ContainsFunc(i.intermediate.PermittedDNSDomains, func(name string) bool {
		return host == name || strings.HasSuffix(host, "."+name)
	})
}

// check tells whether the issuer is one that newIssuer makes: the key belongs to the intermediate, the root signed
// it, and both are what they must be. The error never holds bytes of the key.
func (i *issuer) check() error {
	switch {
	case !i.key.PublicKey.Equal(i.intermediate.PublicKey):
		return errors.New("the key is not the intermediate's")
	case i.root.CheckSignatureFrom(i.root) != nil:
		return errors.New("the root is not signed by itself")
	case i.intermediate.CheckSignatureFrom(i.root) != nil:
		return errors.New("the intermediate is not signed by the root")
	case !isOurRoot(i.root):
		return errors.New("the root is not one of muxproxy's")
	case !i.root.NotAfter.Equal(i.end()) || !i.root.NotBefore.Equal(i.intermediate.NotBefore):
		return errors.New("root and intermediate are not of one age")
	case !isPlainCA(i.root) || i.root.MaxPathLen != -1 || len(i.root.ExtKeyUsage) != 0 || constrains(i.root):
		return errors.New("the root is constrained or may do more than sign certificates")
	}
	return checkIntermediate(i.intermediate)
}

// checkIntermediate holds what a thief of the key would gain from: path length, usage and constraints.
func checkIntermediate(c *x509.Certificate) error {
	switch {
	case !isPlainCA(c) || c.MaxPathLen != 0:
		return errors.New("the intermediate may do more than sign leaves")
	case !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || len(c.UnknownExtKeyUsage) != 0:
		return errors.New("the intermediate is not for servers alone")
	case !constrains(c):
		return nil // ca_constraints = false made it
	case !c.PermittedDNSDomainsCritical || !sameRanges(c.ExcludedIPRanges, allAddresses()):
		return errors.New("the intermediate's constraints are not critical or let addresses pass")
	case len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses)+
		len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) != 0:
		return errors.New("the intermediate has constraints that muxproxy does not set")
	}
	return checkCAHosts(c.PermittedDNSDomains)
}

// isPlainCA tells whether c is a P-256 CA certificate that may sign certificates and nothing else.
func isPlainCA(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	return ok && key.Curve == elliptic.P256() && c.BasicConstraintsValid && c.IsCA && c.KeyUsage == x509.KeyUsageCertSign
}

// constrains tells whether c has any name constraint of a kind that crypto/x509 reads; it refuses critical ones of
// other kinds when a chain is verified.
func constrains(c *x509.Certificate) bool {
	return c.PermittedDNSDomainsCritical || len(c.PermittedDNSDomains)+len(c.ExcludedDNSDomains)+len(c.PermittedIPRanges)+
		len(c.ExcludedIPRanges)+len(c.PermittedEmailAddresses)+len(c.ExcludedEmailAddresses)+
		len(c.PermittedURIDomains)+len(c.ExcludedURIDomains) != 0
}

// sameRanges compares address ranges in their order, which CreateCertificate keeps.
func sameRanges(a, b []*net.IPNet) bool {
	return slices.EqualFunc(a, b, func(x, y *net.IPNet) bool { return x.String() == y.String() })
}

// isOurRoot tells whether c is a root that some muxproxy made: its name holds the digest of its key.
func isOurRoot(c *x509.Certificate) bool {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return false
	}
	name := c.Subject.CommonName
	return name != "" && (name == caName("root", key) || name == caName("unconstrained root", key))
}

// checkCAHosts refuses a list of permitted names that some client would read as something else than these names:
// an empty list is no constraint at all, "" is every name, a leading dot matches nothing in Java 11, upper case
// nothing in GnuTLS 3.7.
func checkCAHosts(hosts []string) error {
	if len(hosts) == 0 {
		return errors.New("constrain CA: no hosts: an empty list would permit every name")
	}
	for _, h := range hosts {
		if err := checkCAHost(h); err != nil {
			return fmt.Errorf("constrain CA to %q: %w", h, err)
		}
	}
	return nil
}

// checkCAHost takes a lower-case ASCII DNS name of at most 253 bytes, "api.github.com" or "localhost".
func checkCAHost(host string) error {
	if len(host) > 253 {
		return errors.New("longer than 253 bytes")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return errors.New("an IP address: use a DNS name")
	}
	labels := strings.Split(host, ".")
	for _, l := range labels {
		switch {
		case l == "":
			return errors.New("empty, or an empty label: dots only between labels")
		case len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-':
			return fmt.Errorf("label %q: longer than 63 bytes, or a hyphen at its edge", l)
		case strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return fmt.Errorf("label %q: only a-z, 0-9, hyphen and underscore", l)
		}
	}
	// Browsers and curl read such names as IPv4 addresses: "127.1", "0x7f.0x1".
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return errors.New("its last label is a number, as in an IP address: use a DNS name")
	}
	return nil
}

// certificatePEM gives one CERTIFICATE block (RFC 7468), with a line end behind it.
func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
