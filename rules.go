package main

import "crypto/x509"

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
	strict bool   // methods, paths or an access level apply: no method override fields
	reason string // for a refusal: which setting refused, "methods and paths of rule \"gitlab\" (proxy.toml line 12)"
}

// ruleSet is an immutable index of rules. Safe for concurrent use.
type ruleSet struct{}

func newRuleSet(rules []*rule, unmatched action) *ruleSet { panic("stub") }

// connect says what becomes of a CONNECT: deny, tunnel or intercept.
func (s *ruleSet) connect(a authority) decision { panic("stub") }

// request says what becomes of a request on an intercepted connection to a, or of an absolute-form http one: deny, forward, inject, badTarget.
// target is the request target as sent, in origin-form ("/a/b?c=d", "*").
func (s *ruleSet) request(a authority, method, target string) decision { panic("stub") }

// names tells whether any rule names the host, on whatever port.
func (s *ruleSet) names(host string) bool { panic("stub") }

// services lists the services of the rules that have sources, in order, each once.
func (s *ruleSet) rules() []*rule { panic("stub") }

func builtinRules() []*rule { panic("stub") }
