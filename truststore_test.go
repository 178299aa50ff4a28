package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// publicRoot makes a root as a public CA has one.
func publicRoot(t *testing.T, name string, isCA bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: name}, NotAfter: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC),
		BasicConstraintsValid: true, IsCA: isCA,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return certificatePEM(der)
}

func writeTestFile(t *testing.T, path string, parts ...[]byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

func testEnv(pairs ...string) func(string) string {
	return func(name string) string {
		for n := 0; n < len(pairs); n += 2 {
			if pairs[n] == name {
				return pairs[n+1]
			}
		}
		return ""
	}
}

func rootNames(text []byte) string {
	var names []string
	for _, c := range certificates(text) {
		names = append(names, c.Subject.CommonName)
	}
	return strings.Join(names, " ")
}

func TestHostRootsAreThoseThatTheVariablesName(t *testing.T) {
	a, b, c := publicRoot(t, "A", true), publicRoot(t, "B", true), publicRoot(t, "C", true)
	dir := t.TempDir()
	file, one, two := filepath.Join(dir, "bundle.pem"), filepath.Join(dir, "one"), filepath.Join(dir, "two")
	writeTestFile(t, file, []byte("# a comment of B\nÄ: x\n"), b, []byte("garbage\n"), a, b)
	writeTestFile(t, filepath.Join(one, "a.pem"), bytes.TrimRight(a, "\n"))
	writeTestFile(t, filepath.Join(one, "c.pem"), c)
	writeTestFile(t, filepath.Join(one, "sub", "b.pem"), b)
	writeTestFile(t, filepath.Join(two, "b.pem"), b)
	if err := os.Symlink("c.pem", filepath.Join(one, "0123abcd.0")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(two, "b.pem"), filepath.Join(one, "linked.pem")); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, file, dirs, want, origin string }{
		{"a file, each root once", file, "", "B A", file},
		{"a directory, links followed", "", one, "A C B", one},
		{"directories separated by colons", "", two + ":" + one, "B A C", two + ", " + one},
		{"both, and a source without a new root is not named", file, two + ":" + one, "B A C", file + ", " + one},
		{"what is missing beside what is there", filepath.Join(dir, "none"), "/nonexistent::" + two, "B", two},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			roots, origin, err := hostRoots(testEnv("SSL_CERT_FILE", tt.file, "SSL_CERT_DIR", tt.dirs))
			if err != nil || rootNames(roots) != tt.want || origin != tt.origin {
				t.Errorf("got %q from %q, %v; want %q from %q", rootNames(roots), origin, err, tt.want, tt.origin)
			}
			if bytes.Contains(roots, []byte("comment")) {
				t.Errorf("a comment is kept: %q", roots)
			}
		})
	}
}

func TestHostRootsHoldCertificatesAlone(t *testing.T) {
	a, b := publicRoot(t, "A", true), publicRoot(t, "B", true)
	file := filepath.Join(t.TempDir(), "bundle.pem")
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")})
	trusted := bytes.ReplaceAll(b, []byte("CERTIFICATE"), []byte("TRUSTED CERTIFICATE"))
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("not DER")})
	writeTestFile(t, file, key, trusted, broken, []byte("comment\n"), a)
	roots, _, err := hostRoots(testEnv("SSL_CERT_FILE", file))
	if err != nil || !bytes.Equal(roots, a) {
		t.Errorf("got %q, %v", roots, err)
	}
}

func TestNoHostRootsIsAClearError(t *testing.T) {
	empty := t.TempDir()
	for _, env := range [][]string{
		{"SSL_CERT_FILE", filepath.Join(empty, "none")},
		{"SSL_CERT_DIR", empty},
		{"SSL_CERT_DIR", ":"},
		{"SSL_CERT_FILE", "/dev/null", "SSL_CERT_DIR", empty},
	} {
		_, _, err := hostRoots(testEnv(env...))
		if err == nil || !strings.Contains(err.Error(), env[0]) || !strings.Contains(err.Error(), env[1]) {
			t.Errorf("%q: %v", env, err)
		}
	}
}

func TestTrustBundleHasOurRootsFirstAndNoneOfOurOldOnes(t *testing.T) {
	old, ours := testIssuer(t), testIssuer(t)
	free, err := newIssuer(nil, true, newFakeClock().now())
	if err != nil {
		t.Fatal(err)
	}
	a, b := publicRoot(t, "A", true), publicRoot(t, "B", true)
	// A name like ours, but not the digest of its key: somebody else's root.
	alike := publicRoot(t, "muxproxy root 0123456789abcdef", true)
	host := bytes.Join([][]byte{a, certificatePEM(old.root.Raw), certificatePEM(ours.root.Raw), certificatePEM(free.root.Raw), alike, b}, nil)
	ca := certificatePEM(ours.root.Raw)
	want := bytes.Join([][]byte{ca, a, alike, b}, nil)
	if got := trustBundle(ca, host); !bytes.Equal(got, want) {
		t.Errorf("got %q", rootNames(got))
	}
}

// The sample is what security prints for a keychain: PEM blocks, one after the other, and with other flags lines of
// attributes between them.
func TestKeychainGivesItsCACertificates(t *testing.T) {
	a, machine, b := publicRoot(t, "A", true), publicRoot(t, "com.apple.kerberos.kdc", false), publicRoot(t, "B", true)
	attributes := []byte("keychain: \"/Library/Keychains/System.keychain\"\nversion: 512\nclass: 0x80001000\nattributes:\n    \"alis\"<blob>=\"A\"\n")
	sample := bytes.Join([][]byte{attributes, a, machine, b}, nil)
	if got := keychainRoots(sample); !bytes.Equal(got, append(bytes.Clone(a), b...)) {
		t.Errorf("got %q", rootNames(got))
	}
	if got := keychainRoots(nil); got != nil {
		t.Errorf("got %q", got)
	}
}
