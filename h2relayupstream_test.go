package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

func TestRelayResetsWhatAnUpstreamBreaks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		send func(u *h2Peer)
	}{
		{"DATA before HEADERS", func(u *h2Peer) { u.content(1, false, "x") }},
		{"no :status", func(u *h2Peer) { u.headers(1, false, "a", "b") }},
		{"a :status that is none", func(u *h2Peer) { u.headers(1, false, ":status", "2x0") }},
		{"switching protocols", func(u *h2Peer) { u.headers(1, false, ":status", "101") }},
		{"an interim answer that ends", func(u *h2Peer) { u.headers(1, true, ":status", "100") }},
		{"a request", func(u *h2Peer) { u.headers(1, false, ":status", "200", ":path", "/") }},
		{"connection-specific field", func(u *h2Peer) { u.headers(1, false, ":status", "200", "connection", "close") }},
		{"two header sections", func(u *h2Peer) { u.headers(1, false, ":status", "200"); u.headers(1, false, ":status", "200") }},
		{"pseudo-field in trailers", func(u *h2Peer) { u.headers(1, false, ":status", "200"); u.headers(1, true, ":status", "200") }},
		{"WINDOW_UPDATE by 0", func(u *h2Peer) { u.framer.WriteWindowUpdate(1, 0) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newH2Test(t)
			u := h.up()
			tt.send(u)
			u.wants("RST_STREAM 1 PROTOCOL_ERROR")
			h.client.until("RST_STREAM 1 INTERNAL_ERROR")
			h.ends("/1 6 -1 0 0")
			// Of streams that are over or never were nothing arrives.
			u.headers(1, true, ":status", "200")
			u.headers(99, true, ":status", "200")
			u.framer.WriteRSTStream(99, http2.ErrCodeCancel)
			u.framer.WriteWindowUpdate(99, 1)
			h.client.request(3, true, "/3")
			u.until("HEADERS 3")
			u.headers(3, true, ":status", "200")
			h.client.wants("HEADERS 3 end")
		})
	}
}

func TestRelayEndsUpstreamsThatBreakTheProtocol(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		send func(u *h2Peer)
	}{
		{"PUSH_PROMISE", func(u *h2Peer) {
			u.framer.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: u.encode(":status", "200"), EndHeaders: true})
		}},
		{"DATA on stream 0", func(u *h2Peer) { u.content(0, false, "x") }},
		{"a header section without an end", func(u *h2Peer) {
			u.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: u.encode(":status", "200")})
			for range h2Fragments {
				u.framer.WriteContinuation(1, false, nil)
			}
		}},
		{"a large frame", func(u *h2Peer) { u.content(1, false, strings.Repeat("x", h2Piece+1)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newH2Test(t)
			u := h.up()
			tt.send(u)
			h.client.wants("HEADERS 1 end :status=200 content-type=application/grpc grpc-status=14", "RST_STREAM 1", "GOAWAY 1 NO_ERROR")
			u.until("closed")
			h.ends("/1 5 14 0 0")
		})
	}
}

func TestRelayHoldsLittleForAClientThatNeverReads(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	near, far := tcpPair(t)
	go func() { h.served <- h.relay.serve(far, h.owner) }()
	h.client = newH2Peer(t, near)
	near.Write([]byte(http2.ClientPreface))
	h.client.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
	h.client.framer.WriteWindowUpdate(0, 1<<30)
	h.client.request(1, true, "/1")
	u := h.upstream()
	u.until("HEADERS 1")
	u.headers(1, false, ":status", "200")
	// The upstream's writes stop when the client's socket, the relay's buffer and its own socket are full.
	u.conn.SetWriteDeadline(time.Now().Add(time.Second))
	sent, piece := 0, bytes.Repeat([]byte("x"), h2Piece)
	for u.framer.WriteData(1, false, piece) == nil {
		if sent += len(piece); sent > 64<<20 {
			t.Fatal("64 MiB were taken for a client that reads nothing")
		}
	}
	near.Close()
	u.until("closed")
	<-h.served
	h.served <- nil
}
