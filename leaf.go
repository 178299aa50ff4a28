package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	leafLifetime = 7 * 24 * time.Hour
	leafRenewal  = 24 * time.Hour // a leaf with less than this left, or less than a third of its life, is minted anew
	maxLeaves    = 1024
)

// leafCache holds the leaves that were minted, at most maxLeaves. Since a leaf ends with its issuer at the latest, none
// outlives an issuer that was dropped, and it needs no look at the issuers. The zero value is an empty cache. All methods but
// find need certAuthority.mu held for writing; find needs it held for reading.
type leafCache struct {
	byHost map[string]*leaf
	clock  atomic.Uint64 // counts uses
}

// leaf is one host's certificate, minted by the first caller of mint while the others wait for it.
type leaf struct {
	// mint may be called at once by many; after the first call it gives the same answer, an error too.
	mint  func() (*tls.Certificate, error)
	renew time.Time     // from then on another is minted
	used  atomic.Uint64 // leafCache.clock at the last use
}

// find gives the leaf of host, or nil where there is none that is still good at now.
func (c *leafCache) find(host string, now time.Time) *leaf {
	l := c.byHost[host]
	if l == nil || !now.Before(l.renew) {
		return nil
	}
	l.used.Store(c.clock.Add(1))
	return l
}

// add puts l in, in place of the host's old one; a full cache loses the leaf that was not used for longest.
func (c *leafCache) add(host string, l *leaf) {
	if c.byHost == nil {
		c.byHost = make(map[string]*leaf)
	}
	if _, ok := c.byHost[host]; !ok && len(c.byHost) >= maxLeaves {
		c.evict()
	}
	l.used.Store(c.clock.Add(1))
	c.byHost[host] = l
}

// evict looks at every leaf: it is called for a mint alone, which costs many times more.
func (c *leafCache) evict() {
	var oldest string
	var least uint64
	for host, l := range c.byHost {
		if used := l.used.Load(); oldest == "" || used < least {
			oldest, least = host, used
		}
	}
	delete(c.byHost, oldest)
}

// forget removes l, unless another took its place.
func (c *leafCache) forget(host string, l *leaf) {
	if c.byHost[host] == l {
		delete(c.byHost, host)
	}
}

// cached reports whether leaf would find host in its cache, so that a caller may bound the mints of a client.
func (ca *certAuthority) cached(host string) bool {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	return ca.leaves.find(host, ca.o.now()) != nil
}

// leaf gives the chain (leaf, intermediate) for host, a lower-case DNS name ("api.github.com"), minted once and
// cached. It is signed by the oldest valid issuer that covers host and was verified against its root. The error says
// that no issuer covers host or that it is no DNS name. The caller must not change the certificate.
func (ca *certAuthority) leaf(host string) (*tls.Certificate, error) {
	now := ca.o.now()
	ca.mu.RLock()
	l := ca.leaves.find(host, now)
	ca.mu.RUnlock()
	if l == nil {
		var err error
		if l, err = ca.newLeaf(host, now); err != nil {
			return nil, fmt.Errorf("mint leaf %q: %w", host, err)
		}
	}
	cert, err := l.mint()
	if err != nil {
		ca.mu.Lock()
		ca.leaves.forget(host, l)
		ca.mu.Unlock()
		return nil, fmt.Errorf("mint leaf %q: %w", host, err)
	}
	return cert, nil
}

// newLeaf puts a leaf that is still to be minted into the cache, unless another caller was faster.
func (ca *certAuthority) newLeaf(host string, now time.Time) (*leaf, error) {
	if err := checkCAHost(host); err != nil {
		return nil, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if l := ca.leaves.find(host, now); l != nil {
		return l, nil
	}
	i := ca.issuers.find(host, ca.o.unconstrained, now, now)
	if i == nil {
		return nil, errors.New("no certificate authority covers it")
	}
	template := leafTemplate(host, i, now)
	// Near its issuer's end a leaf lives for less than a day, and would else never be found in the cache.
	life := template.NotAfter.Sub(now)
	l := &leaf{
		renew: template.NotAfter.Add(-min(leafRenewal, life/3)),
		mint: sync.OnceValues(func() (*tls.Certificate, error) {
			return ca.mint(i, template, now)
		}),
	}
	ca.leaves.add(host, l)
	return l, nil
}

// mint signs and verifies: CreateCertificate would sign a name that the constraints forbid. now is when the leaf was
// asked for. It needs no lock: an issuer never changes.
func (ca *certAuthority) mint(i *issuer, template *x509.Certificate, now time.Time) (*tls.Certificate, error) {
	der, err := i.sign(template, &ca.leafKey.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(i.root)
	intermediates.AddCert(i.intermediate)
	_, err = cert.Verify(x509.VerifyOptions{
		DNSName:       template.DNSNames[0],
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return &tls.Certificate{
		Certificate: [][]byte{der, i.intermediate.Raw},
		PrivateKey:  ca.leafKey,
		Leaf:        cert,
	}, nil
}

// leafTemplate names host alone. With an empty subject the SAN extension is critical (RFC 5280 section 4.2.1.6);
// CreateCertificate adds the authority key id. The leaf lives within its issuer, and no longer than leafLifetime.
func leafTemplate(host string, i *issuer, now time.Time) *x509.Certificate {
	start := now.UTC().Truncate(time.Second).Add(-caBackdate)
	if start.Before(i.intermediate.NotBefore) {
		start = i.intermediate.NotBefore
	}
	end := start.Add(leafLifetime)
	if end.After(i.end()) {
		end = i.end()
	}
	return &x509.Certificate{
		SerialNumber: newSerial(),
		DNSNames:     []string{host},
		NotBefore:    start,
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}
