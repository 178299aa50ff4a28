package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	maxKubeFile = 1 << 20     // bytes of a token, certificate or key file
	kubeFileAge = time.Second // for which a file is not looked at again
)

// kubeAuthConfig says how the host authenticates in a context. What is set in it is used together, but exec, which is there alone.
type kubeAuthConfig struct {
	source      string           // for people: "token", "client certificate", `exec plugin "aws"`; "" is nobody
	header      *credential      // Authorization, or nil
	tokenFile   string           // counts before header while it can be read
	cert        *tls.Certificate // a client certificate that the kubeconfig holds
	pair        *kubePair        // a client certificate in files
	exec        *kubeExec
	impersonate http.Header // Impersonate-User and its like; nil for none
}

func (a *kubeAuthConfig) hasCertificate() bool { return a.cert != nil || a.pair != nil }

// kubeCredential is what one request is authenticated with. It never changes, so that two are the same if their pointers are.
type kubeCredential struct {
	header  *credential      // Authorization, or nil
	cert    *tls.Certificate // in the handshake, or nil
	since   time.Time        // when it was had
	expires time.Time        // zero: not known
}

func (c *kubeCredential) expired(now time.Time) bool {
	return !c.expires.IsZero() && !now.Before(c.expires)
}

// bearerCredential is a bearer token (RFC 6750 §2.1).
func bearerCredential(token string) *credential {
	return &credential{field: "Authorization", value: newSecret("Bearer " + token)}
}

// basicCredential is a name and a password (RFC 7617).
func basicCredential(user, password string) *credential {
	return &credential{field: "Authorization", value: newSecret(basicValue(user, password))}
}

// kubeAuth gives the credential of a context. Safe for concurrent use.
type kubeAuth struct {
	kubeAuthConfig
	token *kubeFile // nil without tokenFile

	mu   sync.Mutex // guards the rest
	last *kubeCredential
}

func newKubeAuth(c kubeAuthConfig) *kubeAuth {
	a := &kubeAuth{kubeAuthConfig: c}
	if c.tokenFile != "" {
		a.token = &kubeFile{path: c.tokenFile}
	}
	if c.tokenFile == "" && c.pair == nil {
		a.last = &kubeCredential{header: c.header, cert: c.cert, expires: certificateEnd(c.cert)}
	}
	return a
}

// current gives the credential to use now. An error tells the operator why there is none: a plugin that failed, a file that cannot be
// read and never could.
func (a *kubeAuth) current(ctx context.Context) (*kubeCredential, error) {
	if a.exec != nil {
		return a.exec.current(ctx)
	}
	return a.fromFiles(kubeFileAge)
}

// renewed gives a better credential than used, which the API server has refused, or nil where there is none.
func (a *kubeAuth) renewed(ctx context.Context, used *kubeCredential) *kubeCredential {
	if a.exec != nil {
		return a.exec.renewed(ctx, used)
	}
	if cred, err := a.fromFiles(0); err == nil && cred != used {
		return cred
	}
	return nil
}

// known gives the credential as far as it can be had without running a plugin: nil where one has not run yet.
func (a *kubeAuth) known() (*kubeCredential, error) {
	if a.exec == nil {
		return a.fromFiles(kubeFileAge)
	}
	cred, _, err := a.exec.state(time.Now())
	return cred, err
}

