package talos

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// testEndpoints: one endpoint of a context is enough, and if there is none the client learns what each said.
func testEndpoints(t *testing.T, w *world) {
	t.Run("the first is dead, the second rejects our certificate, the third answers", func(t *testing.T) {
		for _, v := range versions {
			for _, by := range []way{gateway, container} {
				if got := w.run(t, by, v.variable, `talosctl --context lab version`); got.code != 0 {
					t.Errorf("%s by %s: %+v", v.name, by, got)
				}
			}
		}
		for _, call := range w.lab.Calls("") {
			if !strings.HasPrefix(call.Endpoint, labGood) {
				t.Errorf("a call arrived at %s", call.Endpoint)
			}
		}
	})
	t.Run("the good one is remembered", func(t *testing.T) {
		if err := askVersion(in(t, "lab"), w.dialGateway(t)); err != nil {
			t.Fatal(err)
		}
		before := w.lab.Handshakes()
		for range 5 {
			if err := askVersion(in(t, "lab"), w.dialGateway(t)); err != nil {
				t.Fatal(err)
			}
		}
		// A connection is opened ahead of need at most once more.
		if n := w.lab.Handshakes() - before; n > 6 {
			t.Errorf("%d handshakes for 5 connections", n)
		}
	})
	t.Run("one that is silent costs little", func(t *testing.T) {
		start := time.Now()
		if err := askVersion(in(t, "slow"), w.dialGateway(t)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the first RPC took %s", took)
		}
	})
	t.Run("all are dead", func(t *testing.T) {
		for _, v := range versions {
			for _, by := range []way{gateway, container} {
				got := w.run(t, by, v.variable, `talosctl --context dead version --short`)
				for _, word := range []string{"code = Unavailable", "muxproxy: ", `"dead"`, labDead, "connection refused", labRejects} {
					if !strings.Contains(got.stderr, word) {
						t.Errorf("%s by %s: no %q in %q", v.name, by, word, got.stderr)
					}
				}
			}
		}
		if err := askVersion(in(t, "dead"), w.dialGateway(t)); status.Code(err) != codes.Unavailable {
			t.Errorf("%v", err)
		}
		if l := w.line(t, func(l line) bool { return l.Context == "dead" }); l.grpc() != codeUnavailable || l.Decision != "failed" {
			t.Errorf("%+v", l)
		}
	})
	t.Run("one that comes back is used", func(t *testing.T) {
		conn := w.dialGateway(t)
		if err := askVersion(in(t, "restarts"), conn); err != nil {
			t.Fatal(err)
		}
		w.restarts.Stop()
		if err := askVersion(in(t, "restarts"), w.dialGateway(t)); status.Code(err) != codes.Unavailable {
			t.Errorf("while it is down: %v", err)
		}
		if err := w.restarts.Start(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*grpc.ClientConn{w.dialGateway(t), conn} {
			if err := askVersion(in(t, "restarts"), c, grpc.WaitForReady(true)); err != nil {
				t.Errorf("after it has come back: %v", err)
			}
		}
	})
	t.Run("GOAWAY every two seconds is not seen", w.testAging)
}

// testAging: an endpoint ends each connection after two seconds. RPCs of all kinds go on for ten, as they do directly.
func (w *world) testAging(t *testing.T) {
	conn := w.dialGateway(t)
	large := strings.Repeat("x", 100<<10)
	deadline := time.Now().Add(10 * time.Second)
	before, n := w.prod.Handshakes(), 0
	for ; time.Now().Before(deadline); n++ {
		var err error
		switch n % 3 {
		case 0:
			err = askVersion(in(t, "aging"), conn)
		case 1:
			err = askVersion(in(t, "aging", "x-large", large), conn)
		default:
			err = receiveAll(in(t, "aging"), conn, 100)
		}
		if err != nil {
			t.Fatalf("RPC %d: %v", n, err)
		}
	}
	if opened := w.prod.Handshakes() - before; opened < 3 {
		t.Errorf("%d connections in 10 s: nothing is shown", opened)
	}
	t.Logf("%d RPCs", n)
}

// receiveAll receives a stream of count messages of 1 KiB.
func receiveAll(ctx context.Context, conn *grpc.ClientConn, count int) error {
	s, err := download(ctx, conn, make([]byte, 1024), count)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		m := new(wrapperspb.BytesValue)
		if err := s.RecvMsg(m); err == io.EOF && n == count {
			return nil
		} else if err != nil {
			return fmt.Errorf("message %d of %d: %w", n, count, err)
		}
	}
}
