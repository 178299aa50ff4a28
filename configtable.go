package main

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// configTable reads one table of a config file key by key. Every method that reads a key takes what holds where the table has
// none, reports a wrong value to the loader and goes on with the default, so that all problems are found in one go.
type configTable struct {
	*configLoader
	*tomlTable
	asked []string // the keys that have been read: those that are left over are unknown
}

// configText is one string of a list and its line.
type configText struct {
	text string
	line int
}

// problem reports what is wrong with a key of the table: "[audit] keep: …".
func (t *configTable) problem(line int, key, format string, args ...any) {
	text := key + ": " + fmt.Sprintf(format, args...)
	if t.name != "" {
		text = "[" + t.name + "] " + text
	}
	t.problems = append(t.problems, configProblem{line, text})
}

// find gives the value of a key.
func (t *configTable) find(key string) (tomlValue, bool) {
	t.asked = append(t.asked, key)
	for _, e := range t.entries {
		if e.key == key {
			return e.tomlValue, true
		}
	}
	return tomlValue{line: t.line}, false
}

// has tells whether the table has a key, whatever its value.
func (t *configTable) has(key string) bool {
	_, ok := t.find(key)
	return ok
}

// lineOf is the key's line, or the table's where it has none.
func (t *configTable) lineOf(key string) int {
	v, _ := t.find(key)
	return v.line
}

// text reads a string that is not empty.
func (t *configTable) text(key, otherwise string) string {
	v, ok := t.find(key)
	if !ok {
		return otherwise
	}
	s, ok := v.value.(string)
	switch {
	case !ok:
		t.problem(v.line, key, "want a string, not %v", v)
	case s == "":
		t.problem(v.line, key, "is empty: leave it out instead")
	default:
		return s
	}
	return otherwise
}

// choice reads one of a few words.
func (t *configTable) choice(key, otherwise string, words ...string) string {
	s := t.text(key, otherwise)
	if !slices.Contains(words, s) {
		t.problem(t.lineOf(key), key, "%q is none of %s", s, quotedList(words))
		return otherwise
	}
	return s
}

func (t *configTable) flag(key string, otherwise bool) bool {
	v, ok := t.find(key)
	if !ok {
		return otherwise
	}
	b, ok := v.value.(bool)
	if !ok {
		t.problem(v.line, key, "want true or false, not %v", v)
		return otherwise
	}
	return b
}

// integer reads a number from least to most.
func (t *configTable) integer(key string, otherwise, least, most int) int {
	v, ok := t.find(key)
	if !ok {
		return otherwise
	}
	n, ok := v.value.(int64)
	switch {
	case !ok:
		t.problem(v.line, key, "want a number, not %v", v)
	case n < int64(least) || n > int64(most):
		t.problem(v.line, key, "%d is not from %d to %d", n, least, most)
	default:
		return int(n)
	}
	return otherwise
}

func (t *configTable) port(key string, otherwise uint16) uint16 {
	return uint16(t.integer(key, int(otherwise), 1, 65535))
}

// list reads a list of strings with at least one in it; nil where the table has none.
func (t *configTable) list(key string) []configText {
	v, ok := t.find(key)
	if !ok {
		return nil
	}
	elements, ok := v.value.([]tomlValue)
	if !ok {
		t.problem(v.line, key, "want a list of strings, not %v", v)
		return nil
	}
	if len(elements) == 0 {
		t.problem(v.line, key, "the list is empty: leave the key out instead")
	}
	var list []configText
	for _, e := range elements {
		switch s, ok := e.value.(string); {
		case !ok:
			t.problem(e.line, key, "want a list of strings, but there is %v in it", e)
		case slices.ContainsFunc(list, func(o configText) bool { return o.text == s }):
			t.problem(e.line, key, "%q is there twice", s)
		default:
			list = append(list, configText{s, e.line})
		}
	}
	return list
}

// path reads a path and makes it absolute: "~/x" is below the home directory, others lie beside the config file.
func (t *configTable) path(key, otherwise string) string {
	s := t.text(key, "")
	if s == "" {
		return otherwise
	}
	path, err := t.absolute(s)
	if err != nil {
		t.problem(t.lineOf(key), key, "%v", err)
		return otherwise
	}
	return path
}

