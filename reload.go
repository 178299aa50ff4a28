package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"
)

// renewEvery is how often the CA is asked whether one of its authorities needs a successor, which is added 30 days
// before the end: often enough for a daemon that runs for years, too rare to cost anything.
const renewEvery = 24 * time.Hour

// reloads answers SIGHUP, one after the other, until ctx is done, and keeps the CA fresh in between. A SIGHUP that comes
// during a reload is answered by one more. An error is told here and ends nothing.
func (d *daemon) reloads(ctx context.Context, reload <-chan os.Signal) {
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-reload:
			if err := d.reload(); err != nil {
				d.log.Error("reload failed: the old config stays in force")
				for problem := range strings.Lines(err.Error()) { // a config tells all its problems
					d.log.Error("reload: " + strings.TrimSuffix(problem, "\n"))
				}
			}
		case <-renew.C:
			if err := d.cover(d.config.Load()); err != nil {
				d.log.Error("renew the CA", keyError, err)
			}
		}
	}
}

// reload reads the config and all that it names anew, and swaps it in as one value. Whatever fails before leaves the old
// one in force. Connections and requests under way are not touched.
func (d *daemon) reload() error {
	old := d.config.Load()
	c, err := d.load()
	if err != nil {
		return err
	}
	fixed := keepFixed(c, old)
	if err := d.cover(c); err != nil {
		return err
	}
	if d.contexts.talos != nil {
		if err := d.contexts.talos.reload(c.talos); err != nil {
			return err
		}
	}
	if err := d.audit.reopen(c.audit); err != nil {
		return err
	}
	creds := newCredentials(c.rules, c.secretsDir, d.getenv, d.creds.Load())
	d.config.Store(c)
	d.creds.Store(creds)
	d.proxy.setPolicy(d.policyOf(c, creds))
	if d.contexts.kube != nil {
		d.contexts.kube.reload(c.kube) // it says itself where the contexts stay as they were
	}
	d.contextsChanged()

	d.log.Info("reloaded", keyConfig, describeConfig(c))
	if len(fixed) > 0 {
		d.log.Warn("changed in the config, but needs a restart: " + strings.Join(fixed, ", "))
	}
	d.announceServices(creds.status())
	return nil
}

// cover has the CA cover the hosts of c, and rewrites the trust bundle if that took a new root.
func (d *daemon) cover(c *config) error {
	added, err := d.ca.cover(c.caHosts())
	if err != nil {
		return err
	}
	if err := d.writeTrust(c); err != nil {
		return err
	}
	if len(added) > 0 {
		d.log.Warn(restartNotice(added))
		d.contextsChanged() // the talosconfig holds the roots
	}
	return nil
}

// keepFixed puts back into c what only a restart can change, since the listeners and the CA were opened with it, and
// names those keys that differ.
func keepFixed(c, old *config) (changed []string) {
	keep := func(key string, differs bool) {
		if differs {
			changed = append(changed, key)
		}
	}
	keep("http_proxy_port", c.httpPort != old.httpPort)
	keep("k8s_proxy_port", c.kubePort != old.kubePort)
	keep("talos_gateway_port", c.talosPort != old.talosPort)
	keep("bind", !slices.Equal(c.bind, old.bind))
	keep("ca", c.caEphemeral != old.caEphemeral)
	keep("ca_constraints", c.caConstraints != old.caConstraints)
	c.httpPort, c.kubePort, c.talosPort = old.httpPort, old.kubePort, old.talosPort
	c.bind, c.caEphemeral, c.caConstraints = old.bind, old.caEphemeral, old.caConstraints
	return changed
}
