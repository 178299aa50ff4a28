package main

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
