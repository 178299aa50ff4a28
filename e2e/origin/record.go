package origin

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Request is what one request looked like when it arrived. Header holds every value in order; for HTTP/1.1 the names are canonical.
type Request struct {
	TLS     bool
	SNI     string // "api.github.com"; "" without TLS
	ALPN    string // "h2", "http/1.1" or ""
	Remote  string // "198.51.100.1:43210"
	Proto   string // "HTTP/2.0"
	Method  string
	Target  string // as sent, byte for byte: "/user?a=%2F"
	Host    string
	Header  http.Header
	Trailer http.Header
	Bytes   int64  // of the content
	SHA256  string // of the content, hex
	Status  int    // of the answer, 0 where none was written
}

// exchange is a Request under way.
type exchange struct {
	Request
	request *http.Request
	digest  hash.Hash
	ended   chan struct{}
}

// recorder keeps all requests in the order of arrival.
type recorder struct {
	mu        sync.Mutex
	exchanges []*exchange // guarded by mu, and the fields of each
}

// endWait is how long Requests waits for answers that are under way: the client may have the end of one before the handler returned.
const endWait = 2 * time.Second

// record notes each request as it comes in and completes it as it ends.
func (l *recorder) record(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := l.begin(r)
		r.Body = &countedBody{ReadCloser: r.Body, log: l, exchange: x}
		out := &statusWriter{ResponseWriter: w, log: l, exchange: x}
		defer l.end(x)
		next.ServeHTTP(out, r)
	})
}

func (l *recorder) begin(r *http.Request) *exchange {
	x := &exchange{request: r, digest: sha256.New(), ended: make(chan struct{})}
	x.Request = Request{
		TLS: r.TLS != nil, Remote: r.RemoteAddr, Proto: r.Proto,
		Method: r.Method, Target: r.RequestURI, Host: r.Host, Header: r.Header.Clone(),
	}
	if r.TLS != nil {
		x.SNI, x.ALPN = r.TLS.ServerName, r.TLS.NegotiatedProtocol
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exchanges = append(l.exchanges, x)
	return x
}

func (l *recorder) end(x *exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.Trailer = x.request.Trailer.Clone()
	x.SHA256 = hex.EncodeToString(x.digest.Sum(nil))
	close(x.ended)
}

// snapshot copies the requests that match, once each has ended or endWait is over.
func (l *recorder) snapshot(match func(*Request) bool) []Request {
	timer := time.NewTimer(endWait)
	defer timer.Stop()
	for _, x := range l.matching(match) {
		select {
		case <-x.ended:
		case <-timer.C:
			timer.Reset(0)
		}
	}
	var found []Request
	matched := l.matching(match)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range matched {
		found = append(found, x.Request)
	}
	return found
}

func (l *recorder) matching(match func(*Request) bool) []*exchange {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []*exchange
	for _, x := range l.exchanges {
		if match(&x.Request) {
			found = append(found, x)
		}
	}
	return found
}

// Requests are those to one host so far, ports left aside; "" means all.
func (s *Server) Requests(host string) []Request {
	return s.log.snapshot(func(r *Request) bool {
		return host == "" || r.Host == host || strings.HasPrefix(r.Host, host+":")
	})
}

// RequestsFor are those to one host whose target holds part: a test gives each request a mark of its own.
func (s *Server) RequestsFor(host, part string) []Request {
	return s.log.snapshot(func(r *Request) bool {
		return (r.Host == host || strings.HasPrefix(r.Host, host+":")) && strings.Contains(r.Target, part)
	})
}

// AuthFields are all fields of header and trailer section that carry a credential, by canonical name.
func (r *Request) AuthFields() http.Header {
	found := http.Header{}
	for _, section := range []http.Header{r.Header, r.Trailer} {
		for name, values := range maps.All(section) {
			switch http.CanonicalHeaderKey(name) {
			case "Authorization", "X-Api-Key", "Private-Token", "Proxy-Authorization", "Cookie":
				key := http.CanonicalHeaderKey(name)
				found[key] = append(found[key], values...)
			}
		}
	}
	return found
}

// countedBody counts and hashes what a handler reads.
type countedBody struct {
	io.ReadCloser
	log      *recorder
	exchange *exchange
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	b.exchange.Bytes += int64(n)
	_, _ = b.exchange.digest.Write(p[:n])
	return n, err
}

// statusWriter notes the status. Hijack is passed on for WebSocket; Unwrap serves http.ResponseController.
type statusWriter struct {
	http.ResponseWriter
	log      *recorder
	exchange *exchange
}

func (w *statusWriter) WriteHeader(code int) {
	w.note(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	w.note(http.StatusOK)
	return w.ResponseWriter.Write(p)
}

func (w *statusWriter) note(code int) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if w.exchange.Status < 200 {
		w.exchange.Status = code
	}
}

func (w *statusWriter) Flush() { w.ResponseWriter.(http.Flusher).Flush() }

func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.note(http.StatusSwitchingProtocols)
	return w.ResponseWriter.(http.Hijacker).Hijack()
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// whole reads the content, to its trailer section, before the handler runs. The handler finds it again in Body.
func whole(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, "content is cut short", http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(content)))
		r.ContentLength, r.TransferEncoding = int64(len(content)), nil
		next.ServeHTTP(w, r)
	})
}
