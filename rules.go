package main

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
)

// action is what happens to a CONNECT or a request.
type action int

const (
	actionDeny      action = iota // refused
	actionTunnel                  // CONNECT only: bytes are relayed untouched
	actionIntercept               // CONNECT only: TLS ends here and each request is matched
	actionForward                 // request: passed on without a credential of ours
	actionInject                  // request: passed on with the rule's credential
	actionBadTarget               // request: 400, its path is ambiguous (section 10) or a method override is present
)

// rule is one row of the built-in table or one [[rule]] of the config file. It never changes once built.
type rule struct {
	service      string // "github"
	hosts        []hostPattern
	sources      []source // alternatives, the first that has a credential is used; empty: an allow rule
	methods      []string // upper case; empty: all
	paths        []string // patterns; empty: all
	others       action   // actionDeny or actionForward, for requests that methods or paths leave out
	builtin      bool
	dropQuery    string // a query parameter that is taken out, "offline_token"
	errorShape   string // "" JSON message+error; "anthropic", "registry", "git"
	placeholders []placeholder
	roots        *x509.CertPool // ca_file: nil is the system's roots
	config       string         // base name of the config file it stands in, "proxy.toml"; "" for a built-in rule
	line         int            // in the config file
}

// hostPattern is "api.github.com:443" or, with wildcard, any name below host.
type hostPattern struct {
	host     string // "api.github.com"; for "*.example.com" it is "example.com" and wildcard is set
	wildcard bool
	port     uint16
}

// source says where one credential comes from and which field carries it.
type source struct {
	field                    string   // canonical field name, "Authorization"
	format                   string   // "Bearer {}"; used where basic is false
	username                 string   // HTTP Basic with this user name where not "" ("x-access-token")
	basicPair                bool     // the credential itself is "user:token" and goes out as HTTP Basic (docker)
	env                      []string // tried in order; for a basicPair exactly two names, user and token
	file                     string   // absolute, or a name inside secretsDir; "" = none
	appendField, appendValue string   // "Anthropic-Beta", "oauth-2025-04-20": appended where absent
}

// placeholder is one variable that containers get for a service that has a credential; index of the source it stands for.
type placeholder struct {
	source int    // index into rule.sources
	env    string // "GH_TOKEN"
	value  string // contains "muxproxy-placeholder"
}

// decision is what a ruleSet says of one CONNECT or request.
type decision struct {
	action action
	rule   *rule  // the rule that decided, nil where no rule names the host
	reason string // for a refusal: which setting refused, `others = "deny" of rule "gitlab" (proxy.toml line 12)`
	strict bool   // request: methods or paths apply to the host, so that a method override field is to be refused with 400
}

// unconditional tells whether every request fits the rule.
func (r *rule) unconditional() bool {
	return len(r.methods) == 0 && len(r.paths) == 0
}

// intercepts tells whether connections to the rule's hosts are opened: only an allow rule without methods and paths tunnels.
func (r *rule) intercepts() bool {
	return len(r.sources) > 0 || !r.unconditional()
}

// fits tells whether the rule's methods and paths take a request; path is as comparablePath gives it.
func (r *rule) fits(method, path string) bool {
	if len(r.methods) > 0 && !slices.Contains(r.methods, method) {
		return false
	}
	for _, pattern := range r.paths {
		if matchPath(pattern, path) {
			return true
		}
	}
	return len(r.paths) == 0
}

// String names the rule for refusals and start-up lines: `rule "gitlab" (proxy.toml line 12)`, `built-in rule "github"`.
func (r *rule) String() string {
	if r.builtin {
		return fmt.Sprintf("built-in rule %q", r.service)
	}
	return fmt.Sprintf("rule %q (%s line %d)", r.service, r.config, r.line)
}

// String gives the pattern as the config file has it: "api.github.com", "*.example.com:8443".
func (p hostPattern) String() string {
	text := p.host
	if strings.Contains(text, ":") {
		text = "[" + text + "]"
	}
	if p.wildcard {
		text = "*." + text
	}
	if p.port != 443 {
		text = fmt.Sprintf("%s:%d", text, p.port)
	}
	return text
}

// names tells whether the pattern holds for an authority. "*.example.com" is any name below example.com, never itself.
func (p hostPattern) names(a authority) bool {
	if p.port != a.port {
		return false
	}
	if p.wildcard {
		return strings.HasSuffix(a.host, p.host) && strings.HasSuffix(a.host[:len(a.host)-len(p.host)], ".")
	}
	return a.host == p.host
}

// ruleSet is an immutable index of rules. Safe for concurrent use.
//
// Each list holds the rules to ask for one authority, in order. A wildcard's list stands under its base name and holds
// the rules of the wildcards above it too, so the longest base that a host lies below has them all.
type ruleSet struct {
	ordered   []*rule
	exact     map[authority][]*rule
	wildcards map[authority][]*rule
	unmatched action
}

