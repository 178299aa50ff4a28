package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"muxproxy/e2e/measure"
)

// originParameters are those of the role "origin".
type originParameters struct {
	Cert, Key string // files
	Token     string
}

// version is what a real API server answers to GET /version.
const version = `{
  "major": "1",
  "minor": "37",
  "gitVersion": "v1.37.2",
  "gitCommit": "9e3a4d1c5b7f60218c4de5a6b0f1d2c3e4f5a6b7",
  "gitTreeState": "clean",
  "buildDate": "2026-10-14T09:21:45Z",
  "goVersion": "go1.26.3",
  "compiler": "gc",
  "platform": "linux/amd64"
}`

// eventGap is what the origin waits between two events.
const eventGap = 5 * time.Millisecond

// origin stands for an API server that costs next to nothing, so that it is the proxy that is measured. Like the real one
// it speaks HTTP/2 and HTTP/1.1, and it answers 401 to who has no credential.
type origin struct {
	token string
	item  []byte // one of a list
}

// serveOrigin is the role.
func serveOrigin(p originParameters) error {
	cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	o := &origin{token: "Bearer " + p.Token, item: listItem()}
	s := &http.Server{Handler: o, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, ErrorLog: log.New(io.Discard, "", 0)}
	go s.ServeTLS(ln, "", "") // ends with the process
	return measure.UntilEOF(ln.Addr().String())
}

// listItem is a kilobyte of a list.
func listItem() []byte {
	text := fmt.Sprintf(`{"metadata":{"name":"item","namespace":"default","labels":{"app":"bench"}},"data":{"text":"%0896d"}},`, 7)
	return []byte(text)
}

// ServeHTTP answers the paths of the rows.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != o.token {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Audit-Id", "4b1a6d0e-2f3c-4d5e-8f90-a1b2c3d4e5f6")
	w.Header().Set("Cache-Control", "no-cache, private")
	switch query := r.URL.Query(); {
	case r.URL.Path == "/version":
		w.Header().Set("Content-Length", strconv.Itoa(len(version)))
		_, _ = io.WriteString(w, version)
	case query.Has("watch"):
		events, _ := strconv.Atoi(query.Get("events"))
		watch(w, r, events)
	case query.Has("items"):
		items, _ := strconv.Atoi(query.Get("items"))
		for range items {
			if _, err := w.Write(o.item); err != nil {
				return
			}
		}
	default:
		http.NotFound(w, r)
	}
}

// watch sends events that say when they were sent, and stays open where there are none but a first one.
func watch(w http.ResponseWriter, r *http.Request, events int) {
	flush := http.NewResponseController(w).Flush
	send := func() bool {
		_, err := fmt.Fprintf(w, `{"type":"MODIFIED","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"watched","namespace":"default","resourceVersion":"1234"},"sent":%d}}`+"\n", time.Now().UnixNano())
		return err == nil && flush() == nil
	}
	if events == 0 {
		if send() {
			<-r.Context().Done()
		}
		return
	}
	tick := time.NewTicker(eventGap)
	defer tick.Stop()
	for range events {
		if !send() {
			return
		}
		<-tick.C
	}
}
