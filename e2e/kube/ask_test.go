package kube

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// question is a request that is sent byte for byte.
type question struct {
	method, target string   // "GET", "/contexts/cert/api"
	fields         []string // "Accept: application/json"; a Host field replaces the right one; OURSELVES is the daemon's address
	body           string
}

// answer is what came back, its whole body read, but for one that switches protocols.
type answer struct {
	code   int
	header http.Header
	body   string
	err    error // of a connection that was closed without an answer
}

// upgrade is what a WebSocket client sends.
var upgrade = []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}

// watchUpgrade is what a WebSocket client sends to watch: the API server wants an Origin there, whatever it is.
var watchUpgrade = append([]string{"Origin: http://OURSELVES"}, upgrade...)

// ask sends a request on a connection of its own, which is closed when it has been answered.
func (d *door) ask(t testing.TB, q question) answer {
	t.Helper()
	conn, err := net.Dial("tcp", d.Kube)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(90 * time.Second))
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", q.method, q.target)
	if !strings.HasPrefix(strings.ToLower(strings.Join(q.fields, "\n")), "host:") {
		fmt.Fprintf(&b, "Host: %s\r\n", d.Kube)
	}
	for _, field := range q.fields {
		b.WriteString(strings.ReplaceAll(field, "OURSELVES", d.Kube) + "\r\n")
	}
	if q.body != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(q.body))
	}
	b.WriteString("\r\n" + q.body)
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return answer{err: err}
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: q.method})
	if err != nil {
		return answer{err: err}
	}
	a := answer{code: res.StatusCode, header: res.Header}
	if res.StatusCode != http.StatusSwitchingProtocols {
		text, err := io.ReadAll(res.Body)
		a.body, a.err = string(text), err
	}
	seen.add("answer to "+q.target, fmt.Sprint(a.header)+a.body)
	return a
}

// get asks for a path of a context.
func (d *door) get(t testing.TB, context, path string) answer {
	t.Helper()
	return d.ask(t, question{method: "GET", target: "/contexts/" + context + path})
}

// status reads a refusal of muxproxy or of the API server: metav1.Status.
func (a answer) status() (message string, ok bool) {
	var s struct{ Kind, APIVersion, Status, Message string }
	err := json.Unmarshal([]byte(a.body), &s)
	return s.Message, err == nil && s.Kind == "Status" && s.APIVersion == "v1" && s.Status == "Failure" && s.Message != ""
}

// String is for messages.
func (a answer) String() string { return fmt.Sprintf("%d %v %s", a.code, a.err, head(a.body)) }

// mark gives a path with a query that tells this request from all others; the API server ignores it.
func mark(path string) (marked, marker string) {
	marker = "mark=" + rand.Text()
	if strings.Contains(path, "?") {
		return path + "&" + marker, marker
	}
	return path + "?" + marker, marker
}
