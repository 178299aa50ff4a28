package main

import (
	_ "embed"
	"fmt"
	"regexp"
	"strings"
)

// talosMethodsTSV lists the methods of Talos' API, one a line with tabs between: method, kind, least role, effect, further roles,
// since when, a note. It was taken from the rules in internal/app/machined/pkg/system/services/machined.go and the .proto files of
// Talos 1.6 to 1.14; "effect" is muxproxy's own word on each.
//
//go:embed talos-methods.tsv
var talosMethodsTSV string

// talosSensitiveTSV lists the COSI resource types that Talos itself shows to os:admin alone.
//
//go:embed talos-sensitive-resources.tsv
var talosSensitiveTSV string

// talosEffect is what a method does, as far as access levels go.
type talosEffect int

const (
	effectUnknown  talosEffect = iota // no method that the table has
	effectRead                        // changes nothing, and gives nothing that opens a door
	effectCOSIRead                    // reads the resource that its first message names
	effectSecret                      // its answer may hold keys: files, etcd, captured packets, the old config in the diff of a dry run
	effectMint                        // hands out a credential
	effectWrite                       // changes something
)

// talosMethod is a line of talosMethodsTSV.
type talosMethod struct {
	path   string // "/machine.MachineService/Version"
	stream bool   // it may go on for hours
	effect talosEffect
}

// talosMethods are the methods by their path in lower case: gRPC tells cases apart, and Talos has no two that differ in nothing else,
// so a server that did not would be no way around.
var talosMethods = parseTalosMethods(talosMethodsTSV)

// talosSensitive holds the sensitive types in lower case, which is how Talos looks them up (internal/app/resources/access.go).
var talosSensitive = parseTalosSensitive(talosSensitiveTSV)

// talosPath is the one form in which a method is asked for below full. gRPC servers take others: without the first slash
// (CVE-2026-33186), or with more slashes, which a table would not know.
var talosPath = regexp.MustCompile(`^/[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*$`)

// maxTalosPath bounds it below full, in bytes: the audit line has it all.
const maxTalosPath = 256

// talosVerdict is what an access level says of an RPC.
type talosVerdict struct {
	refused string      // why, after the method: "hands out a credential"; "" where it is let through
	level   accessLevel // the strictest level that would let it through, if refused
	look    bool        // the first message decides: judgeTalosType
}

// judgeTalosMethod judges the :path of an RPC.
func judgeTalosMethod(level accessLevel, path string) talosVerdict {
	if level == accessFull {
		return talosVerdict{}
	}
	if len(path) > maxTalosPath || !talosPath.MatchString(path) {
		return talosVerdict{refused: "is no method of the form /package.Service/Method", level: accessFull}
	}
	lower := strings.ToLower(path)
	switch effect := talosMethods[lower].effect; {
	case effect == effectMint:
		return talosVerdict{refused: "hands out a credential", level: accessFull}
	case effect == effectUnknown && (strings.HasPrefix(lower, "/cosi.") || strings.HasPrefix(lower, "/resource.")):
		// The latter is how Talos before 1.3 gave resources out.
		return talosVerdict{refused: "may read any resource, and muxproxy does not know it", level: accessFull}
	case effect == effectCOSIRead:
		return talosVerdict{look: true}
	case effect == effectSecret && level >= accessNoSecrets:
		return talosVerdict{refused: "gives answers that may hold keys", level: accessNoCredentials}
	case effect == effectWrite && level >= accessReadOnly:
		return talosVerdict{refused: "changes something", level: accessNoSecrets}
	case effect == effectUnknown && level >= accessReadOnly:
		return talosVerdict{refused: "is not known to change nothing", level: accessNoSecrets}
	}
	return talosVerdict{}
}

// judgeTalosType judges the resource type that the first message of a COSI read names.
func judgeTalosType(message []byte) talosVerdict {
	name, err := cosiType(message)
	if err != nil {
		return talosVerdict{refused: "cannot be judged: " + err.Error(), level: accessFull}
	}
	if isSensitiveType(name) {
		return talosVerdict{refused: fmt.Sprintf("reads %s, which may hold credentials", name), level: accessFull}
	}
	return talosVerdict{}
}

// isSensitiveType tells whether Talos shows a type to os:admin alone. Whatever stands in secrets.talos.dev is taken for it, so that a
// type that a later Talos adds there is too.
func isSensitiveType(name string) bool {
	name = strings.ToLower(name)
	return talosSensitive[name] || strings.HasSuffix(name, ".secrets.talos.dev")
}

// parseTalosMethods reads talosMethodsTSV.
func parseTalosMethods(text string) map[string]talosMethod {
	effects := map[string]talosEffect{"read": effectRead, "read-secret": effectSecret, "write-secret": effectSecret, "mint": effectMint, "write": effectWrite}
	methods := map[string]talosMethod{}
	for columns := range tableLines(text) {
		m := talosMethod{path: columns[0], stream: columns[1] != "unary", effect: effects[columns[3]]}
		if m.effect == effectRead && strings.HasPrefix(m.path, "/cosi.") {
			m.effect = effectCOSIRead
		}
		methods[strings.ToLower(m.path)] = m
	}
	return methods
}

// parseTalosSensitive reads talosSensitiveTSV.
func parseTalosSensitive(text string) map[string]bool {
	types := map[string]bool{}
	for columns := range tableLines(text) {
		types[strings.ToLower(columns[0])] = true
	}
	return types
}

// tableLines gives the columns of each line that is no comment.
func tableLines(text string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "#") && !yield(strings.Split(strings.TrimSuffix(line, "\n"), "\t")) {
				return
			}
		}
	}
}
