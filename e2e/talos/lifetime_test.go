package talos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/siderolabs/talos/pkg/machinery/api/common"
	"github.com/siderolabs/talos/pkg/machinery/api/machine"
)

// quietTime is how long a stream is quiet: the fourth of a client's pings, 10 s apart, would end a connection to the real apid.
const quietTime = 45 * time.Second

// quiet is a stream that nothing goes through for a while, opened when the suite starts.
type quiet struct {
	opened time.Time
	stream grpc.ClientStream
	cancel context.CancelFunc // ends it
}

// startQuiet opens it as talosctl's trackers do: keep-alive pings every 10 s.
func (w *world) startQuiet(t *testing.T) *quiet {
	t.Helper()
	conn := w.dialGateway(t, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	ctx, cancel := context.WithCancel(t.Context())
	s, err := openStream(metadata.AppendToOutgoingContext(ctx, "context", "lab"), conn, machine.MachineService_Dmesg_FullMethodName)
	if err == nil {
		err = errors.Join(s.SendMsg(&machine.DmesgRequest{Follow: true, Tail: true}), s.CloseSend())
	}
	if err != nil {
		t.Fatal(err)
	}
	return &quiet{time.Now(), s, cancel}
}

// check waits until the stream has been quiet for long enough, and expects a line to come through it then.
func (q *quiet) check(t *testing.T, w *world) {
	time.Sleep(time.Until(q.opened.Add(quietTime))) // real talosctl and apid time their pings by the real clock
	w.lab.Kernel.Add("after the quiet")
	defer time.AfterFunc(answerLimit, q.cancel).Stop()
	m := new(common.Data)
	if err := q.stream.RecvMsg(m); err != nil || !strings.Contains(string(m.Bytes), "after the quiet") {
		t.Errorf("%v: %q", err, m.Bytes)
	}
}

// testLifetime: nodes that go, and come back.
func testLifetime(t *testing.T, w *world) {
	t.Run("graceful stop during dmesg -f", func(t *testing.T) {
		for _, v := range versions {
			t.Run(v.name, func(t *testing.T) { w.testGracefulStop(t, v.variable) })
		}
	})
	t.Run("reboot --wait", func(t *testing.T) {
		for _, v := range versions {
			for _, by := range []way{gateway, container} {
				t.Run(v.name+" by "+by.String(), func(t *testing.T) {
					got := w.run(t, by, v.variable, `talosctl reboot --wait --timeout 60s`)
					if got.code != 0 || !strings.Contains(got.stderr, "post check passed") {
						t.Errorf("%+v", got)
					}
				})
			}
		}
	})
}

// testGracefulStop: after GOAWAY the stream goes on, until the node cuts it; talosctl ends as it would directly.
func (w *world) testGracefulStop(t *testing.T, variable string) {
	ends := map[way]string{}
	for _, by := range []way{direct, gateway} {
		p := w.start(t, by, variable, "exec "+program(t, by, variable)+" --context restarts dmesg -f")
		p.expect(t, "message 399")
		stopped := make(chan struct{})
		go func() { w.restarts.GracefulStop(2 * time.Second); close(stopped) }()
		for i := range 3 {
			word := fmt.Sprintf("while it stops %d", i)
			w.prod.Kernel.Add(word)
			p.expect(t, word)
		}
		<-stopped
		p.wait(t)
		ends[by] = fmt.Sprintf("%d %s", p.cmd.ProcessState.ExitCode(), p.err.String())
		if err := w.restarts.Start(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("directly: %s\nthrough the gateway: %s", ends[direct], ends[gateway])
	if (ends[direct][0] == '0') != (ends[gateway][0] == '0') || strings.Contains(ends[direct], "Unavailable") != strings.Contains(ends[gateway], "Unavailable") {
		t.Errorf("directly: %s\nthrough the gateway: %s", ends[direct], ends[gateway])
	}
}
