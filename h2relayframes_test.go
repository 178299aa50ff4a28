package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

func TestRelayGivesTheWindowOfPaddingBack(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.framer.WriteDataPadded(1, false, []byte("abc"), make([]byte, 200))
	h.client.wants("WINDOW_UPDATE 1 201", "WINDOW_UPDATE 0 201")
	u.wants("DATA 1 3")
	h.client.framer.WriteDataPadded(1, true, nil, make([]byte, 9))
	h.client.wants("WINDOW_UPDATE 0 10")
	u.wants("DATA 1 end 0")
	u.headers(1, false, ":status", "200")
	u.framer.WriteDataPadded(1, false, []byte("abcd"), make([]byte, 255))
	u.wants("WINDOW_UPDATE 1 256", "WINDOW_UPDATE 0 256")
	u.framer.WriteDataPadded(1, true, []byte("e"), make([]byte, 1))
	u.wants("WINDOW_UPDATE 0 2")
	h.client.wants("HEADERS 1 :status=200", "DATA 1 4", "DATA 1 end 1")
	h.ends("/1 0 -1 3 5")
}

func TestRelayGivesTheWindowOfPaddingBackBeforeThereIsAnUpstream(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.start()
	h.client.request(1, false, "/held")
	h.client.framer.WriteDataPadded(1, false, []byte("ab"), make([]byte, 99))
	h.client.wants("WINDOW_UPDATE 1 100", "WINDOW_UPDATE 0 100")
}

func TestRelaySplitsLargeHeaderSections(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	large := strings.Repeat("~", 100<<10) // Huffman codes of 13 bits do not make it shorter
	h.client.request(3, true, "/3", "a-bin", large, "b", "c")
	u.wants(fmt.Sprintf("HEADERS 3 end :method=POST :scheme=https :path=/3 :authority=upstream content-type=application/grpc a-bin=%d b=c", len(large)))
	u.headers(3, true, ":status", "200", "grpc-status", "0", "x", large)
	h.client.wants(fmt.Sprintf("HEADERS 3 end :status=200 grpc-status=0 x=%d", len(large)))
	h.ends("/3 0 0 0 0")
}

func TestRelaySplitsLargeDataFrames(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.greeting = []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: 100 << 10}}
	u := h.up()
	h.client.content(1, true, strings.Repeat("x", 40<<10))
	u.wants("DATA 1 16384", "DATA 1 16384", "DATA 1 end 8192")
	u.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: u.encode(":status", "200"), EndHeaders: true})
	u.content(1, true, strings.Repeat("x", 16<<10))
	h.client.wants("HEADERS 1", "DATA 1 end 16384")
}

func TestRelayRefusesFramesLargerThanAnnounced(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.content(1, true, strings.Repeat("x", 16<<10+1))
	h.client.wants("GOAWAY 1 FRAME_SIZE_ERROR")
	h.ends("/1 6 -1 0 0")
	u.wants("closed")
}

func TestRelayPassesResetsOn(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.framer.WriteRSTStream(1, http2.ErrCodeCancel)
	u.wants("RST_STREAM 1 CANCEL")
	h.ends("/1 2 -1 0 0")
	// What is under way for it is swallowed, and its window given back.
	u.headers(1, false, ":status", "200")
	u.content(1, false, "12345")
	u.wants("WINDOW_UPDATE 0 5")
	h.client.request(3, false, "/3")
	u.wants("HEADERS 3")
	u.framer.WriteRSTStream(3, http2.ErrCodeEnhanceYourCalm)
	h.client.wants("RST_STREAM 3 ENHANCE_YOUR_CALM")
	h.ends("/3 4 -1 0 0")
	h.client.content(3, true, "123")
	h.client.wants("WINDOW_UPDATE 0 3")
}

