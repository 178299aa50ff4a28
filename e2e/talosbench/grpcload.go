package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/siderolabs/talos/pkg/machinery/api/machine"

	"muxproxy/e2e/apid"
)

// grpcLoad is talosctl's own stack: grpc-go with talosctl's windows. Its node is e2e/apid, which is apid's.
type grpcLoad struct{}

// dial opens a client. With lockstep ends out of the way, RPCs at once share fewer TLS records than rawLoad's do.
func (grpcLoad) dial(address string, config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("dns:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy(),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
}

// talosctl's metadata.
func outgoing() context.Context {
	return metadata.AppendToOutgoingContext(context.Background(), "runtime", "Talos", "node", "10.5.0.2", "context", "bench")
}

func ask(conn *grpc.ClientConn) error {
	answer := new(machine.VersionResponse)
	if err := conn.Invoke(outgoing(), unaryPath, new(emptypb.Empty), answer); err != nil {
		return err
	}
	if len(answer.Messages) != 1 {
		return fmt.Errorf("another answer: %v", answer)
	}
	return nil
}

func (l grpcLoad) unary(address string, config *tls.Config, width int, length time.Duration) (unary, error) {
	conn, err := l.dial(address, config)
	if err != nil {
		return unary{}, err
	}
	defer conn.Close()
	warm, err := askUntil(conn, width, time.Now().Add(length/10))
	if err != nil {
		return unary{}, err
	}
	start := time.Now()
	took, err := askUntil(conn, width, start.Add(length))
	seconds := time.Since(start).Seconds()
	if err != nil {
		return unary{}, err
	}
	return unary{float64(len(took)) / seconds, medianOf(took), len(warm) + len(took)}, nil
}

// askUntil keeps so many RPCs under way until end, and gives what each took.
func askUntil(conn *grpc.ClientConn, width int, end time.Time) ([]time.Duration, error) {
	var all []time.Duration
	var failed error
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range width {
		workers.Go(func() {
			var took []time.Duration
			var err error
			for start := time.Now(); err == nil && start.Before(end); start = time.Now() {
				err = ask(conn)
				took = append(took, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				failed = err
			}
		})
	}
	workers.Wait()
	return all, failed
}

func (l grpcLoad) stream(address string, config *tls.Config, size, bulk int) (float64, error) {
	conn, err := l.dial(address, config)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := ask(conn); err != nil {
		return 0, err
	}
	start := time.Now()
	ctx := metadata.AppendToOutgoingContext(outgoing(), "matrix-count", strconv.Itoa(bulk/size))
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, apid.MatrixDownload)
	if err != nil {
		return 0, err
	}
	if err := s.SendMsg(wrapperspb.Bytes(make([]byte, size))); err != nil {
		return 0, err
	}
	if err := s.CloseSend(); err != nil {
		return 0, err
	}
	got := 0
	for m := new(wrapperspb.BytesValue); ; {
		if err := s.RecvMsg(m); err == io.EOF && got == bulk {
			return float64(bulk) / 1e6 / time.Since(start).Seconds(), nil
		} else if err != nil {
			return 0, fmt.Errorf("after %d bytes: %w", got, err)
		}
		got += len(m.Value)
	}
}

func (l grpcLoad) connection(address string, config *tls.Config) (close func() error, err error) {
	conn, err := l.dial(address, config)
	if err != nil {
		return nil, err
	}
	return conn.Close, ask(conn)
}
