package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	caYears    = 5                   // how long a root and its intermediate last
	caBackdate = time.Hour           // for containers whose clock is behind
	caRenewal  = 30 * 24 * time.Hour // how long before its end an issuer gets its successor
	// caMaxNames bounds the permitted names of one intermediate, which is sent in every handshake: 200 names are
	// about 5 KB, while 22 KB break wolfSSL and 32 KB are Java's limit.
	caMaxNames = 200
)

// certAuthority is the certificate authority as a whole: it keeps the issuers that its files hold, adds further ones
// and mints leaves. This file makes and signs certificates, cafile.go reads and writes them, leaf.go caches leaves.
// Safe for concurrent use.
type certAuthority struct {
	// Set once in openCA.
	o       caOptions
	files   caFiles
	leafKey *ecdsa.PrivateKey // of every leaf of this process

	changing sync.Mutex // held by cover from plan to swap

	mu       sync.RWMutex
	issuers  issuers // guarded by mu; replaced as a whole, never changed
	rootsPEM []byte  // guarded by mu; replaced as a whole
	leaves   leafCache
}

// caOptions is what opening the CA needs.
type caOptions struct {
	dir           string   // mux-dir
	hosts         []string // names that the constraints must permit: lower-case DNS names, "api.github.com"
	unconstrained bool     // ca_constraints = false
	ephemeral     bool     // ca = "ephemeral": no CA key touches the disk
	fresh         bool     // gen-configs --new-ca: the issuers on disk are forgotten
	readOnly      bool     // add no issuer: beside a running daemon, and in every command but run where ephemeral
	pid           int      // of the running daemon, for the way out that errors name; 0 where none runs
	now           func() time.Time
}

// errCAReadOnly says that issuers are missing which only the running daemon may add. The error that wraps it names
// the command to type.
var errCAReadOnly = errors.New("the running muxproxy has no certificate authority for this")

// openCA loads or makes the issuers under ca.lock and brings the files up to date: the key file first, then
// proxy-ca.pem in place. notices are lines for the operator: what was made anew and why, what was removed, which hosts
// need a restart of the containers, the warning of ca_constraints = false. A key file that cannot be read is an
// error; one that is read and unusable is replaced, with a notice.
func openCA(o caOptions) (ca *certAuthority, notices []string, err error) {
	if err := o.check(); err != nil {
		return nil, nil, err
	}
	ca = &certAuthority{o: o, files: caFiles{o.dir}}
	unlock, err := ca.files.lock()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if o.ephemeral && o.readOnly {
		ca.rootsPEM, err = ca.files.readRoots()
		return ca, nil, err
	}
	if ca.leafKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("make leaf key: %w", err)
	}
	old, notices, err := ca.load()
	if err != nil {
		return nil, nil, err
	}
	if o.readOnly {
		return ca, nil, ca.adopt(old)
	}
	added, err := ca.update(old, o.hosts)
	if err != nil {
		return nil, nil, err
	}
	return ca, append(notices, ca.changes(old, added)...), nil
}

// check refuses host lists that would not constrain, and options that contradict each other.
func (o caOptions) check() error {
	switch {
	case o.fresh && o.ephemeral:
		return errors.New(`make a new CA: ca = "ephemeral" has a new one at each start: restart muxproxy run`)
	case o.fresh && o.readOnly:
		return fmt.Errorf("make a new CA: muxproxy run uses the present one: stop it first: kill %d", o.pid)
	}
	return checkCAHosts(o.hosts)
}

// load gives the issuers on disk, oldest first, none where they are to be made anew; the notice says why.
func (ca *certAuthority) load() (issuers, []string, error) {
	switch {
	case ca.o.ephemeral:
		return nil, nil, ca.files.removeKeys()
	case ca.o.fresh:
		return nil, []string{"CA made anew: containers must be started again"}, nil
	}
	old, err := ca.files.load()
	unusable := errors.Is(err, errUnusable)
	switch {
	case err == nil:
		return old, nil, nil
	case !unusable && !errors.Is(err, errNoKeyFile):
		return nil, nil, err
	case ca.o.readOnly:
		return nil, nil, fmt.Errorf("%w: %w: run kill -HUP %d", err, errCAReadOnly, ca.o.pid)
	case unusable || ca.files.haveRoots():
		return nil, []string{err.Error() + ": made anew: containers must be started again"}, nil
	}
	return nil, []string{fmt.Sprintf("made a certificate authority: %q", ca.files.keyPath())}, nil
}

