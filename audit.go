package main

import "time"

// event is one audit line. path is cut and escaped when written.
type event struct {
	id       string // newEventID
	start    time.Time
	plane    string // "http", "kube", "talos"
	service  string // "" for tunnels
	client   string // "172.17.0.2:51234"
	session  string // omitted where ""
	method   string
	host     string // "api.github.com" or "api.github.com:8443"
	path     string // request target; the query is dropped by the writer
	injected bool
	decision string // decisionInjected …
	code     int
	in, out  int64
	err      string // kind and rule, a constant sentence
	open     bool
}

const (
	decisionInjected  = "injected"
	decisionForwarded = "forwarded"
	decisionTunneled  = "tunneled"
	decisionDenied    = "denied"
	decisionFailed    = "failed"
)

// newEventID gives 16 lower-case hex digits.
func newEventID() string { panic("stub") }

// auditLog writes events, one write call a line. Safe for concurrent use.
type auditLog struct{}

func openAudit(c auditConfig, now func() time.Time) (*auditLog, error) { panic("stub") }

// write appends e. An error is kept: see ready.
func (l *auditLog) write(e *event) { panic("stub") }

// ready is asked before a credential is used: nil, or the write error after a failed attempt to reopen and write the pending lines.
func (l *auditLog) ready() error { panic("stub") }

func (l *auditLog) reopen(c auditConfig) error { panic("stub") }
func (l *auditLog) close() error               { panic("stub") }
