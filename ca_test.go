package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fakeClock is a clock that a test moves.
type fakeClock struct {
	mu sync.Mutex
	t  time.Time
}

func newFakeClock() *fakeClock {
	return &fakeClock{t: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)}
}

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func testCAOptions(t testing.TB, clock *fakeClock) caOptions {
	t.Helper()
	return caOptions{
		dir:   filepath.Join(t.TempDir(), "mux"),
		hosts: []string{"api.github.com", "api.anthropic.com", "host.docker.internal", "localhost"},
		now:   clock.now,
	}
}

func mustOpenCA(t testing.TB, o caOptions) (*certAuthority, []string) {
	t.Helper()
	ca, notices, err := openCA(o)
	if err != nil {
		t.Fatalf("openCA: %v", err)
	}
	return ca, notices
}

func mustLeaf(t testing.TB, ca *certAuthority, host string) *tls.Certificate {
	t.Helper()
	c, err := ca.leaf(host)
	if err != nil {
		t.Fatalf("leaf: %v", err)
	}
	return c
}

// verifyLeaf does what a client does that trusts roots and was sent the chain.
func verifyLeaf(chain [][]byte, roots []byte, host string, now time.Time) error {
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return err
	}
	o := x509.VerifyOptions{DNSName: host, Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now}
	o.Roots.AppendCertsFromPEM(roots)
	for _, der := range chain[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		o.Intermediates.AddCert(c)
	}
	_, err = leaf.Verify(o)
	return err
}

func onDisk(t testing.TB, o caOptions) issuers {
	t.Helper()
	list, err := caFiles{o.dir}.load()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func readTestFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLeafIsWhatTheContractSays(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, _ := mustOpenCA(t, o)
	c := mustLeaf(t, ca, "api.github.com")
	if err := verifyLeaf(c.Certificate, ca.roots(), "api.github.com", clock.now()); err != nil {
		t.Errorf("chain: %v", err)
	}
	inter := ca.issuers[0].intermediate
	if len(c.Certificate) != 2 || !bytes.Equal(c.Certificate[1], inter.Raw) {
		t.Errorf("sent %d certificates, want the leaf and its intermediate", len(c.Certificate))
	}
	l := c.Leaf
	if l == nil {
		t.Fatal("Leaf is not set")
	}
	if !slices.Equal(l.DNSNames, []string{"api.github.com"}) || len(l.IPAddresses)+len(l.EmailAddresses)+len(l.URIs) != 0 {
		t.Errorf("names %q, want one", l.DNSNames)
	}
	if s := l.Subject.String(); s != "" {
		t.Errorf("subject %q, want none", s)
	}
	if !bytes.Equal(l.AuthorityKeyId, inter.SubjectKeyId) || len(l.AuthorityKeyId) == 0 {
		t.Error("authority key id is not the intermediate's")
	}
	if l.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(l.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}) || l.IsCA {
		t.Errorf("usage %v %v", l.KeyUsage, l.ExtKeyUsage)
	}
	if n := l.SerialNumber.BitLen(); n > 128 || n < 90 || l.SerialNumber.Sign() <= 0 {
		t.Errorf("serial of %d bits", n)
	}
	if !l.NotBefore.Equal(clock.now().Add(-time.Hour)) {
		t.Errorf("starts %v", l.NotBefore)
	}
	if life := l.NotAfter.Sub(l.NotBefore); life > 7*24*time.Hour || life < 6*24*time.Hour {
		t.Errorf("lives %v", life)
	}
	for _, e := range l.Extensions {
		if e.Id.String() == "2.5.29.17" && !e.Critical {
			t.Error("SAN is not critical although the subject is empty (RFC 5280 section 4.1.2.6)")
		}
	}
	other := mustLeaf(t, ca, "api.anthropic.com")
	if other.PrivateKey != c.PrivateKey || other.Leaf.SerialNumber.Cmp(l.SerialNumber) == 0 {
		t.Error("want one key per process and a serial per leaf")
	}
}

func TestIssuerIsWhatTheContractSays(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, _ := mustOpenCA(t, o)
	i := ca.issuers[0]
	for name, c := range map[string]*x509.Certificate{"root": i.root, "intermediate": i.intermediate} {
		if !strings.HasPrefix(c.Subject.CommonName, "muxproxy "+name+" ") || len(c.Subject.CommonName) != len("muxproxy  ")+len(name)+16 {
			t.Errorf("%s: common name %q", name, c.Subject.CommonName)
		}
		if !c.NotBefore.Equal(clock.now().Add(-time.Hour)) || !c.NotAfter.Equal(clock.now().AddDate(5, 0, 0)) {
			t.Errorf("%s: from %v until %v", name, c.NotBefore, c.NotAfter)
		}
		if len(c.SubjectKeyId) == 0 || c.KeyUsage != x509.KeyUsageCertSign || c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
			t.Errorf("%s: key id %x, usage %v, %v", name, c.SubjectKeyId, c.KeyUsage, c.SignatureAlgorithm)
		}
		critical := map[string]bool{}
		for _, e := range c.Extensions {
			critical[e.Id.String()] = e.Critical
		}
		if !critical["2.5.29.19"] || !critical["2.5.29.15"] {
			t.Errorf("%s: basicConstraints or keyUsage not critical", name)
		}
		if constrained, ok := critical["2.5.29.30"]; ok != (name == "intermediate") || ok && !constrained {
			t.Errorf("%s: name constraints there %v, critical %v", name, ok, constrained)
		}
	}
	want := slices.Sorted(slices.Values(o.hosts))
	if !slices.Equal(i.intermediate.PermittedDNSDomains, want) {
		t.Errorf("permits %q, want %q", i.intermediate.PermittedDNSDomains, want)
	}
	if s := fmt.Sprint(i.intermediate.ExcludedIPRanges); s != "[0.0.0.0/0 ::/0]" {
		t.Errorf("excludes %s", s)
	}
	if i.intermediate.MaxPathLen != 0 || !i.intermediate.MaxPathLenZero {
		t.Error("path length is not 0")
	}
	if i.root.MaxPathLen != -1 || len(i.root.ExtKeyUsage) != 0 || constrains(i.root) {
		t.Error("the root is constrained")
	}
}

