package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxPending bounds the lines that wait in memory while the log cannot be written. Lines of requests that carried a
// credential are kept beyond it: there are no more of them than were under way, since ready refuses new ones.
const maxPending = 1024

// What became of a request, as the audit line's decision says it.
const (
	decisionInjected  = "injected"
	decisionForwarded = "forwarded"
	decisionTunneled  = "tunneled"
	decisionDenied    = "denied"
	decisionFailed    = "failed"
)

// errAuditClosed is what ready tells where a line came after close: a fault of the caller that must not use a credential.
var errAuditClosed = errors.New("closed")

// event is one audit line: a request or an RPC that has ended, or with open set the opening line of a tunnel, an
// upgrade or a stream, whose id its closing line has again. It holds no header, query or body. What a client chose is
// escaped, and cut at 1 KiB, when it is written.
type event struct {
	id       string    // newEventID
	start    time.Time // of the request
	plane    string    // "http", "kube", "talos"
	service  string    // "github"; "" for tunnels
	client   string    // "172.17.0.2:51234"
	session  string    // omitted where ""
	method   string    // "GET"
	host     string    // "api.github.com" or "api.github.com:8443"
	path     string    // request target: query and userinfo are dropped by the writer
	injected bool      // the request carried a credential of ours
	sent     bool      // though decisionFailed, the upstream may have got the request
	decision string    // decisionInjected …
	code     int       // what the client was answered; 0 in an opening line
	in, out  int64     // bytes of content taken from the client and from the upstream
	err      string    // kind and rule, a constant sentence
	open     bool

	// For the kube and talos planes alone.
	context string // "prod": whose identity was used or asked for; omitted where ""

	// For the kube plane alone, as the API server reads the request.
	verb      string // "list"; of a path that is no resource the method in lower case
	resource  string // "pods", "deployments.apps/scale"; "" where the path names none
	namespace string // "" for cluster-wide requests

	// For the talos plane alone.
	grpcStatus *int     // nil where there was none
	nodes      []string // "10.0.0.2"

	// Set by the log itself alone.
	suppressed int    // refusals of the client that have no line of their own
	dropped    int    // lines that were lost while the log could not be written
	torn       string // the tail that a crash left in the log
}

// newEventID gives 16 lower-case hex digits.
func newEventID() string {
	var id [8]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// auditLog writes events, one write call a line, and rotates its file. Safe for concurrent use. A line that cannot be
// written waits in memory and is tried again before any other; until then ready is an error.
type auditLog struct {
	now      func() time.Time
	refusals *refusals
	buffers  sync.Pool   // of *[]byte
	broken   atomic.Bool // a write has failed and not been made good; set under mu

	mu      sync.Mutex // guards what follows
	config  auditConfig
	file    *auditFile // nil after a write error, until it is opened again
	pending [][]byte   // whole lines, in order
	dropped int        // lines that pending had no room for
	closed  bool
}

// openAudit opens the log, creating its directory, and closes a line that a crash tore. It is an error if the file
// cannot be opened; a full disk is told by ready.
func openAudit(c auditConfig, now func() time.Time) (*auditLog, error) {
	l := &auditLog{now: now, config: c}
	l.refusals = newRefusals(now, l.record)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(); err != nil {
		return nil, err
	}
	l.retry() // its error stays for ready to tell
	return l, nil
}

// write appends e, unless it is one refusal too many of its client. An error is kept: see ready.
func (l *auditLog) write(e *event) {
	if l.refusals.admit(e) {
		l.record(e)
	}
}

// record appends e whatever it is.
func (l *auditLog) record(e *event) {
	buffer, _ := l.buffers.Get().(*[]byte)
	if buffer == nil {
		buffer = new([]byte)
	}
	*buffer = appendEvent((*buffer)[:0], e, l.now())
	l.mu.Lock()
	l.add(*buffer, e.injected)
	l.mu.Unlock()
	l.buffers.Put(buffer)
}

// ready is asked before a credential is used: nil, or the write error after a failed attempt to reopen the log and
// write the pending lines.
func (l *auditLog) ready() error {
	if !l.broken.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.retry()
}

// failing is what the health endpoint asks: why the log cannot be written, or nil. It makes the attempt of ready, so
// that a log that can be written again is seen without a request.
func (l *auditLog) failing() error { return l.ready() }

// reopen goes on with the file that c names, opened anew: the same one after logrotate moved it away, or another. If
// it cannot be opened the log stays as it was.
func (l *auditLog) reopen(c auditConfig) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	config, file := l.config, l.file
	l.config = c
	if err := l.open(); err != nil {
		l.config = config
		return err
	}
	if file != nil {
		file.close()
	}
	return l.retry()
}