// newRuleSet indexes the rules, the config file's before the built-in ones; unmatched (actionTunnel or actionDeny) is
// for authorities that none of them names.
func newRuleSet(rules []*rule, unmatched action) *ruleSet {
	s := &ruleSet{
		ordered:   rules,
		exact:     make(map[authority][]*rule),
		wildcards: make(map[authority][]*rule),
		unmatched: unmatched,
	}
	for _, r := range rules {
		for _, p := range r.hosts {
			a := authority{p.host, p.port}
			if p.wildcard {
				s.wildcards[a] = candidates(rules, authority{"*." + p.host, p.port})
			} else {
				s.exact[a] = candidates(rules, a)
			}
		}
	}
	return s
}

// candidates lists the rules that name an authority, in order: built-in ones only if no rule of the file does.
func candidates(rules []*rule, a authority) []*rule {
	var file, builtin []*rule
	for _, r := range rules {
		if !slices.ContainsFunc(r.hosts, func(p hostPattern) bool { return p.names(a) }) {
			continue
		}
		if r.builtin {
			builtin = append(builtin, r)
		} else {
			file = append(file, r)
		}
	}
	if len(file) > 0 {
		return file
	}
	return builtin
}

// find gives the rules to ask for an authority, in order; none if no rule names it.
func (s *ruleSet) find(a authority) []*rule {
	if list, ok := s.exact[a]; ok || len(s.wildcards) == 0 {
		return list
	}
	for base := range parents(a.host) {
		if list, ok := s.wildcards[authority{base, a.port}]; ok {
			return list
		}
	}
	return nil
}

// connect says what becomes of a CONNECT: deny, tunnel or intercept. The first rule settles it: if it is an allow rule
// without methods and paths, every request would fit it, and there is no reason to open the connection.
func (s *ruleSet) connect(a authority) decision {
	list := s.find(a)
	switch {
	case len(list) == 0:
		return s.unnamed(a, actionTunnel)
	case list[0].intercepts():
		return decision{action: actionIntercept, rule: list[0]}
	}
	return decision{action: actionTunnel, rule: list[0]}
}

// request says what becomes of a request on an intercepted connection to a, or of an absolute-form http one: deny,
// forward, inject, badTarget. method is compared as sent (RFC 9110 §9.1: case-sensitive). target is the request target
// as sent, in origin-form ("/a/b?c=d", "*"). That nothing is injected over plain http is the caller's to see to.
func (s *ruleSet) request(a authority, method, target string) decision {
	list := s.find(a)
	if len(list) == 0 {
		return s.unnamed(a, actionForward)
	}
	first := list[0]
	if first.unconditional() {
		return first.decide(false)
	}
	path := targetPath(target)
	if why := ambiguity(path); why != "" {
		return decision{action: actionBadTarget, rule: first, strict: true,
			reason: fmt.Sprintf("%s, which methods and paths of %v cannot judge", why, first)}
	}
	path = comparablePath(path)
	for _, r := range list {
		if r.fits(method, path) {
			return r.decide(true)
		}
	}
	if first.others == actionForward {
		return decision{action: actionForward, rule: first, strict: true}
	}
	return decision{action: actionDeny, rule: first, strict: true,
		reason: fmt.Sprintf(`others = "deny" of %v`, first)}
}

// decide is the decision on a request that fits the rule.
func (r *rule) decide(strict bool) decision {
	if len(r.sources) == 0 {
		return decision{action: actionForward, rule: r, strict: strict}
	}
	return decision{action: actionInject, rule: r, strict: strict}
}

// unnamed is the decision on an authority that no rule names; pass is what happens where unmatched does not refuse it.
func (s *ruleSet) unnamed(a authority, pass action) decision {
	if s.unmatched == actionDeny {
		return decision{action: actionDeny, reason: fmt.Sprintf(`unmatched = "deny", and no rule names %q`, a)}
	}
	return decision{action: pass}
}

// naming gives the rules that name the host, on whatever port.
func (s *ruleSet) naming(host string) (rules []*rule) {
	for _, r := range s.ordered {
		if slices.ContainsFunc(r.hosts, func(p hostPattern) bool { return p.names(authority{host, p.port}) }) {
			rules = append(rules, r)
		}
	}
	return rules
}

// parents yields the names that a host lies below, the longest first: "b.c" and "c" for "a.b.c".
func parents(host string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for rest := host; ; {
			_, base, ok := strings.Cut(rest, ".")
			if !ok || !yield(base) {
				return
			}
			rest = base
		}
	}
}
