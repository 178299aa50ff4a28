// Package soak holds what takes long: content of a gibibyte, and many clients at once, most of them ill-behaved.
package soak

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"muxproxy/e2e/testbed"
)

const (
	injectedHost = "injected.example.com"
	tunnelHost   = "tunnel.example.org"
	passiveHost  = "sentry.io"

	gibibyte  = 1 << 30
	mayGrow   = 32 << 20 // bytes of RSS
	rules     = "[[rule]]\nservice = \"injected\"\nhosts = [\"" + injectedHost + "\"]\nheader = \"PRIVATE-TOKEN\"\nformat = \"{}\"\nfile = \"injected\"\n"
	bulkLimit = 4 * time.Minute
)

func startDaemon(t *testing.T, ca *testbed.CA) *testbed.Daemon {
	t.Helper()
	return testbed.Start(t, testbed.Options{
		Hosts: []string{injectedHost, tunnelHost, passiveHost}, Roots: ca.PEM, Secrets: map[string]string{"injected": "glpat-canary-soak"}, Config: rules,
	})
}

// pattern is n bytes that differ from one another at every distance that matters; it costs next to nothing to make.
type pattern struct{ at, n int64 }

// period is a prime, so that no buffer size fits it.
const period = 65521

var block = func() []byte {
	b := make([]byte, 2*period)
	for i := range period {
		b[i] = byte(i*i>>3 ^ i)
	}
	copy(b[period:], b[:period])
	return b
}()

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	n := copy(b[:min(int64(len(b)), p.n-p.at)], block[p.at%period:])
	p.at += int64(n)
	return n, nil
}

// sum is what came of some content.
type sum struct {
	Bytes  int64
	SHA256 string
}

func digest(r io.Reader) (sum, error) {
	h := sha256.New()
	n, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return sum{n, hex.EncodeToString(h.Sum(nil))}, err
}

// bulk sends and takes large content.
func bulk(w http.ResponseWriter, r *http.Request) {
	if r.Method == "GET" {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(gibibyte))
		}
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, &pattern{n: gibibyte}, make([]byte, 64<<10))
		return
	}
	s, err := digest(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	_ = json.NewEncoder(w).Encode(s)
}

func TestAGibibyteGoesBothWaysInConstantMemory(t *testing.T) {
	want, _ := digest(&pattern{n: gibibyte})
	ca := testbed.NewCA(t)
	testbed.Serve(t, ca, "443", http.HandlerFunc(bulk))
	d := startDaemon(t, ca)
	for _, host := range []string{injectedHost, tunnelHost} {
		for version := 1; version <= 2; version++ {
			for _, path := range []string{"/length", "/chunks"} {
				if path == "/chunks" && version == 2 || host == tunnelHost && (version == 2 || path == "/chunks") {
					continue // HTTP/2 has no chunks, and a tunnel sees neither
				}
				t.Run(fmt.Sprintf("download %s%s HTTP/%d", host, path, version), func(t *testing.T) {
					inConstantMemory(t, d, want, func(ctx context.Context) (sum, error) {
						return download(ctx, d.Client(t, version), "https://"+host+path)
					})
				})
				t.Run(fmt.Sprintf("upload %s%s HTTP/%d", host, path, version), func(t *testing.T) {
					inConstantMemory(t, d, want, func(ctx context.Context) (sum, error) {
						return upload(ctx, d.Client(t, version), "https://"+host+path, path == "/length")
					})
				})
			}
		}
	}
}

// inConstantMemory has transfer run and looks at what the daemon's RSS was at most.
func inConstantMemory(t *testing.T, d *testbed.Daemon, want sum, transfer func(context.Context) (sum, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bulkLimit)
	defer cancel()
	d.ResetPeak(t)
	before, started := d.Usage(t), time.Now()
	got, err := transfer(ctx)
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	grown := d.Usage(t).Peak - before.RSS
	if grown > mayGrow {
		t.Errorf("RSS grew by %d KiB", grown>>10)
	}
	t.Logf("%.0f MiB/s, RSS %d KiB, at most %d KiB more", gibibyte/1048576/time.Since(started).Seconds(), before.RSS>>10, grown>>10)
}

func download(ctx context.Context, c *http.Client, url string) (sum, error) {
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		return sum{}, err
	}
	res, err := c.Do(r)
	if err != nil {
		return sum{}, err
	}
	defer res.Body.Close()
	return digest(res.Body)
}

func upload(ctx context.Context, c *http.Client, url string, length bool) (s sum, err error) {
	r, err := http.NewRequestWithContext(ctx, "PUT", url, io.NopCloser(&pattern{n: gibibyte}))
	if err != nil {
		return sum{}, err
	}
	if length {
		r.ContentLength = gibibyte
	}
	res, err := c.Do(r)
	if err != nil {
		return sum{}, err
	}
	defer res.Body.Close()
	err = json.NewDecoder(res.Body).Decode(&s)
	return s, err
}
