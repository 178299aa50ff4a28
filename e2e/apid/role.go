package apid

import (
	"bufio"
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// table is who may call what.
type table struct {
	roles     map[string][]string // of a method: those that may call it
	sensitive map[string]bool     // resource types in lower case
}

// loadTable reads talos-methods.tsv and talos-sensitive-resources.tsv.
func loadTable(dir string) (*table, error) {
	t := &table{roles: map[string][]string{}, sensitive: map[string]bool{}}
	err := eachRow(filepath.Join(dir, "talos-methods.tsv"), func(f []string) {
		// A role may call what the roles below it may: reader, operator, admin.
		all := []string{"os:reader", "os:operator", "os:admin"}
		roles := all[max(0, slices.Index(all, f[2])):]
		t.roles[f[0]] = append(slices.Clone(roles), strings.Split(f[4], ",")...)
	})
	if err != nil {
		return nil, err
	}
	return t, eachRow(filepath.Join(dir, "talos-sensitive-resources.tsv"), func(f []string) { t.sensitive[strings.ToLower(f[0])] = true })
}

// eachRow calls row with the fields of each line that is not a comment.
func eachRow(file string, row func([]string)) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewScanner(f)
	for in.Scan() {
		if line := in.Text(); line != "" && line[0] != '#' {
			row(strings.Split(line, "\t"))
		}
	}
	return in.Err()
}

// errNotAuthorized is Talos' own (pkg/grpc/middleware/authz).
var errNotAuthorized = status.Error(codes.PermissionDenied, "not authorized")

// authorize is the Authorizer of Talos: a method that is not in the table takes an admin.
func (t *table) authorize(method string, roles []string) error {
	allowed, ok := t.roles[method]
	if !ok {
		allowed = []string{"os:admin"}
	}
	for _, role := range roles {
		if slices.Contains(allowed, role) {
			return nil
		}
	}
	return errNotAuthorized
}

// clientCert is what the client presented.
func clientCert(ctx context.Context) *x509.Certificate {
	p, _ := peer.FromContext(ctx)
	return p.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0]
}

// rolesOf gives the roles of a call: those of the certificate, or, for an impersonator, those that the metadata names.
func rolesOf(ctx context.Context) []string {
	roles := clientCert(ctx).Subject.Organization
	if slices.Contains(roles, "os:impersonator") {
		md, _ := metadata.FromIncomingContext(ctx)
		return md.Get("talos-role")
	}
	return roles
}

// access is AccessPolicy of internal/app/resources/access.go, for reads.
func (t *table) access(ctx context.Context, kind string) error {
	if _, ok := definitions[strings.ToLower(kind)]; !ok {
		return status.Errorf(codes.PermissionDenied, "resource type %q is not supported", kind)
	}
	if t.sensitive[strings.ToLower(kind)] && !slices.Contains(rolesOf(ctx), "os:admin") {
		return errNotAuthorized
	}
	return nil
}
