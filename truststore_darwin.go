package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// systemRoots reads /etc/ssl/cert.pem and the system's keychains: Apple's roots, and those that an administrator
// added. A certificate that the user marked as never to be trusted is not told apart: security prints it as well.
func systemRoots() (sources []rootSource, err error) {
	const file = "/etc/ssl/cert.pem"
	text, err := os.ReadFile(file)
	if err == nil {
		sources = append(sources, rootSource{file, text})
	}
	for _, keychain := range []string{
		"/System/Library/Keychains/SystemRootCertificates.keychain",
		"/Library/Keychains/System.keychain",
	} {
		text, keychainErr := exec.Command("/usr/bin/security", "find-certificate", "-a", "-p", keychain).Output()
		if keychainErr != nil {
			err = errors.Join(err, fmt.Errorf("read keychain %q: %w", keychain, keychainErr))
			continue
		}
		sources = append(sources, rootSource{keychain, keychainRoots(text)})
	}
	return sources, err
}