// fromFiles gives what the kubeconfig and the files that it names say. A file is looked at again where that was longer ago than age;
// while it cannot be read, or holds nothing of use, what it said before holds.
func (a *kubeAuth) fromFiles(age time.Duration) (*kubeCredential, error) {
	if a.token == nil && a.pair == nil {
		return a.last, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	cred := kubeCredential{header: a.header, cert: a.cert}
	if a.last != nil {
		cred = *a.last
	}
	changed := a.last == nil
	if a.token != nil {
		again, err := a.token.read(age, func(data []byte) error {
			header, err := fileToken(data)
			if err == nil {
				cred.header = header
			}
			return err
		})
		if err != nil && cred.header == nil {
			return nil, fmt.Errorf("load tokenFile %q: %w", a.token.path, err)
		}
		changed = changed || again
	}
	if a.pair != nil {
		again, err := a.pair.read(age, &cred.cert)
		if err != nil && cred.cert == nil {
			return nil, err
		}
		changed = changed || again
	}
	if changed {
		cred.since, cred.expires = time.Now(), certificateEnd(cred.cert)
		a.last = &cred
	}
	return a.last, nil
}

// fileToken reads the text of a token file.
func fileToken(data []byte) (*credential, error) {
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return nil, errors.New("is empty")
	case !httpguts.ValidHeaderFieldValue(token):
		return nil, errors.New("holds a byte that no header field may hold")
	}
	return bearerCredential(token), nil
}

// kubeFile is a file that is read again once a stat differs from that of the last reading. Not safe for concurrent use.
type kubeFile struct {
	path    string
	looked  time.Time // when it was last looked at; zero: never
	id      fileID    // of the last reading that was of use
	first   time.Time // when a reading with this id began first
	settled bool      // a change after it shows in the id
	digest  [sha256.Size]byte
	err     error // of the last reading
}

// read tells whether the content has changed since it was last of use. use gets it and says whether it is of any; while err is not
// nil, what came before holds.
func (f *kubeFile) read(age time.Duration, use func(data []byte) error) (changed bool, err error) {
	now := time.Now()
	if !f.looked.IsZero() && now.Sub(f.looked) < age {
		return false, f.err
	}
	f.looked = now
	id, err := statID(f.path)
	if err == nil && f.settled && id == f.id {
		f.err = nil
		return false, nil
	}
	var data []byte
	if err == nil {
		data, err = readRegular(f.path, maxKubeFile)
	}
	digest := sha256.Sum256(data)
	if err == nil && digest != f.digest {
		changed, err = true, use(data)
	}
	if f.err = bareCause(err); err != nil {
		f.settled = false
		return false, f.err
	}
	if f.id != id {
		f.first = now
	}
	f.id, f.settled, f.digest = id, settled(id, f.first, now), digest
	return changed, nil
}

// kubePair is a client certificate of which at least one half is in a file. Not safe for concurrent use.
type kubePair struct {
	certFile, keyFile *kubeFile // nil for a half that the kubeconfig holds
	cert, key         []byte    // in PEM form
	parsed            bool      // cert and key have been found to be a pair
}

// newKubePair describes the certificate of u.
func newKubePair(u *kubeUser) *kubePair {
	p := &kubePair{cert: u.certData, key: u.keyData}
	if u.certFile != "" {
		p.certFile = &kubeFile{path: u.certFile}
	}
	if u.keyFile != "" {
		p.keyFile = &kubeFile{path: u.keyFile}
	}
	return p
}

// read gives the certificate if it has changed. Whoever renews it writes one file after the other: until both belong together the
// error says so, and what came before holds.
func (p *kubePair) read(age time.Duration, cert **tls.Certificate) (changed bool, err error) {
	for _, half := range []struct {
		file *kubeFile
		text *[]byte
		key  string
	}{{p.certFile, &p.cert, "client-certificate"}, {p.keyFile, &p.key, "client-key"}} {
		if half.file == nil {
			continue
		}
		again, err := half.file.read(age, func(data []byte) error { *half.text = data; return nil })
		if err != nil {
			return false, fmt.Errorf("load %s %q: %w", half.key, half.file.path, err)
		}
		p.parsed = p.parsed && !again
	}
	if p.parsed {
		return false, nil
	}
	pair, err := parsePair(p.cert, p.key)
	if err != nil {
		return false, fmt.Errorf("load client-certificate: %w", err)
	}
	*cert, p.parsed = pair, true
	return true, nil
}

// certificateEnd is when cert ends; zero without one.
func certificateEnd(cert *tls.Certificate) time.Time {
	if cert == nil || cert.Leaf == nil {
		return time.Time{}
	}
	return cert.Leaf.NotAfter
}

// earlier gives the earlier of two times of which either may be unknown, that is zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
