package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync/atomic"
	"time"
)

// authority is a CA made for one run, which lives in memory alone. It signs the servers' certificates and the users'.
type authority struct {
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	pem    []byte
	serial atomic.Int64
}

// pair is a certificate with its key, both as PEM.
type pair struct{ cert, key []byte }

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e cluster"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	a := &authority{key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	a.serial.Store(1)
	a.root, err = x509.ParseCertificate(der)
	return a, err
}

// server signs a certificate for 127.0.0.1 and localhost.
func (a *authority) server() (pair, error) {
	return a.sign(&x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// user signs a client certificate: its common name is the user, its organisations are the groups.
func (a *authority) user(name string, groups ...string) (pair, error) {
	return a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name, Organization: groups}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// sign fills in what all certificates share.
func (a *authority) sign(c *x509.Certificate) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	c.SerialNumber, c.KeyUsage = big.NewInt(a.serial.Add(1)), x509.KeyUsageDigitalSignature
	c.NotBefore, c.NotAfter = a.root.NotBefore, a.root.NotAfter
	der, err := x509.CreateCertificate(rand.Reader, c, a.root, key.Public(), a.key)
	if err != nil {
		return pair{}, fmt.Errorf("sign a certificate of %q: %w", c.Subject.CommonName, err)
	}
	text, err := keyPEM(key)
	return pair{cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: text}, err
}

// keyPEM gives a key as the API server reads it.
func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// tls gives the pair for a tls.Config.
func (p pair) tls() tls.Certificate {
	c, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		panic(err) // it was made above
	}
	return c
}

// pool trusts the authority alone.
func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.root)
	return p
}
