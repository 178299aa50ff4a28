package kubeconfig

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"strings"
	"time"
)

// Keys are certificates that stand in the text of a case as @cert-a@ and @key-a@, or @cert-a:64@ in base64: no key is kept in a
// file, and what is compared does not change from run to run.
type Keys map[string]pair

type pair struct {
	cert    *x509.Certificate
	certPEM string
	keyPEM  string
	only    *x509.CertPool
}

// NewKeys makes self-signed certificates of these names.
func NewKeys(names ...string) (Keys, error) {
	keys := Keys{}
	for _, name := range names {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return nil, err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		keys[name] = pair{
			cert:    cert,
			certPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
			keyPEM:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})),
			only:    pool(cert),
		}
	}
	return keys, nil
}

// words gives what stands for what.
func (k Keys) words() (pairs []string) {
	for name, p := range k {
		for word, text := range map[string]string{"@cert-" + name: p.certPEM, "@key-" + name: p.keyPEM} {
			pairs = append(pairs, word+":64@", base64.StdEncoding.EncodeToString([]byte(text)), word+"@", text)
		}
	}
	return pairs
}

// Show puts keys and certificates in the place of their words.
func (k Keys) Show(text string) string { return strings.NewReplacer(k.words()...).Replace(text) }

// Hide is the reverse of Show.
func (k Keys) Hide(text string) string {
	words := k.words()
	for i := 0; i < len(words); i += 2 {
		words[i], words[i+1] = words[i+1], words[i]
	}
	return strings.NewReplacer(words...).Replace(text)
}

// Name gives the name of a certificate.
func (k Keys) Name(der []byte) string {
	for name, p := range k {
		if string(p.cert.Raw) == string(der) {
			return name
		}
	}
	return "unknown"
}

// Roots gives the name of the only certificate in roots; "" is the system's.
func (k Keys) Roots(roots *x509.CertPool) string {
	if roots == nil {
		return ""
	}
	for name, p := range k {
		if roots.Equal(p.only) {
			return name
		}
	}
	return "unknown"
}
