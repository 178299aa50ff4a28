package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestRelaySurvivesAFieldWithoutANameBehindAStreamThatIsOver(t *testing.T) {
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, true, "/refused")
	h.client.until("HEADERS 3 end")
	h.client.headers(3, true, "", "x")
	h.client.request(5, true, "/5")
	u.wants("HEADERS 5")
	u.headers(5, true, ":status", "200", "grpc-status", "0")
	h.client.wants("HEADERS 5 end")
}

func TestAPanicEndsOneConnectionAndAllOfItsStreams(t *testing.T) {
	tests := []struct {
		name  string
		fault func(o *h2Owner)
		ended []string
	}{
		{"while a request is judged", func(o *h2Owner) {
			judge := o.judge
			o.judge = func(s *h2Stream) h2Verdict {
				if s.id == 3 {
					panic("judge")
				}
				return judge(s)
			}
		}, []string{"/1 6 -1 0 0", "<nil> 6 -1 0 0"}},
		{"while the upstream is opened", func(o *h2Owner) {
			o.open = func(context.Context, *h2Stream, []byte) (*h2Upstream, *h2Refusal) { panic("open") }
		}, []string{"/1 6 -1 0 0"}},
		{"while a request that waited is passed on", func(o *h2Owner) {
			o.forward = func(*h2Stream) []hpack.HeaderField { panic("forward") }
		}, []string{"/1 6 -1 0 0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newH2Test(t)
			tt.fault(&h.owner)
			h.start()
			h.client.request(1, true, "/1")
			if len(tt.ended) > 1 {
				h.upstream().wants("HEADERS 1")
				h.client.request(3, true, "/3")
			}
			h.client.until("closed")
			h.ends(tt.ended...)
			err := <-h.served
			if _, ok := errors.AsType[*h2Fault](err); !ok {
				t.Errorf("it ends with %v", err)
			}
			h.served <- nil
		})
	}
}

func TestRelayEndsAConnectionWithoutAStreamAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newH2Test(t)
		h.pipe = bufferedPipe
		h.start()
		time.Sleep(h2IdleWait - time.Second) // by the clock of the synctest bubble: nobody waits
		h.client.request(1, true, "/1")
		u := h.upstream()
		h.client.wants("SETTINGS")
		u.until("HEADERS 1")
		time.Sleep(2 * h2IdleWait) // a stream may be silent for as long as it likes
		u.headers(1, true, ":status", "200", "grpc-status", "0")
		h.client.wants("HEADERS 1 end")
		time.Sleep(h2IdleWait - time.Second) // by the clock of the synctest bubble: nobody waits
		h.client.framer.WritePing(false, [8]byte{1})
		h.client.wants("PING ack")
		time.Sleep(2 * time.Second)
		h.client.wants("GOAWAY 1 NO_ERROR")
		h.client.request(3, true, "/3") // one that crosses it may be tried again
		h.client.wants("RST_STREAM 3 REFUSED_STREAM")
		time.Sleep(h2Linger)
		h.client.wants("closed")
		u.until("closed")
	})
}

// hastyConn has no patience with what it writes: synctest's clock stands still while a goroutine waits for a mutex.
type hastyConn struct{ net.Conn }

func (c hastyConn) SetWriteDeadline(time.Time) error { return c.Conn.SetWriteDeadline(time.Now()) }

func TestAnIdleClientThatDoesNotReadIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		served := make(chan error, 1)
		go func() { served <- new(h2Relay).serve(hastyConn{far}, newH2Test(t).owner) }()
		near.Read(make([]byte, 9+12)) // the early SETTINGS, and nothing more
		near.Write([]byte(http2.ClientPreface))
		http2.NewFramer(near, nil).WriteSettings()
		time.Sleep(h2IdleWait + h2Linger + time.Second)
		select {
		case <-served:
		default:
			t.Error("the connection is still there")
		}
	})
}

func TestRelayJudgesARequestWhoseFirstMessageDoesNotCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newH2Test(t)
		h.pipe = bufferedPipe
		u := h.up()
		h.client.request(3, false, "/held")
		h.client.content(3, false, grpcFramed("good, but not whole")[:10])
		h.client.request(5, true, "/5")
		time.Sleep(h2HeldWait - time.Second)
		synctest.Wait()
		if len(u.lines) > 0 {
			t.Errorf("%q came", <-u.lines)
		}
		time.Sleep(time.Second)
		h.client.wants("HEADERS 3 end :status=200 content-type=application/grpc grpc-status=7", "RST_STREAM 3 NO_ERROR")
		u.wants("HEADERS 5 end")
		h.client.request(7, false, "/held")
		h.client.content(7, false, grpcFramed("good"))
		u.wants("HEADERS 7", "DATA 7")
		time.Sleep(2 * h2HeldWait)
		synctest.Wait()
		if len(u.lines) > 0 {
			t.Errorf("%q came for one that was let through", <-u.lines)
		}
		h.client.conn.Close()
		u.until("closed")
	})
}

