package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// What a container might try so that something goes upstream that was not judged, or so that others suffer. Each line is sent
// on a connection whose stream 1 is open both ways, and 3 has been refused.
func TestRelayEndsConnectionsThatBreakTheProtocol(t *testing.T) {
	t.Parallel()
	get := []string{":method", "POST", ":scheme", "https", ":path", "/x"}
	tests := []struct {
		name string
		send func(c *h2Peer)
		want string
	}{
		{"DATA on an idle stream", func(c *h2Peer) { c.content(9, false, "x") }, "PROTOCOL_ERROR"},
		{"empty DATA on an idle stream", func(c *h2Peer) { c.content(9, false, "") }, "PROTOCOL_ERROR"},
		{"DATA on stream 0", func(c *h2Peer) { c.content(0, false, "x") }, "PROTOCOL_ERROR"},
		{"DATA on an even stream", func(c *h2Peer) { c.content(2, false, "x") }, "PROTOCOL_ERROR"},
		{"RST_STREAM on an idle stream", func(c *h2Peer) { c.framer.WriteRSTStream(9, 0) }, "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE on an idle stream", func(c *h2Peer) { c.framer.WriteWindowUpdate(9, 1) }, "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE by 0 on an idle stream", func(c *h2Peer) { c.framer.WriteWindowUpdate(9, 0) }, "PROTOCOL_ERROR"},
		{"WINDOW_UPDATE by 0", func(c *h2Peer) { c.framer.WriteWindowUpdate(0, 0) }, "PROTOCOL_ERROR"},
		{"a request on the id of a refused one", func(c *h2Peer) { c.headers(3, true, get...) }, "PROTOCOL_ERROR"},
		{"a request on an even id", func(c *h2Peer) { c.headers(8, true, get...) }, "PROTOCOL_ERROR"},
		{"a request on stream 0", func(c *h2Peer) { c.headers(0, true, get...) }, "PROTOCOL_ERROR"},
		{"a request after a higher id", func(c *h2Peer) { c.headers(9, true, ":method", "x"); c.headers(7, true, get...) }, "PROTOCOL_ERROR"},
		{"PUSH_PROMISE", func(c *h2Peer) {
			c.framer.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: c.encode(get...), EndHeaders: true})
		}, "PROTOCOL_ERROR"},
		{"CONTINUATION by itself", func(c *h2Peer) { c.framer.WriteContinuation(1, true, c.encode(get...)) }, "PROTOCOL_ERROR"},
		{"DATA within a header section", func(c *h2Peer) {
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: c.encode(get...)})
			c.content(1, false, "x")
		}, "PROTOCOL_ERROR"},
		{"CONTINUATION of another stream", func(c *h2Peer) {
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: c.encode(get...)})
			c.framer.WriteContinuation(1, true, nil)
		}, "PROTOCOL_ERROR"},
		{"more padding than HEADERS", func(c *h2Peer) {
			c.framer.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 5, []byte{9, 0x82})
		}, "PROTOCOL_ERROR"},
		{"HEADERS without a pad length", func(c *h2Peer) {
			c.framer.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 5, nil)
		}, "FRAME_SIZE_ERROR"},
		{"more padding than DATA", func(c *h2Peer) { c.framer.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{2, 0}) }, "PROTOCOL_ERROR"},
		{"DATA without a pad length", func(c *h2Peer) { c.framer.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, nil) }, "FRAME_SIZE_ERROR"},
		{"a header section that is none", func(c *h2Peer) {
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true})
		}, "COMPRESSION_ERROR"},
		{"a header section that is cut off", func(c *h2Peer) {
			block := c.encode("name", "value")
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: block[:len(block)-1], EndHeaders: true})
		}, "COMPRESSION_ERROR"},
		{"a table larger than announced", func(c *h2Peer) {
			c.enc.SetMaxDynamicTableSizeLimit(1 << 20)
			c.enc.SetMaxDynamicTableSize(1 << 20)
			c.headers(5, true, get...)
		}, "COMPRESSION_ERROR"},
		{"an initial window beyond 2^31-1", func(c *h2Peer) {
			c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, "FLOW_CONTROL_ERROR"},
		{"a second initial window beyond 2^31-1", func(c *h2Peer) {
			c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, "FLOW_CONTROL_ERROR"},
		{"a largest frame that is too small", func(c *h2Peer) {
			c.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 100})
		}, "PROTOCOL_ERROR"},
		{"ENABLE_PUSH of 2", func(c *h2Peer) { c.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, "PROTOCOL_ERROR"},
		{"SETTINGS on a stream", func(c *h2Peer) { c.framer.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, "PROTOCOL_ERROR"},
		{"PING of 7 bytes", func(c *h2Peer) { c.framer.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, "FRAME_SIZE_ERROR"},
		{"a header section without an end", func(c *h2Peer) {
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: c.encode(get...)})
			for range h2Fragments {
				c.framer.WriteContinuation(5, false, nil)
			}
		}, "ENHANCE_YOUR_CALM"},
		{"a header section of 16 MiB", func(c *h2Peer) {
			c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: c.encode(get...)})
			part := rawField(16000)
			for range 1024 {
				c.framer.WriteContinuation(5, false, part)
			}
			c.framer.WriteContinuation(5, true, nil)
		}, "ENHANCE_YOUR_CALM"},
		{"a field of 3 MiB", func(c *h2Peer) { c.section(5, true, append(c.encode(get...), rawField(3<<20)...)) }, "COMPRESSION_ERROR"},
		{"a flood of PING", func(c *h2Peer) {
			for range 11 * h2FrameRate {
				c.framer.WritePing(false, [8]byte{})
			}
		}, "ENHANCE_YOUR_CALM"},
		{"a flood of SETTINGS", func(c *h2Peer) {
			for range 11 * h2FrameRate {
				c.framer.WriteSettings()
			}
		}, "ENHANCE_YOUR_CALM"},
		{"a flood of empty DATA", func(c *h2Peer) {
			for range 11 * h2FrameRate {
				c.content(1, false, "")
			}
		}, "ENHANCE_YOUR_CALM"},
		{"a flood of PRIORITY", func(c *h2Peer) {
			for range 11 * h2FrameRate {
				c.framer.WritePriority(1, http2.PriorityParam{Weight: 1})
			}
		}, "ENHANCE_YOUR_CALM"},
		{"a flood of WINDOW_UPDATE", func(c *h2Peer) {
			for range 11 * h2FrameRate {
				c.framer.WriteWindowUpdate(1, 1)
			}
		}, "ENHANCE_YOUR_CALM"},
		{"a flood of unknown frames", func(c *h2Peer) {
			for range 11 * h2FrameRate {
				c.framer.WriteRawFrame(0xbe, 0, 0, nil)
			}
		}, "ENHANCE_YOUR_CALM"},
		{"rapid reset", func(c *h2Peer) {
			for i := range uint32(11 * h2ResetRate) {
				c.request(5+2*i, true, "/reset")
				c.framer.WriteRSTStream(5+2*i, http2.ErrCodeCancel)
			}
		}, "ENHANCE_YOUR_CALM"},
		{"streams that are reset because they are malformed", func(c *h2Peer) {
			for i := range uint32(11 * h2ResetRate) {
				c.headers(5+2*i, true, "no", "pseudo-field")
			}
		}, "ENHANCE_YOUR_CALM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// In a bubble no time goes by, so that no flood is too slow.
			synctest.Test(t, func(t *testing.T) { breaksTheProtocol(t, tt.send, tt.want) })
		})
	}
}