func TestRelayPassesSettingsAndTheirAcknowledgementsFromEndToEnd(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.greeting = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 99999}, {ID: http2.SettingHeaderTableSize, Val: 100}, {ID: http2.SettingMaxFrameSize, Val: 1<<24 - 1}, {ID: 77, Val: 1}}
	h.start(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2097120})
	h.client.framer.WriteWindowUpdate(0, 1000)
	h.client.framer.WriteWindowUpdate(0, 11)
	h.client.request(1, false, "/1")
	u := <-h.upstreams
	u.wants("SETTINGS 2=0 6=1048576 4=2097120", "WINDOW_UPDATE 0 1011", "HEADERS 1")
	u.framer.WriteSettingsAck() // of the hello: the client has its acknowledgement
	h.client.wants("SETTINGS 4=99999 5=1048576")
	h.client.framer.WriteSettingsAck()
	u.wants("SETTINGS ack")
	h.client.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1 << 30}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	u.wants("SETTINGS 6=1048576")
	u.framer.WriteSettingsAck()
	h.client.wants("SETTINGS ack")
	u.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 5})
	h.client.wants("SETTINGS 3=5")
	h.client.framer.WriteSettingsAck()
	u.wants("SETTINGS ack")
	// Acknowledgements of nothing are dropped.
	h.client.framer.WriteSettingsAck()
	u.framer.WriteSettingsAck()
	u.framer.WriteWindowUpdate(1, 7)
	h.client.wants("WINDOW_UPDATE 1 7")
	h.client.framer.WriteWindowUpdate(1, 8)
	u.wants("WINDOW_UPDATE 1 8")
}

func TestRelayKeepsToTheTableSizeOfItsPeer(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.framer.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	u.wants("SETTINGS")
	h.client.framer.ReadMetaHeaders.SetAllowedMaxDynamicTableSize(0)
	u.framer.WriteSettingsAck()
	for range 2 {
		u.headers(1, false, ":status", "100", "new", "value")
		h.client.until("HEADERS 1 :status=100 new=value")
	}
}

func TestRelayAnswersPingsItself(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.start()
	h.client.framer.WritePing(false, [8]byte([]byte("12345678")))
	h.client.wants("PING ack 12345678")
	h.client.request(1, false, "/1")
	u := h.upstream()
	h.client.wants("SETTINGS")
	u.wants("HEADERS 1")
	u.headers(1, false, ":status", "200")
	u.framer.WritePing(false, [8]byte([]byte("abcdefgh")))
	u.wants("PING ack abcdefgh")
	h.client.wants("HEADERS 1")
	h.client.framer.WritePing(true, [8]byte{})
	h.client.content(1, true, "")
	u.wants("DATA 1 end")
}

func TestRelayPassesAnUpstreamsGoAwayOn(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, true, "/3")
	u.wants("HEADERS 3")
	u.framer.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
	h.client.wants("GOAWAY 2147483647 NO_ERROR")
	u.framer.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	h.client.wants("GOAWAY 1 NO_ERROR bye")
	h.ends("/3 4 -1 0 0")
	h.client.request(5, true, "/5")
	h.client.wants("RST_STREAM 5 REFUSED_STREAM")
	h.client.content(1, true, "x")
	u.wants("DATA 1 end 1")
	u.headers(1, true, ":status", "200", "grpc-status", "0")
	h.client.wants("HEADERS 1 end")
	h.ends("/1 0 0 1 0")
	u.conn.Close()
	h.client.wants("GOAWAY 1 NO_ERROR")
	h.client.conn.Close()
	if err := <-h.served; err != nil {
		t.Errorf("a graceful end is %v", err)
	}
	h.served <- nil
}

func TestRelayPassesAClientsGoAwayOn(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.framer.WriteGoAway(0, http2.ErrCodeNo, nil)
	u.wants("GOAWAY 0 NO_ERROR")
	u.headers(1, true, ":status", "200", "grpc-status", "0")
	h.client.wants("HEADERS 1 end")
	h.client.content(1, true, "x")
	u.wants("DATA 1 end 1")
	h.client.conn.Close()
	u.wants("closed")
	if err := <-h.served; err != nil {
		t.Errorf("a graceful end is %v", err)
	}
	h.served <- nil
}

