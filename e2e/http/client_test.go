package http

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// answerLimit bounds how long any single answer may take.
const answerLimit = 30 * time.Second

// client is a hostile client of the proxy: it writes what it likes, byte for byte.
type client struct {
	proxy string         // "127.0.0.1:18080"
	roots *x509.CertPool // what containers trust
	from  net.Addr       // an address of its own, for refusals are counted by client: 127.1.0.7
}

// dial opens a connection to the proxy. It is closed when the test ends.
func (c *client) dial(t testing.TB) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: c.from, Timeout: answerLimit}
	conn, err := dialer.Dial("tcp", c.proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(answerLimit))
	return conn
}

// connect sends a CONNECT with further lines, each "Name: value", and gives the connection and the status code. Nothing follows the answer
// before the client speaks, so that reading it takes no byte too many.
func (c *client) connect(t testing.TB, authority string, lines ...string) (net.Conn, int) {
	t.Helper()
	conn := c.dial(t)
	head := append([]string{"CONNECT " + authority + " HTTP/1.1", "Host: " + authority}, lines...)
	if _, err := io.WriteString(conn, strings.Join(head, "\r\n")+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatalf("CONNECT %s: %v", authority, err)
	}
	return conn, answer.StatusCode
}

// intercepted is a TLS connection inside a CONNECT. protocol is "http/1.1" or "h2"; sni "" sends none.
func (c *client) intercepted(t testing.TB, authority, sni, protocol string) *tls.Conn {
	t.Helper()
	conn, code := c.connect(t, authority)
	if code != http.StatusOK {
		t.Fatalf("CONNECT %s: status %d", authority, code)
	}
	host, _, _ := net.SplitHostPort(authority)
	verify := func(s tls.ConnectionState) error {
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
			DNSName: strings.TrimSuffix(strings.ToLower(host), "."), Roots: c.roots, Intermediates: pool(s.PeerCertificates[1:]),
		})
		return err
	}
	// The name that is verified is the CONNECT host whatever is sent as SNI, so the library's own check cannot be used.
	inner := tls.Client(conn, &tls.Config{
		ServerName: sni, NextProtos: []string{protocol}, InsecureSkipVerify: true, VerifyConnection: verify,
	})
	if err := inner.Handshake(); err != nil {
		t.Fatalf("TLS to %s: %v", authority, err)
	}
	return inner
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}

// answer is a response read whole.
type answer struct {
	code    int
	header  http.Header
	trailer http.Header
	body    string
}

// noted leaves the answer where the search for canaries finds it.
func (a answer) noted(t testing.TB) answer {
	theWorld(t).seen.add("answer in "+t.Name(), fmt.Sprint(a.header, a.trailer, a.body))
	return a
}

// raw sends one HTTP/1.1 request as it stands, in an intercepted connection of its own, and reads the answer.
func (c *client) raw(t testing.TB, authority, request string) answer {
	t.Helper()
	host, _, _ := net.SplitHostPort(authority)
	return exchange(t, c.intercepted(t, authority, host, "http/1.1"), request)
}

// plain sends one request to the proxy's own port, without CONNECT.
func (c *client) plain(t testing.TB, request string) answer {
	t.Helper()
	return exchange(t, c.dial(t), request)
}

// exchange writes a request on conn and reads its final answer.
func exchange(t testing.TB, conn net.Conn, request string) answer {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	a, err := readAnswer(bufio.NewReader(conn), method)
	if err != nil {
		line, _, _ := strings.Cut(request, "\r\n")
		t.Fatalf("%s: %v", line, err)
	}
	return a.noted(t)
}

func readAnswer(in *bufio.Reader, method string) (answer, error) {
	for {
		r, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return answer{}, err
		}
		if r.StatusCode < 200 && r.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		body, err := io.ReadAll(r.Body)
		return answer{r.StatusCode, r.Header, r.Trailer, string(body)}, err
	}
}

// web is an http.Client through the proxy. It follows no redirect.
func (c *client) web(t testing.TB, protocol string) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialTLSContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(addr)
			return c.intercepted(t, addr, host, protocol), nil
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(protocol == "http/1.1")
	transport.Protocols.SetHTTP2(protocol == "h2")
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport, Timeout: answerLimit,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// do sends a request and reads the answer whole.
func do(t testing.TB, c *http.Client, r *http.Request) (answer, error) {
	t.Helper()
	got, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer got.Body.Close()
	body, err := io.ReadAll(got.Body)
	return answer{got.StatusCode, got.Header, got.Trailer, string(body)}.noted(t), err
}

// request builds a request of an http.Client.
func request(t testing.TB, method, url, body string, fields http.Header) *http.Request {
	t.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, content)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range fields {
		r.Header[name] = values
	}
	return r
}

// eventually asks until ok gives nil, and fails with its last word when answerLimit is over.
func eventually(t testing.TB, what string, ok func() error) {
	t.Helper()
	deadline := time.NewTimer(answerLimit)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// receive takes one value, or fails when answerLimit is over.
func receive[T any](t testing.TB, what string, from <-chan T) T {
	t.Helper()
	timer := time.NewTimer(answerLimit)
	defer timer.Stop()
	select {
	case v := <-from:
		return v
	case <-timer.C:
		t.Fatalf("nothing came: %s", what)
		panic("unreachable")
	}
}

// mark is a query that no other request has.
func mark(t testing.TB, n int) string {
	return fmt.Sprintf("mark=%s.%d", strings.NewReplacer("/", ".", "#", ".").Replace(t.Name()), n)
}
