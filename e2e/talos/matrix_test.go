package talos

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"muxproxy/e2e/apid"
)

// rpc is one call of the matrix.
type rpc struct {
	name, method string
	size, count  int      // of the messages sent
	metadata     []string // pairs
	cancelAfter  int      // messages received, after which the client gives up; 0: never
	timeout      time.Duration
}

// outcome is all that a client can see of a call.
type outcome struct {
	Header, Trailer metadata.MD
	Messages        []string // digests
	Status          string   // code, message and details
}

// methods are those of each kind, with what a client must send at least.
var methods = []struct{ name, path string }{
	{"unary", apid.MatrixUnary}, {"server stream", apid.MatrixDownload}, {"client stream", apid.MatrixUpload}, {"bidi", apid.MatrixChat},
}

// rpcs is the whole matrix.
func rpcs() []rpc {
	bin := []string{"echo-x-bin", string([]byte{0, 255, 1, 128, '\n'}), "echo-x-bin", "", "echo-x", "one", "echo-x", "two, three", "echo-empty", ""}
	variants := []rpc{
		{name: "empty"},
		{name: "1 B", size: 1},
		{name: "1 MiB", size: 1 << 20},
		{name: "31 MiB", size: 31 << 20},
		{name: "binary and repeated metadata", size: 10, metadata: bin},
		{name: "100 KB of metadata both ways", size: 10, metadata: []string{"echo-large", strings.Repeat("abc ", 25<<10)}},
		{name: "an error with details", size: 10, metadata: []string{"matrix-fail", "9 not now: ünïcödé, 100 %\n"}},
		{name: "an error without any message", size: 10, metadata: append([]string{"matrix-fail", "5 nothing here", "matrix-count", "0"}, bin...)},
		{name: "an error of no known code", size: 10, metadata: []string{"matrix-fail", "77 what"}},
		{name: "a deadline", size: 10, timeout: 300 * time.Millisecond, metadata: []string{"matrix-hang", "1"}},
	}
	var all []rpc
	for _, m := range methods {
		for _, r := range variants {
			r.name, r.method, r.count = m.name+", "+r.name, m.path, 1
			if streamsUp(m.path) && r.size < 1<<20 {
				r.count = 3
			}
			if m.path == apid.MatrixDownload && !slices.Contains(r.metadata, "matrix-count") {
				r.metadata = append(slices.Clone(r.metadata), "matrix-count", map[bool]string{true: "1", false: "3"}[r.size > 1<<20])
			}
			all = append(all, r)
		}
	}
	return append(all,
		rpc{name: "server stream, cancelled", method: apid.MatrixDownload, size: 1000, count: 1, cancelAfter: 5, metadata: []string{"matrix-count", "1000000"}},
		rpc{name: "server stream, 2,000 messages", method: apid.MatrixDownload, size: 1024, count: 1, metadata: []string{"matrix-count", "2000"}},
		rpc{name: "client stream, 2,000 messages", method: apid.MatrixUpload, size: 1024, count: 2000},
		rpc{name: "bidi, 200 messages", method: apid.MatrixChat, size: 5000, count: 200},
		rpc{name: "bidi, cancelled", method: apid.MatrixChat, size: 10, count: 3, cancelAfter: 2, metadata: []string{"matrix-hang", "1"}},
		rpc{name: "no such method", method: "/matrix.Matrix/Nothing", count: 1},
		rpc{name: "no such service", method: "/nothing.Nothing/Nothing", count: 1},
	)
}

func streamsUp(method string) bool { return method == apid.MatrixUpload || method == apid.MatrixChat }

// perform makes a call and takes down what came of it.
func (r rpc) perform(ctx context.Context, conn *grpc.ClientConn) outcome {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, r.metadata...))
	defer cancel()
	if r.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, r.timeout)
		defer cancel()
	}
	message := wrapperspb.Bytes(bytes.Repeat([]byte("m"), r.size))
	if r.method == apid.MatrixUnary {
		return r.invoke(ctx, conn, message)
	}
	s, err := openStream(ctx, conn, r.method)
	if err != nil {
		return outcome{Status: fmt.Sprint("open: ", err)}
	}
	go func() { // ends with the stream
		for range r.count {
			if s.SendMsg(message) != nil {
				return
			}
		}
		_ = s.CloseSend()
	}()
	var o outcome
	for {
		m := new(wrapperspb.BytesValue)
		if err = s.RecvMsg(m); err != nil {
			break
		}
		o.Messages = append(o.Messages, fmt.Sprintf("%x", sha256.Sum256(m.Value)))
		if len(o.Messages) == r.cancelAfter {
			cancel()
			o.Messages = nil // how many more come before it takes effect is a matter of time
		}
	}
	o.Header, _ = s.Header()
	o.Trailer = s.Trailer()
	if r.cancelAfter > 0 {
		o.Messages = nil
	}
	o.Status = r.statusText(err)
	return o
}

func (r rpc) invoke(ctx context.Context, conn *grpc.ClientConn, message *wrapperspb.BytesValue) outcome {
	var o outcome
	answer := new(wrapperspb.BytesValue)
	err := conn.Invoke(ctx, r.method, message, answer, grpc.Header(&o.Header), grpc.Trailer(&o.Trailer))
	if err == nil {
		o.Messages = []string{fmt.Sprintf("%x", sha256.Sum256(answer.Value))}
	}
	o.Status = r.statusText(err)
	return o
}

// statusText is how a call ended. Whether the client's own clock or the server's ends one with a deadline is chance, and the texts
// of the two differ.
func (r rpc) statusText(err error) string {
	if err == nil || err == io.EOF {
		return "OK"
	}
	s := status.Convert(err)
	if r.timeout > 0 {
		return s.Code().String()
	}
	return fmt.Sprintf("%s %q %v", s.Code(), s.Message(), s.Details())
}

// testMatrix: grpc-go sees the same of each call directly and through the gateway.
func testMatrix(t *testing.T, w *world) {
	straight, through := dialDirect(t, w.prod, prodEndpoint), w.dialGateway(t)
	for _, r := range rpcs() {
		t.Run(r.name, func(t *testing.T) {
			want, got := r.perform(in(t, "prod"), straight), r.perform(in(t, "prod"), through)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("through the gateway:\n%.2000s\ndirectly:\n%.2000s", got, want)
			}
			if r.cancelAfter > 0 && !strings.HasPrefix(want.Status, "Canceled") {
				t.Errorf("nothing was cancelled: %s", want.Status)
			}
			for key, values := range pairs(r.metadata) {
				if strings.HasPrefix(key, "echo-") && !slices.Equal(want.Trailer[key], values) {
					t.Errorf("the node did not give %s back: %.200q", key, want.Trailer[key])
				}
			}
		})
	}
}

// pairs is metadata of keys and values in turn.
func pairs(list []string) map[string][]string {
	return maps.Clone(metadata.Pairs(list...))
}
