package main

import (
	"context"
	"crypto/sha256"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
)

// kubeServing is what the plane serves, as one value that a reload replaces. It never changes.
type kubeServing struct {
	config  kubePlaneConfig
	source  *kubeconfig               // nil where none could be loaded
	err     error                     // why the last load failed; source is then that of an earlier one
	stamps  string                    // stampFiles of the files when they were read
	served  map[string]*servedContext // by slug
	order   []*servedContext          // in the order of the files
	current *servedContext            // nil where the kubeconfig has none, or it is not served
}

// servedContext is one context with all that a request needs.
type servedContext struct {
	name     string
	slug     string
	server   *url.URL // nil where off is set
	off      error    // why its requests are refused
	access   *kubeAccess
	injected bool // the host has a credential there
	digest   [sha256.Size]byte
	upstream *kubeUpstream
	proxy    *httputil.ReverseProxy
	used     *atomic.Bool  // by a request, so that probes run no plugin that nobody needs
	told     *atomic.Int64 // when a failed request was last warned of, in Unix seconds
	probe    *kubeProbe
}

// load reads the kubeconfig anew and serves it. Contexts that are as they were keep their connections. Where it cannot be loaded what
// was served before is, and the error is kept for state to tell.
func (k *kubePlane) load(config kubePlaneConfig) error {
	k.loading.Lock()
	defer k.loading.Unlock()
	old := k.serving.Load()
	s := k.sourceOf(config)
	stamps := stampFiles(s.files)
	source, err := loadKubeconfig(s)
	if err != nil {
		failed := *old
		failed.config, failed.err, failed.stamps = config, err, stamps
		failed.judgeBy(config)
		k.serving.Store(&failed)
		return err
	}
	n := k.newServing(config, source, stamps, old)
	k.serving.Store(n)
	old.closeIdle(n)
	return nil
}

// sourceOf says where the kubeconfig is by config.
func (k *kubePlane) sourceOf(config kubePlaneConfig) kubeSource {
	s := k.source
	s.inCluster, s.pluginPath = config.inCluster, config.pluginPath
	if config.kubeconfig != "" {
		s.files, s.explicit = []string{config.kubeconfig}, true
	}
	return s
}

// newServing builds what is served of source.
func (k *kubePlane) newServing(config kubePlaneConfig, source *kubeconfig, stamps string, old *kubeServing) *kubeServing {
	n := &kubeServing{config: config, source: source, stamps: stamps, served: make(map[string]*servedContext)}
	for _, context := range source.contexts {
		if config.contexts != nil && !slices.Contains(config.contexts, context.name) {
			continue
		}
		c := k.newContext(context, config, old.served[kubeSlug(context.name)])
		if c.slug == "" || n.served[c.slug] != nil { // two names of one slug: the loader has made the later one unusable
			continue
		}
		n.served[c.slug] = c
		n.order = append(n.order, c)
		if context.name == source.current {
			n.current = c
		}
	}
	return n
}

// newContext builds what serves a context; with before, which served it until now, the connections are kept if it is the same.
func (k *kubePlane) newContext(context *kubeContext, config kubePlaneConfig, before *servedContext) *servedContext {
	c := &servedContext{
		name: context.name, slug: kubeSlug(context.name), server: context.server, off: context.err, digest: context.digest,
		access: newKubeAccess(context.name, config), used: new(atomic.Bool), told: new(atomic.Int64), probe: new(kubeProbe),
	}
	if c.off != nil {
		return c
	}
	c.injected = context.auth.source != ""
	if before != nil && before.off == nil && before.digest == c.digest {
		c.upstream, c.proxy, c.used, c.told, c.probe = before.upstream, before.proxy, before.used, before.told, before.probe
		return c
	}
	c.upstream = newKubeUpstream(context, k.upstream)
	c.proxy = newKubeProxy(c.upstream, k.server.ErrorLog)
	return c
}

// newKubeAccess is what config says of a context.
func newKubeAccess(context string, config kubePlaneConfig) *kubeAccess {
	return &kubeAccess{context: context, kubeContextConfig: config.of(context)}
}