// duration reads "10s" or "1m30s".
func (t *configTable) duration(key string, otherwise time.Duration) time.Duration {
	v, ok := t.find(key)
	if !ok {
		return otherwise
	}
	s, ok := v.value.(string)
	if !ok {
		t.problem(v.line, key, `want a string with a unit like "10s", not %v`, v)
		return otherwise
	}
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		t.problem(v.line, key, `%q is no duration: write a number and a unit, like "10s"`, s)
	case d < 0:
		t.problem(v.line, key, "%q is less than nothing", s)
	default:
		return d
	}
	return otherwise
}

// size reads bytes: "100MB" (decimal units), "64MiB" (binary ones), or a plain number.
func (t *configTable) size(key string, otherwise int64) int64 {
	v, ok := t.find(key)
	if !ok {
		return otherwise
	}
	switch s := v.value.(type) {
	case int64:
		if s >= 0 {
			return s
		}
		t.problem(v.line, key, "%d is less than nothing", s)
	case string:
		if n, ok := parseSize(s); ok {
			return n
		}
		t.problem(v.line, key, `%q is no size: write a number and a unit, like "100MB" or "64MiB"`, s)
	default:
		t.problem(v.line, key, `want a size like "100MB", not %v`, v)
	}
	return otherwise
}

// prefixes reads a list of CIDRs. An address with bits beyond its mask is refused, since nobody can tell which of the two was meant.
func (t *configTable) prefixes(key string) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, e := range t.list(key) {
		p, err := netip.ParsePrefix(e.text)
		if err == nil && p == p.Masked() && !p.Addr().Is4In6() {
			prefixes = append(prefixes, p)
			continue
		}
		switch addr, addrErr := netip.ParseAddr(e.text); {
		case addrErr == nil && addr.Zone() == "":
			addr = addr.Unmap()
			t.problem(e.line, key, "%q is an address: write %q for it alone", e.text, netip.PrefixFrom(addr, addr.BitLen()))
		case err == nil && p.Addr().Is4In6():
			t.problem(e.line, key, "%q is an IPv4-mapped network: write the IPv4 one", e.text)
		case err == nil:
			t.problem(e.line, key, "%q has bits beyond its mask: write %q", e.text, p.Masked())
		default:
			t.problem(e.line, key, `%q is no network like "10.0.0.0/8"`, e.text)
		}
	}
	return prefixes
}

// tableNames are the tables that a config file can have in this or a later version.
var tableNames = []string{"rule", "audit", "http", "kube", "talos"}

// unknown reports the keys that nobody asked for.
func (t *configTable) unknown() {
	var seen []string
	for _, e := range t.entries {
		key, _, _ := strings.Cut(e.key, ".")
		if slices.Contains(t.asked, e.key) || slices.Contains(seen, key) {
			continue
		}
		seen = append(seen, key)
		switch near := nearest(key, t.asked); {
		case t.name == "" && slices.Contains(tableNames, key):
			t.problem(e.line, key, "is a table, not a value")
		case slices.Contains(t.asked, key):
			t.problem(e.line, e.key, "%s takes a value, not a table", key)
		case t.name != "" && slices.Contains(t.topKeys, key):
			t.problem(e.line, key, "is no key of [%s]: move it above the first [table]", t.name)
		case near != "":
			t.problem(e.line, key, "unknown key: did you mean %s?", near)
		default:
			t.problem(e.line, key, "unknown key")
		}
	}
}

// absolute makes a path of the config file absolute.
func (l *configLoader) absolute(path string) (string, error) {
	rest, isHome := strings.CutPrefix(path, "~")
	switch {
	case !isHome && filepath.IsAbs(path):
		return filepath.Clean(path), nil
	case !isHome:
		return filepath.Join(l.dir, path), nil
	case rest != "" && rest[0] != '/':
		return "", fmt.Errorf("%q: only ~/ is expanded: write the path in full", path)
	case l.home == "":
		return "", fmt.Errorf("%q: HOME is not set: write the path in full", path)
	}
	return filepath.Join(l.home, rest), nil
}

// sizeUnits in the order in which a suffix is looked for: "B" ends all the others.
var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1}, {"", 1},
}

// parseSize reads "100MB" or "100 MB" as bytes.
func parseSize(s string) (int64, bool) {
	for _, unit := range sizeUnits {
		digits, ok := strings.CutSuffix(s, unit.suffix)
		if !ok {
			continue
		}
		digits = strings.TrimSuffix(digits, " ")
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || strings.Trim(digits, "0123456789") != "" || n > math.MaxInt64/unit.bytes {
			return 0, false
		}
		return n * unit.bytes, true
	}
	return 0, false
}

// quotedList gives `"a", "b"`.
func quotedList(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	return strings.Join(quoted, ", ")
}
