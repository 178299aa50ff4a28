package main

// policy is all that a reload replaces, as one value that never changes.
type policy struct {
	rules     *ruleSet
	creds     *credentials
	dialer    *dialer
	upstreams map[*rule]*upstream // those of rules with a ca_file
	plain     *upstream           // of all others
}

// newPolicy makes the policy for rules. Its upstreams have pools of their own.
func newPolicy(rules []*rule, unmatched action, creds *credentials, d *dialer) *policy {
	n := &policy{rules: newRuleSet(rules, unmatched), creds: creds, dialer: d, plain: newUpstream(d, nil), upstreams: make(map[*rule]*upstream)}
	for _, r := range rules {
		if r.roots != nil {
			n.upstreams[r] = newUpstream(d, r.roots)
		}
	}
	return n
}

// upstream gives the upstream for what r decided; r may be nil.
func (n *policy) upstream(r *rule) *upstream {
	if u := n.upstreams[r]; u != nil {
		return u
	}
	return n.plain
}

// closeIdle closes what the policy's upstreams keep open for later.
func (n *policy) closeIdle() {
	n.plain.closeIdle()
	for _, u := range n.upstreams {
		u.closeIdle()
	}
}
