package main

import "slices"

// kubePlaneConfig is the [kube] table.
type kubePlaneConfig struct {
	kubeconfig string      // absolute; "" is KUBECONFIG, then ~/.kube/config
	contexts   []string    // those that are served; nil is all
	access     accessLevel // of contexts without one of their own
	inCluster  bool        // where no kubeconfig is found, the service account of the pod that muxproxy runs in is served
	pluginPath string      // PATH of exec plugins; "" is the daemon's own
	context    map[string]kubeContextConfig
}

// kubeContextConfig is a [kube.context."NAME"] table with its rules.
type kubeContextConfig struct {
	access accessLevel
	rules  []kubeRule
}

// kubeRule is a [[kube.context."NAME".rule]] table: it fits a request that fits each of its lists, nil being any. Deny beats
// allow, and allow lifts only what the access level refuses.
type kubeRule struct {
	deny       bool
	verbs      []string // "get"
	groups     []string // "" is the core group
	resources  []string // "pods", "pods/exec"
	namespaces []string
	names      []string
}

// of gives what holds for a context.
func (c *kubePlaneConfig) of(context string) kubeContextConfig {
	if o, ok := c.context[context]; ok {
		return o
	}
	return kubeContextConfig{access: c.access}
}

// talosPlaneConfig is the [talos] table.
type talosPlaneConfig struct {
	talosconfig string      // absolute; "" is where talosctl looks
	access      accessLevel // of contexts without one of their own
	context     map[string]talosContextConfig
}

// talosContextConfig is a [talos.context."NAME"] table.
type talosContextConfig struct {
	access accessLevel
	role   string // "os:reader": of the certificate that the gateway obtains from the cluster; "" presents the talosconfig's own
}

// of gives what holds for a context.
func (c *talosPlaneConfig) of(context string) talosContextConfig {
	if o, ok := c.context[context]; ok {
		return o
	}
	return talosContextConfig{access: c.access}
}

// planeTables gathers the planes' tables, which stand in any order: the plane's own is read before those of its contexts,
// and these before their rules.
type planeTables struct {
	kube, talos []*configTable
}

// The words of rules. Verbs are the API server's: those of resources, then those of other paths.
var (
	ruleEffects = []string{"allow", "deny"}
	ruleVerbs   = []string{
		"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "post", "put", "head", "options", "*",
	}
)

// talosRoles are those that a certificate can be obtained with: they are weaker than what is needed to obtain it.
var talosRoles = []string{"os:reader", "os:operator", "os:etcd:backup"}

// load takes the tables into c.
func (p *planeTables) load(c *config) {
	byDepth := func(a, b *configTable) int { return len(a.parts) - len(b.parts) }
	slices.SortStableFunc(p.kube, byDepth)
	slices.SortStableFunc(p.talos, byDepth)
	for _, t := range p.kube {
		switch len(t.parts) {
		case 1:
			c.kube.load(t)
		case 3:
			c.kube.loadContext(t)
		default:
			c.kube.loadRule(t)
		}
		t.unknown()
	}
	for _, t := range p.talos {
		if len(t.parts) == 1 {
			c.talos.talosconfig = t.path("talosconfig", "")
			c.talos.access = t.access("access", c.talos.access)
		} else {
			c.talos.loadContext(t)
		}
		t.unknown()
	}
}

// load reads [kube].
func (c *kubePlaneConfig) load(t *configTable) {
	c.kubeconfig = t.path("kubeconfig", "")
	for _, e := range t.list("contexts") {
		c.contexts = append(c.contexts, e.text)
	}
	c.access = t.access("access", c.access)
	c.inCluster = t.flag("in_cluster", false)
	c.pluginPath = t.text("plugin_path", "")
	if c.inCluster && t.has("kubeconfig") {
		t.problem(t.lineOf("in_cluster"), "in_cluster", "goes with no kubeconfig: take one of the two out")
	}
}

// loadContext reads [kube.context."NAME"].
func (c *kubePlaneConfig) loadContext(t *configTable) {
	name := t.parts[2]
	if c.contexts != nil && !slices.Contains(c.contexts, name) {
		t.problem(t.line, "access", "%q is not among the contexts of [kube]: add it there, or take this table out", name)
	}
	if c.context == nil {
		c.context = map[string]kubeContextConfig{}
	}
	c.context[name] = kubeContextConfig{access: t.access("access", c.access)}
}

// loadRule reads [[kube.context."NAME".rule]].
func (c *kubePlaneConfig) loadRule(t *configTable) {
	context := c.of(t.parts[2])
	if !t.has("effect") {
		t.problem(t.line, "effect", `is missing: write "allow" or "deny"`)
	}
	r := kubeRule{
		deny:       t.choice("effect", "deny", ruleEffects...) == "deny",
		verbs:      t.words("verbs"),
		groups:     t.words("groups"),
		resources:  t.words("resources"),
		namespaces: t.words("namespaces"),
		names:      t.words("names"),
	}
	for _, verb := range r.verbs {
		if !slices.Contains(ruleVerbs, verb) {
			t.problem(t.lineOf("verbs"), "verbs", "%q is none of %s", verb, quotedList(ruleVerbs))
		}
	}
	context.rules = append(context.rules, r)
	if c.context == nil {
		c.context = map[string]kubeContextConfig{}
	}
	c.context[t.parts[2]] = context
}

// words reads a list of which each element stands for itself; nil, which is any, where the list has a "*" or is left out.
func (t *configTable) words(key string) []string {
	var words []string
	for _, e := range t.list(key) {
		words = append(words, e.text)
	}
	if slices.Contains(words, "*") {
		return nil
	}
	return words
}

// loadContext reads [talos.context."NAME"].
func (c *talosPlaneConfig) loadContext(t *configTable) {
	if c.context == nil {
		c.context = map[string]talosContextConfig{}
	}
	o := talosContextConfig{access: t.access("access", c.access)}
	if t.has("role") {
		o.role = t.choice("role", talosRoles[0], talosRoles...)
	}
	c.context[t.parts[2]] = o
}
