package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipeListener accepts connections that dial makes in memory, so that a fake clock knows when all wait.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		return a, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// newPipeProxy is a testProxy in memory, with a client of the HTTP version; handler is the whole internet.
func newPipeProxy(t *testing.T, version int, handler http.HandlerFunc) (*testProxy, *http.Client) {
	t.Helper()
	root, issue := originIssuer(t)
	internet, door := newPipeListener(), newPipeListener()
	origin := &http.Server{Handler: handler, ErrorLog: discardLog, TLSConfig: &tls.Config{GetCertificate: issue, SessionTicketsDisabled: true}}
	var serving sync.WaitGroup
	serving.Go(func() { origin.ServeTLS(internet, "", "") })

	dir := t.TempDir()
	p := &testProxy{audit: filepath.Join(dir, "audit.jsonl"), ca: x509.NewCertPool()}
	audit, err := openAudit(auditConfig{path: p.audit}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	rules := builtinRules()
	config := &config{rules: rules, dockerHost: "host.docker.internal"}
	ca, _, err := openCA(caOptions{dir: dir, hosts: config.caHosts(), ephemeral: true, now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	p.ca.AppendCertsFromPEM(ca.roots())
	d := loopbackDialer()
	d.guarded = internet.dial
	roots := x509.NewCertPool()
	roots.AddCert(root)
	n := newPolicy(rules, actionTunnel, newCredentials(rules, dir, func(string) string { return "" }, nil), d)
	n.plain = newUpstream(d, roots)
	p.proxy = newProxy(proxyOptions{ca: ca, audit: audit, clients: newClients(1024), log: slog.New(slog.DiscardHandler), policy: n, handover: func(authority) *handover { return nil }})
	serving.Go(func() { p.serve(door) })

	tr := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy"}), DialContext: door.dial,
		TLSClientConfig: &tls.Config{RootCAs: p.ca}, Protocols: new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(version == 1)
	tr.Protocols.SetHTTP2(version == 2)
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		door.Close()
		internet.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		p.shutdown(ctx)
		origin.Close()
		serving.Wait()
		audit.close()
	})
	return p, &http.Client{Transport: tr}
}

func TestAnEventStreamOfHoursIsNotCut(t *testing.T) {
	const events, pause = 12, 20 * time.Minute
	for _, version := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			_, client := newPipeProxy(t, version, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				for i := range events {
					fmt.Fprintf(w, "data: %d\n\n", i)
					w.(http.Flusher).Flush()
					<-time.After(pause)
				}
			})
			started := time.Now()
			res, err := client.Get("https://sentry.io/events")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			got := 0
			for lines := bufio.NewScanner(res.Body); lines.Scan(); {
				if lines.Text() == "" {
					continue
				}
				if late := time.Since(started) - time.Duration(got)*pause; late > time.Second || lines.Text() != fmt.Sprintf("data: %d", got) {
					t.Errorf("HTTP/%d: %q came %s late", version, lines.Text(), late)
				}
				got++
			}
			if took := time.Since(started); got != events || took < events*pause {
				t.Errorf("HTTP/%d: %d events in %s", version, got, took)
			}
		})
	}
}

func TestAnUpstreamMayThinkForMinutesButNotForEver(t *testing.T) {
	for _, c := range []struct {
		thinks time.Duration
		code   int
	}{{upstreamWait - time.Minute, 200}, {2 * upstreamWait, 504}} {
		for _, version := range []int{1, 2} {
			synctest.Test(t, func(t *testing.T) {
				p, client := newPipeProxy(t, version, func(w http.ResponseWriter, r *http.Request) {
					select {
					case <-time.After(c.thinks):
					case <-r.Context().Done():
					}
				})
				started := time.Now()
				res, err := client.Get("https://sentry.io/think")
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if took := time.Since(started).Round(time.Second); res.StatusCode != c.code || took != min(c.thinks, upstreamWait) {
					t.Errorf("HTTP/%d: %s after %s", version, res.Status, took)
				}
				if l := p.lastLine(t); l.Code != c.code || (l.Error == "time-out") != (c.code == 504) {
					t.Errorf("HTTP/%d: audit line %+v", version, l)
				}
			})
		}
	}
}

func TestAnIdleConnectionIsClosedAfterFiveMinutesAndNoBusyOne(t *testing.T) {
	for _, version := range []int{1, 2} {
		synctest.Test(t, func(t *testing.T) {
			p, client := newPipeProxy(t, version, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					<-time.After(2 * idleWait)
				}
			})
			get := func(path string) {
				res, err := client.Get("https://sentry.io" + path)
				if err != nil {
					t.Fatalf("HTTP/%d %s: %v", version, path, err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			conns := func() int {
				synctest.Wait()
				p.mu.Lock()
				defer p.mu.Unlock()
				return len(p.conns)
			}
			get("/1")
			<-time.After(idleWait - time.Minute)
			get("/slow")
			<-time.After(idleWait - time.Minute)
			if n := conns(); n != 1 {
				t.Errorf("HTTP/%d: %d connections before the time is over", version, n)
			}
			<-time.After(2 * time.Minute)
			if n := conns(); n != 0 {
				t.Errorf("HTTP/%d: %d connections after it", version, n)
			}
		})
	}
}

func TestAnEarlyAnswerOverHTTP2IsReadBeforeItsStreamIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := newPipeProxy(t, 2, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex() // else net/http reads the content first
			w.WriteHeader(413)
			io.WriteString(w, "too large")
		})
		content, more := io.Pipe()
		defer more.Close()
		res, err := client.Post("https://sentry.io/", "text/plain", content)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		started := time.Now()
		answer := make([]byte, 9)
		if _, err := io.ReadFull(res.Body, answer); err != nil || string(answer) != "too large" || time.Since(started) != 0 {
			t.Errorf("%q, %v after %s", answer, err, time.Since(started))
		}
		if n, err := res.Body.Read(answer); n != 0 || err != io.EOF || time.Since(started) != lingerWait {
			t.Errorf("the end: %d bytes, %v after %s", n, err, time.Since(started))
		}
	})
}

func TestAnEarlyGRPCAnswerWithoutContentEndsWithItsHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := newPipeProxy(t, 2, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Grpc-Status", "12")
			w.WriteHeader(200)
		})
		upload, more := io.Pipe()
		defer more.Close()
		r, err := http.NewRequest("POST", "https://sentry.io/", upload)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Te", "trailers")
		started := time.Now()
		res, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		content, err := io.ReadAll(res.Body)
		if len(content) != 0 || err != nil || res.Header.Get("Grpc-Status") != "12" || time.Since(started) != 0 {
			t.Errorf("content %q, %v, status %q, after %s", content, err, res.Header.Get("Grpc-Status"), time.Since(started))
		}
	})
}
