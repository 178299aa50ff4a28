package apid

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"
)

// Authority is the Talos CA of a cluster: Ed25519, as Talos' own, which signs the certificates of its nodes and of its clients.
type Authority struct {
	root *x509.Certificate
	key  ed25519.PrivateKey
	// PEM is the root's certificate, what a talosconfig has as `ca`.
	PEM []byte
}

// Identity is a certificate with its key, in PEM, as a talosconfig holds them. The label of the key's block is Talos' own.
type Identity struct{ Cert, Key []byte }

// NewAuthority makes the CA of a new cluster.
func NewAuthority() (*Authority, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"talos"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	return &Authority{root: root, key: key, PEM: certPEM(der)}, err
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Client issues a client certificate. The roles are its subject's organizations: "os:admin".
func (a *Authority) Client(lifetime time.Duration, roles ...string) (Identity, error) {
	return a.issue(&x509.Certificate{
		Subject: pkix.Name{Organization: roles}, NotAfter: time.Now().Add(lifetime), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// ClientFor issues a client certificate with other key usages than apid demands.
func (a *Authority) ClientFor(usages []x509.ExtKeyUsage, roles ...string) (Identity, error) {
	return a.issue(&x509.Certificate{Subject: pkix.Name{Organization: roles}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: usages})
}

// Server issues the certificate of a node for names and addresses.
func (a *Authority) Server(hosts ...string) (Identity, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: hosts[0]}, NotAfter: time.Now().Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return a.issue(template)
}

func (a *Authority) issue(template *x509.Certificate) (Identity, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Identity{}, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return Identity{}, err
	}
	template.NotBefore, template.KeyUsage = time.Now().Add(-time.Minute), x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, public, a.key)
	if err != nil {
		return Identity{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	return Identity{certPEM(der), pem.EncodeToMemory(&pem.Block{Type: "ED25519 PRIVATE KEY", Bytes: pkcs8})}, err
}

// Pool holds the root.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.root)
	return p
}

// TLS is what crypto/tls presents.
func (i Identity) TLS() (tls.Certificate, error) { return tls.X509KeyPair(i.Cert, i.Key) }

// Serial tells certificates apart: it is in Call.Serial too.
func (i Identity) Serial() string {
	c, err := i.TLS()
	if err != nil {
		return err.Error()
	}
	return c.Leaf.SerialNumber.String()
}

// Context is one context of a talosconfig.
type Context struct {
	Name      string
	Endpoints []string
	Nodes     []string
	CA        []byte   // PEM
	Identity  Identity // none if its fields are nil
	Extra     string   // further lines, indented by eight blanks
}

// Talosconfig is the text of a talosconfig whose current context is the first.
func Talosconfig(contexts ...Context) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "context: %s\ncontexts:\n", contexts[0].Name)
	list := func(key string, values []string) {
		fmt.Fprintf(&b, "        %s:\n", key)
		for _, v := range values {
			fmt.Fprintf(&b, "            - %s\n", v)
		}
	}
	encoded := func(key string, text []byte) {
		if text != nil {
			fmt.Fprintf(&b, "        %s: %s\n", key, base64.StdEncoding.EncodeToString(text))
		}
	}
	for _, c := range contexts {
		fmt.Fprintf(&b, "    %s:\n", c.Name)
		list("endpoints", c.Endpoints)
		if c.Nodes != nil {
			list("nodes", c.Nodes)
		}
		encoded("ca", c.CA)
		encoded("crt", c.Identity.Cert)
		encoded("key", c.Identity.Key)
		b.WriteString(c.Extra)
	}
	return []byte(b.String())
}
