package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// benchRequest is a request like those of API clients; its answer is benchAnswer.
const (
	benchRequest = "GET /repos/o/r/issues HTTP/1.1\r\nHost: api.github.com\r\nUser-Agent: bench/1.0\r\nAccept: application/json\r\n" +
		"Accept-Encoding: gzip, br\r\nX-Api-Version: 2022-11-28\r\nAuthorization: Bearer " + "ghp_muxproxy-placeholder\r\n\r\n"
	benchContent = 1 << 10 // bytes
)

var benchAnswer = "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jun 2026 10:00:00 GMT\r\nContent-Type: application/json; charset=utf-8\r\n" +
	"Content-Length: " + strconv.Itoa(benchContent) + "\r\nCache-Control: private, max-age=60\r\nETag: \"6f1ed002ab5595859014ebf0951522d9\"\r\n" +
	"X-Request-Id: 8C2A:1F3B:55D0:7A11\r\nVary: Accept\r\n\r\n" + strings.Repeat("x", benchContent)

func BenchmarkRuleOfARequest(b *testing.B) {
	s := newRuleSet(builtinRules(), actionTunnel)
	api, git := authority{"api.github.com", 443}, authority{"github.com", 443}
	b.ReportAllocs()
	for b.Loop() {
		if d := s.request(api, "GET", "/repos/o/r/issues?page=2"); d.action != actionInject {
			b.Fatal(d)
		}
		if d := s.request(git, "GET", "/o/r.git/info/refs?service=git-upload-pack"); d.action != actionInject {
			b.Fatal(d)
		}
	}
}

func BenchmarkRuleOfAConnectThatNoneNames(b *testing.B) {
	s := newRuleSet(builtinRules(), actionTunnel)
	b.ReportAllocs()
	for b.Loop() {
		if d := s.connect(authority{"a.b.example.com", 443}); d.action != actionTunnel {
			b.Fatal(d)
		}
	}
}

func BenchmarkStripAndInject(b *testing.B) {
	rules := builtinRules()
	creds := newCredentials(rules, b.TempDir(), func(name string) string { return map[string]string{"GITHUB_TOKEN": "ghp_secret"}[name] }, nil)
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchRequest)))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		cred, err := creds.find(rules[0])
		if err != nil {
			b.Fatal(err)
		}
		cleanRequest(r)
		stripAuth(r.Header, rules[0])
		cred.set(r.Header)
	}
}

func BenchmarkHeadToTheUpstream(b *testing.B) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchRequest)))
	if err != nil {
		b.Fatal(err)
	}
	r.URL = &url.URL{Scheme: "https", Host: r.Host, Opaque: "//" + r.Host + r.RequestURI}
	c := &upstreamConn{bw: bufio.NewWriter(io.Discard)}
	b.ReportAllocs()
	for b.Loop() {
		c.writeHead(r)
	}
}

func BenchmarkHeadToTheClient(b *testing.B) {
	res, err := http.ReadResponse(bufio.NewReader(strings.NewReader(benchAnswer)), &http.Request{Method: "GET"})
	if err != nil {
		b.Fatal(err)
	}
	answer := &reply1{c: &http1Conn{bw: bufio.NewWriter(io.Discard)}}
	b.ReportAllocs()
	for b.Loop() {
		answer.begin(res)
	}
}

func BenchmarkAuditLine(b *testing.B) {
	l, err := openAudit(auditConfig{path: filepath.Join(b.TempDir(), "audit.jsonl")}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	e := &event{
		id: newEventID(), start: time.Now(), plane: "http", service: "github", client: "172.17.0.2:51234",
		method: "GET", host: "api.github.com", path: "/repos/o/r/issues?page=2", decision: decisionInjected, injected: true, code: 200, out: benchContent,
	}
	b.ReportAllocs()
	for b.Loop() {
		l.write(e)
	}
}

func BenchmarkLeafInTheCache(b *testing.B) {
	rules := builtinRules()
	ca, _, err := openCA(caOptions{dir: b.TempDir(), hosts: (&config{rules: rules, dockerHost: "host.docker.internal"}).caHosts(), ephemeral: true, now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ca.leaf("api.github.com"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpstreamExchange is one request on a pooled connection, without TLS.
func BenchmarkUpstreamExchange(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	serveBench(b, ln)
	u := newUpstream(loopbackDialer(), nil)
	defer u.closeIdle()
	b.ReportAllocs()
	for b.Loop() {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(benchRequest)))
		if err != nil {
			b.Fatal(err)
		}
		r.URL.Scheme, r.URL.Host = "http", ln.Addr().String()
		res, err := u.RoundTrip(r)
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != benchContent || err != nil {
			b.Fatal(n, err)
		}
		res.Body.Close()
	}
}

// BenchmarkExchange is one request on an intercepted connection, from the client's write to the last byte of the answer.
func BenchmarkExchange(b *testing.B) {
	o := &testOrigin{roots: x509.NewCertPool()}
	root, issue := originIssuer(b)
	o.root = root
	o.roots.AddCert(root)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: issue})
	if err != nil {
		b.Fatal(err)
	}
	o.addr = ln.Addr().String()
	serveBench(b, ln)
	p := newTestProxy(b, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": "ghp_secret"}})
	conn := p.intercepted(b, "api.github.com:443", "api.github.com")
	defer conn.Close()
	request := []byte(benchRequest)
	answer := make([]byte, len(benchAnswer)) // nothing of it is changed but the order of the fields
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, answer); err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 OK\r\n")) {
			b.Fatalf("%v: %q", err, answer)
		}
	}
}

// serveBench answers every request on ln, until the benchmark ends, without allocating.
func serveBench(b *testing.B, ln net.Listener) {
	b.Helper()
	answer := []byte(benchAnswer)
	var all sync.WaitGroup
	serve := func(conn net.Conn) {
		defer conn.Close()
		br := bufio.NewReader(conn)
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == len("\r\n") {
				conn.Write(answer)
			}
		}
	}
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serve(conn) })
		}
	})
	// Registered before the proxy's cleanup, and so run after it has closed its connections.
	b.Cleanup(func() { ln.Close(); all.Wait() })
}
