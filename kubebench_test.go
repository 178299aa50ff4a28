package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kubeVersion is about what GET /version answers.
var kubeVersion = strings.Repeat(`"x":"y",`, 40)

func kubeAnswerVersion(w http.ResponseWriter, r *http.Request) {
	w.Header()["Content-Type"] = []string{"application/json"}
	w.Header()["Cache-Control"] = []string{"no-cache, private"}
	w.Header()["Audit-Id"] = []string{"0b0c2d2e-6ad2-4a87-9f5d-2d3c4b5a6978"}
	w.Header()["X-Kubernetes-Pf-Flowschema-Uid"] = []string{"0b0c2d2e-6ad2-4a87-9f5d-2d3c4b5a6978"}
	w.Header()["X-Kubernetes-Pf-Prioritylevel-Uid"] = []string{"0b0c2d2e-6ad2-4a87-9f5d-2d3c4b5a6978"}
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(kubeVersion))}
	io.WriteString(w, kubeVersion)
}

// benchmarkKube sends requests one after the other over one connection to addr.
func benchmarkKube(b *testing.B, addr, request string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	br, head := bufio.NewReaderSize(conn, 64<<10), withHost(request, addr)
	b.ReportAllocs()
	began := cpuTime()
	defer func() { b.ReportMetric(float64((cpuTime()-began).Microseconds())/float64(b.N), "cpu-us/op") }()
	for b.Loop() {
		io.WriteString(conn, head)
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || n == 0 || res.StatusCode != 200 {
			b.Fatal(res, err)
		}
		b.SetBytes(n)
	}
}

// cpuTime is what this process, client and origin included, has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const kubectlRequest = "GET /version?timeout=32s\r\nUser-Agent: kubectl/v1.37.2 (linux/amd64) kubernetes/abcdef\r\nAccept: application/json, */*\r\nAccept-Encoding: gzip\r\nKubectl-Session: 0b0c2d2e-6ad2-4a87-9f5d-2d3c4b5a6978"

func BenchmarkKubeVersion(b *testing.B) {
	p := newTestKube(b, kubeAnswerVersion, kubePlaneConfig{})
	p.origin.Server.Handler = http.HandlerFunc(kubeAnswerVersion)
	benchmarkKube(b, p.addr, kubectlRequest)
}

// BenchmarkKubeVersionDirect is the API server without TLS and without muxproxy.
func BenchmarkKubeVersionDirect(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(kubeAnswerVersion))
	defer s.Close()
	benchmarkKube(b, s.Listener.Addr().String(), kubectlRequest)
}

// BenchmarkKubeVersionBareProxy is what `kubectl proxy` is made of: a ReverseProxy on net/http's Transport over HTTP/2, with nothing else.
func BenchmarkKubeVersionBareProxy(b *testing.B) {
	p := newTestKube(b, kubeAnswerVersion, kubePlaneConfig{})
	p.origin.Server.Handler = http.HandlerFunc(kubeAnswerVersion)
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = p.origin.TLSConfig.Clone()
	tr.TLSClientConfig.InsecureSkipVerify, tr.ForceAttemptHTTP2 = true, true
	defer tr.CloseIdleConnections()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: p.origin.addr})
		proxy.Transport = tr
		proxy.ServeHTTP(w, r)
	}))
	defer s.Close()
	benchmarkKube(b, s.Listener.Addr().String(), kubectlRequest)
}

func BenchmarkKubeList(b *testing.B) {
	list := strings.Repeat("0123456789abcdef", 10<<16)
	p := newTestKube(b, echo, kubePlaneConfig{})
	p.origin.Server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, list) })
	benchmarkKube(b, p.addr, "GET /api/v1/configmaps")
}

func BenchmarkParseKubeRequest(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if q := parseKubeRequest("GET", "/apis/apps/v1/namespaces/dev/deployments/web/scale", ""); q.subresource != "scale" {
			b.Fatal(q)
		}
	}
}