func TestRelayHoldsARequestUntilItsFirstMessageIsWhole(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	good := grpcFramed("good message")
	h.client.request(3, false, "/held")
	h.client.request(5, true, "/5") // ids must rise: it waits behind
	for _, c := range good[:len(good)-1] {
		h.client.content(3, false, string(c))
	}
	h.client.framer.WriteWindowUpdate(3, 10)
	h.client.framer.WriteWindowUpdate(3, 20)
	h.client.framer.WritePing(false, [8]byte([]byte("12345678")))
	h.client.wants("PING ack")
	h.client.content(3, false, good[len(good)-1:])
	u.wants("HEADERS 3 :method=POST", "WINDOW_UPDATE 3 30", fmt.Sprintf("DATA 3 %d", len(good)), "HEADERS 5 end")
	h.client.content(3, true, "more")
	u.wants("DATA 3 end 4")
}

func TestRelayRefusesByTheFirstMessage(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	tests := []struct {
		name    string
		content []string
		end     bool
	}{
		{"bad", []string{grpcFramed("bad")}, true},
		{"nothing", []string{""}, true},
		{"cut off", []string{grpcFramed("good")[:8]}, true},
		{"too large", []string{"\x00\x00\x00\x40\x00good"}, false},
	}
	for i, tt := range tests {
		id := uint32(3 + 2*i)
		h.client.request(id, false, "/held")
		for j, c := range tt.content {
			h.client.content(id, tt.end && j == len(tt.content)-1, c)
		}
		h.client.until(fmt.Sprintf("HEADERS %d end :status=200 content-type=application/grpc grpc-status=7 grpc-message=not good", id))
		if !tt.end {
			h.client.wants(fmt.Sprintf("RST_STREAM %d NO_ERROR", id))
		}
		if n := len(strings.Join(tt.content, "")); n > 0 {
			h.client.wants(fmt.Sprintf("WINDOW_UPDATE 0 %d", n))
		}
		h.ends(fmt.Sprintf("/held 1 7 %d 0", len(strings.Join(tt.content, ""))))
	}
	h.client.request(99, true, "/held") // no content at all
	h.client.wants("HEADERS 99 end")
	h.client.request(101, true, "/last")
	u.wants("HEADERS 101")
}

func TestRelayKeepsTheWindowFreeOfWhatIsHeld(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, false, "/held")
	h.client.content(3, false, "\x00\x00")
	h.client.request(5, false, "/5")
	h.client.content(5, false, strings.Repeat("x", h2HeldBytes))
	// The first is judged by what there is, for the others' sake.
	h.client.until("HEADERS 3 end :status=200 content-type=application/grpc grpc-status=7")
	u.wants("HEADERS 5", fmt.Sprintf("DATA 5 %d", h2HeldBytes))
}

func TestRelayForgetsAHeldRequestThatIsReset(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, false, "/held")
	h.client.content(3, false, "\x00\x00")
	h.client.request(5, true, "/5")
	h.client.framer.WriteRSTStream(3, http2.ErrCodeCancel)
	u.wants("HEADERS 5")
	h.client.wants("WINDOW_UPDATE 0 2")
	h.ends("/held 2 -1 2 0")
}

func TestRelayRefusesWhatWaitsForAnUpstreamThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.refusal = &h2Refusal{14, "no endpoint answers: höhö"}
	h.start()
	for i := range uint32(2) {
		h.client.request(1+2*i, true, "/1")
		h.client.wants(fmt.Sprintf("HEADERS %d end :status=200 content-type=application/grpc grpc-status=14 grpc-message=no endpoint answers: h%%C3%%B6h%%C3%%B6", 1+2*i))
		h.ends("/1 1 14 0 0")
	}
	h.client.request(5, false, "/5")
	h.client.wants("HEADERS 5 end", "RST_STREAM 5 NO_ERROR")
	h.client.content(5, false, "content")
	h.client.until("WINDOW_UPDATE 0 7")
	h.ends("/5 1 14 0 0")
	if h.dials != 3 {
		t.Errorf("%d dials", h.dials)
	}
	h.refusal = nil
	h.client.request(7, true, "/7")
	h.upstream().wants("HEADERS 7 end")
}

