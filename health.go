package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// planeNames are the planes in the order in which they are told.
var planeNames = []string{"http", "kube", "talos"}

// planeState is how one plane does.
type planeState struct {
	State string    `json:"state"`         // "on", "off", "degraded": serving with a part impaired
	Why   string    `json:"why,omitempty"` // "no kubeconfig"
	Since time.Time `json:"since"`         // when this state was first seen
}

// String gives "on", "off: no kubeconfig".
func (s planeState) String() string {
	if s.Why == "" {
		return s.State
	}
	return s.State + ": " + s.Why
}

// healthReport is what /proxy/health answers. The second part is for clients on loopback alone: a container is told no
// address, path or service of the host.
type healthReport struct {
	Planes map[string]planeState `json:"planes"`

	Kube        []kubeContextState  `json:"kube_contexts,omitempty"`
	Talos       []talosContextState `json:"talos_contexts,omitempty"`
	Listen      []string            `json:"listen"`                // "127.0.0.1:18080"
	NotListen   []string            `json:"not_listen,omitempty"`  // bridges that could not be bound
	Audit       string              `json:"audit,omitempty"`       // why the audit log cannot be written
	Credentials []string            `json:"credentials,omitempty"` // `github: …: mode 0644: run chmod 600 …`
}

// planeHistory remembers since when each plane is as it is. Safe for concurrent use.
type planeHistory struct {
	mu   sync.Mutex
	last map[string]planeState // guarded by mu
}

// see gives s, with the time at which the plane was first seen in that state.
func (h *planeHistory) see(plane string, s planeState, now time.Time) planeState {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Since = now.UTC().Truncate(time.Second)
	if before, ok := h.last[plane]; ok && before.State == s.State {
		s.Since = before.Since
	}
	if h.last == nil {
		h.last = map[string]planeState{}
	}
	h.last[plane] = s
	return s
}

// answerHealth is the body of /proxy/health and its status code: 503 when the audit log cannot be written, since then
// no request gets a credential, when the daemon ends, and when a plane does not serve whose file the config names. A plane that was
// turned off or is degraded is no reason.
func (d *daemon) answerHealth(loopback bool) (code int, body []byte) {
	r := d.healthReport()
	code = http.StatusOK
	c := d.config.Load()
	lost := c.kube.kubeconfig != "" && d.contexts.kube != nil && r.Planes["kube"].State == "off" ||
		c.talos.talosconfig != "" && d.contexts.talos != nil && r.Planes["talos"].State == "off"
	if r.Audit != "" || lost || d.stopping.Load() {
		code = http.StatusServiceUnavailable
	}
	var v any = r
	if !loopback {
		states := map[string]map[string]string{}
		for name, s := range r.Planes {
			states[name] = map[string]string{"state": s.State}
		}
		v = map[string]any{"planes": states}
	}
	body, err := json.Marshal(v)
	if err != nil { // cannot be: a report is strings and times
		return http.StatusInternalServerError, nil
	}
	return code, append(body, '\n')
}

// healthReport judges every part as it is now: it looks at the secret files, and a broken audit log gets another try.
// It may be called at any time, by many at once.
func (d *daemon) healthReport() healthReport {
	r := healthReport{Listen: []string{}, NotListen: d.listeners.degraded()}
	if err := d.audit.failing(); err != nil {
		r.Audit = err.Error()
	}
	for _, s := range d.creds.Load().status() {
		if s.err != nil {
			r.Credentials = append(r.Credentials, s.rule.service+": "+s.err.Error())
		}
	}
	now := time.Now()
	r.Planes = map[string]planeState{
		"http":  d.history.see("http", d.judgeHTTP(r), now),
		"kube":  d.history.see("kube", d.judgeKube(&r), now),
		"talos": d.history.see("talos", d.judgeTalos(&r), now),
	}
	for _, ln := range d.ports() {
		for _, l := range ln.addrs() {
			r.Listen = append(r.Listen, l.String())
		}
		if ln != d.listeners {
			r.NotListen = append(r.NotListen, ln.degraded()...)
		}
	}
	return r
}

// judgeKube is the state of the kube plane, with that of its contexts in r.
func (d *daemon) judgeKube(r *healthReport) (s planeState) {
	if d.contexts.kube == nil {
		return d.turnedOff("--no-kube")
	}
	s, r.Kube = d.contexts.kube.state()
	return d.judgePort(s, d.kubePort)
}

// judgeTalos is the state of the talos plane, with that of its contexts in r.
func (d *daemon) judgeTalos(r *healthReport) planeState {
	if d.contexts.talos == nil {
		return d.turnedOff("--no-talos")
	}
	r.Talos = d.contexts.talos.contexts()
	return d.judgePort(d.contexts.talos.state(), d.talosPort)
}

// judgePort is the state of a context plane, s as far as its contexts go.
func (d *daemon) judgePort(s planeState, port *planePort) planeState {
	if d.stopping.Load() {
		return planeState{State: "off", Why: "stopping"}
	}
	ln, err := port.listeners()
	switch {
	case s.State == "off":
		return s
	case err != nil:
		return planeState{State: "off", Why: err.Error()}
	case ln != nil && len(ln.degraded()) > 0:
		return planeState{State: "degraded", Why: strings.TrimPrefix(s.Why+"; a container network is not served", "; ")}
	}
	return s
}

// judgeHTTP is the state of the http plane, of what the report has so far.
func (d *daemon) judgeHTTP(r healthReport) planeState {
	if why := d.httpOff(); why != "" {
		return planeState{State: "off", Why: why}
	}
	if d.stopping.Load() {
		return planeState{State: "off", Why: "stopping"}
	}
	var why []string
	if r.Audit != "" {
		why = append(why, "the audit log cannot be written")
	}
	if len(r.NotListen) > 0 {
		why = append(why, "a container network is not served")
	}
	if d.unwatched.Load() {
		why = append(why, "new container networks are not noticed")
	}
	if len(r.Credentials) > 0 {
		why = append(why, "a credential cannot be used")
	}
	if len(why) == 0 {
		return planeState{State: "on"}
	}
	return planeState{State: "degraded", Why: strings.Join(why, "; ")}
}

// turnedOff is the state of a plane that its flag, or --no-proxy, turned off.
func (d *daemon) turnedOff(flag string) planeState {
	if d.noProxy {
		flag = "--no-proxy"
	}
	return planeState{State: "off", Why: flag}
}