func breaksTheProtocol(t *testing.T, send func(c *h2Peer), want string) {
	h := newH2Test(t)
	h.pipe = bufferedPipe
	u := h.up()
	h.client.request(3, true, "/refused")
	h.client.until("HEADERS 3 end")
	send(h.client)
	h.client.until("GOAWAY")
	for _, line := range u.until("closed") {
		if strings.Contains(line, "/x") {
			t.Errorf("the upstream got %q", line)
		}
	}
	h.client.conn.Close()
	err := <-h.served
	h.served <- nil
	if e, ok := err.(*h2ConnError); !ok || e.code.String() != want {
		t.Errorf("ended with %v, want %v", err, want)
	}
}

// rawField is an encoded field "a" with a value of n bytes, neither compressed nor kept in the table.
func rawField(n int) []byte {
	b := append([]byte{0, 1, 'a'}, 127)
	for rest := n - 127; ; rest >>= 7 {
		if rest < 128 {
			b = append(b, byte(rest))
			break
		}
		b = append(b, byte(rest)|128)
	}
	return append(b, bytes.Repeat([]byte("~"), n)...)
}

func TestRelayResetsMalformedRequestsAlone(t *testing.T) {
	t.Parallel()
	good := []string{":method", "POST", ":scheme", "https", ":path", "/x", ":authority", "door"}
	tests := []struct {
		name   string
		fields []string
	}{
		{"no :method", []string{":scheme", "https", ":path", "/x"}},
		{"no :scheme", []string{":method", "POST", ":path", "/x"}},
		{"no :path", []string{":method", "POST", ":scheme", "https"}},
		{"empty :path", []string{":method", "POST", ":scheme", "https", ":path", ""}},
		{":path that is an address", []string{":method", "POST", ":scheme", "https", ":path", "https://elsewhere/x"}},
		{"CONNECT", []string{":method", "CONNECT", ":authority", "elsewhere:1"}},
		{"extended CONNECT", []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":path", "/x"}},
		{":protocol", append([]string{":protocol", "websocket"}, good...)},
		{":status", append([]string{":status", "200"}, good...)},
		{"two :path", append([]string{":path", "/y"}, good...)},
		{"two :method", append([]string{":method", "GET"}, good...)},
		{"two :authority", append([]string{":authority", "y"}, good...)},
		{"unknown pseudo-field", append([]string{":x", "y"}, good...)},
		{"pseudo-field behind a field", append([]string{"a", "b"}, good...)},
		{"second :path behind the fields", append(good[:8:8], "a", "b", ":path", "/y")},
		{"upper-case name", append(good[:8:8], "Talos-Role", "os:admin")},
		{"name with a space", append(good[:8:8], "a b", "c")},
		{"name with a colon", append(good[:8:8], "a:b", "c")},
		{"empty name", append(good[:8:8], "", "c")},
		{"name with a NUL", append(good[:8:8], "a\x00", "c")},
		{"value with CR LF", append(good[:8:8], "a", "b\r\nc: d")},
		{"value with NUL", append(good[:8:8], "a", "b\x00")},
		{":path with LF", append(good[:4:4], ":path", "/x\n")},
		{"connection", append(good[:8:8], "connection", "close")},
		{"keep-alive", append(good[:8:8], "keep-alive", "1")},
		{"proxy-connection", append(good[:8:8], "proxy-connection", "close")},
		{"transfer-encoding", append(good[:8:8], "transfer-encoding", "chunked")},
		{"upgrade", append(good[:8:8], "upgrade", "h2c")},
		{"te", append(good[:8:8], "te", "gzip")},
		{"another host", append(good[:8:8], "host", "elsewhere")},
		{"two hosts", append(good[:6:6], "host", "a", "host", "b")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newH2Test(t)
			u := h.up()
			<-h.judged
			h.client.headers(3, false, tt.fields...)
			h.client.wants("RST_STREAM 3 PROTOCOL_ERROR")
			h.client.content(3, true, "swallowed")
			h.client.wants("WINDOW_UPDATE 0 9")
			h.client.request(5, true, "/5")
			u.wants("HEADERS 5 end")
			if got := <-h.judged; got != "/5" {
				t.Errorf("%q was judged", got)
			}
		})
	}
}