func TestRelayTellsOfALostUpstream(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, true, "/3")
	h.client.headers(5, true, ":method", "GET", ":scheme", "https", ":path", "/5")
	h.client.request(7, false, "/held")
	h.client.request(9, true, "/9")
	u.wants("HEADERS 3", "HEADERS 5")
	u.headers(1, false, ":status", "200")
	h.client.wants("HEADERS 1 :status=200")
	for range 5 { // all are judged
		<-h.judged
	}
	u.conn.Close()
	h.client.wants(
		"HEADERS 1 end grpc-status=14 grpc-message=muxproxy: the connection to the upstream is lost", "RST_STREAM 1 NO_ERROR",
		"HEADERS 3 end :status=200 content-type=application/grpc grpc-status=14",
		"RST_STREAM 5 INTERNAL_ERROR", "RST_STREAM 7 REFUSED_STREAM", "RST_STREAM 9 REFUSED_STREAM", "GOAWAY 9 NO_ERROR")
	h.ends("/1 5 14 0 0", "/3 5 14 0 0", "/5 5 -1 0 0", "/held 5 -1 0 0", "/9 5 -1 0 0")
	h.client.conn.Close()
	if err := <-h.served; err == nil {
		t.Error("no error for a lost upstream")
	}
	h.served <- nil
}

func TestRelayTellsOfALostClient(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, false, "/held")
	<-h.judged
	<-h.judged
	h.client.conn.Close()
	u.wants("closed")
	h.ends("/1 3 -1 0 0", "/held 3 -1 0 0")
}

func TestRelayAnswersWhileTheUpstreamIsLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newH2Test(t)
		h.pipe = bufferedPipe
		opened := h.owner.open
		h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
			time.Sleep(5 * time.Second) // as a node that is busy
			return opened(ctx, s, hello)
		}
		h.start()
		h.client.request(1, false, "/1")
		h.client.content(1, false, strings.Repeat("x", 10000))
		h.client.framer.WritePing(false, [8]byte([]byte("12345678")))
		h.client.wants("PING ack")
		h.client.request(3, true, "/refused")
		h.client.wants("HEADERS 3 end")
		h.client.request(5, true, "/5")
		h.client.request(7, true, "/7")
		h.client.framer.WriteRSTStream(5, http2.ErrCodeCancel)
		h.client.framer.WriteWindowUpdate(0, 7)
		h.client.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 77})
		h.client.wants("SETTINGS ack")
		u := <-h.upstreams
		u.wants("SETTINGS 2=0 6=1048576", "SETTINGS 4=77", "WINDOW_UPDATE 0 7", "HEADERS 1", "DATA 1 10000", "HEADERS 7 end")
		u.framer.WriteSettingsAck()
		u.framer.WriteSettingsAck()
		h.client.wants("SETTINGS")
		h.client.conn.Close()
		u.until("closed")
	})
}

func TestRelayEndsADialWhoseClientHasGone(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		<-ctx.Done()
		return nil, &h2Refusal{14, ctx.Err().Error()}
	}
	h.start()
	h.client.request(1, true, "/1")
	<-h.judged
	h.client.conn.Close()
	h.ends("/1 3 -1 0 0")
}

func TestRelayRefusesHeldContentBeyondTheUpstreamsWindow(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	h.greeting = []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 10}}
	gate := make(chan bool)
	opened := h.owner.open
	h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		<-gate
		return opened(ctx, s, hello)
	}
	h.start()
	h.client.request(1, false, "/1")
	h.client.content(1, true, "more than ten")
	h.client.request(3, true, "/3")
	<-h.judged
	<-h.judged
	gate <- true
	h.client.until("RST_STREAM 1 REFUSED_STREAM")
	h.ends("/1 4 -1 13 0")
	h.upstream().wants("HEADERS 3 end")
}
