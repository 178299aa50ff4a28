package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
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

func BenchmarkRequestExactHost(b *testing.B) {
	benchmarkRequest(b, "api.github.com", "/repos/o/r/pulls?state=open")
}

func BenchmarkRequestWithPaths(b *testing.B) {
	benchmarkRequest(b, "github.com", "/o/r.git/info/lfs/objects/batch")
}

func BenchmarkRequestUnmatched(b *testing.B) {
	benchmarkRequest(b, "a.long.name.below.example.com", "/")
}

func benchmarkRequest(b *testing.B, host, target string) {
	s := newRuleSet(append([]*rule{fileRule(b, "w", "*.corp.example")}, builtinRules()...), actionTunnel)
	a := mustAuthority(b, host)
	b.ReportAllocs()
	for b.Loop() {
		s.request(a, "GET", target)
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

func BenchmarkFindCredential(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "tok")
	if err := errors.Join(os.Chmod(dir, 0o700), os.WriteFile(path, []byte("tok"), 0o600)); err != nil {
		b.Fatal(err)
	}
	for name, getenv := range map[string]func(string) string{"file": secretEnv(), "environment": secretEnv("MUX_TOKEN", "tok")} {
		r := bearerRule("tok")
		c := newCredentials([]*rule{r}, dir, getenv, nil)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.find(r); err != nil {
					b.Fatal(err)
				}
			}
		})
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

func BenchmarkAuditWrite(b *testing.B) {
	l, err := openAudit(auditConfig{path: filepath.Join(b.TempDir(), "audit.jsonl"), maxSize: 100 << 20, keep: 1}, time.Now)
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	e := injectedEvent("0123456789abcdef")
	b.ReportAllocs()
	for b.Loop() {
		l.write(e)
	}
}

func BenchmarkAppendEvent(b *testing.B) {
	e := injectedEvent("0123456789abcdef")
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		line = appendEvent(line[:0], e, auditStart)
	}
}

func BenchmarkLeafFromCache(b *testing.B) {
	o := testCAOptions(b, newFakeClock())
	o.now = time.Now
	ca, _ := mustOpenCA(b, o)
	mustLeaf(b, ca, "api.github.com")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := ca.leaf("api.github.com"); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkLeafMint(b *testing.B) {
	ca, _ := mustOpenCA(b, testCAOptions(b, newFakeClock()))
	b.ReportAllocs()
	for b.Loop() {
		clear(ca.leaves.byHost)
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
