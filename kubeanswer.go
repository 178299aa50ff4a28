package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
)

// kubeAnswer is the content of an answer. It has the audit line written before it gives the last of it.
type kubeAnswer struct {
	io.ReadCloser
	x    *kubeExchange
	left int64 // of its Content-Length; negative where there is none
	read atomic.Int64
}

func (b *kubeAnswer) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read.Add(int64(n))
	if b.left >= 0 {
		b.left -= int64(n)
	}
	switch {
	case err == io.EOF || err == nil && b.left == 0:
		b.x.audit()
	case err != nil && b.x.ctx.Err() != nil:
		b.x.event.err = errClientLeft.Error()
	case err != nil:
		b.x.event.err = "upstream: truncated answer"
	}
	return n, err
}

// relocate makes the Location of a redirect one that leads back through this context. An address of another server is dropped.
func (x *kubeExchange) relocate(h http.Header) {
	location := h.Get("Location")
	delete(h, "Location")
	u, err := url.Parse(location)
	if err != nil || u.Host != "" && serverOf(u) != serverOf(x.c.server) || u.Host == "" && u.Scheme != "" {
		return
	}
	rest := location
	if u.Host != "" {
		rest = location[strings.Index(location, u.Host)+len(u.Host):]
		if rest == "" || rest[0] != '/' {
			rest = "/" + rest
		}
	}
	if rest != "" && rest[0] == '/' {
		own := x.c.server.EscapedPath()
		if below, ok := strings.CutPrefix(rest, own); ok && (below == "" || below[0] == '/' || below[0] == '?') {
			rest = below
		}
		if strings.HasPrefix(rest, "//") { // would be another server's address
			return
		}
		rest = x.prefix + rest
	}
	h["Location"] = []string{rest}
}

// serverOf gives host and port of a URL, in lower case: "prod.example.com:443".
func serverOf(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = strconv.Itoa(int(schemePort(u.Scheme)))
	}
	return strings.ToLower(net.JoinHostPort(u.Hostname(), port))
}

// kubeStatus is metav1.Status (k8s.io/apimachinery/pkg/apis/meta/v1/types.go), the one shape of a refusal that every kubectl shows.
type kubeStatus struct {
	Kind       string   `json:"kind"`
	APIVersion string   `json:"apiVersion"`
	Metadata   struct{} `json:"metadata"`
	Status     string   `json:"status"`
	Message    string   `json:"message"`
	Reason     string   `json:"reason"`
	Code       int      `json:"code"`
}

// kubeReasons are the reasons of a Status by its code; metav1.StatusReason has none for 502.
var kubeReasons = map[int]string{
	http.StatusBadRequest: "BadRequest", http.StatusForbidden: "Forbidden", http.StatusNotFound: "NotFound",
	http.StatusRequestEntityTooLarge: "RequestEntityTooLarge", http.StatusTooManyRequests: "TooManyRequests", http.StatusBadGateway: "BadGateway", http.StatusGatewayTimeout: "Timeout",
}

// statusOf gives f as a Status; its message ends with the audit id.
func statusOf(f *refusal, id string) []byte {
	content, err := json.Marshal(kubeStatus{
		Kind: "Status", APIVersion: "v1", Status: "Failure", Message: f.text + " (audit id " + id + ")", Reason: kubeReasons[f.code], Code: f.code,
	})
	if err != nil { // strings and a number always marshal
		return nil
	}
	return append(content, '\n')
}
