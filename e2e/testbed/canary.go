package testbed

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"
)

// Spellings are the ways in which one credential may appear in a text.
func Spellings(credential string) []string {
	all := []string{credential, url.QueryEscape(credential), url.PathEscape(credential)}
	// Base64 of a text that holds the credential differs with what stands before it, so all three alignments are looked for, without
	// the characters at either end that neighbours change.
	for shift := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + credential))
		inner := text[4*((shift+2)/3) : len(text)-4]
		all = append(all, inner, strings.NewReplacer("+", "-", "/", "_").Replace(inner))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