func TestRelayLetsNoSecondHeaderSectionPassUnjudged(t *testing.T) {
	t.Parallel()
	request := []string{":method", "POST", ":scheme", "https", ":path", "/x"}
	tests := []struct {
		name   string
		fields []string
		end    bool
		want   string
	}{
		{"a request", request, true, "PROTOCOL_ERROR"},
		{"a request that goes on", request, false, "PROTOCOL_ERROR"},
		{"trailers that do not end the stream", []string{"a", "b"}, false, "PROTOCOL_ERROR"},
		{"malformed trailers", []string{"A", "b"}, true, "PROTOCOL_ERROR"},
		{"trailers", []string{"talos-role", "os:admin"}, true, "PROTOCOL_ERROR"},
		{"large trailers", []string{"a", strings.Repeat("0", 600<<10), "b", strings.Repeat("0", 600<<10)}, true, "PROTOCOL_ERROR"},
	}
	for _, path := range []string{"/open", "/held"} {
		for _, tt := range tests {
			t.Run(tt.name+" on "+path, func(t *testing.T) {
				t.Parallel()
				h := newH2Test(t)
				u := h.up()
				h.client.request(3, false, path)
				h.client.headers(3, tt.end, tt.fields...)
				h.client.wants("RST_STREAM 3 " + tt.want)
				if path == "/open" {
					u.wants("HEADERS 3 :method=POST :scheme=https :path=/open", "RST_STREAM 3 CANCEL")
				}
				h.client.request(5, true, "/5")
				u.wants("HEADERS 5 end")
				h.ends(path + " 6 -1 0 0")
			})
		}
	}
}

