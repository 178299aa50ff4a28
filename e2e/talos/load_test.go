package talos

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/siderolabs/talos/pkg/machinery/api/machine"

	"muxproxy/e2e/apid"
)

// testLoad: many RPCs, many connections, and clients that behave badly.
func testLoad(t *testing.T, w *world) {
	t.Run("10,000 RPCs on one connection", func(t *testing.T) {
		conn := w.dialGateway(t)
		before := w.prod.Handshakes()
		if err := manyVersions(in(t, "prod"), 16, 625, func(ctx context.Context) error { return askVersion(ctx, conn) }); err != nil {
			t.Error(err)
		}
		if n := w.prod.Handshakes() - before; n > 2 {
			t.Errorf("%d connections to the node", n)
		}
	})
	t.Run("200 connections at once", w.testConnections)
	t.Run("a client that never reads", w.testNeverReads)
	t.Run("refused uploads take no window", w.testWindow)
}

// manyVersions runs n calls in each of several goroutines.
func manyVersions(ctx context.Context, workers, n int, call func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for range workers {
		group.Go(func() error {
			for i := range n {
				if err := call(ctx); err != nil {
					return fmt.Errorf("call %d: %w", i, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// testConnections: each connection has a stream that stays, while all ask more.
func (w *world) testConnections(t *testing.T) {
	const n = 200
	group, ctx := errgroup.WithContext(in(t, "prod"))
	var up sync.WaitGroup
	up.Add(n)
	for range n {
		conn := w.dialGateway(t)
		group.Go(func() error {
			s, err := openStream(ctx, conn, apid.MatrixChat)
			if err == nil {
				err = s.SendMsg(wrapperspb.Bytes([]byte("x")))
			}
			m := new(wrapperspb.BytesValue)
			if err == nil {
				err = s.RecvMsg(m)
			}
			up.Done()
			if err != nil {
				return err
			}
			up.Wait() // all stand now
			if err := manyVersions(ctx, 1, 10, func(ctx context.Context) error { return askVersion(ctx, conn) }); err != nil {
				return err
			}
			if err := s.SendMsg(wrapperspb.Bytes([]byte("y"))); err != nil {
				return err
			}
			if err := s.RecvMsg(m); err != nil {
				return err
			}
			if string(m.Value) != "y" {
				return fmt.Errorf("another message: %q", m.Value)
			}
			return s.CloseSend()
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// testNeverReads: clients with a window of 2 GiB ask for a gigabyte each and read nothing.
func (w *world) testNeverReads(t *testing.T) {
	const n = 10
	before := w.daemon.Usage(t).RSS
	w.daemon.ResetPeak(t)
	for range n {
		w.neverRead(t)
	}
	conn := w.dialGateway(t)
	for range 100 {
		start := time.Now()
		if err := askVersion(in(t, "prod"), conn); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("another client waited %s", took)
		}
	}
	grown := w.daemon.Usage(t).Peak - before
	if grown > n*2<<20 {
		t.Errorf("the daemon grew by %d MiB for %d clients", grown>>20, n)
	}
	t.Logf("the daemon grew by %d KiB for %d clients", grown>>10, n)
}

// neverRead opens a connection, asks, and leaves it there until the test ends.
func (w *world) neverRead(t *testing.T) {
	t.Helper()
	raw, err := net.Dial("tcp", "127.0.0.1:"+w.port)
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	conn := tls.Client(raw, &tls.Config{RootCAs: w.daemon.Pool(t), ServerName: "localhost", NextProtos: []string{"h2"}})
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = f.WriteWindowUpdate(0, 1<<31-1<<16)
	e := hpack.NewEncoder(&block)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", apid.MatrixDownload}, {":authority", "localhost:" + w.port},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"context", "prod"}, {"matrix-count", "100000"},
	} {
		_ = e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	message, err := proto.Marshal(wrapperspb.Bytes(make([]byte, 10<<10)))
	if err != nil {
		t.Fatal(err)
	}
	_ = f.WriteData(1, true, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...))
	if _, err := conn.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
}

// testWindow: 60 uploads of 3 MB are refused on one connection, whose window of 1 MiB must be whole afterwards.
func (w *world) testWindow(t *testing.T) {
	conn := w.dialGateway(t)
	upload := &machine.ApplyConfigurationRequest{Data: bytes.Repeat([]byte("#"), 3_000_000)}
	for i := range 60 {
		err := conn.Invoke(in(t, "strict"), machine.MachineService_ApplyConfiguration_FullMethodName, upload, new(machine.ApplyConfigurationResponse))
		if status.Code(err) != codes.PermissionDenied {
			t.Fatalf("upload %d: %v", i, err)
		}
	}
	// A field that the method does not know, 20 MB long, has to go up on the same connection.
	large := wrapperspb.Bytes(make([]byte, 20_000_000))
	if err := conn.Invoke(in(t, "strict"), versionMethod, large, new(machine.VersionResponse)); err != nil {
		t.Errorf("a large request afterwards: %v", err)
	}
	s, err := openStream(in(t, "strict"), conn, machine.MachineService_Dmesg_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SendMsg(new(emptypb.Empty)), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if err := s.RecvMsg(new(wrapperspb.BytesValue)); err != nil {
			t.Fatalf("a stream afterwards: %v", err)
		}
	}
}