// thief signs with the keys of proxy-ca-key.pem, as somebody would who took the file.
func thief(t *testing.T, o caOptions, template *x509.Certificate) [][]byte {
	t.Helper()
	var certs []*x509.Certificate
	var key any
	for rest := readTestFile(t, filepath.Join(o.dir, "proxy-ca-key.pem")); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			certs = append(certs, c)
		default:
			var err error
			if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
				t.Fatal(err)
			}
		}
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = newSerial()
	template.NotBefore, template.NotAfter = o.now().Add(-time.Hour), o.now().Add(24*time.Hour)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, certs[1], &own.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if !template.IsCA {
		return [][]byte{der, certs[1].Raw}
	}
	sub, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	inner := &x509.Certificate{SerialNumber: newSerial(), DNSNames: []string{"api.github.com"}, NotBefore: template.NotBefore, NotAfter: template.NotAfter}
	last, err := x509.CreateCertificate(rand.Reader, inner, sub, &own.PublicKey, own)
	if err != nil {
		t.Fatal(err)
	}
	return [][]byte{last, der, certs[1].Raw}
}

func TestStolenKeyGivesNothingOutsideTheConstraints(t *testing.T) {
	uri, err := url.Parse("https://example.org/")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		template *x509.Certificate
		dial     string
		accepted bool
	}{
		{"a permitted name", &x509.Certificate{DNSNames: []string{"api.github.com"}}, "api.github.com", true},
		{"a name below a permitted one", &x509.Certificate{DNSNames: []string{"x.api.github.com"}}, "x.api.github.com", true},
		{"a tunneled host", &x509.Certificate{DNSNames: []string{"example.org"}}, "example.org", false},
		{"the parent of a permitted name", &x509.Certificate{DNSNames: []string{"github.com"}}, "github.com", false},
		{"a name that ends like a permitted one", &x509.Certificate{DNSNames: []string{"evil-api.github.com"}}, "evil-api.github.com", false},
		{"an IPv4 address", &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, "127.0.0.1", false},
		{"an IPv6 address", &x509.Certificate{IPAddresses: []net.IP{net.IPv6loopback}}, "::1", false},
		{"a sibling wildcard", &x509.Certificate{DNSNames: []string{"*.github.com"}}, "api.github.com", false},
		{"common name alone", &x509.Certificate{Subject: pkix.Name{CommonName: "api.github.com"}}, "api.github.com", false},
		{"inside and outside, dialed inside", &x509.Certificate{DNSNames: []string{"api.github.com", "example.org"}}, "api.github.com", false},
		{"inside and outside, dialed outside", &x509.Certificate{DNSNames: []string{"api.github.com", "example.org"}}, "example.org", false},
		{"URI with the other name as common name", &x509.Certificate{URIs: []*url.URL{uri}, Subject: pkix.Name{CommonName: "example.org"}}, "example.org", false},
		{"a sub-CA's leaf", &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, "api.github.com", false},
	}
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, _ := mustOpenCA(t, o)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := verifyLeaf(thief(t, o, tt.template), ca.roots(), tt.dial, clock.now())
			if (err == nil) != tt.accepted {
				t.Errorf("verify: %v, want accepted %v", err, tt.accepted)
			}
		})
	}
}

func TestLeafIsNotMintedForOtherNames(t *testing.T) {
	ca, _ := mustOpenCA(t, testCAOptions(t, newFakeClock()))
	for _, host := range []string{"", ".", "example.org", "github.com", "*.api.github.com", "API.github.com", "api.github.com.", "127.0.0.1", "::1", "evil-api.github.com"} {
		if c, err := ca.leaf(host); err == nil {
			t.Errorf("leaf(%q) gave %q", host, c.Leaf.DNSNames)
		}
		if ca.cached(host) {
			t.Errorf("%q is cached", host)
		}
	}
	mustLeaf(t, ca, "x.api.github.com")
}

func TestMintRefusesWhatDoesNotVerify(t *testing.T) {
	ca, _ := mustOpenCA(t, testCAOptions(t, newFakeClock()))
	template := leafTemplate("example.org", ca.issuers[0], ca.o.now())
	if _, err := ca.mint(ca.issuers[0], template, ca.o.now()); err == nil || !strings.Contains(err.Error(), "verify") {
		t.Errorf("mint of a name outside: %v", err)
	}
}

