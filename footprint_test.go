package main

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
)

// footprint is what the process has in use.
type footprint struct {
	memory     int64 // bytes: heap and stacks, garbage left out
	goroutines int
}

func takeFootprint() footprint {
	runtime.GC()
	runtime.GC() // sync.Pool gives up what it holds in the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return footprint{int64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()}
}

// wideFields are field lines that cost a parser the most: as many as there may be, each with a name of its own.
func wideFields() string {
	var b strings.Builder
	for i := range headLines - 10 {
		fmt.Fprintf(&b, "x%d:%s\r\n", i, strings.Repeat("v", 110))
	}
	return b.String()
}

func TestWhatOneClientHoldsIsBounded(t *testing.T) {
	arrived, release := make(chan struct{}, 1000), make(chan struct{})
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	defer close(release)
	wide := []string{":method", "GET", ":scheme", "https", ":authority", "api.github.com", ":path", "/"}
	for line := range strings.Lines(wideFields()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		wide = append(wide, name, value[:90]) // RFC 9113 §6.5.2 counts 32 bytes more for each
	}
	var held []any
	// The numbers are for both ends and the origin, which are all in this process.
	for _, c := range []struct {
		name       string
		n          int // to hold
		per        int // of which one call of hold makes so many
		memory     int64
		goroutines float64
		hold       func() any
	}{
		{"an idle connection to the port", 8, 1, 32 << 10, 1, func() any {
			conn, err := dialProxy(p)
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}},
		{"an idle intercepted connection", 8, 1, 96 << 10, 1, func() any {
			return p.intercepted(t, "api.github.com:443", "api.github.com")
		}},
		{"a header section that does not end", 8, 1, 384 << 10, 1, func() any {
			conn := p.intercepted(t, "api.github.com:443", "api.github.com")
			io.WriteString(conn, "GET / HTTP/1.1\r\n"+wideFields())
			return conn
		}},
		{"an HTTP/1.1 request that waits for its answer", 8, 1, 640 << 10, 5, func() any {
			conn := p.intercepted(t, "api.github.com:443", "api.github.com")
			io.WriteString(conn, "GET / HTTP/1.1\r\nHost: api.github.com\r\n"+wideFields()+"\r\n")
			<-arrived
			return conn
		}},
		{"an idle HTTP/2 connection", 8, 1, 128 << 10, 4, func() any {
			return p.frames(t, "api.github.com:443")
		}},
		{"an HTTP/2 stream that waits for its answer", 20, 20, 640 << 10, 5, func() any {
			f := p.frames(t, "api.github.com:443")
			for i := range uint32(20) {
				f.headers(2*i+1, true, f.fields(wide...))
				f.out.Flush()
				<-arrived
			}
			return f
		}},
		{"an HTTP/2 connection with all the content it may hold back", 5, 1, 1 << 20, 20, func() any {
			f := p.frames(t, "api.github.com:443")
			for i := range uint32(4) {
				f.headers(2*i+1, false, f.fields(":method", "POST", ":scheme", "https", ":authority", "api.github.com", ":path", "/", "x-stream", "1"))
				for range streamWindow / maxFrame / 2 {
					f.WriteData(2*i+1, false, make([]byte, maxFrame))
				}
				f.out.Flush()
				<-arrived
			}
			return f
		}},
	} {
		before := takeFootprint()
		for range c.n / c.per {
			held = append(held, c.hold())
		}
		after := takeFootprint()
		memory, goroutines := (after.memory-before.memory)/int64(c.n), float64(after.goroutines-before.goroutines)/float64(c.n)
		t.Logf("%s: %d KiB, %.1f goroutines", c.name, memory>>10, goroutines)
		if memory > c.memory || goroutines > c.goroutines {
			t.Errorf("%s takes %d bytes, may take %d; %.1f goroutines, may take %.1f", c.name, memory, c.memory, goroutines, c.goroutines)
		}
	}
	runtime.KeepAlive(held)
}

func TestStreamsOfOneClientAreBoundedOverAllItsConnections(t *testing.T) {
	o := newWireOrigin(t)
	p := newTestProxy(t, &o.testOrigin, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary}})
	client := netip.MustParseAddr("127.0.0.1")
	ask := func(want string) {
		t.Helper()
		if got := p.frames(t, "api.github.com:443").ask(hostileFields(nil)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	for range maxClientStreams - 1 {
		p.clients.beginStream(client)
	}
	ask("200")
	p.clients.beginStream(client)
	ask("429")
	for range maxRefusedStreams {
		p.clients.beginStream(client)
	}
	ask("INTERNAL_ERROR")
	if l := p.lastLine(t); l.Error != "stream limit" || l.Decision != "denied" {
		t.Errorf("audit line %+v", l)
	}
	if n := len(o.takeWire(t)); n != 1 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

func TestOneClientTakesNoMoreThanHalfOfTheDescriptors(t *testing.T) {
	for _, c := range []struct {
		files uint64
		conns int
	}{{1 << 20, 1024}, {20000, 1024}, {4096, 341}, {64, 16}} {
		if n := clientConns(c.files); n != c.conns {
			t.Errorf("with %d files a client may have %d connections, want %d", c.files, n, c.conns)
		}
	}
}

func TestIdleUpstreamConnectionsAreBoundedOverAllHosts(t *testing.T) {
	u := newUpstream(loopbackDialer(), nil)
	const more = 10
	conns := make([]*memConn, maxIdle+more)
	for i := range conns {
		conns[i] = newMemConn(nil, 1)
		u.put(newUpstreamConn(u, upstreamKey{"http", fmt.Sprintf("%d.example", i)}, conns[i], nil))
	}
	closed := 0
	for _, conn := range conns {
		if conn.closed {
			closed++
		}
	}
	if closed != more || u.kept != maxIdle {
		t.Errorf("%d connections are kept, %d closed, of %d", u.kept, closed, len(conns))
	}
	if last := fmt.Sprintf("%d.example", len(conns)-1); u.take(upstreamKey{"http", last}) == nil || u.kept != maxIdle-1 {
		t.Error("the connection that was used last is not kept")
	}
	u.closeIdle()
	if u.kept != 0 {
		t.Errorf("%d connections are left", u.kept)
	}
}
