package thief

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// issuer is what signs a leaf: a CA certificate with its key, and what a server must send along with the leaf.
type issuer struct {
	cert  *x509.Certificate
	key   any
	chain [][]byte
}

// steal takes the first intermediate and its key out of a mux-dir's proxy-ca-key.pem, and the root that goes with it.
func steal(t *testing.T, dir string) (i *issuer, root *x509.Certificate) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "proxy-ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			t.Fatal("proxy-ca-key.pem holds no key")
		}
		if block.Type != "CERTIFICATE" {
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil || len(certs) != 2 {
				t.Fatalf("proxy-ca-key.pem: a %s block after %d certificates: %v", block.Type, len(certs), err)
			}
			return &issuer{certs[1], key, [][]byte{certs[1].Raw}}, certs[0]
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
	}
}

// keysUnder gives every private key that a PEM block of a file below dir holds.
func keysUnder(t *testing.T, dir string) (keys []*ecdsa.PrivateKey) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" {
				continue
			}
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				t.Errorf("%s: a %s block that is no PKCS #8 key: %v", path, block.Type, err)
				continue
			}
			keys = append(keys, key.(*ecdsa.PrivateKey))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// freeIssuer makes an intermediate without constraints and its root: the control, which shows that a stack refuses a
// leaf for the constraints' sake and not because of how the test asks it.
func freeIssuer(t *testing.T) (i *issuer, root []byte) {
	t.Helper()
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	rootKey := newKey(t)
	rootCert := template("free root")
	rootCert = parse(t, create(t, rootCert, &issuer{cert: rootCert, key: rootKey}, rootKey))
	key := newKey(t)
	der := create(t, template("free intermediate"), &issuer{cert: rootCert, key: rootKey}, key)
	return &issuer{parse(t, der), key, [][]byte{der}}, rootCert.Raw
}

// leaf has i sign a server certificate, and gives what the server sends: the leaf first.
func (i *issuer) leaf(t *testing.T, template x509.Certificate, key *ecdsa.PrivateKey) [][]byte {
	t.Helper()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return append([][]byte{create(t, &template, i, key)}, i.chain...)
}

// subCA has i sign another CA.
func (i *issuer) subCA(t *testing.T) *issuer {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "sub-CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := create(t, template, i, key)
	return &issuer{parse(t, der), key, append([][]byte{der}, i.chain...)}
}

func create(t *testing.T, template *x509.Certificate, by *issuer, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func parse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// directorySAN is a subject alternative name extension with one directoryName (RFC 5280 section 4.2.1.6), for which
// x509.Certificate has no field.
func directorySAN(t *testing.T) pkix.Extension {
	t.Helper()
	name, err := asn1.Marshal(pkix.Name{CommonName: "directory"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

// forgery is a leaf that the thief serves.
type forgery struct {
	name   string
	host   string // what the client dials
	accept bool   // every stack must accept it; otherwise every stack must refuse it
	free   bool   // signed by the control
	chain  [][]byte
}

// forge makes all leaves for key. api.github.com and api.anthropic.com are inside the constraints; example.org and
// anthropic.com are outside. (github.com is inside, by the rule for git, and so every name below it.)
func forge(t *testing.T, stolen, free *issuer, key *ecdsa.PrivateKey) []*forgery {
	t.Helper()
	const inside, outside = "api.github.com", "example.org"
	const wildInside, wildOutside, wild = "api.anthropic.com", "console.anthropic.com", "*.anthropic.com"
	ip := []net.IP{net.IPv4(127, 0, 0, 1)}
	uri := []*url.URL{{Scheme: "https", Host: outside, Path: "/"}}
	cn := pkix.Name{CommonName: outside}
	stolenLeaf := func(c x509.Certificate) [][]byte { return stolen.leaf(t, c, key) }
	freeLeaf := func(c x509.Certificate) [][]byte { return free.leaf(t, c, key) }
	return []*forgery{
		{"a legitimate leaf", inside, true, false, stolenLeaf(x509.Certificate{DNSNames: []string{inside}})},
		{"control: a tunneled host", outside, true, true, freeLeaf(x509.Certificate{DNSNames: []string{outside}})},
		{"control: a wildcard", wildInside, true, true, freeLeaf(x509.Certificate{DNSNames: []string{wild}})},
		{"control: inside and outside", inside, true, true, freeLeaf(x509.Certificate{DNSNames: []string{inside, outside}})},
		{"control: a sub-CA's leaf", inside, true, true, free.subCA(t).leaf(t, x509.Certificate{DNSNames: []string{inside}}, key)},
		{"control: an IP address", "127.0.0.1", true, true, freeLeaf(x509.Certificate{IPAddresses: ip})},
		{"a tunneled host", outside, false, false, stolenLeaf(x509.Certificate{DNSNames: []string{outside}})},
		{"an IP address", "127.0.0.1", false, false, stolenLeaf(x509.Certificate{IPAddresses: ip})},
		{"a sibling wildcard, dialed inside", wildInside, false, false, stolenLeaf(x509.Certificate{DNSNames: []string{wild}})},
		{"a sibling wildcard, dialed outside", wildOutside, false, false, stolenLeaf(x509.Certificate{DNSNames: []string{wild}})},
		{"the name in the CN only", outside, false, false, stolenLeaf(x509.Certificate{Subject: cn})},
		{"inside and outside, dialed inside", inside, false, false, stolenLeaf(x509.Certificate{DNSNames: []string{inside, outside}})},
		{"inside and outside, dialed outside", outside, false, false, stolenLeaf(x509.Certificate{DNSNames: []string{inside, outside}})},
		{"a sub-CA's leaf", inside, false, false, stolen.subCA(t).leaf(t, x509.Certificate{DNSNames: []string{inside}}, key)},
		{"IP SAN, another name in the CN", outside, false, false, stolenLeaf(x509.Certificate{IPAddresses: ip, Subject: cn})},
		{"email SAN, another name in the CN", outside, false, false, stolenLeaf(x509.Certificate{EmailAddresses: []string{"a@" + outside}, Subject: cn})},
		{"URI SAN, another name in the CN", outside, false, false, stolenLeaf(x509.Certificate{URIs: uri, Subject: cn})},
		{"directory SAN, another name in the CN", outside, false, false, stolenLeaf(x509.Certificate{ExtraExtensions: []pkix.Extension{directorySAN(t)}, Subject: cn})},
	}
}
