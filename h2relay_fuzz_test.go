package main

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// fuzzPeer writes the frames that a program says: five bytes each, kind, stream, flags, and two for what is in it.
func fuzzPeer(conn net.Conn, program []byte) {
	framer := http2.NewFramer(conn, nil)
	framer.AllowIllegalWrites = true
	p := &h2Peer{framer: framer}
	p.enc = hpack.NewEncoder(&p.block)
	for ; len(program) >= 5; program = program[5:] {
		kind, stream, end, a, b := program[0]%16, uint32(program[1]%16), program[2]&1 != 0, program[3], program[4]
		var fields []string
		switch {
		case a < 128:
			fields = []string{":method", "POST", ":scheme", "https", ":path", []string{"/a", "/held", "/refused", "/b"}[a%4], "content-type", "application/grpc"}
		case a < 192:
			fields = []string{":status", []string{"200", "100", "x", "503"}[a%4], "content-type", "application/grpc"}
		default:
			fields = []string{"grpc-status", "0", []string{"x", "X", ":path", "te"}[a%4], "y"}
		}
		content := strings.Repeat(string(rune(a%128)), int(b)*int(program[2]>>4))
		switch kind {
		case 0, 1, 2:
			p.headers(stream, end, fields...)
		case 3, 4:
			p.content(stream, end, content)
		case 5:
			p.content(stream, end, grpcFramed("good")[:min(int(b), 9)])
		case 6:
			framer.WriteDataPadded(stream, end, []byte(content)[:min(len(content), 99)], make([]byte, a))
		case 7:
			framer.WriteRSTStream(stream, http2.ErrCode(a))
		case 8:
			framer.WriteSettings(http2.Setting{ID: http2.SettingID(a % 10), Val: uint32(b) << (program[2] % 25)})
		case 9:
			framer.WriteSettingsAck()
		case 10:
			framer.WritePing(end, [8]byte{a, b})
		case 11:
			framer.WriteGoAway(uint32(a), http2.ErrCode(b), nil)
		case 12:
			framer.WriteWindowUpdate(stream, uint32(a)<<(b%25))
		case 13:
			framer.WriteRawFrame(http2.FrameType(a), http2.Flags(program[2]), stream, []byte(content)[:min(len(content), 300)])
		case 14:
			framer.WriteContinuation(stream, end, p.encode(fields...))
		case 15:
			framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.encode(fields...), EndStream: end, EndHeaders: a%2 == 0, PadLength: b})
		}
	}
}

// FuzzRelay sends frames in any order from both sides: the relay must not panic, nor stay when the client has left, nor leave a
// goroutine (the bubble would never end), nor tell of the end of a stream twice or never, nor send upstream what was not judged.
func FuzzRelay(f *testing.F) {
	f.Add([]byte{0, 1, 0, 0, 0, 3, 1, 0x11, 'x', 9}, []byte{0, 1, 0, 128, 0, 0, 1, 1, 192, 0})
	f.Add([]byte{0, 1, 0, 1, 0, 5, 1, 0, 0, 9, 0, 3, 1, 0, 0, 7, 1, 0, 8, 0}, []byte{8, 0, 0, 4, 9, 11, 0, 0, 3, 0, 7, 1, 0, 1, 0})
	f.Add([]byte{0, 1, 0, 2, 0, 3, 1, 0xf1, 'x', 255, 15, 3, 0, 1, 9, 14, 3, 1, 200, 0}, []byte{13, 1, 0, 5, 9})
	f.Add([]byte{8, 0, 3, 5, 200, 0, 1, 0, 0, 0, 12, 0, 0, 1, 3, 6, 1, 0x31, 9, 9, 10, 0, 0, 1, 1, 11, 0, 0, 0, 0}, []byte{10, 0, 0, 1, 1, 6, 1, 1, 2, 2})
	f.Fuzz(func(t *testing.T, client, upstream []byte) {
		if len(client) > 1000 || len(upstream) > 1000 {
			return
		}
		synctest.Test(t, func(t *testing.T) { fuzzRelay(t, client, upstream) })
	})
}

func fuzzRelay(t *testing.T, client, upstream []byte) {
	judged, open := map[uint32]bool{}, map[uint32]bool{}
	owner := newH2Test(t).owner
	judge := owner.judge
	owner.judge = func(s *h2Stream) h2Verdict {
		open[s.id] = true
		v := judge(s)
		judged[s.id] = v.refusal == nil && !v.hold
		return v
	}
	owner.forward = func(s *h2Stream) []hpack.HeaderField {
		if !judged[s.id] {
			t.Errorf("stream %d goes upstream without a verdict", s.id)
		}
		return append(s.fields, hpack.HeaderField{Name: "forwarded-by", Value: "owner"})
	}
	ended, served := make(chan uint32, 100), make(chan struct{})
	var peers sync.WaitGroup
	owner.ended = func(s *h2Stream, e h2End) { ended <- s.id }
	owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		near, far := bufferedPipe()
		framer := http2.NewFramer(far, nil)
		peers.Go(func() {
			defer far.Close()
			io.CopyN(io.Discard, far, int64(len(http2.ClientPreface)))
			framer.WriteSettings()
			peers.Go(func() { onlyJudged(t, far) })
			fuzzPeer(far, upstream)
			if len(upstream)%2 == 0 { // else it leaves before the client
				<-served
			}
		})
		up, err := greetH2(ctx, near, hello)
		if err != nil {
			return nil, &h2Refusal{14, err.Error()}
		}
		return up, nil
	}
	near, far := bufferedPipe()
	go func() { defer close(served); new(h2Relay).serve(far, owner) }()
	peers.Go(func() { io.Copy(io.Discard, near) })
	near.Write([]byte(http2.ClientPreface))
	http2.NewFramer(near, nil).WriteSettings()
	fuzzPeer(near, client)
	synctest.Wait()
	near.Close()
	<-served
	peers.Wait()
	close(ended)
	for id := range ended {
		if !open[id] {
			t.Errorf("stream %d has ended twice, or was never judged", id)
		}
		delete(open, id)
	}
	if len(open) > 0 {
		t.Errorf("%v never ended", open)
	}
}

// onlyJudged reads what the upstream gets: every request must have been through forward.
func onlyJudged(t *testing.T, conn net.Conn) {
	framer := http2.NewFramer(nil, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.Fields[len(h.Fields)-1].Name != "forwarded-by" {
			t.Errorf("the upstream got %v", h.Fields)
		}
	}
}