// close writes what is left, counts of suppressed refusals included, and closes the file. The error tells how many
// lines are lost. No write may follow.
func (l *auditLog) close() error {
	l.refusals.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	err := l.retry()
	l.closed = true
	if err != nil {
		return fmt.Errorf("close audit log %q: %d lines are lost: %w", l.config.path, len(l.pending)+l.dropped, err)
	}
	if err := l.file.close(); err != nil {
		return fmt.Errorf("close audit log %q: %w", l.config.path, bareError(err))
	}
	return nil
}

// add writes a line after those that wait, or lets it wait too. line is the caller's again when add returns; mu is held.
func (l *auditLog) add(line []byte, injected bool) {
	err := l.retry()
	if err == nil {
		err = l.put(line)
	}
	if err == nil {
		return
	}
	l.broken.Store(true)
	if len(l.pending) < maxPending || injected {
		l.pending = append(l.pending, slices.Clone(line))
	} else {
		l.dropped++
	}
}

// retry makes a write error good: it opens the file if there is none and writes the pending lines; mu is held.
func (l *auditLog) retry() error {
	if l.closed {
		return fmt.Errorf("write audit log %q: %w", l.config.path, errAuditClosed)
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	for len(l.pending) > 0 {
		if err := l.put(l.pending[0]); err != nil {
			return err
		}
		l.pending = l.pending[1:]
	}
	if l.dropped > 0 {
		note := &event{id: newEventID(), start: l.now(), decision: decisionFailed, dropped: l.dropped, err: "audit log: lines were lost while it could not be written"}
		if err := l.put(appendEvent(nil, note, l.now())); err != nil {
			return err
		}
		l.dropped = 0
	}
	l.broken.Store(false)
	return nil
}

// open puts the configured file, opened, in place of l.file, which is left as it is on error; a tail that a crash tore becomes the last of the pending lines. mu is held.
func (l *auditLog) open() error {
	file, torn, err := openAuditFile(l.config.path)
	if err != nil {
		return err
	}
	if torn != "" {
		note := &event{id: newEventID(), start: l.now(), decision: decisionFailed, torn: torn, err: "audit log: a line was torn"}
		l.pending = append(l.pending, appendEvent(nil, note, l.now()))
	}
	l.file = file
	return nil
}

// put writes one line, in a new file where the present one would grow past its size. After an error the file is
// closed, so that retry opens it anew: what is wrong may be the descriptor. mu is held.
func (l *auditLog) put(line []byte) error {
	err := l.rotate(len(line))
	if err == nil {
		err = l.file.append(line)
	}
	if err == nil {
		return nil
	}
	l.broken.Store(true)
	l.file.close()
	l.file = nil
	return fmt.Errorf("write audit log %q: %w", l.config.path, bareError(err))
}

// rotate puts the file aside if n more bytes would make it larger than it may be. A log that cannot be rotated is one
// that cannot be written: it would fill the disk. mu is held.
func (l *auditLog) rotate(n int) error {
	if !l.file.fullWith(n, l.config.maxSize) {
		return nil
	}
	if err := rotateFiles(l.config.path, l.config.keep); err != nil {
		return fmt.Errorf("rotate: %w", err)
	}
	full := l.file
	if err := l.open(); err != nil {
		return err
	}
	full.close()
	return nil
}
