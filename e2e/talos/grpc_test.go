package talos

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/siderolabs/talos/pkg/machinery/api/machine"

	"muxproxy/e2e/apid"
	"muxproxy/e2e/testbed"
)

// Codes of gRPC that audit lines hold.
const (
	codeCanceled         = 1
	codePermissionDenied = 7
	codeUnavailable      = 14
)

const versionMethod = "/machine.MachineService/Version"

// dialDirect opens a client of a cluster's endpoint that presents the host's certificate.
func dialDirect(t testing.TB, c *apid.Cluster, host string, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	cert, err := c.Admin.TLS()
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{RootCAs: c.Authority.Pool(), Certificates: []tls.Certificate{cert}}
	return dialTLS(t, host+":50000", config, options...)
}

// dialGateway opens a client of the gateway, as talosctl in a container is one: with the CA and no certificate.
func (w *world) dialGateway(t testing.TB, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	return dialTLS(t, "localhost:"+w.port, &tls.Config{RootCAs: w.daemon.Pool(t)}, options...)
}

// dialTLS uses talosctl's own windows and limits (pkg/machinery/client/connection.go).
func dialTLS(t testing.TB, target string, config *tls.Config, options ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithInitialWindowSize(65535 * 32), grpc.WithInitialConnWindowSize(65535 * 16),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20), grpc.MaxCallSendMsgSize(32<<20)), grpc.WithNoProxy(),
	}, options...)
	conn, err := grpc.NewClient("dns:///"+target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// in gives a context that names a Talos context, with further metadata, and ends with the test.
func in(t testing.TB, name string, more ...string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, append([]string{"context", name}, more...)...)
}

// askVersion is the smallest RPC there is.
func askVersion(ctx context.Context, conn *grpc.ClientConn, options ...grpc.CallOption) error {
	answer := new(machine.VersionResponse)
	if err := conn.Invoke(ctx, versionMethod, new(emptypb.Empty), answer, options...); err != nil {
		return err
	}
	if len(answer.Messages) != 1 || answer.Messages[0].Version.Tag != "v1.13.9" {
		return fmt.Errorf("another answer: %v", answer)
	}
	return nil
}

// openStream opens a streaming call.
func openStream(ctx context.Context, conn *grpc.ClientConn, method string) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
}

// download opens a stream of count messages.
func download(ctx context.Context, conn *grpc.ClientConn, message []byte, count int) (grpc.ClientStream, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, "matrix-count", fmt.Sprint(count))
	s, err := openStream(ctx, conn, apid.MatrixDownload)
	if err != nil {
		return nil, err
	}
	return s, errors.Join(s.SendMsg(wrapperspb.Bytes(message)), s.CloseSend())
}

// line is one line of the audit log.
type line struct {
	ID, Plane, Client, Context, Method, Host, Decision, Error string

	Open     bool
	Injected bool `json:"auth_injected"`
	Status   *int `json:"grpc_status"`
	Nodes    []string
	In       int64   `json:"bytes_in"`
	Out      int64   `json:"bytes_out"`
	Duration float64 `json:"duration_ms"`
}

// grpc is the status, -1 where the line has none.
func (l line) grpc() int {
	if l.Status == nil {
		return -1
	}
	return *l.Status
}

// lines reads the audit log.
func (w *world) lines(t testing.TB) []line {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.daemon.Home, ".mux/audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all []line
	for row := range bytes.Lines(text) {
		var l line
		if err := json.Unmarshal(row, &l); err != nil {
			t.Errorf("audit line %q: %v", row, err)
		}
		all = append(all, l)
	}
	return all
}

// line waits for a line of the talos plane that matches, and gives the newest.
func (w *world) line(t *testing.T, match func(line) bool) line {
	t.Helper()
	var found line
	var last []line
	testbed.Eventually(t, "an audit line", answerLimit, func() error {
		all := w.lines(t)
		last = all[max(0, len(all)-3):]
		for _, l := range all {
			if l.Plane == "talos" && match(l) {
				found = l
			}
		}
		if found.ID == "" {
			return fmt.Errorf("none, the last are %+v", last)
		}
		return nil
	})
	return found
}
