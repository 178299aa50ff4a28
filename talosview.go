package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// talosExpiry is how long before its end a client certificate is warned of. Talos signs them for a year.
const talosExpiry = 30 * 24 * time.Hour

// talosView is what RPCs are judged by until the talosconfig or the config changes. It never changes itself.
type talosView struct {
	config    talosPlaneConfig
	source    talosSource
	file      *talosconfig // nil where there is none
	id        fileID       // of file when it was read
	seen      time.Time    // when id was first seen
	settled   bool         // a change of the file shows in id
	upstreams map[string]*talosUpstream
	absent    error // why there is no file
	stale     error // why file, which was read before, could not be read again
}

// talosContextState is how one context does.
type talosContextState struct {
	Name    string    `json:"name"`
	State   string    `json:"state"`         // "on", "off", "degraded"
	Why     string    `json:"why,omitempty"` // `crt: no client certificate: …`
	Access  string    `json:"access"`        // "no-credentials"
	Role    string    `json:"role,omitempty"`
	Expires time.Time `json:"expires,omitzero"` // of the client certificate
}

// load reads what c asks for. The error is that of a talosconfig which c names or which cannot be understood.
func (p *talosPlane) load(c talosPlaneConfig) (*talosView, error) {
	v := &talosView{config: c, source: talosSource{explicit: c.talosconfig, getenv: p.getenv, home: p.home}}
	began := p.now()
	v.seen = began
	path, id, err := v.source.find()
	if errors.Is(err, errNoTalosconfig) {
		v.absent = err
		return v, nil
	}
	if err == nil {
		v.file, err = loadTalosconfig(path)
	}
	if err != nil {
		return nil, err
	}
	if old := p.view.Load(); old != nil && old.id == id {
		v.seen = old.seen
	}
	v.id, v.settled = id, settled(id, v.seen, began)
	v.upstreams = map[string]*talosUpstream{}
	for _, context := range v.file.contexts {
		v.upstreams[context.name] = p.upstreamOf(context, c.of(context.name).role)
	}
	return v, nil
}

// upstreamOf gives what reaches c: the one in use where nothing has changed, with what it knows of endpoints and the certificate that it
// was signed, or else a new one. Connections to the old one take no more RPCs then: see talosConn.admit.
func (p *talosPlane) upstreamOf(c *talosContext, role string) *talosUpstream {
	if v := p.view.Load(); v != nil {
		if u := v.upstreams[c.name]; u != nil && u.roleName() == role && u.context.leadsAs(c) {
			return u
		}
	}
	return newTalosUpstream(c, role, p.environment, p.now)
}

// reload takes a new config, and the talosconfig as it is now, into use: the next RPC is judged by them, while those under way go on.
// After an error the old ones stay.
func (p *talosPlane) reload(c talosPlaneConfig) error {
	v, err := p.load(c)
	if err != nil {
		return err
	}
	p.view.Store(v)
	return nil
}

// watch follows the talosconfig until ctx is done: talosctl rewrites it when a certificate is renewed. changed is called after each
// change that is taken into use, so that the containers' file can be written anew.
func (p *talosPlane) watch(ctx context.Context, changed func()) {
	for wait(ctx, watchEvery) {
		if p.poll() {
			changed()
		}
		p.announce()
	}
}

// poll takes the talosconfig into use if it has changed, and tells whether it has. One that cannot be read, as while it is being
// written, leaves the old contexts as they are; one that is gone takes them along.
func (p *talosPlane) poll() bool {
	old := p.view.Load()
	path, id, err := old.source.find()
	switch {
	case err != nil && old.file == nil, err == nil && old.file != nil && old.file.path == path && old.id == id && old.settled:
		return false
	case err != nil:
		return p.view.CompareAndSwap(old, &talosView{config: old.config, source: old.source, absent: err})
	}
	v, err := p.load(old.config)
	if err != nil {
		if old.file == nil || old.stale != nil && old.stale.Error() == err.Error() {
			return false
		}
		stale := *old
		stale.stale = err
		p.view.CompareAndSwap(old, &stale)
		return false
	}
	return p.view.CompareAndSwap(old, v) // a reload that came between has read it too
}

// state is how the plane does: "off" where there is no talosconfig, "degraded" where something needs the operator.
func (p *talosPlane) state() planeState {
	v := p.view.Load()
	if v.file == nil {
		return planeState{State: "off", Why: v.absent.Error()}
	}
	var why []string
	if v.stale != nil {
		why = append(why, v.stale.Error())
	}
	on := false
	for _, s := range p.contexts() {
		on = on || s.State != "off"
		if s.State != "on" {
			why = append(why, "context "+strconv.Quote(s.Name)+": "+s.Why)
		}
	}
	switch {
	case !on:
		return planeState{State: "off", Why: strings.Join(why, "; ")}
	case len(why) > 0:
		return planeState{State: "degraded", Why: strings.Join(why, "; ")}
	}
	return planeState{State: "on"}
}

// contexts tells how each context does, by name.
func (p *talosPlane) contexts() []talosContextState {
	v := p.view.Load()
	if v.file == nil {
		return nil
	}
	now := p.now()
	var states []talosContextState
	for _, c := range v.file.contexts {
		set := v.config.of(c.name)
		s := talosContextState{Name: c.name, State: "on", Access: set.access.String(), Role: set.role, Expires: c.expires()}
		switch problem := c.problem(now); {
		case problem != nil:
			s.State, s.Why = "off", problem.Error()
		case s.Expires.Sub(now) < talosExpiry:
			s.State, s.Why = "degraded", "the client certificate ends on "+s.Expires.Format(time.DateOnly)+": run talosctl config new, and merge its file"
		}
		if s.State != "off" && v.upstreams[c.name].role != nil {
			if err := v.upstreams[c.name].role.failing(); err != nil {
				s.State, s.Why = "degraded", err.Error()
			}
		}
		states = append(states, s)
	}
	return states
}

// announce says of each context whether it is on and until when its certificate holds, and warns of what needs the operator. It tells
// what it did not tell the last time: watch calls it again for what comes up later.
func (p *talosPlane) announce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.told
	p.told = map[string]bool{}
	tell := func(line string, log func(string, ...any)) {
		if p.told[line] = true; !before[line] {
			log(line)
		}
	}
	if v := p.view.Load(); v.stale != nil {
		tell("talos: the contexts stay as they were: "+v.stale.Error(), p.log.Warn)
	}
	for _, s := range p.contexts() {
		log := p.log.Info
		if s.State != "on" {
			log = p.log.Warn
		}
		line := fmt.Sprintf("talos context %q: %s", s.Name, s.State)
		if s.State != "off" {
			line += fmt.Sprintf(", access %s, client certificate until %s", s.Access, s.Expires.Format(time.DateOnly))
			if s.Role != "" {
				line += ", role " + s.Role
			}
		}
		if s.Why != "" {
			line += ": " + s.Why
		}
		tell(line, log)
	}
}
