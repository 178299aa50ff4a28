package fidelity

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// way is how a client reaches a host: through a proxy, or directly at an address.
type way struct {
	proxy string // "127.0.0.1:40001", "" for none
	host  string // "api.example.com"
	addr  string // "127.77.0.1:443"
	roots string // file
	pool  *x509.CertPool
}

// client is one program that speaks HTTP in its own manner.
type client struct {
	name string // "curl", "node", "go", "raw"
	h2   bool
	// do has x sent, as often as x.times says, with mark in its own field.
	do func(t *testing.T, w way, x *exchange, mark string) []*answers
}

func (c *client) String() string {
	if c.h2 {
		return c.name + " HTTP/2"
	}
	return c.name + " HTTP/1.1"
}

// exchangeLimit bounds a single exchange.
const exchangeLimit = 20 * time.Second

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

func (x *exchange) verb() string {
	if x.method == "" {
		return "GET"
	}
	return x.method
}

func (x *exchange) path() string {
	if x.target == "" {
		return "/x"
	}
	return x.target
}

// goClient is net/http's client.
func goClient(h2 bool) client {
	return client{name: "go", h2: h2, do: func(t *testing.T, w way, x *exchange, mark string) []*answers {
		tr := &http.Transport{
			DisableCompression: true, ExpectContinueTimeout: exchangeLimit, MaxResponseHeaderBytes: 1 << 20,
			TLSClientConfig: &tls.Config{RootCAs: w.pool}, Protocols: new(http.Protocols),
		}
		tr.Protocols.SetHTTP1(!h2)
		tr.Protocols.SetHTTP2(h2)
		if w.proxy != "" {
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: w.proxy})
		} else {
			tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", w.addr)
			}
		}
		defer tr.CloseIdleConnections()
		var all []*answers
		for range max(x.times, 1) {
			all = append(all, goExchange(t, tr, w, x, mark))
		}
		return all
	}}
}

func goExchange(t *testing.T, tr *http.Transport, w way, x *exchange, mark string) *answers {
	t.Helper()
	a := &answers{}
	ctx, cancel := context.WithTimeout(t.Context(), exchangeLimit)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			a.interim = append(a.interim, &message{code: code, fields: fromHeader(http.Header(h))})
			return nil
		},
		GotConn: func(i httptrace.GotConnInfo) {
			if !i.Reused {
				a.opened++
			}
		},
	})
	r := (&http.Request{Method: x.verb(), URL: &url.URL{Scheme: "https", Host: w.host, Opaque: x.path()}, Header: http.Header{}}).WithContext(ctx)
	if strings.HasPrefix(x.path(), "//") {
		r.URL = &url.URL{Scheme: "https", Host: w.host, Path: x.path()}
	}
	goFields(r, x, mark)
	res, err := tr.RoundTrip(r)
	if err != nil {
		a.err = "broken"
		t.Logf("go: %v", err)
		return a
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	if err != nil {
		a.err = "broken"
	}
	a.final = &message{code: res.StatusCode, fields: fromHeader(res.Header), content: string(content), trailers: fromHeader(res.Trailer)}
	_, a.final.reason, _ = strings.Cut(res.Status, " ")
	if res.Uncompressed {
		t.Error("the client has decoded the content")
	}
	return a
}

func goFields(r *http.Request, x *exchange, mark string) {
	for _, f := range x.fields {
		if (f.name == "User-Agent" || f.name == "Expect") && f.value == "" {
			if f.name == "User-Agent" {
				r.Header[f.name] = []string{""}
			}
			continue
		}
		if f.name == "Content-Length" {
			continue // it is made from Body
		}
		r.Header[f.name] = append(r.Header[f.name], f.value)
	}
	r.Header[markField] = []string{mark}
	if x.content != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(x.content)), int64(len(x.content))
		if x.chunked {
			r.ContentLength = -1
		}
	}
	for _, f := range x.trailer {
		if r.Trailer == nil {
			r.Trailer = http.Header{}
		}
		r.Trailer.Add(f.name, f.value)
	}
}

// fromHeader gives the fields of h sorted by name: net/http does not tell their order.
func fromHeader(h http.Header) []field {
	fields := []field{}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[name] {
			fields = append(fields, field{name, v})
		}
	}
	return fields
}