// adopt takes the issuers on disk as they are, without adding any, and rewrites proxy-ca.pem where it differs.
func (ca *certAuthority) adopt(old issuers) error {
	now := ca.o.now()
	var uncovered []string
	for _, h := range ca.o.hosts {
		if old.find(h, ca.o.unconstrained, now, now) == nil {
			uncovered = append(uncovered, h)
		}
	}
	switch {
	case len(uncovered) == 0:
	case ca.o.unconstrained:
		return fmt.Errorf("use ca_constraints = false: %w: stop it and start it again: kill %d", errCAReadOnly, ca.o.pid)
	default:
		return fmt.Errorf("cover %s: %w: run kill -HUP %d", quoteHosts(uncovered), errCAReadOnly, ca.o.pid)
	}
	ca.issuers = old
	ca.rootsPEM = old.rootsPEM(now)
	return ca.files.writeRoots(ca.rootsPEM)
}

// cover adds an issuer for hosts that none covers, and successors of those that end within 30 days; issuers that
// ended are dropped. The daemon calls it at SIGHUP, and once a day so that successors come in time. added names the
// hosts that processes started before cannot reach until they restart: see restartNotice. On an error nothing changed.
func (ca *certAuthority) cover(hosts []string) (added []string, err error) {
	ca.changing.Lock()
	defer ca.changing.Unlock()
	if ca.o.readOnly {
		return nil, fmt.Errorf("cover %s: %w", quoteHosts(hosts), errCAReadOnly)
	}
	if err := checkCAHosts(hosts); err != nil {
		return nil, err
	}
	unlock, err := ca.files.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	ca.mu.RLock()
	old := ca.issuers
	ca.mu.RUnlock()
	return ca.update(old, hosts)
}

// update plans, writes the files and then swaps the issuers, so that no leaf is served whose root is not on disk.
// The caller holds ca.lock.
func (ca *certAuthority) update(old issuers, hosts []string) (added []string, err error) {
	now := ca.o.now()
	next, added, err := ca.plan(old, hosts, now)
	if err != nil {
		return nil, err
	}
	if !ca.o.ephemeral {
		if err := ca.files.writeKeys(next); err != nil {
			return nil, err
		}
	}
	roots := next.rootsPEM(now)
	if err := ca.files.writeRoots(roots); err != nil {
		return nil, err
	}
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.issuers, ca.rootsPEM = next, roots
	return added, nil
}

// plan gives the issuers that are to be: the old ones that have not ended, then new ones for the hosts that none of
// those will cover in 30 days. A new issuer names only these hosts: naming the others again would not make them
// reachable for anybody, since the oldest issuer goes on signing for them, but would bring names that a later
// removal should shed, and bytes in every handshake. added are the hosts for which nobody could sign at now.
func (ca *certAuthority) plan(old issuers, hosts []string, now time.Time) (next issuers, added []string, err error) {
	for _, i := range old {
		if now.Before(i.end()) && (ca.o.unconstrained || !i.unconstrained()) {
			next = append(next, i)
		}
	}
	soon := now.Add(caRenewal)
	var missing []string
	for _, h := range slices.Compact(slices.Sorted(slices.Values(hosts))) {
		if next.find(h, ca.o.unconstrained, now, now) == nil {
			added = append(added, h)
		}
		if next.find(h, false, now, soon) == nil {
			missing = append(missing, h)
		}
	}
	needFree := ca.o.unconstrained && next.find("", true, now, soon) == nil
	for names := range slices.Chunk(missing, caMaxNames) {
		i, err := newIssuer(names, false, now)
		if err != nil {
			return nil, nil, err
		}
		next = append(next, i)
	}
	if needFree {
		i, err := newIssuer(nil, true, now)
		if err != nil {
			return nil, nil, err
		}
		next = append(next, i)
	}
	return next, added, nil
}

// changes tells the operator what openCA did to the issuers that were on disk.
func (ca *certAuthority) changes(old issuers, added []string) (notices []string) {
	for _, i := range old {
		switch {
		case slices.Contains(ca.issuers, i):
		case i.unconstrained() && ca.o.now().Before(i.end()):
			notices = append(notices, fmt.Sprintf("ca_constraints = true: removed %q: containers that trust it must be started again", i.root.Subject.CommonName))
		default:
			notices = append(notices, fmt.Sprintf("removed %q, which ended on %s", i.root.Subject.CommonName, i.end().Format(time.DateOnly)))
		}
	}
	if len(old) > 0 && len(added) > 0 {
		notices = append(notices, restartNotice(added))
	}
	if ca.o.unconstrained {
		notices = append(notices, fmt.Sprintf("warning: ca_constraints = false: whoever takes %q can impersonate every host to the containers", ca.files.keyPath()))
	}
	return notices
}

