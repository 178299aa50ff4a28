package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Caller makes unary gRPC calls by hand, as light as can be, so that what is between weighs.
type h2Caller struct {
	conn   net.Conn
	out    *bufio.Writer
	in     *bufio.Reader
	framer *http2.Framer
	enc    *hpack.Encoder
	block  bytes.Buffer
	next   uint32
	got    int // bytes of content since the last WINDOW_UPDATE
}

func newH2Caller(conn net.Conn) *h2Caller {
	c := &h2Caller{conn: conn, out: bufio.NewWriterSize(conn, 64<<10), in: bufio.NewReaderSize(conn, 64<<10), next: 1}
	c.framer = http2.NewFramer(c.out, c.in)
	c.framer.SetReuseFrames()
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.block)
	c.out.WriteString(http2.ClientPreface)
	c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2097120})
	c.framer.WriteWindowUpdate(0, 983025)
	c.out.Flush()
	return c
}

// call writes a request with a small message.
func (c *h2Caller) call() {
	c.block.Reset()
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", "/machine.MachineService/Version"}, {":authority", "host.docker.internal:18082"},
		{"content-type", "application/grpc"}, {"user-agent", "grpc-go/1.78.0"}, {"te", "trailers"}, {"grpc-accept-encoding", "gzip"},
		{"runtime", "Talos"}, {"nodes", "10.5.0.2"}, {"context", "prod"},
	} {
		c.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next, BlockFragment: c.block.Bytes(), EndHeaders: true})
	c.framer.WriteData(c.next, true, []byte{0, 0, 0, 0, 0})
	c.next += 2
}

// answered reads until an answer has ended, and gives how many have.
func (c *h2Caller) answered() (n int, err error) {
	c.out.Flush()
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return n, err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.framer.WriteSettingsAck()
				c.out.Flush()
			}
		case *http2.DataFrame:
			if c.got += int(f.Length); c.got > 256<<10 {
				c.framer.WriteWindowUpdate(0, uint32(c.got))
				c.got = 0
				c.out.Flush()
			}
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				n++
			}
		}
		if n > 0 && c.in.Buffered() == 0 {
			return n, nil
		}
	}
}

// roundTrips makes n calls, at most parallel at once.
func roundTrips(t testing.TB, c *h2Caller, n, parallel int) {
	t.Helper()
	sent, done := 0, 0
	for done < n {
		for sent < n && sent-done < parallel {
			c.call()
			sent++
		}
		k, err := c.answered()
		if err != nil {
			t.Fatal(err)
		}
		done += k
	}
}

// answerH2 is an upstream that answers every call with a message of size bytes, until conn ends.
func answerH2(conn net.Conn, size int) {
	defer conn.Close()
	in, out := bufio.NewReaderSize(conn, 64<<10), bufio.NewWriterSize(conn, 64<<10)
	framer := http2.NewFramer(out, in)
	framer.SetReuseFrames()
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	headers := func(id uint32, end bool, pairs ...string) {
		block.Reset()
		for i := 0; i < len(pairs); i += 2 {
			enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
	}
	framer.WriteSettings()
	out.Flush()
	io.ReadFull(in, make([]byte, len(http2.ClientPreface)))
	content, got := make([]byte, size), 0
	for {
		if in.Buffered() == 0 {
			out.Flush()
		}
		f, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				framer.WriteSettingsAck()
			}
		case *http2.DataFrame:
			if got += int(f.Length); got > 16<<10 {
				framer.WriteWindowUpdate(0, uint32(got))
				got = 0
			}
			if f.StreamEnded() {
				headers(f.StreamID, false, ":status", "200", "content-type", "application/grpc")
				framer.WriteData(f.StreamID, false, content)
				headers(f.StreamID, true, "grpc-status", "0", "grpc-message", "")
			}
		}
	}
}

// benchPaths are what BenchmarkRelay compares: the relay, a copy of bytes between the same two TLS connections, and a connection
// with neither.
var benchPaths = []struct {
	name string
	join func(client, upstream net.Conn)
}{
	{"direct", nil},
	{"copy", func(client, upstream net.Conn) {
		defer upstream.Close()
		go func() { defer client.Close(); copyBytes(client, upstream) }()
		copyBytes(upstream, client)
	}},
	{"relay", func(client, upstream net.Conn) {
		new(h2Relay).serve(client, h2Owner{
			judge: func(s *h2Stream) h2Verdict { return h2Verdict{} },
			open: func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
				up, err := greetH2(ctx, upstream, hello)
				if err != nil {
					return nil, &h2Refusal{14, err.Error()}
				}
				return up, nil
			},
			forward: func(s *h2Stream) []hpack.HeaderField { return s.fields },
			ended:   func(*h2Stream, h2End) {},
		})
	}},
}

// copyBytes copies as io.Copy does between two TLS connections.
func copyBytes(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			to.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// benchJoin gives a client's TLS connection that leads over a path to answerH2.
func benchJoin(b *testing.B, certificate *tls.Config, join func(client, upstream net.Conn), size int, wg *sync.WaitGroup) net.Conn {
	near, far := tcpPair(b)
	server := tls.Server(far, certificate)
	client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true})
	if join == nil {
		wg.Go(func() { answerH2(server, size) })
		return client
	}
	nearUp, farUp := tcpPair(b)
	wg.Go(func() { answerH2(tls.Server(farUp, certificate), size) })
	upstream := tls.Client(nearUp, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true})
	wg.Go(func() { join(server, upstream) })
	return client
}

// BenchmarkRelay compares unary calls directly, over a copy of bytes, and over the relay: CPU is the whole process's, so what the
// ends take is to be subtracted: "direct" shows it.
func BenchmarkRelay(b *testing.B) {
	_, issue := originIssuer(b)
	leaf, err := issue(&tls.ClientHelloInfo{ServerName: "door"})
	if err != nil {
		b.Fatal(err)
	}
	certificate := &tls.Config{Certificates: []tls.Certificate{*leaf}, NextProtos: []string{"h2"}, DynamicRecordSizingDisabled: true}
	for _, parallel := range []int{1, 16, 64} {
		for _, path := range benchPaths {
			b.Run(fmt.Sprintf("streams=%d/%s", parallel, path.name), func(b *testing.B) {
				var wg sync.WaitGroup
				client := benchJoin(b, certificate, path.join, 100, &wg)
				caller := newH2Caller(client)
				roundTrips(b, caller, 100, parallel)
				cpu := cpuTime()
				b.ReportAllocs()
				b.ResetTimer()
				roundTrips(b, caller, b.N, parallel)
				b.StopTimer()
				b.ReportMetric(float64((cpuTime()-cpu).Nanoseconds())/float64(b.N), "cpu-ns/op")
				client.Close()
				wg.Wait()
			})
		}
	}
}