func TestRelayPassesTrailersOnOnlyAsTheOwnerSays(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.owner.trailers = func(s *h2Stream, fields []hpack.HeaderField) ([]hpack.HeaderField, bool) {
		good := fields[0].Value != "bad"
		return append(fields[:0], hpack.HeaderField{Name: "c", Value: "d"}), good
	}
	u := h.up()
	h.client.headers(1, true, "a", "b")
	u.wants("HEADERS 1 end c=d")
	h.client.request(3, false, "/held")
	h.client.content(3, false, grpcFramed("good")[:3])
	h.client.content(3, false, grpcFramed("good")[3:])
	h.client.headers(3, true, "a", "b")
	u.wants("HEADERS 3", "DATA 3 9", "HEADERS 3 end c=d")
	h.client.request(5, false, "/5")
	h.client.headers(5, true, "a", "bad")
	u.wants("HEADERS 5", "RST_STREAM 5")
}

func TestRelayResetsAStreamThatGoesOnAfterItsEnd(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, true, "/3")
	h.client.content(3, true, "x")
	h.client.wants("RST_STREAM 3 STREAM_CLOSED", "WINDOW_UPDATE 0 1")
	u.wants("HEADERS 3 end", "RST_STREAM 3 CANCEL")
	h.client.request(5, true, "/5")
	h.client.headers(5, true, "a", "b")
	h.client.wants("RST_STREAM 5 STREAM_CLOSED")
	u.wants("HEADERS 5 end", "RST_STREAM 5 CANCEL")
	h.client.content(1, true, "x")
	u.wants("DATA 1 end")
	// Late trailers of a stream that is over are no request.
	h.client.headers(5, true, "a", "b")
	h.client.request(7, true, "/7")
	u.wants("HEADERS 7")
}

func TestRelaySwallowsWhatComesForRefusedStreams(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	var returned int
	for range 3 {
		id := uint32(3 + 2*returned/(3<<20))
		h.client.request(id, false, "/refused")
		h.client.until(fmt.Sprintf("RST_STREAM %d NO_ERROR", id))
		for range 3 << 20 / h2Piece {
			h.client.content(id, false, strings.Repeat("x", h2Piece))
			for _, line := range []string{<-h.client.lines} {
				var n int
				fmt.Sscanf(line, "WINDOW_UPDATE 0 %d", &n)
				returned += n
			}
		}
		h.client.framer.WriteWindowUpdate(id, 5)
		h.client.framer.WriteRSTStream(id, http2.ErrCodeCancel)
		h.client.content(id, true, "")
	}
	if returned != 9<<20 {
		t.Errorf("%d bytes of window came back", returned)
	}
	h.client.content(1, true, "x")
	u.wants("DATA 1 end 1")
}

