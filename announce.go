package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// The keys of log lines.
const (
	keyError  = "error"
	keyConfig = "config"
)

// announce says in one line each what is on, off and why. notices are the CA's. It comes when all is open: whoever reads
// "listening on" can connect.
func (d *daemon) announce(notices []string) {
	c := d.config.Load()
	d.log.Info("muxproxy "+version(), "pid", os.Getpid(), "mux_dir", d.muxDir, keyConfig, describeConfig(c))
	for _, name := range planeNames {
		d.log.Info("plane " + name + ": " + d.healthReport().Planes[name].String())
	}
	d.announceContexts()
	d.announceServices(d.creds.Load().status())
	if c.caEphemeral {
		d.log.Info("CA: ephemeral: its keys are in memory alone, and the next start makes a new one")
	} else {
		d.log.Info("CA: persistent: " + filepath.Join(d.muxDir, caFileName))
	}
	for _, n := range notices {
		d.log.Warn(n)
	}
	d.log.Info("audit log: " + c.audit.path)
	for _, ln := range d.ports() {
		for _, l := range ln.addrs() {
			d.log.Info("listening on " + l.String())
		}
		for _, problem := range ln.degraded() {
			d.log.Warn("not listening: " + problem)
		}
	}
}

// announceContexts says of each context of the host whether it is served, at which access level, and with which credential.
func (d *daemon) announceContexts() {
	if d.contexts.kube != nil {
		_, contexts := d.contexts.kube.state()
		for _, c := range contexts {
			line := fmt.Sprintf("kube context %q: %s, access %s", c.Name, c.State, c.Access)
			switch {
			case c.Why != "":
				d.log.Warn(line + ": " + c.Why)
			case c.Credential == "":
				d.log.Info(line + ", anonymous")
			default:
				d.log.Info(line + ", credential: " + c.Credential)
			}
		}
	}
	if d.contexts.talos != nil {
		d.contexts.talos.announce()
	}
}

// announceServices says of each service whether it has a credential, and from where or how it gets one.
func (d *daemon) announceServices(status []credentialStatus) {
	for _, s := range status {
		line := "service " + s.rule.service + ": "
		if !s.rule.builtin {
			line = s.rule.String() + ": "
		}
		switch {
		case s.err != nil:
			d.log.Warn(line+"its requests are refused: the credential cannot be used", keyError, s.err)
		case s.source >= 0:
			d.log.Info(line + "credential from " + s.origin)
		case s.rule.builtin:
			d.log.Info(line + "passive, no credential: to turn it on, " + s.hint)
		default:
			d.log.Warn(line + "its requests are refused, no credential: " + s.hint)
		}
	}
}

// describeConfig names the file that c came from.
func describeConfig(c *config) string {
	if c.file == "" {
		return "none, all defaults"
	}
	return c.file
}
