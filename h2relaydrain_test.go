package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestRelayDrains(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	done := make(chan bool)
	go func() { h.relay.shutdown(context.Background()); close(done) }()
	h.client.wants("GOAWAY 1 NO_ERROR")
	h.client.request(3, true, "/3")
	h.client.wants("RST_STREAM 3 REFUSED_STREAM")
	h.client.content(1, true, "x")
	u.wants("DATA 1 end")
	u.headers(1, true, ":status", "200", "grpc-status", "0")
	h.client.wants("HEADERS 1 end")
	h.ends("/1 0 0 1 0")
	h.client.conn.Close()
	<-done
	if err := <-h.served; err != nil {
		t.Errorf("a drained connection ends with %v", err)
	}
	h.served <- nil
	near, _ := tcpPair(t)
	if err := h.relay.serve(near, h.owner); !errors.Is(err, errH2Shutdown) {
		t.Errorf("a later connection: %v", err)
	}
}

func TestRelayClosesADrainedConnectionWhoseClientStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newH2Test(t)
		h.pipe = bufferedPipe
		h.start()
		start := time.Now()
		h.relay.shutdown(t.Context())
		if d := time.Since(start); d != h2Linger {
			t.Errorf("closed after %v", d)
		}
		h.client.wants("GOAWAY 0 NO_ERROR", "closed")
	})
}

func TestRelayCuts(t *testing.T) {
	t.Parallel()
	h := newH2Test(t)
	u := h.up()
	ctx, cancel := context.WithCancel(context.Background())
	go h.relay.shutdown(ctx)
	h.client.wants("GOAWAY 1 NO_ERROR")
	cancel()
	h.client.wants("closed")
	u.wants("closed")
	h.ends("/1 7 -1 0 0")
	if err := <-h.served; !errors.Is(err, errH2Shutdown) {
		t.Errorf("a connection that was cut ends with %v", err)
	}
	h.served <- nil
}

func TestACutEndsAConnectionWhoseUpstreamDoesNotRead(t *testing.T) {
	h := newH2Test(t)
	h.owner.open = func(ctx context.Context, s *h2Stream, hello []byte) (*h2Upstream, *h2Refusal) {
		near, far := net.Pipe()
		t.Cleanup(func() { far.Close() })
		go func() {
			io.ReadFull(far, make([]byte, len(hello)))
			http2.NewFramer(far, nil).WriteSettings()
		}()
		up, err := greetH2(ctx, near, hello)
		if err != nil {
			return nil, &h2Refusal{14, err.Error()}
		}
		return up, nil
	}
	forward, sent := h.owner.forward, make(chan struct{})
	h.owner.forward = func(s *h2Stream) []hpack.HeaderField {
		close(sent)
		return forward(s)
	}
	h.start()
	h.client.request(1, false, "/1")
	<-sent
	for range 2 * h2Buffer / 1000 {
		h.client.content(1, false, strings.Repeat("x", 500))
	}
	ctx, cancel := context.WithCancel(t.Context())
	go h.relay.shutdown(ctx)
	h.client.until("GOAWAY 1 NO_ERROR")
	cancel()
	select {
	case <-h.served:
		h.served <- nil
	case <-time.After(10 * time.Second):
		t.Fatal("the connection is still there")
	}
}
