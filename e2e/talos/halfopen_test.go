package talos

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"muxproxy/e2e/apid"
)

// halfOpenClient is the address of a client that vanishes.
const halfOpenClient = "127.78.0.71"

// noticed is the time in which a peer that is gone without a word must be noticed: 25 s of probes, and some of the machine's own.
const noticed = 40 * time.Second

// halfOpen is a node and a client that are gone without a word: what is sent to them, and by them, is lost. It is begun when
// the suite starts, and judged when the time is over.
type halfOpen struct {
	node grpc.ClientStream // of a client that is there, to the node that is not
}

// startHalfOpen opens a stream to each, sees that it stands, and cuts the two off.
func (w *world) startHalfOpen(t *testing.T) *halfOpen {
	t.Helper()
	h := &halfOpen{node: w.chat(t, "frozen")}
	w.chat(t, "lab", grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(halfOpenClient)}}
		return d.DialContext(ctx, "tcp4", address)
	}))
	// Bytes that are not acknowledged yet would be sent again for a quarter of an hour; kernels delay an ACK by 40 ms.
	<-time.After(200 * time.Millisecond)
	for _, host := range []string{frozenEndpoint, halfOpenClient} {
		for _, end := range []string{"--source", "--destination"} {
			if out, err := exec.Command("iptables", "--insert", "OUTPUT", end, host, "--jump", "DROP").CombinedOutput(); err != nil {
				t.Fatalf("iptables: %v: %s", err, out)
			}
		}
	}
	return h
}

// chat opens a stream through which one message has gone and come back.
func (w *world) chat(t *testing.T, name string, options ...grpc.DialOption) grpc.ClientStream {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "context", name)
	s, err := openStream(ctx, w.dialGateway(t, options...), apid.MatrixChat)
	if err == nil {
		err = s.SendMsg(wrapperspb.Bytes([]byte("x")))
	}
	if err == nil {
		err = s.RecvMsg(new(wrapperspb.BytesValue))
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// check expects that both have been noticed: the client is told that the node is gone, and the other client's stream is over.
func (h *halfOpen) check(t *testing.T, w *world) {
	err := h.node.RecvMsg(new(wrapperspb.BytesValue))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "muxproxy: ") {
		t.Errorf("the client of a node that is gone is told %v", err)
	}
	if l := w.line(t, func(l line) bool { return l.Context == "frozen" && !l.Open }); l.grpc() != codeUnavailable || l.Duration > noticed.Seconds()*1000 {
		t.Errorf("%+v", l)
	}
	if l := w.line(t, func(l line) bool { return strings.HasPrefix(l.Client, halfOpenClient) && !l.Open }); l.Error == "" || l.Duration > noticed.Seconds()*1000 {
		t.Errorf("%+v", l)
	}
	if err := askVersion(in(t, "frozen"), w.dialGateway(t)); status.Code(err) != codes.Unavailable {
		t.Errorf("a new call to the node that is gone: %v", err)
	}
}