func TestRelayPassesPriorityAndPaddingOfHeadersNotOn(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 3, EndHeaders: true, EndStream: true, PadLength: 200, Priority: http2.PriorityParam{StreamDep: 1, Weight: 9},
		BlockFragment: h.client.encode(":method", "POST", ":scheme", "https", ":path", "/refused"),
	})
	h.client.wants("HEADERS 3 end")
	h.client.framer.WritePriority(1, http2.PriorityParam{Weight: 1})
	h.client.framer.WriteRawFrame(0x10, 0, 0, []byte{0, 0, 0, 1, 'u', '=', '1'})
	h.client.framer.WriteRawFrame(0xbe, 0xff, 1, []byte("extension"))
	h.client.content(1, true, "x")
	u.wants("DATA 1 end")
}

func TestRelayRefusesMoreStreamsThanAnnounced(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	for i := range uint32(h2Streams) {
		h.client.request(3+2*i, true, "/x")
	}
	h.client.wants(fmt.Sprintf("RST_STREAM %d REFUSED_STREAM", 1+2*h2Streams))
	u.until(fmt.Sprintf("HEADERS %d end", 2*h2Streams-1))
}

func TestRelayRefusesHeaderSectionsThatAreTooLarge(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.section(3, true, append(h.client.encode(":method", "POST", ":scheme", "https", ":path", "/3"), bytes.Repeat(rawField(600<<10), 2)...))
	h.client.wants("HEADERS 3 end :status=200 content-type=application/grpc grpc-status=8")
	h.client.request(5, true, "/5")
	u.wants("HEADERS 5 end")
	u.section(5, true, append(u.encode(":status", "200"), bytes.Repeat(rawField(600<<10), 2)...))
	h.client.wants("RST_STREAM 5 INTERNAL_ERROR")
	u.wants("RST_STREAM 5 PROTOCOL_ERROR")
	h.ends("/5 6 -1 0 0")
}

func TestRelayBoundsTheHeaderSectionsThatWait(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		<-ctx.Done()
		return nil, nil
	}
	h.start()
	for i := range uint32(3) {
		h.client.section(1+2*i, true, append(h.client.encode(":method", "POST", ":scheme", "https", ":path", "/x"), rawField(900<<10)...))
	}
	h.client.wants("HEADERS 5 end :status=200 content-type=application/grpc grpc-status=8")
}

func TestRelayBoundsTheContentThatWaits(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		<-ctx.Done()
		return nil, nil
	}
	h.start()
	h.client.request(1, false, "/x")
	for range 5 {
		h.client.content(1, false, strings.Repeat("x", h2Piece))
	}
	h.client.wants("GOAWAY 1 FLOW_CONTROL_ERROR")
}

func TestRelayEndsConnectionsWithoutAPreface(t *testing.T) {
	t.Parallel()
	for _, sent := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", http2.ClientPreface + "\x00\x00\x00\x06\x00\x00\x00\x00\x00", http2.ClientPreface + "\x00\x00\x00\x04\x01\x00\x00\x00\x00"} {
		h := newH2Test(t)
		near, far := tcpPair(t)
		h.client = newH2Peer(t, near)
		go h.client.read()
		go func() { h.served <- h.relay.serve(far, h.owner) }()
		near.Write([]byte(sent))
		h.client.until("GOAWAY 0 PROTOCOL_ERROR")
		near.Close()
		if err := <-h.served; err == nil {
			t.Errorf("no error for %q", sent)
		}
	}
}