// judgeBy gives the contexts other access levels, where the config could be loaded and the kubeconfig not.
func (s *kubeServing) judgeBy(config kubePlaneConfig) {
	served, order := make(map[string]*servedContext), make([]*servedContext, 0, len(s.order))
	for _, c := range s.order {
		if config.contexts != nil && !slices.Contains(config.contexts, c.name) {
			continue
		}
		same := *c
		same.access = newKubeAccess(c.name, config)
		served[c.slug], order = &same, append(order, &same)
		if s.current == c {
			s.current = &same
		}
	}
	if s.current != nil && served[s.current.slug] != s.current {
		s.current = nil
	}
	s.served, s.order = served, order
}

// closeIdle closes the connections of contexts that now, which may be nil, does not serve.
func (s *kubeServing) closeIdle(now *kubeServing) {
	for slug, c := range s.served {
		if c.upstream == nil {
			continue
		}
		if now == nil || now.served[slug] == nil || now.served[slug].upstream != c.upstream {
			c.upstream.closeIdle()
		}
	}
}

// route finds the context that a request target names, and what of the target is the API server's: "/contexts/prod/api?x" is
// "/api?x" of prod, and "/api?x" is that of the current context. prefix is what was cut off, "/contexts/prod". c is nil where there is
// none such.
func (s *kubeServing) route(target string) (c *servedContext, prefix, rest string) {
	const contexts = "/contexts/"
	if !strings.HasPrefix(target, contexts) {
		return s.current, "", target
	}
	end := len(target)
	if i := strings.IndexAny(target[len(contexts):], "/?"); i >= 0 {
		end = len(contexts) + i
	}
	slug := target[len(contexts):end]
	if c = s.served[slug]; c == nil {
		if plain, err := url.PathUnescape(slug); err == nil { // some clients escape what need not be
			c = s.served[plain]
		}
	}
	rest = target[end:]
	if rest == "" || rest[0] == '?' {
		rest = "/" + rest
	}
	return c, target[:end], rest
}

// serves tells whether there is a context to serve; state says why not.
func (k *kubePlane) serves() bool { return len(k.serving.Load().order) > 0 }

// watch follows the kubeconfig's files until ctx is done: `kind create`, `tsh kube login` and `oc login` write them. It also probes the
// contexts while somebody asks for their health. changed is called after each change of what is served, from this goroutine.
func (k *kubePlane) watch(ctx context.Context, changed func()) {
	for wait(ctx, watchEvery) {
		s := k.serving.Load()
		if source := k.sourceOf(s.config); stampFiles(source.files) != s.stamps {
			k.reload(s.config)
			changed()
		}
		k.probe(ctx)
	}
}

// reload serves what config and the kubeconfig say now, and says what is new. After an error contexts are served as before, by the access
// levels of config.
func (k *kubePlane) reload(config kubePlaneConfig) error {
	before := k.serving.Load()
	err := k.load(config)
	now := k.serving.Load()
	if err != nil && (before.err == nil || before.err.Error() != err.Error()) {
		k.log.Warn("kube: the contexts stay as they were", keyError, err)
	}
	for _, c := range now.order {
		switch old := before.served[c.slug]; {
		case c.off != nil && (old == nil || old.off == nil || old.off.Error() != c.off.Error()):
			k.log.Warn("kube: context "+c.name+": off", keyError, c.off)
		case c.off == nil && (old == nil || old.upstream != c.upstream):
			k.log.Info("kube: context " + c.name + ": served, access " + c.access.access.String())
		}
	}
	for _, c := range before.order {
		if now.served[c.slug] == nil {
			k.log.Info("kube: context " + c.name + ": no longer served")
		}
	}
	return err
}

// clientConfig gives the kubeconfig of containers; nil where there is nothing to serve.
func (k *kubePlane) clientConfig(server string) []byte {
	s := k.serving.Load()
	if s.source == nil {
		return nil
	}
	only := *s.source
	only.contexts = slices.DeleteFunc(slices.Clone(only.contexts), func(c *kubeContext) bool { return s.served[kubeSlug(c.name)] == nil })
	if s.current == nil {
		only.current = ""
	}
	return containerKubeconfig(&only, server, kubeSlug)
}
