package apid

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/api/common"
	"github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// chunkSize is how much of a file one message holds (pkg/chunker/stream).
const chunkSize = 1024

type dataStream = grpc.ServerStreamingServer[common.Data]

// sendChunks sends a text as Talos does.
func sendChunks(s dataStream, text []byte) error {
	for chunk := range slices.Chunk(text, chunkSize) {
		if err := s.Send(&common.Data{Bytes: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// sendFeed sends what a feed holds from the line first on, a line a message, and what it gets later too if follow is set.
func sendFeed(s dataStream, f *Feed, first int, follow bool) error {
	for n := first; ; {
		lines, changed := f.next(n)
		for _, line := range lines {
			if err := s.Send(&common.Data{Bytes: line}); err != nil {
				return err
			}
		}
		n += len(lines)
		if !follow {
			return nil
		}
		if changed == nil {
			continue
		}
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// Dmesg implements machine.MachineServiceServer.
func (c *Cluster) Dmesg(r *machine.DmesgRequest, s dataStream) error {
	first := 0
	if r.Tail {
		lines, _ := c.Kernel.next(0)
		first = len(lines)
	}
	return sendFeed(s, c.Kernel, first, r.Follow)
}

// Logs implements machine.MachineServiceServer.
func (c *Cluster) Logs(r *machine.LogsRequest, s dataStream) error {
	if r.Id != "kubelet" {
		return status.Errorf(codes.NotFound, "log %q was not registered", r.Id)
	}
	first := 0
	if lines, _ := c.Kubelet.next(0); r.TailLines >= 0 {
		first = max(0, len(lines)-int(r.TailLines))
	}
	return sendFeed(s, c.Kubelet, first, r.Follow)
}

// Read implements machine.MachineServiceServer.
func (c *Cluster) Read(r *machine.ReadRequest, s dataStream) error {
	if r.Path == "/proc/sys/kernel/random/boot_id" {
		return sendChunks(s, c.bootID())
	}
	c.mu.Lock()
	text, ok := c.files[r.Path]
	c.mu.Unlock()
	if !ok {
		return status.Errorf(codes.Unknown, "stat %s: no such file or directory", r.Path)
	}
	return sendChunks(s, text)
}

// Copy implements machine.MachineServiceServer.
func (c *Cluster) Copy(r *machine.CopyRequest, s dataStream) error {
	c.mu.Lock()
	files := map[string][]byte{}
	for path, text := range c.files {
		if strings.HasPrefix(path, r.RootPath) {
			files[strings.TrimPrefix(path, "/")] = text
			for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
				files[strings.TrimPrefix(dir, "/")+"/"] = nil
			}
		}
	}
	c.mu.Unlock()
	archive, err := tarGz(files)
	if err != nil {
		return err
	}
	return sendChunks(s, archive)
}

// tarGz archives files; a name that ends in a slash is a directory.
func tarGz(files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644, ModTime: clockTime}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := t.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := t.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	err := z.Close()
	return b.Bytes(), err
}

// EtcdSnapshot implements machine.MachineServiceServer.
func (c *Cluster) EtcdSnapshot(_ *machine.EtcdSnapshotRequest, s dataStream) error {
	if c.Snapshot == nil {
		return status.Error(codes.Unavailable, "etcd is not running")
	}
	return sendChunks(s, c.Snapshot)
}

// EtcdRecover implements machine.MachineServiceServer.
func (c *Cluster) EtcdRecover(s grpc.ClientStreamingServer[common.Data, machine.EtcdRecoverResponse]) error {
	for {
		if _, err := s.Recv(); err == io.EOF {
			return s.SendAndClose(&machine.EtcdRecoverResponse{Messages: []*machine.EtcdRecover{{}}})
		} else if err != nil {
			return err
		}
	}
}

// Kubeconfig implements machine.MachineServiceServer: it hands out a key, which nothing but its holder should see.
func (c *Cluster) Kubeconfig(_ *emptypb.Empty, s dataStream) error {
	id, err := c.Authority.Client(time.Hour, "system:masters")
	if err != nil {
		return err
	}
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: []\ncontexts: []\nusers:\n- name: admin\n  user:\n    client-key-data: %q\n", id.Key)
	archive, err := tarGz(map[string][]byte{"kubeconfig": []byte(text)})
	if err != nil {
		return err
	}
	return sendChunks(s, archive)
}

// eventLog is the history of events, which streams follow.
type eventLog struct {
	mu      sync.Mutex
	events  []*machine.Event // guarded by mu
	changed chan struct{}    // guarded by mu: closed by the next event
}

func newEventLog() *eventLog { return &eventLog{changed: make(chan struct{})} }

// add appends an event with a payload of Talos' runtime.
func (l *eventLog) add(actor string, payload proto.Message) {
	value, err := proto.Marshal(payload)
	if err != nil {
		panic(err) // no payload of these tests can fail
	}
	url := "talos/runtime/" + string(payload.ProtoReflect().Descriptor().FullName())
	l.mu.Lock()
	defer l.mu.Unlock()
	id := fmt.Sprintf("c0ffee%014d", len(l.events))
	l.events = append(l.events, &machine.Event{Data: &anypb.Any{TypeUrl: url, Value: value}, Id: id, ActorId: actor})
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *eventLog) next(n int) ([]*machine.Event, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[n:], l.changed
}

// AddEvent publishes that a service has changed its state.
func (c *Cluster) AddEvent(service, message string) {
	c.events.add("", &machine.ServiceStateEvent{Service: service, Action: machine.ServiceStateEvent_RUNNING, Message: message})
}

// Events implements machine.MachineServiceServer. The first event is empty: it says that the stream stands.
func (c *Cluster) Events(r *machine.EventsRequest, s grpc.ServerStreamingServer[machine.Event]) error {
	if err := s.Send(&machine.Event{}); err != nil {
		return err
	}
	past, _ := c.events.next(0)
	n := len(past)
	if r.TailEvents < 0 {
		n = 0
	} else {
		n = max(0, n-int(r.TailEvents))
	}
	for {
		events, changed := c.events.next(n)
		for _, event := range events {
			if err := s.Send(proto.CloneOf(event)); err != nil {
				return err
			}
		}
		n += len(events)
		select {
		case <-changed:
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}