func TestOddHostListsAreRefused(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, host := range []string{"", ".", "*", "*.example.com", ".example.com", "example.com.", "a..b", "Example.com", "exämple.com", "10.0.0.1", "::1", "127.1", "1", "a.0x1", "0x7f000001", "-a.com", "a-.com", "a b.com", "a\x00b", "a/b", long + ".com", strings.Repeat("a.", 127) + "com"} {
		o := testCAOptions(t, newFakeClock())
		o.hosts = append(o.hosts, host)
		if _, _, err := openCA(o); err == nil {
			t.Errorf("openCA took the host %q", host)
		}
		if _, err := os.Stat(o.dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("host %q: files were written: %v", host, err)
		}
	}
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	for _, hosts := range [][]string{nil, {}, {""}, {"a.example", "*.a.example"}} {
		if _, err := ca.cover(hosts); err == nil {
			t.Errorf("cover took %q", hosts)
		}
		o.hosts = hosts
		if _, _, err := openCA(o); err == nil {
			t.Errorf("openCA took %q", hosts)
		}
	}
	if _, err := newIssuer(nil, false, time.Now()); err == nil {
		t.Error("newIssuer made an issuer without constraints")
	}
	for _, host := range []string{"localhost", "api.github.com", "a_b.example", "xn--exmple-cua.com", "3com.com", long[1:] + ".com"} {
		if err := checkCAHost(host); err != nil {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestOpeningAgainKeepsTheIssuer(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, notices := mustOpenCA(t, o)
	if len(notices) != 1 || !strings.Contains(notices[0], "made") {
		t.Errorf("first start: notices %q", notices)
	}
	before := readTestFile(t, filepath.Join(o.dir, "proxy-ca-key.pem"))
	again, notices := mustOpenCA(t, o)
	if len(notices) != 0 || !bytes.Equal(ca.roots(), again.roots()) {
		t.Errorf("second start: notices %q, same roots %v", notices, bytes.Equal(ca.roots(), again.roots()))
	}
	if !bytes.Equal(before, readTestFile(t, filepath.Join(o.dir, "proxy-ca-key.pem"))) {
		t.Error("the key file changed")
	}
	for name, mode := range map[string]fs.FileMode{"proxy-ca-key.pem": 0o600, "proxy-ca.pem": 0o644, "ca.lock": 0o600, ".": fs.ModeDir | 0o700} {
		info, err := os.Stat(filepath.Join(o.dir, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v (%v)", name, info.Mode(), mode, err)
		}
	}
	if entries, _ := os.ReadDir(o.dir); len(entries) != 3 {
		t.Errorf("files %v", entries)
	}
}

// The root's key cannot be searched for by its value, since nothing ever shows it: what is on disk is exactly one
// private key for each issuer, and none is a root's.
func TestRootKeyIsInNoFile(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	if _, err := ca.cover([]string{"new.example"}); err != nil {
		t.Fatal(err)
	}
	var keys []*ecdsa.PrivateKey
	err := filepath.WalkDir(o.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for rest := readTestFile(t, path); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				return nil
			}
			if block.Type == "CERTIFICATE" {
				continue
			}
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil || !strings.HasSuffix(path, "/proxy-ca-key.pem") {
				t.Errorf("%s: %s block, %v", path, block.Type, err)
				continue
			}
			keys = append(keys, key.(*ecdsa.PrivateKey))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(keys) != 2 || len(ca.issuers) != 2 {
		t.Fatalf("%d keys for %d issuers", len(keys), len(ca.issuers))
	}
	for n, i := range ca.issuers {
		if !keys[n].PublicKey.Equal(i.intermediate.PublicKey) {
			t.Errorf("key %d is not its intermediate's", n)
		}
		for _, key := range keys {
			if key.PublicKey.Equal(i.root.PublicKey) {
				t.Errorf("the key of root %d is on the disk", n)
			}
		}
	}
}

func TestNewHostGetsAFurtherIssuerAndOldClientsGoOn(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, _ := mustOpenCA(t, o)
	oldRoots := ca.roots()
	inode := testInode(t, filepath.Join(o.dir, "proxy-ca.pem"))
	clock.advance(24 * time.Hour)
	added, err := ca.cover(append([]string{"new.example", "x.api.github.com"}, o.hosts...))
	if err != nil || !slices.Equal(added, []string{"new.example"}) {
		t.Fatalf("cover: %q, %v", added, err)
	}
	if len(ca.issuers) != 2 || !slices.Equal(ca.issuers[1].intermediate.PermittedDNSDomains, []string{"new.example"}) {
		t.Errorf("the further issuer permits %q", ca.issuers[1].intermediate.PermittedDNSDomains)
	}
	if !bytes.HasPrefix(ca.roots(), oldRoots) || !bytes.Equal(ca.roots(), readTestFile(t, filepath.Join(o.dir, "proxy-ca.pem"))) {
		t.Error("proxy-ca.pem does not hold the roots of both, the older first")
	}
	if testInode(t, filepath.Join(o.dir, "proxy-ca.pem")) != inode {
		t.Error("proxy-ca.pem was replaced: single-file bind mounts keep the old one")
	}
	for _, host := range append([]string{"x.api.github.com"}, o.hosts...) {
		if err := verifyLeaf(mustLeaf(t, ca, host).Certificate, oldRoots, host, clock.now()); err != nil {
			t.Errorf("a client with the old roots: %v", err)
		}
	}
	fresh := mustLeaf(t, ca, "new.example").Certificate
	if err := verifyLeaf(fresh, ca.roots(), "new.example", clock.now()); err != nil {
		t.Errorf("a client with the new roots: %v", err)
	}
	if err := verifyLeaf(fresh, oldRoots, "new.example", clock.now()); err == nil {
		t.Error("a client with the old roots takes the new host")
	}
	if added, err := ca.cover(o.hosts); err != nil || len(added) != 0 || len(ca.issuers) != 2 {
		t.Errorf("cover of what is covered: %q, %v", added, err)
	}
	if added, err := ca.cover([]string{"evil-api.github.com"}); err != nil || len(added) != 1 || len(ca.issuers) != 3 {
		t.Errorf("cover of a name that ends like a covered one: %q, %v", added, err)
	}
	o.hosts = append(o.hosts, "third.example")
	again, notices := mustOpenCA(t, o)
	if len(again.issuers) != 4 || len(notices) != 1 || !strings.Contains(notices[0], `"third.example": processes started before cannot`) {
		t.Errorf("start with another host: %d issuers, notices %q", len(again.issuers), notices)
	}
}

func TestManyHostsAreSpreadOverIssuers(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	o.hosts = nil
	for n := range caMaxNames + 1 {
		o.hosts = append(o.hosts, fmt.Sprintf("h%d.example", n))
	}
	ca, _ := mustOpenCA(t, o)
	if len(ca.issuers) != 2 {
		t.Errorf("%d issuers", len(ca.issuers))
	}
	for _, h := range o.hosts {
		if ca.issuers.find(h, false, o.now(), o.now()) == nil {
			t.Errorf("%q is not covered", h)
		}
	}
}

func TestSuccessorComesThirtyDaysBeforeTheEnd(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, _ := mustOpenCA(t, o)
	first := ca.issuers[0]
	clock.advance(first.end().Sub(clock.now()) - 30*24*time.Hour - time.Hour)
	if added, err := ca.cover(o.hosts); err != nil || len(added) != 0 || len(ca.issuers) != 1 {
		t.Fatalf("31 days before: %d issuers, %q, %v", len(ca.issuers), added, err)
	}
	clock.advance(2 * time.Hour)
	if added, err := ca.cover(o.hosts); err != nil || len(added) != 0 || len(ca.issuers) != 2 {
		t.Fatalf("30 days before: %d issuers, %q, %v", len(ca.issuers), added, err)
	}
	both := ca.roots()
	if added, err := ca.cover(o.hosts); err != nil || len(added) != 0 || len(ca.issuers) != 2 {
		t.Errorf("again: %d issuers, %q, %v", len(ca.issuers), added, err)
	}
	if got := mustLeaf(t, ca, "localhost"); !bytes.Equal(got.Certificate[1], first.intermediate.Raw) {
		t.Error("the oldest issuer does not sign as long as it is valid")
	}
	clock.advance(29 * 24 * time.Hour)
	if got := mustLeaf(t, ca, "localhost").Leaf; got.NotAfter.After(first.end()) {
		t.Errorf("leaf ends %v, after its intermediate %v", got.NotAfter, first.end())
	}
	clock.advance(2 * 24 * time.Hour)
	c := mustLeaf(t, ca, "localhost")
	if !bytes.Equal(c.Certificate[1], ca.issuers[1].intermediate.Raw) {
		t.Error("the successor does not sign after the end")
	}
	if err := verifyLeaf(c.Certificate, both, "localhost", clock.now()); err != nil {
		t.Error(err)
	}
	beside := o
	beside.readOnly = true
	if view, _ := mustOpenCA(t, beside); bytes.Contains(view.roots(), certificatePEM(first.root.Raw)) {
		t.Error("another command hands out the ended root")
	}
	again, notices := mustOpenCA(t, o)
	if len(again.issuers) != 1 || len(onDisk(t, o)) != 1 || len(notices) != 1 || !strings.Contains(notices[0], "ended on") {
		t.Errorf("after the end: %d issuers, notices %q", len(again.issuers), notices)
	}
	if bytes.Contains(again.roots(), certificatePEM(first.root.Raw)) {
		t.Error("the ended root is still in proxy-ca.pem")
	}
}

func TestEndedIssuerIsMadeAnew(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	ca, _ := mustOpenCA(t, o)
	mustLeaf(t, ca, "localhost")
	clock.advance(ca.issuers[0].end().Sub(clock.now()))
	if _, err := ca.leaf("localhost"); err == nil {
		t.Error("an ended issuer signs")
	}
	again, notices := mustOpenCA(t, o)
	if len(again.issuers) != 1 || again.issuers[0].end().Before(clock.now()) || len(notices) != 2 {
		t.Errorf("%d issuers, notices %q", len(again.issuers), notices)
	}
}

func TestUnconstrainedIssuerSignsEverythingUntilItIsSwitchedOff(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	first, _ := mustOpenCA(t, o)
	o.unconstrained = true
	for range 2 {
		ca, notices := mustOpenCA(t, o)
		if len(ca.issuers) != 2 || !ca.issuers[1].unconstrained() || constrains(ca.issuers[1].intermediate) {
			t.Fatalf("%d issuers", len(ca.issuers))
		}
		if len(notices) == 0 || !strings.HasPrefix(notices[len(notices)-1], "warning: ca_constraints = false") {
			t.Errorf("no warning in %q", notices)
		}
		for _, host := range []string{"api.github.com", "new.example"} {
			c := mustLeaf(t, ca, host).Certificate
			if !bytes.Equal(c[1], ca.issuers[1].intermediate.Raw) {
				t.Errorf("%q is signed by another", host)
			}
		}
	}
	o.unconstrained = false
	ca, notices := mustOpenCA(t, o)
	if !bytes.Equal(ca.roots(), first.roots()) || len(onDisk(t, o)) != 1 {
		t.Error("the unconstrained issuer is still there")
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "ca_constraints = true: removed") {
		t.Errorf("notices %q", notices)
	}
	if !bytes.Equal(ca.roots(), readTestFile(t, filepath.Join(o.dir, "proxy-ca.pem"))) {
		t.Error("proxy-ca.pem still holds its root")
	}
}

func TestUnusableKeyFilesAreMadeAnewWithANotice(t *testing.T) {
	edit := func(change func([]byte) []byte) func(*testing.T, string, issuers) {
		return func(t *testing.T, path string, _ issuers) {
			if err := os.WriteFile(path, change(readTestFile(t, path)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	list := func(change func(*testing.T, issuers) issuers) func(*testing.T, string, issuers) {
		return func(t *testing.T, path string, l issuers) {
			text, err := formatIssuers(change(t, l))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	tests := []struct {
		name  string
		spoil func(*testing.T, string, issuers)
	}{
		{"empty", edit(func([]byte) []byte { return nil })},
		{"no PEM", edit(func([]byte) []byte { return []byte("hello\n") })},
		{"cut in the last block", edit(func(b []byte) []byte { return b[:len(b)-40] })},
		{"key left out", edit(func(b []byte) []byte { return b[:bytes.Index(b, []byte("-----BEGIN PRIVATE"))] })},
		{"something behind the last block", edit(func(b []byte) []byte { return append(b, "x"...) })},
		{"blocks in another order", edit(func(b []byte) []byte {
			n := bytes.Index(b, []byte("-----BEGIN PRIVATE"))
			return append(bytes.Clone(b[n:]), b[:n]...)
		})},
		{"flipped bit in a certificate", edit(func(b []byte) []byte { b[200] ^= 2; return b })},
		{"certificate that does not parse", edit(func([]byte) []byte {
			return bytes.Repeat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), 3)
		})},
		{"RSA key", edit(func(b []byte) []byte {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				panic(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				panic(err)
			}
			return append(b[:bytes.Index(b, []byte("-----BEGIN PRIVATE"))], pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
		})},
		{"longer than the bound", edit(func(b []byte) []byte { return append(b, bytes.Repeat([]byte("\n"), maxKeyFile)...) })},
		{"another issuer's key", list(func(t *testing.T, l issuers) issuers {
			return issuers{{root: l[0].root, intermediate: l[0].intermediate, key: testIssuer(t).key}}
		})},
		{"another issuer's root", list(func(t *testing.T, l issuers) issuers {
			return issuers{{root: testIssuer(t).root, intermediate: l[0].intermediate, key: l[0].key}}
		})},
		{"root as intermediate", list(func(_ *testing.T, l issuers) issuers {
			return issuers{{root: l[0].root, intermediate: l[0].root, key: l[0].key}}
		})},
		{"good issuer, then a bad one", list(func(t *testing.T, l issuers) issuers {
			return issuers{l[0], {root: l[0].root, intermediate: l[0].intermediate, key: testIssuer(t).key}}
		})},
		{"readable by others", func(t *testing.T, path string, _ issuers) {
			if err := os.Chmod(path, 0o640); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := testCAOptions(t, newFakeClock())
			ca, _ := mustOpenCA(t, o)
			path := filepath.Join(o.dir, "proxy-ca-key.pem")
			tt.spoil(t, path, ca.issuers)
			readOnly := o
			readOnly.readOnly, readOnly.pid = true, 4711
			if _, _, err := openCA(readOnly); !errors.Is(err, errCAReadOnly) || !strings.Contains(err.Error(), "kill -HUP 4711") || !strings.Contains(err.Error(), "unusable") {
				t.Errorf("beside a daemon: %v", err)
			}
			again, notices := mustOpenCA(t, o)
			if len(notices) != 1 || !strings.Contains(notices[0], "made anew") || !strings.Contains(notices[0], path) {
				t.Errorf("notices %q", notices)
			}
			if bytes.Equal(again.roots(), ca.roots()) {
				t.Error("the old root is still used")
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
			mustLeaf(t, again, "localhost")
			if _, notices := mustOpenCA(t, o); len(notices) != 0 {
				t.Errorf("next start: notices %q", notices)
			}
		})
	}
}

func testIssuer(t *testing.T) *issuer {
	t.Helper()
	i, err := newIssuer([]string{"localhost"}, false, newFakeClock().now())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// A file whose signatures fit may still be what muxproxy never makes: somebody wrote it to widen the CA.
func TestForeignIssuersAreUnusable(t *testing.T) {
	forge := func(t *testing.T, change func(root, intermediate *x509.Certificate)) *issuer {
		t.Helper()
		rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		now := newFakeClock().now()
		root, inter := caTemplate("root", false, &rootKey.PublicKey, now), caTemplate("intermediate", false, &key.PublicKey, now)
		inter.MaxPathLenZero = true
		inter.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		inter.PermittedDNSDomainsCritical = true
		inter.PermittedDNSDomains = []string{"localhost"}
		inter.ExcludedIPRanges = allAddresses()
		change(root, inter)
		i := &issuer{key: key}
		for _, c := range []struct {
			to  **x509.Certificate
			der func() ([]byte, error)
		}{
			{&i.root, func() ([]byte, error) {
				return x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
			}},
			{&i.intermediate, func() ([]byte, error) {
				return x509.CreateCertificate(rand.Reader, inter, i.root, &key.PublicKey, rootKey)
			}},
		} {
			der, err := c.der()
			if err != nil {
				t.Fatal(err)
			}
			if *c.to, err = x509.ParseCertificate(der); err != nil {
				t.Fatal(err)
			}
		}
		return i
	}
	if err := forge(t, func(_, _ *x509.Certificate) {}).check(); err != nil {
		t.Fatalf("the shape itself: %v", err)
	}
	tests := map[string]func(root, inter *x509.Certificate){
		"root of another name":         func(r, _ *x509.Certificate) { r.Subject.CommonName = "Corp Root" },
		"root with a path length":      func(r, _ *x509.Certificate) { r.MaxPathLen = 1 },
		"root for clients":             func(r, _ *x509.Certificate) { r.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} },
		"root with constraints":        func(r, _ *x509.Certificate) { r.PermittedDNSDomains = []string{"localhost"} },
		"root of another age":          func(r, _ *x509.Certificate) { r.NotAfter = r.NotAfter.Add(time.Hour) },
		"root that signs CRLs":         func(r, _ *x509.Certificate) { r.KeyUsage |= x509.KeyUsageCRLSign },
		"path length 1":                func(_, i *x509.Certificate) { i.MaxPathLen, i.MaxPathLenZero = 1, false },
		"no path length":               func(_, i *x509.Certificate) { i.MaxPathLenZero = false },
		"no extended usage":            func(_, i *x509.Certificate) { i.ExtKeyUsage = nil },
		"for clients too":              func(_, i *x509.Certificate) { i.ExtKeyUsage = append(i.ExtKeyUsage, x509.ExtKeyUsageClientAuth) },
		"constraints not critical":     func(_, i *x509.Certificate) { i.PermittedDNSDomainsCritical = false },
		"every name permitted":         func(_, i *x509.Certificate) { i.PermittedDNSDomains = []string{""} },
		"a leading dot":                func(_, i *x509.Certificate) { i.PermittedDNSDomains = []string{".example.com"} },
		"IPv6 addresses pass":          func(_, i *x509.Certificate) { i.ExcludedIPRanges = i.ExcludedIPRanges[:1] },
		"addresses but no names":       func(_, i *x509.Certificate) { i.PermittedDNSDomains = nil },
		"an address range permitted":   func(_, i *x509.Certificate) { i.PermittedIPRanges = allAddresses()[:1] },
		"an excluded name":             func(_, i *x509.Certificate) { i.ExcludedDNSDomains = []string{"a.localhost"} },
		"an intermediate that is none": func(_, i *x509.Certificate) { i.KeyUsage |= x509.KeyUsageDigitalSignature },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			i := forge(t, change)
			text, err := formatIssuers(issuers{i})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseIssuers(text); err == nil {
				t.Error("the file is taken")
			}
		})
	}
}

func TestKeyFileThatCannotBeReadIsNotReplaced(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.dir, "proxy-ca-key.pem")
	tests := map[string]func() error{
		"a directory":            func() error { return os.Mkdir(path, 0o700) },
		"a pipe":                 func() error { return syscall.Mkfifo(path, 0o600) },
		"a link to itself":       func() error { return os.Symlink(path, path) },
		"a link through a file":  func() error { return os.Symlink("/dev/null/x", path) },
		"a character device":     func() error { return os.Symlink("/dev/null", path) },
		"a link into a dead end": func() error { return os.Symlink(strings.Repeat("a", 300), path) },
	}
	for name, makeIt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := makeIt(); err != nil {
				t.Fatal(err)
			}
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := openCA(o); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("openCA: %v", err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Error("it was replaced")
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestCrashLeavesNoHalfWrittenKeyFile(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	temp := filepath.Join(o.dir, "proxy-ca-key.pem.tmp")
	if err := os.WriteFile(temp, []byte("half"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.cover(append(o.hosts, "new.example")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(temp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the temporary file is still there: %v", err)
	}
	if info, err := os.Stat(filepath.Join(o.dir, "proxy-ca-key.pem")); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if list := onDisk(t, o); len(list) != 2 {
		t.Errorf("%d issuers on disk", len(list))
	}
}

func TestCoverThatCannotWriteChangesNothing(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	roots := ca.roots()
	// A directory that is not empty stands where the temporary file would be.
	if err := os.MkdirAll(filepath.Join(o.dir, "proxy-ca-key.pem.tmp", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.cover(append(o.hosts, "new.example")); err == nil {
		t.Fatal("cover succeeded")
	}
	if _, err := ca.leaf("new.example"); err == nil {
		t.Error("a leaf is served whose root no client can have")
	}
	if !bytes.Equal(roots, ca.roots()) || !bytes.Equal(roots, readTestFile(t, filepath.Join(o.dir, "proxy-ca.pem"))) {
		t.Error("the roots changed")
	}
	mustLeaf(t, ca, "localhost")
}

func TestDaemonHealsItsFiles(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	key, pemPath := filepath.Join(o.dir, "proxy-ca-key.pem"), filepath.Join(o.dir, "proxy-ca.pem")
	want := readTestFile(t, key)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pemPath, append(bytes.Clone(ca.roots()), "longer than before"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(pemPath, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.cover(o.hosts); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, readTestFile(t, key)) || !bytes.Equal(ca.roots(), readTestFile(t, pemPath)) {
		t.Error("the files are not as before")
	}
	if info, err := os.Stat(pemPath); err != nil || info.Mode() != 0o644 {
		t.Errorf("proxy-ca.pem has mode %v: containers run as any user", info.Mode())
	}
}

func TestIssuerOfTheFutureIsKeptButDoesNotSign(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	first, _ := mustOpenCA(t, o)
	clock.advance(-48 * time.Hour)
	ca, _ := mustOpenCA(t, o)
	if len(ca.issuers) != 2 || !bytes.HasPrefix(ca.roots(), first.roots()) {
		t.Fatalf("%d issuers", len(ca.issuers))
	}
	if c := mustLeaf(t, ca, "localhost"); !bytes.Equal(c.Certificate[1], ca.issuers[1].intermediate.Raw) {
		t.Error("the issuer of the future signs")
	}
}

// ownedInfo is the status of a file that belongs to uid.
type ownedInfo struct {
	fs.FileInfo
	uid uint32
}

func (i ownedInfo) Sys() any { return &syscall.Stat_t{Uid: i.uid} }

func TestKeyFileOfAnotherUserIsNotOurs(t *testing.T) {
	me := uint32(os.Geteuid())
	for uid, want := range map[uint32]bool{0: true, me: true, me + 1: false} {
		if got := ownedByUs(ownedInfo{uid: uid}); got != want {
			t.Errorf("uid %d: %v, want %v", uid, got, want)
		}
	}
}

func TestProxyCAPemAsDirectoryNamesTheWayOut(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	if err := os.MkdirAll(filepath.Join(o.dir, "proxy-ca.pem"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openCA(o); err == nil || !strings.Contains(err.Error(), "rmdir ") {
		t.Errorf("openCA: %v", err)
	}
}

func TestBesideADaemonNothingIsAdded(t *testing.T) {
	clock := newFakeClock()
	o := testCAOptions(t, clock)
	daemon, _ := mustOpenCA(t, o)
	o.readOnly, o.pid = true, 4711
	ca, notices := mustOpenCA(t, o)
	if len(notices) != 0 || !bytes.Equal(ca.roots(), daemon.roots()) {
		t.Errorf("notices %q", notices)
	}
	mustLeaf(t, ca, "localhost")
	if err := os.Remove(filepath.Join(o.dir, "proxy-ca.pem")); err != nil {
		t.Fatal(err)
	}
	mustOpenCA(t, o)
	if !bytes.Equal(daemon.roots(), readTestFile(t, filepath.Join(o.dir, "proxy-ca.pem"))) {
		t.Error("proxy-ca.pem was not rewritten from the key file")
	}
	more := o
	more.hosts = append([]string{"new.example"}, o.hosts...)
	if _, _, err := openCA(more); !errors.Is(err, errCAReadOnly) || !strings.Contains(err.Error(), `"new.example"`) || !strings.Contains(err.Error(), "kill -HUP 4711") {
		t.Errorf("a new host: %v", err)
	}
	if _, err := ca.cover(more.hosts); !errors.Is(err, errCAReadOnly) {
		t.Errorf("cover: %v", err)
	}
	free := o
	free.unconstrained = true
	if _, _, err := openCA(free); !errors.Is(err, errCAReadOnly) || !strings.Contains(err.Error(), "kill 4711") {
		t.Errorf("ca_constraints = false: %v", err)
	}
	anew := o
	anew.fresh = true
	if _, _, err := openCA(anew); err == nil || !strings.Contains(err.Error(), "stop it first: kill 4711") {
		t.Errorf("--new-ca: %v", err)
	}
	if err := os.Remove(filepath.Join(o.dir, "proxy-ca-key.pem")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openCA(o); !errors.Is(err, errCAReadOnly) || !strings.Contains(err.Error(), "kill -HUP 4711") {
		t.Errorf("no key file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(o.dir, "proxy-ca-key.pem")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a key file was made")
	}
}

func TestNewCAStartsAfreshWithOne(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	old, _ := mustOpenCA(t, o)
	if _, err := old.cover(append(o.hosts, "gone.example")); err != nil {
		t.Fatal(err)
	}
	o.fresh = true
	ca, notices := mustOpenCA(t, o)
	if len(ca.issuers) != 1 || len(onDisk(t, o)) != 1 || bytes.Contains(ca.roots(), old.roots()) {
		t.Errorf("%d issuers", len(ca.issuers))
	}
	if _, err := ca.leaf("gone.example"); err == nil {
		t.Error("the name of a removed rule is still covered")
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "made anew") {
		t.Errorf("notices %q", notices)
	}
}

func TestEphemeralKeyNeverTouchesTheDisk(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	o.ephemeral = true
	other := o
	other.readOnly = true
	if _, _, err := openCA(other); err == nil || !strings.Contains(err.Error(), "start muxproxy run first") {
		t.Errorf("another command before run: %v", err)
	}
	o.ephemeral = false
	persistent, _ := mustOpenCA(t, o)
	if err := os.WriteFile(filepath.Join(o.dir, "proxy-ca-key.pem.tmp"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.ephemeral = true
	ca, _ := mustOpenCA(t, o)
	if _, err := ca.cover(append(o.hosts, "new.example")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if bytes.Contains(readTestFile(t, filepath.Join(o.dir, e.Name())), []byte("KEY")) || strings.Contains(e.Name(), "key") {
			t.Errorf("%s holds a key", e.Name())
		}
	}
	roots := readTestFile(t, filepath.Join(o.dir, "proxy-ca.pem"))
	if !bytes.Equal(roots, ca.roots()) || bytes.Contains(roots, persistent.roots()) {
		t.Error("proxy-ca.pem does not hold the ephemeral roots alone")
	}
	if err := verifyLeaf(mustLeaf(t, ca, "new.example").Certificate, roots, "new.example", o.now()); err != nil {
		t.Error(err)
	}
	view, _ := mustOpenCA(t, other)
	if !bytes.Equal(view.roots(), roots) {
		t.Error("another command does not use run's roots")
	}
	if _, err := view.leaf("localhost"); err == nil {
		t.Error("another command mints")
	}
	second, _ := mustOpenCA(t, o)
	if bytes.Equal(second.roots(), ca.roots()) {
		t.Error("a second run has the first one's root")
	}
	o.fresh = true
	if _, _, err := openCA(o); err == nil {
		t.Error("--new-ca is taken")
	}
}

func TestFilesAreReadAndWrittenUnderTheLock(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	locked := func() bool {
		file, err := os.OpenFile(filepath.Join(o.dir, "ca.lock"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		return errors.Is(syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
	}
	// The clock is read between reading and writing.
	now, reads := o.now, 0
	o.now = func() time.Time {
		reads++
		if !locked() {
			t.Error("the lock is not held")
		}
		return now()
	}
	ca, _ := mustOpenCA(t, o)
	if locked() {
		t.Error("the lock is held after openCA")
	}
	if _, err := ca.cover(append(o.hosts, "new.example")); err != nil {
		t.Fatal(err)
	}
	if locked() || reads < 2 {
		t.Errorf("the lock is held after cover, or the clock was read %d times", reads)
	}
}

func TestOneIssuerIsMadeByCommandsThatStartAtOnce(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	roots := make([][]byte, 8)
	var wg sync.WaitGroup
	for n := range roots {
		wg.Go(func() {
			ca, _, err := openCA(o)
			if err != nil {
				t.Error(err)
				return
			}
			roots[n] = ca.roots()
		})
	}
	wg.Wait()
	for _, r := range roots {
		if !bytes.Equal(r, roots[0]) {
			t.Fatal("they do not agree on the root")
		}
	}
}

func TestConcurrentRequestsMintOnceWhileHostsAreAdded(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	first := make([]*tls.Certificate, 32)
	var wg sync.WaitGroup
	for n := range first {
		wg.Go(func() {
			var err error
			if first[n], err = ca.leaf("api.github.com"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, c := range first {
		if c != first[0] {
			t.Fatal("one host was minted more than once")
		}
	}
	now := o.now()
	late, err := ca.newLeaf("localhost", now)
	if err != nil {
		t.Fatal(err)
	}
	if later, err := ca.newLeaf("localhost", now); err != nil || later != late {
		t.Errorf("who comes second to make a leaf makes another: %v", err)
	}
	for n := range 8 {
		wg.Go(func() {
			for range 20 {
				if _, err := ca.leaf("localhost"); err != nil {
					t.Error(err)
				}
				ca.cached("api.github.com")
				ca.roots()
			}
		})
		wg.Go(func() {
			if _, err := ca.cover(append([]string{fmt.Sprintf("h%d.example", n)}, o.hosts...)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(ca.issuers) != 9 || len(onDisk(t, o)) != 9 {
		t.Errorf("%d issuers, want 9", len(ca.issuers))
	}
}

func TestLeafIsMintedAgainInItsLastDay(t *testing.T) {
	clock := newFakeClock()
	ca, _ := mustOpenCA(t, testCAOptions(t, clock))
	first := mustLeaf(t, ca, "localhost")
	clock.advance(first.Leaf.NotAfter.Sub(clock.now()) - 24*time.Hour - time.Second)
	if !ca.cached("localhost") || mustLeaf(t, ca, "localhost") != first {
		t.Error("minted again with more than a day left")
	}
	clock.advance(2 * time.Second)
	if ca.cached("localhost") {
		t.Error("counted as cached with less than a day left")
	}
	second := mustLeaf(t, ca, "localhost")
	if second == first || !second.Leaf.NotAfter.After(first.Leaf.NotAfter) || mustLeaf(t, ca, "localhost") != second {
		t.Error("not minted again, or each time")
	}
}

func TestShortLeafIsCachedToo(t *testing.T) {
	clock := newFakeClock()
	ca, _ := mustOpenCA(t, testCAOptions(t, clock))
	clock.advance(ca.issuers[0].end().Sub(clock.now()) - time.Hour)
	first := mustLeaf(t, ca, "localhost")
	clock.advance(39 * time.Minute)
	if mustLeaf(t, ca, "localhost") != first {
		t.Error("minted again with more than a third of its life left")
	}
	clock.advance(2 * time.Minute)
	if mustLeaf(t, ca, "localhost") == first {
		t.Error("not minted again with less than a third left")
	}
}

func TestLeafStaysWithinItsIntermediateWhenTheClockGoesBack(t *testing.T) {
	clock := newFakeClock()
	ca, _ := mustOpenCA(t, testCAOptions(t, clock))
	clock.advance(-30 * time.Minute)
	if got := mustLeaf(t, ca, "localhost").Leaf; !got.NotBefore.Equal(ca.issuers[0].intermediate.NotBefore) {
		t.Errorf("leaf starts %v, its intermediate %v", got.NotBefore, ca.issuers[0].intermediate.NotBefore)
	}
	clock.advance(-time.Hour)
	if _, err := ca.leaf("api.github.com"); err == nil {
		t.Error("an issuer signs before its start")
	}
}

func TestLeafCacheIsBoundedAndLosesTheLeastUsed(t *testing.T) {
	var c leafCache
	now := newFakeClock().now()
	for n := range maxLeaves {
		c.add(fmt.Sprint(n), &leaf{renew: now.Add(time.Hour)})
	}
	c.find("0", now)
	c.add("new", &leaf{renew: now.Add(time.Hour)})
	if len(c.byHost) != maxLeaves {
		t.Errorf("%d leaves", len(c.byHost))
	}
	if c.find("0", now) == nil || c.find("new", now) == nil || c.find("1", now) != nil {
		t.Error("not the least used one was lost")
	}
	c.add("new", &leaf{renew: now})
	if len(c.byHost) != maxLeaves || c.find("new", now) != nil {
		t.Error("a replaced leaf cost another one, or a stale one is found")
	}
}

func TestFailedMintIsNotCached(t *testing.T) {
	o := testCAOptions(t, newFakeClock())
	ca, _ := mustOpenCA(t, o)
	good := ca.issuers[0]
	ca.issuers = issuers{{root: testIssuer(t).root, intermediate: good.intermediate, key: good.key}}
	if _, err := ca.leaf("localhost"); err == nil || !strings.Contains(err.Error(), `mint leaf "localhost": verify`) {
		t.Errorf("a chain that does not verify: %v", err)
	}
	ca.issuers = issuers{good}
	mustLeaf(t, ca, "localhost")
}

func testInode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}
