package origin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// echo answers in all the ways that a proxy can spoil. It never gives header values back, or every injected credential would be in the client's hands;
// TRACE alone does, as RFC 9110 §9.3.8 has it.
func (s *Server) echo() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", s.webSocket)
	mux.HandleFunc("/sse", s.events)
	mux.HandleFunc("/sse/ack", func(w http.ResponseWriter, r *http.Request) { s.acks.get(r.FormValue("id")).pass() })
	mux.HandleFunc("/gate/{name}", s.gated)
	mux.HandleFunc("/trailers", trailers)
	mux.HandleFunc("/early", early)
	mux.HandleFunc("/bytes", manyBytes)
	mux.HandleFunc("/slow", slow)
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.FormValue("to"), http.StatusFound)
	})
	mux.HandleFunc("/cookie", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "upstream-session"})
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/", report)
	grpc := s.grpc()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			grpc.ServeHTTP(w, r)
		case r.Method == http.MethodTrace:
			w.Header().Set("Content-Type", "message/http")
			_ = r.Header.Write(w)
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// report drains the content and says what came, values left out.
func report(w http.ResponseWriter, r *http.Request) {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		http.Error(w, "content is cut short", http.StatusBadRequest)
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{"method": r.Method, "target": r.RequestURI, "host": r.Host, "proto": r.Proto, "bytes": n})
}

// trailers answers with a trailer section, one of its fields declared and one not.
func trailers(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "X-Checksum")
	_, _ = io.WriteString(w, "content before trailers\n")
	w.Header().Set("X-Checksum", "abc123")
	w.Header().Set(http.TrailerPrefix+"X-Late", "undeclared")
}

// early sends 103 (RFC 8297) before its answer.
func early(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Link", "</style.css>; rel=preload; as=style")
	w.WriteHeader(http.StatusEarlyHints)
	w.Header().Del("Link")
	_, _ = io.WriteString(w, "after early hints\n")
}

// manyBytes answers with n bytes of one pattern: Pattern(n).
func manyBytes(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.FormValue("n"), 10, 64)
	if err != nil {
		http.Error(w, "n is not a number", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = io.Copy(w, Pattern(n))
}

// Pattern gives n bytes that repeat every 251, so that a lost or doubled block shows.
func Pattern(n int64) io.Reader {
	return io.LimitReader(&pattern{}, n)
}

type pattern struct{ at int }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(p.at)
		if p.at++; p.at == 251 {
			p.at = 0
		}
	}
	return len(b), nil
}

// slow answers after the duration "for", "1500ms".
func slow(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.FormValue("for"))
	if err != nil {
		http.Error(w, "for is not a duration", http.StatusBadRequest)
		return
	}
	if pause(r.Context(), d) {
		_, _ = io.WriteString(w, "slow but whole\n")
	}
}

// ackLimit is how long an event stream waits for its reader to say that it has the last event.
const ackLimit = 20 * time.Second

// events streams n events named "tick" in the stream "id". Each but the first is sent only when the client has asked /sse/ack for the stream, which
// it can do only if the event before reached it: a proxy that holds events back ends the stream with "timeout".
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.FormValue("n"))
	w.Header().Set("Content-Type", "text/event-stream")
	acks := s.acks.get(r.FormValue("id"))
	for i := range n {
		if i > 0 && !acks.wait(r.Context(), ackLimit) {
			_, _ = io.WriteString(w, "event: timeout\ndata: {}\n\n")
			return
		}
		_, _ = fmt.Fprintf(w, "event: tick\ndata: %d\n\n", i)
		w.(http.Flusher).Flush()
	}
}

// gated holds its answer until the test opens the gate of that name.
func (s *Server) gated(w http.ResponseWriter, r *http.Request) {
	gate := s.gates.get(r.PathValue("name"))
	select {
	case gate.arrived <- struct{}{}:
	default:
	}
	select {
	case <-gate.opened:
		_, _ = io.WriteString(w, "through the gate\n")
	case <-r.Context().Done():
	}
}

// Gate is what a test holds requests to /gate/NAME with.
type Gate struct {
	arrived chan struct{}
	opened  chan struct{}
	passes  chan struct{}
	open    sync.Once
}

// gateRoom is how many arrivals and passes a gate remembers.
const gateRoom = 4096

// Arrived gives one value for each request that waits at the gate.
func (g *Gate) Arrived() <-chan struct{} { return g.arrived }

// Open lets all requests through, those to come as well. It may be called again.
func (g *Gate) Open() { g.open.Do(func() { close(g.opened) }) }

func (g *Gate) pass() {
	select {
	case g.passes <- struct{}{}:
	default:
	}
}

// wait takes one pass; false when none comes in time.
func (g *Gate) wait(ctx context.Context, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-g.passes:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// gates makes each gate at its first mention.
type gates struct {
	mu   sync.Mutex
	each map[string]*Gate // guarded by mu
}

func (g *gates) get(name string) *Gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.each == nil {
		g.each = map[string]*Gate{}
	}
	if g.each[name] == nil {
		g.each[name] = &Gate{
			arrived: make(chan struct{}, gateRoom), opened: make(chan struct{}), passes: make(chan struct{}, gateRoom),
		}
	}
	return g.each[name]
}

// Gate gives the gate of that name.
func (s *Server) Gate(name string) *Gate { return s.gates.get(name) }