// curlClient is curl, one process for each exchange.
func curlClient(h2 bool) client {
	return client{name: "curl", h2: h2, do: func(t *testing.T, w way, x *exchange, mark string) []*answers {
		dir := t.TempDir()
		args := curlArguments(t, dir, w, x, mark, h2)
		ctx, cancel := context.WithTimeout(t.Context(), exchangeLimit)
		defer cancel()
		cmd := exec.CommandContext(ctx, "curl", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if x.chunked {
			cmd.Stdin = strings.NewReader(x.content)
		}
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("curl: %v", err)
		}
		if err != nil {
			t.Logf("curl: %v: %s", err, stderr.String())
		}
		opened := strings.Fields(string(out))
		var all []*answers
		for i := range max(x.times, 1) {
			content := filepath.Join(dir, "content"+strconv.Itoa(i))
			if x.verb() == "HEAD" {
				content = "" // curl writes the head there
			}
			a := curlAnswers(t, filepath.Join(dir, "head"+strconv.Itoa(i)), content)
			if err != nil {
				a.err = "broken"
			}
			if i < len(opened) {
				a.opened, _ = strconv.Atoi(opened[i])
			}
			all = append(all, a)
		}
		return all
	}}
}

func curlArguments(t *testing.T, dir string, w way, x *exchange, mark string, h2 bool) []string {
	t.Helper()
	version, host := "--http1.1", w.host
	if h2 {
		version = "--http2"
	}
	args := []string{
		"--disable", "--silent", "--show-error", version, "--cacert", w.roots, "--path-as-is", "--request-target", x.path(),
		"--expect100-timeout", "15", "--max-time", "18", "--header", markField + ": " + mark, "--suppress-connect-headers",
	}
	if w.proxy != "" {
		args = append(args, "--proxy", "http://"+w.proxy)
	} else {
		args = append(args, "--connect-to", "::"+w.addr)
	}
	switch {
	case x.verb() == "HEAD":
		args = append(args, "--head")
	case x.chunked:
		args = append(args, "--upload-file", "-", "--request", x.verb())
	case x.content != "":
		file := filepath.Join(dir, "request")
		if err := os.WriteFile(file, []byte(x.content), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--data-binary", "@"+file, "--request", x.verb())
	default:
		args = append(args, "--request", x.verb())
	}
	for _, f := range x.fields {
		switch {
		case f.value != "":
			args = append(args, "--header", f.name+": "+f.value)
		case f.name == "User-Agent" || f.name == "Expect":
			args = append(args, "--header", f.name+":") // none
		default:
			args = append(args, "--header", f.name+";") // empty
		}
	}
	args = append(args, "--write-out", "%{num_connects}\n")
	common := slices.Clone(args)
	for i := range max(x.times, 1) {
		if i > 0 {
			args = append(append(args, "--next"), common...)
		}
		args = append(args, "--dump-header", filepath.Join(dir, "head"+strconv.Itoa(i)), "--output", filepath.Join(dir, "content"+strconv.Itoa(i)), "https://"+host+"/")
	}
	return args
}

// curlAnswers reads what curl wrote: the heads one after the other, then the trailer section.
func curlAnswers(t *testing.T, headFile, contentFile string) *answers {
	t.Helper()
	text, _ := os.ReadFile(headFile)
	content, _ := os.ReadFile(contentFile)
	a := &answers{}
	for section := range strings.SplitSeq(strings.TrimSuffix(string(text), "\r\n"), "\r\n\r\n") {
		if section == "" {
			continue
		}
		if !strings.HasPrefix(section, "HTTP/") {
			if a.final != nil {
				a.final.trailers = append(a.final.trailers, curlFields(section)...)
			}
			continue
		}
		line, rest, _ := strings.Cut(section, "\r\n")
		version, rest2, _ := strings.Cut(line, " ")
		code, reason, _ := strings.Cut(rest2, " ")
		m := &message{version: version, reason: reason, fields: curlFields(rest), trailers: []field{}}
		m.code, _ = strconv.Atoi(code)
		if m.code < 200 {
			a.interim = append(a.interim, m)
			continue
		}
		a.final = m
	}
	if a.final != nil {
		a.final.content = string(content)
	}
	return a
}

func curlFields(section string) []field {
	fields := []field{}
	for line := range strings.SplitSeq(section, "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if !ok || strings.HasPrefix(line, " ") {
			if len(fields) > 0 && line != "" {
				fields[len(fields)-1].value += "\r\n" + line
			}
			continue
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
	}
	return fields
}

func (w way) String() string {
	if w.proxy == "" {
		return "directly to " + w.host
	}
	return fmt.Sprintf("through %s to %s", w.proxy, w.host)
}
