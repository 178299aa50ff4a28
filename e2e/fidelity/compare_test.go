package fidelity

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// comparison collects the differences of one exchange.
type comparison struct {
	difference // what all of them have in common
	found      []*difference
}

// note adds a difference if there is one.
func (c *comparison) note(part, what string, direct, proxied []string, before, after *message) {
	if slices.Equal(direct, proxied) && (direct == nil) == (proxied == nil) {
		return
	}
	d := c.difference
	d.part, d.what, d.direct, d.proxied, d.before, d.after = part, what, direct, proxied, before, after
	c.found = append(c.found, &d)
}

// answersTo compares what a client got.
func (c *comparison) answersTo(direct, proxied *answers) {
	none := &message{}
	c.note("answer", "end", []string{direct.err}, []string{proxied.err}, none, none)
	c.note("connections", "opened", []string{strconv.Itoa(direct.opened)}, []string{strconv.Itoa(proxied.opened)}, none, none)
	c.note("interim", "codes", statusCodes(direct.interim), statusCodes(proxied.interim), none, none)
	if slices.Equal(statusCodes(direct.interim), statusCodes(proxied.interim)) {
		for i := range direct.interim {
			c.fields("interim", direct.interim[i], proxied.interim[i], direct.interim[i].fields, proxied.interim[i].fields)
		}
	}
	if (direct.final == nil) != (proxied.final == nil) {
		c.note("answer", "presence", []string{fmt.Sprint(direct.final != nil)}, []string{fmt.Sprint(proxied.final != nil)}, none, none)
		return
	}
	if direct.final != nil {
		c.message("answer", direct.final, proxied.final)
	}
}

func statusCodes(all []*message) []string {
	list := []string{}
	for _, m := range all {
		list = append(list, strconv.Itoa(m.code))
	}
	return list
}

// requests compares what the origin got.
func (c *comparison) requests(direct, proxied []*message) {
	none := &message{}
	c.note("requests", "number", []string{strconv.Itoa(len(direct))}, []string{strconv.Itoa(len(proxied))}, none, none)
	for i := range min(len(direct), len(proxied)) {
		c.message("request", direct[i], proxied[i])
	}
}

// message compares two messages part by part.
func (c *comparison) message(part string, a, b *message) {
	c.note(part, "method", []string{a.method}, []string{b.method}, a, b)
	c.note(part, "target", []string{a.target}, []string{b.target}, a, b)
	c.note(part, "status", []string{strconv.Itoa(a.code)}, []string{strconv.Itoa(b.code)}, a, b)
	c.note(part, "reason", []string{a.reason}, []string{b.reason}, a, b)
	if a.content != b.content {
		c.note(part, "content", []string{excerpt(a.content)}, []string{excerpt(b.content) + " differs"}, a, b)
	}
	c.note(part, "chunks", a.chunks, b.chunks, a, b)
	c.fields(part, a, b, a.fields, b.fields)
	c.fields("trailer of the "+part, a, b, a.trailers, b.trailers)
}

func excerpt(s string) string {
	return fmt.Sprintf("%d bytes %q", len(s), s[:min(len(s), 60)])
}

// fields compares two sections: the values of each name in their order, and the names as written.
func (c *comparison) fields(part string, before, after *message, a, b []field) {
	c.note(part, "field names", names(a), names(b), before, after)
	var all []string
	for _, f := range append(slices.Clone(a), b...) {
		if name := strings.ToLower(f.name); !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	for _, name := range all {
		c.note(part, "field "+name, get(a, name), get(b, name), before, after)
	}
}

func names(fields []field) []string {
	list := []string{}
	for _, f := range fields {
		list = append(list, f.name)
	}
	return list
}

func (d *difference) String() string {
	short := func(v []string) string {
		s := fmt.Sprintf("%q", v)
		if v == nil {
			return "none"
		}
		return s[:min(len(s), 300)]
	}
	return fmt.Sprintf("%s, %s: directly %s, through the proxy %s", d.part, d.what, short(d.direct), short(d.proxied))
}