func TestRelayWaitsNotForEverForTheRestOfAHeaderSection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newH2Test(t)
		h.pipe = bufferedPipe
		u := h.up()
		block := h.client.encode(":method", "POST", ":scheme", "https", ":path", "/3", ":authority", "door")
		h.client.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block[:5], EndStream: true})
		time.Sleep(h2PrefaceWait - time.Second)
		h.client.framer.WriteContinuation(3, true, block[5:])
		u.wants("HEADERS 3")
		time.Sleep(time.Minute) // the deadline is over
		h.client.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: block[:5], EndStream: true})
		time.Sleep(h2PrefaceWait + time.Second)
		h.client.wants("closed")
		u.until("closed")
	})
}

func TestRelayTakesNoTimeOverPseudoFieldsThatThereAreNot(t *testing.T) {
	f := h2FieldReader{}
	for i := range 20_000 {
		f.add(hpack.HeaderField{Name: ":" + strings.Repeat("x", i%50+1) + string(rune('a'+i%26)), Value: ""})
	}
	if f.fault == "" || len(f.fields) > h2PseudoFields+1 {
		t.Errorf("%d are kept, fault %q", len(f.fields), f.fault)
	}
}

func TestARelayedConnectionThatIsIdleHoldsNoLargeHeaderSection(t *testing.T) {
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, true, "/3", "large", strings.Repeat("x", h2FieldsLimit/2))
	u.wants("HEADERS 3")
	u.headers(3, true, ":status", "200")
	h.client.wants("HEADERS 3 end")
	h.client.request(5, true, "/5") // a frame behind: what the one before did is over
	u.wants("HEADERS 5")
	u.headers(5, true, ":status", "200")
	h.client.wants("HEADERS 5 end")
	h.relay.mu.Lock()
	defer h.relay.mu.Unlock()
	for c := range h.relay.conns {
		fields := c.reader.fields.fields
		for _, f := range fields[:cap(fields)] {
			if len(f.Value) > 1000 {
				t.Errorf("a field of %d bytes is kept", len(f.Value))
			}
		}
	}
}

func TestLargeHeaderSectionsAreBoundedOverAllConnections(t *testing.T) {
	large := strings.Repeat("x", h2FieldsLimit/2)
	for _, c := range []struct {
		name  string
		held  bool
		send  func(h *h2Test)
		wants string
	}{
		{"a section", false, func(h *h2Test) { h.client.request(5, true, "/5", "large", large) }, "GOAWAY 3 ENHANCE_YOUR_CALM"},
		{"a section that is small when encoded", false, func(h *h2Test) {
			fields := []string{"a", strings.Repeat("x", 1000)}
			for range 7 {
				fields = append(fields, fields...)
			}
			h.client.request(5, true, "/5", fields...)
		}, "HEADERS 5 end :status=200 content-type=application/grpc grpc-status=8"},
		{"sections that wait", true, func(h *h2Test) {
			for id := uint32(5); id < 40; id += 2 {
				h.client.request(id, false, "/held", "some", large[:5000])
			}
		}, "HEADERS 29 end :status=200 content-type=application/grpc grpc-status=8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newH2Test(t)
			u := h.up()
			for i := range h2LargeMost {
				h.relay.large.add(testAddr(i))
			}
			small := strings.Repeat("s", h2Buffer-1000)
			h.client.request(3, true, "/3", "small", small)
			u.wants("HEADERS 3 end")
			u.headers(3, true, ":status", "200")
			h.client.wants("HEADERS 3 end")
			c.send(h)
			h.client.wants(c.wants)

			// What is registered first is done last: the connection is over by then.
			t.Cleanup(func() {
				if n := h.relay.large.all; n != h2LargeMost-1 {
					t.Errorf("%d connections are large", n)
				}
			})
			h = newH2Test(t)
			u = h.up()
			for i := range h2LargeMost - 1 {
				h.relay.large.add(testAddr(i))
			}
			c.send(h)
			if c.held {
				h.client.content(5, true, grpcFramed("good"))
			}
			u.wants("HEADERS 5")
			u.headers(5, true, ":status", "200")
			h.client.wants("HEADERS 5 end")
		})
	}
}

// testAddr is the address of a client.
func testAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 17, 1, byte(i)}) }

func TestOneClientHasOnlyAPartOfTheLargeConnections(t *testing.T) {
	var l h2LargeConns
	for l.add(testAddr(1)) {
	}
	if l.all != h2LargeOfOne || !l.add(testAddr(2)) {
		t.Errorf("%d of one, another: %t", l.all, l.byAddr[testAddr(2)] == 1)
	}
	for range h2LargeOfOne {
		l.remove(testAddr(1))
	}
	if l.all != 1 || len(l.byAddr) != 1 {
		t.Errorf("left: %d, %v", l.all, l.byAddr)
	}
}

func TestRelayPassesNoRequestOnThatWaitsWhileAnotherIsJudged(t *testing.T) {
	h := newH2Test(t)
	u := h.up()
	h.client.request(3, false, "/held")
	h.client.request(5, false, "/held")
	h.client.request(7, false, "/held")
	h.client.content(5, true, grpcFramed("good"))
	h.client.framer.WriteRSTStream(7, http2.ErrCodeCancel)
	h.client.framer.WritePing(false, [8]byte{1})
	h.client.wants("PING ack")
	if len(u.lines) > 0 {
		t.Errorf("%q came", <-u.lines)
	}
	h.client.content(3, true, grpcFramed("bad"))
	h.client.wants("HEADERS 3 end :status=200 content-type=application/grpc grpc-status=7")
	u.wants("HEADERS 5", "DATA 5 end")
}
