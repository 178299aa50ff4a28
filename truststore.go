package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// rootSource is where public roots come from: its name, for people ("/etc/ssl/certs/ca-certificates.crt"), and its
// text, in which PEM blocks may lie between comments.
type rootSource struct {
	name string
	text []byte
}

// hostRoots gives the host's public roots as PEM: what SSL_CERT_FILE and SSL_CERT_DIR (colon separated) name, if
// either is set, else the system's. Each root is there once, without comments; what does not parse as a certificate
// is left out. origin names the places they came from. The error says that there is no root in any of them.
func hostRoots(getenv func(string) string) (roots []byte, origin string, err error) {
	file, dirs := getenv("SSL_CERT_FILE"), getenv("SSL_CERT_DIR")
	var sources []rootSource
	if file != "" || dirs != "" {
		sources, err = namedRoots(file, dirs)
	} else {
		sources, err = systemRoots()
	}
	roots, names := joinRoots(sources)
	switch {
	case len(roots) > 0:
		return roots, strings.Join(names, ", "), nil
	case err == nil:
		err = errors.New("no certificate found")
	}
	if file != "" || dirs != "" {
		return nil, "", fmt.Errorf("read public roots (SSL_CERT_FILE=%q, SSL_CERT_DIR=%q): %w", file, dirs, err)
	}
	return nil, "", fmt.Errorf("read public roots: %w: install the package ca-certificates, or set SSL_CERT_FILE", err)
}

// trustBundle gives ca-bundle.pem: the CA roots first, then the host's public roots without any root that a muxproxy
// made, which the host's store may hold from before.
func trustBundle(caRoots, hostRoots []byte) []byte {
	bundle := bytes.Clone(caRoots)
	for _, c := range certificates(hostRoots) {
		if !isOurRoot(c) {
			bundle = append(bundle, certificatePEM(c.Raw)...)
		}
	}
	return bundle
}

// joinRoots gives the certificates of all sources, each once, and the names of the sources that had any new one.
func joinRoots(sources []rootSource) (roots []byte, names []string) {
	seen := make(map[[sha256.Size]byte]bool)
	for _, s := range sources {
		before := len(roots)
		for _, c := range certificates(s.text) {
			if sum := sha256.Sum256(c.Raw); !seen[sum] {
				seen[sum] = true
				roots = append(roots, certificatePEM(c.Raw)...)
			}
		}
		if len(roots) > before {
			names = append(names, s.name)
		}
	}
	return roots, names
}

// certificates gives the CERTIFICATE blocks of a PEM text that parse. OpenSSL's "TRUSTED CERTIFICATE" blocks carry
// restrictions that a bundle cannot express.
func certificates(text []byte) (list []*x509.Certificate) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return list
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			list = append(list, c)
		}
	}
}

// keychainRoots keeps of what `security find-certificate -a -p` prints the CA certificates alone: the System keychain
// also holds the machine's own, such as com.apple.kerberos.kdc.
func keychainRoots(text []byte) (roots []byte) {
	for _, c := range certificates(text) {
		if c.BasicConstraintsValid && c.IsCA {
			roots = append(roots, certificatePEM(c.Raw)...)
		}
	}
	return roots
}

// namedRoots reads what the variables name: a file, and directories separated by colons, as in OpenSSL. The error
// is of what could not be read and matters only if nothing else is found.
func namedRoots(file, dirs string) (sources []rootSource, err error) {
	if file != "" {
		text, readErr := os.ReadFile(file)
		sources, err = append(sources, rootSource{file, text}), readErr
	}
	for dir := range strings.SplitSeq(dirs, ":") {
		if dir != "" {
			s, dirErr := directoryRoots(dir)
			sources, err = append(sources, s), errors.Join(err, dirErr)
		}
	}
	return sources, err
}

// directoryRoots reads all files of dir. Links to a neighbour are left out: a hashed directory has one for each file.
func directoryRoots(dir string) (rootSource, error) {
	entries, err := os.ReadDir(dir)
	s := rootSource{name: dir}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			if to, err := os.Readlink(path); err == nil && !strings.Contains(to, "/") {
				continue
			}
		}
		// What a store holds besides certificates (directories, files for root alone) is none of ours.
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if text, err := os.ReadFile(path); err == nil {
			s.text = append(append(s.text, text...), '\n')
		}
	}
	return s, err
}
