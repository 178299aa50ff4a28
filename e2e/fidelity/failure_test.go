package fidelity

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"muxproxy/e2e/testbed"
)

// failure is an upstream that fails, and what has to come of it.
type failure struct {
	name   string
	host   string // "" is failing.example.com, whose port 443 sends script
	script string // after which the connection ends
	reset  bool   // by RST
	code   int    // of the answer; 0: one that is visibly cut short
	says   string // in the answer
}

const (
	failingHost = "failing.example.com"
	refusedHost = "refused.example.com:8441" // nobody listens there
	plainHost   = "plain.example.com:8442"   // speaks without TLS
	otherCAHost = "otherca.example.com:8443" // has a certificate of a CA that nobody knows
	goneHost    = "gone.example.com"         // DNS says that there is no such name
	brokenHost  = "broken.example.com"       // DNS says SERVFAIL
)

var failures = []failure{
	{name: "refused", host: refusedHost, code: 502, says: "no connection"},
	{name: "no such name", host: goneHost, code: 502, says: "does not resolve"},
	{name: "DNS fails", host: brokenHost, code: 502, says: "could not be looked up"},
	{name: "not TLS", host: plainHost, code: 502, says: "TLS"},
	{name: "a certificate of another CA", host: otherCAHost, code: 502, says: "certificate"},
	{name: "closed without an answer", script: "", code: 502, says: "without an answer"},
	{name: "reset without an answer", script: "", reset: true, code: 502, says: "without an answer"},
	{name: "cut in the head", script: "HTTP/1.1 200 OK\r\nContent-Le", code: 502, says: "failed"},
	{name: "not HTTP", script: "SSH-2.0-OpenSSH\r\n", code: 502, says: "failed"},
	{name: "a status that is none", script: "HTTP/1.1 abc OK\r\n\r\n", code: 502, says: "failed"},
	{name: "a field line that is none", script: "HTTP/1.1 200 OK\r\nno colon\r\n\r\n", code: 502, says: "failed"},
	{name: "a length that is none", script: "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", code: 502, says: "failed"},
	{name: "two lengths", script: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", code: 502, says: "failed"},
	{name: "a transfer coding that nobody knows", script: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", code: 502, says: "failed"},
	{name: "a head of 2 MiB", script: "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", 2<<20) + "\r\n\r\n", code: 502, says: "failed"},
	{name: "1xx and no more", script: "HTTP/1.1 103 Early Hints\r\n\r\n", code: 502, says: "failed"},
	{name: "cut in content with a length", script: "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort"},
	{name: "reset in content with a length", script: "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort", reset: true},
	{name: "cut between chunks", script: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"},
	{name: "cut in a chunk", script: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nshort"},
	{name: "cut in the trailer section", script: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\nX-A: 1\r\n"},
	{name: "a chunk size that is none", script: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nxyz\r\n"},
	{name: "101 unasked", script: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", code: 502, says: "muxproxy: "},
}

// serveFailures serves the hosts of failures; the failing one sends the script that the request's path numbers.
func serveFailures(t *testing.T, ca *testbed.CA) {
	t.Helper()
	config := &tls.Config{GetCertificate: ca.Leaf, NextProtos: []string{"http/1.1"}}
	testbed.ServeConn(t, "443", func(socket *net.TCPConn) {
		conn := tls.Server(socket, config)
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		f := failures[n]
		_, _ = io.WriteString(conn, f.script)
		if f.reset {
			<-time.After(100 * time.Millisecond) // what was sent would be lost in the proxy's kernel
			_ = socket.SetLinger(0)
		} else {
			_ = conn.Close()
		}
	})
	testbed.ServeConn(t, "8442", func(conn *net.TCPConn) {
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_, _ = io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
	})
	testbed.Serve(t, testbed.NewCA(t), "8443", http.NotFoundHandler())
}

func TestAFailedUpstreamIsToldAndNeverHangs(t *testing.T) {
	ca := testbed.NewCA(t)
	serveFailures(t, ca)
	testbed.ServeDNS(t, map[string]dnsmessage.RCode{brokenHost + ".": dnsmessage.RCodeServerFailure})
	var config strings.Builder
	for _, host := range []string{failingHost, refusedHost, plainHost, otherCAHost, goneHost, brokenHost} {
		fmt.Fprintf(&config, "[[rule]]\nservice = %q\nhosts = [%q]\nheader = \"PRIVATE-TOKEN\"\nformat = \"{}\"\nfile = \"injected\"\n", host, host)
	}
	d := testbed.Start(t, testbed.Options{
		Hosts: []string{failingHost, "refused.example.com", "plain.example.com", "otherca.example.com"},
		Roots: ca.PEM, Secrets: map[string]string{"injected": credential}, Config: config.String(),
	})
	for i := range failures {
		f := &failures[i]
		for _, method := range []string{"GET", "POST"} {
			for _, version := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s %s HTTP/%d", f.name, method, version), func(t *testing.T) {
					checkFailure(t, d, f, method, i, version)
				})
			}
		}
	}
}

func checkFailure(t *testing.T, d *testbed.Daemon, f *failure, method string, number, version int) {
	host := f.host
	if host == "" {
		host = failingHost
	}
	before := len(d.Closing(t, func(testbed.Line) bool { return true }))
	client := d.Client(t, version)
	client.Timeout = 15 * time.Second
	body := io.Reader(nil)
	if method == "POST" {
		body = strings.NewReader(octets)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, fmt.Sprintf("https://%s/%d", host, number), body)
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	res, err := client.Do(r)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	content, err := io.ReadAll(res.Body)
	res.Body.Close()
	if took := time.Since(started); took > 12*time.Second {
		t.Errorf("it took %s", took)
	}
	if f.code != 0 && (err != nil || res.StatusCode != f.code || !strings.Contains(string(content), f.says)) {
		t.Errorf("%s, %q, %v", res.Status, content, err)
	}
	if f.code == 0 && (err == nil || res.StatusCode != 200 || string(content) != "short") {
		t.Errorf("%s, %q, %v: all that came must arrive, and no end", res.Status, content, err)
	}
	lines := d.Closing(t, func(testbed.Line) bool { return true })[before:]
	if len(lines) != 1 || lines[0].Error == "" || lines[0].Code != res.StatusCode || f.code != 0 && lines[0].Decision != "failed" {
		t.Errorf("audit lines %+v", lines)
	}
}

func TestAFailedTunnelIsToldInTheAnswerToConnect(t *testing.T) {
	ca := testbed.NewCA(t)
	testbed.ServeDNS(t, map[string]dnsmessage.RCode{"broken.example.org.": dnsmessage.RCodeServerFailure})
	d := testbed.Start(t, testbed.Options{Hosts: []string{"refused.example.org"}, Roots: ca.PEM})
	for _, c := range []struct{ authority, want string }{
		{"refused.example.org:8441", "502"}, {"gone.example.org:443", "502"}, {"broken.example.org:443", "502"},
		{"10.1.2.3:443", "403"}, {"127.0.0.1:80", "403"}, {"[::1]:80", "403"}, {"169.254.169.254:80", "403"},
	} {
		_, err := d.Connect(t.Context(), c.authority)
		if err == nil || !strings.Contains(err.Error(), ": "+c.want+" ") {
			t.Errorf("CONNECT %s: %v", c.authority, err)
		}
	}
	if lines := d.Closing(t, func(l testbed.Line) bool { return l.Method == "CONNECT" && l.Error != "" }); len(lines) != 7 {
		t.Errorf("audit lines %+v", lines)
	}
}