// restartNotice is the operator's line about hosts that cover or openCA added.
func restartNotice(added []string) string {
	return fmt.Sprintf("certificate authority added for %s: processes started before cannot reach them until they restart", quoteHosts(added))
}

// roots is proxy-ca.pem: the roots of all issuers as PEM, oldest first. The caller must not change it.
func (ca *certAuthority) roots() []byte {
	ca.mu.RLock()
	defer ca.mu.RUnlock()
	return ca.rootsPEM
}

// issuer is one authority of the contract: a root and the intermediate that it signed, made together. It never changes.
type issuer struct {
	root         *x509.Certificate
	intermediate *x509.Certificate
	key          *ecdsa.PrivateKey // the intermediate's: the root's is dropped in newIssuer
}

// newIssuer makes a root, and an intermediate whose critical constraints permit hosts and names below them alone
// (RFC 5280 section 4.2.1.10). The constraints are on the intermediate because many clients ignore those of a trust
// anchor. rootKey signs the two certificates and must stay a local of this function: walls_test.go holds that.
func newIssuer(hosts []string, unconstrained bool, now time.Time) (*issuer, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make root key: %w", err)
	}
	rootTemplate := caTemplate("root", unconstrained, &rootKey.PublicKey, now)
	der, err := x509.CreateCertificate(rand.Reader, rootTemplate, rootTemplate, &rootKey.PublicKey, rootKey)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make root: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make intermediate key: %w", err)
	}
	template := caTemplate("intermediate", unconstrained, &key.PublicKey, now)
	template.MaxPathLenZero = true
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if !unconstrained {
		template.PermittedDNSDomainsCritical = true
		template.PermittedDNSDomains = hosts
		template.ExcludedIPRanges = allAddresses()
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, root, &key.PublicKey, rootKey); err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	intermediate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	i := &issuer{root: root, intermediate: intermediate, key: key}
	// CreateCertificate emits no names for an empty list, so what came out is judged, not what went in.
	if err := i.check(); err != nil {
		return nil, fmt.Errorf("make intermediate: %w", err)
	}
	return i, nil
}

// sign has the intermediate's key sign a leaf for pub. What x509.CreateCertificate signs may violate the constraints:
// the caller verifies it.
func (i *issuer) sign(template *x509.Certificate, pub *ecdsa.PublicKey) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, template, i.intermediate, pub, i.key)
}

// caTemplate is what root and intermediate have in common. Each has a subject of its own, since clients that find
// two certificates of one subject pick either.
func caTemplate(kind string, unconstrained bool, pub *ecdsa.PublicKey, now time.Time) *x509.Certificate {
	if unconstrained {
		kind = "unconstrained " + kind
	}
	now = now.UTC().Truncate(time.Second)
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: caName(kind, pub)},
		NotBefore:             now.Add(-caBackdate),
		NotAfter:              now.AddDate(caYears, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// caName is the common name of a CA certificate: "muxproxy root 1a2b3c4d5e6f7a8b", with the first 8 bytes of the
// SHA-256 of its public key (the uncompressed point).
func caName(kind string, pub *ecdsa.PublicKey) string {
	point, err := pub.Bytes()
	if err != nil {
		return "" // not P-256: no name of ours
	}
	sum := sha256.Sum256(point)
	return "muxproxy " + kind + " " + hex.EncodeToString(sum[:8])
}

// newSerial gives 128 random bits (RFC 5280 section 4.1.2.2: positive, at most 20 octets).
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails: it ends the program instead
	return new(big.Int).SetBytes(b[:])
}

// allAddresses is every IPv4 and every IPv6 address: GnuTLS treats the families apart.
func allAddresses() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	}
}

// quoteHosts gives `"a.example", "b.example"`.
func quoteHosts(hosts []string) string {
	quoted := make([]string, len(hosts))
	for n, h := range hosts {
		quoted[n] = fmt.Sprintf("%q", h)
	}
	return strings.Join(quoted, ", ")
}
