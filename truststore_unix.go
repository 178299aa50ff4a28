//go:build !darwin

package main

import (
	"errors"
	"io/fs"
	"os"
)

// systemRootFiles and systemRootDirs are where distributions keep the public roots: the lists of crypto/x509's
// root_linux.go. Of the files the first one counts.
func systemRootFiles() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt",                // Debian, Ubuntu, Gentoo, Arch
		"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL 6
		"/etc/ssl/ca-bundle.pem",                            // openSUSE
		"/etc/pki/tls/cacert.pem",                           // OpenELEC
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // CentOS, RHEL 7
		"/etc/ssl/cert.pem",                                 // Alpine
	}
}

func systemRootDirs() []string {
	return []string{
		"/etc/ssl/certs",     // SLES
		"/etc/pki/tls/certs", // Fedora, RHEL
	}
}

// systemRoots reads them. Those that are not there are no error; one that cannot be read is.
func systemRoots() (sources []rootSource, err error) {
	for _, file := range systemRootFiles() {
		text, readErr := os.ReadFile(file)
		if readErr == nil {
			sources = append(sources, rootSource{file, text})
			break
		}
		if !errors.Is(readErr, fs.ErrNotExist) {
			err = errors.Join(err, readErr)
		}
	}
	// A directory may hold roots that the file lacks, so both are read, as crypto/x509 does.
	for _, dir := range systemRootDirs() {
		s, dirErr := directoryRoots(dir)
		sources = append(sources, s)
		if dirErr != nil && !errors.Is(dirErr, fs.ErrNotExist) {
			err = errors.Join(err, dirErr)
		}
	}
	return sources, err
}
