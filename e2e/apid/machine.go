package apid

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/api/machine"
	timeapi "github.com/siderolabs/talos/pkg/machinery/api/time"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// clockTime is what the nodes say the time is, so that two answers are alike.
var clockTime = time.Date(2026, 8, 21, 10, 0, 0, 0, time.UTC)

// Version implements machine.MachineServiceServer.
func (c *Cluster) Version(context.Context, *emptypb.Empty) (*machine.VersionResponse, error) {
	return &machine.VersionResponse{Messages: []*machine.Version{{
		Version:  &machine.VersionInfo{Tag: "v1.13.9", Sha: "cafe0123", Built: "2026", GoVersion: "go1.26", Os: "linux", Arch: "amd64"},
		Platform: &machine.PlatformInfo{Name: "metal", Mode: "metal"},
		Features: &machine.FeaturesInfo{Rbac: true},
	}}}, nil
}

// Memory implements machine.MachineServiceServer.
func (c *Cluster) Memory(context.Context, *emptypb.Empty) (*machine.MemoryResponse, error) {
	return &machine.MemoryResponse{Messages: []*machine.Memory{{
		Meminfo: &machine.MemInfo{Memtotal: 16 << 20, Memfree: 5 << 20, Memavailable: 11 << 20, Buffers: 12345, Cached: 3 << 20, Shmem: 4321},
	}}}, nil
}

// ServiceList implements machine.MachineServiceServer.
func (c *Cluster) ServiceList(context.Context, *emptypb.Empty) (*machine.ServiceListResponse, error) {
	list := &machine.ServiceList{}
	for _, id := range []string{"apid", "containerd", "etcd", "kubelet", "machined", "trustd", "udevd"} {
		at := timestamppb.New(clockTime)
		list.Services = append(list.Services, &machine.ServiceInfo{
			Id: id, State: "Running", Health: &machine.ServiceHealth{Healthy: true, LastChange: at},
			Events: &machine.ServiceEvents{Events: []*machine.ServiceEvent{{Msg: "Health check successful", State: "Running", Ts: at}}},
		})
	}
	return &machine.ServiceListResponse{Messages: []*machine.ServiceList{list}}, nil
}

// Time implements timeapi.TimeServiceServer.
func (c *Cluster) Time(context.Context, *emptypb.Empty) (*timeapi.TimeResponse, error) {
	at := timestamppb.New(clockTime)
	return &timeapi.TimeResponse{Messages: []*timeapi.Time{{Server: "time.example.com", Localtime: at, Remotetime: at}}}, nil
}

// ApplyConfiguration implements machine.MachineServiceServer.
func (c *Cluster) ApplyConfiguration(_ context.Context, r *machine.ApplyConfigurationRequest) (*machine.ApplyConfigurationResponse, error) {
	if !strings.HasPrefix(string(r.Data), "version: v1alpha1") {
		return nil, status.Error(codes.InvalidArgument, "unknown keys found during decoding")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applied = append(c.applied, r.Data)
	return &machine.ApplyConfigurationResponse{Messages: []*machine.ApplyConfiguration{{
		Mode: r.Mode, ModeDetails: "Applied configuration without a reboot",
	}}}, nil
}

// rebootTime is how long the ports are closed.
const rebootTime = 1500 * time.Millisecond

// Reboot implements machine.MachineServiceServer: all endpoints vanish for a while, and come back with another boot id.
func (c *Cluster) Reboot(context.Context, *machine.RebootRequest) (*machine.RebootResponse, error) {
	const actor = "3a3e5f5e-reboot"
	c.events.add(actor, &machine.SequenceEvent{Sequence: "reboot", Action: machine.SequenceEvent_START})
	c.events.add(actor, &machine.PhaseEvent{Phase: "drain", Action: machine.PhaseEvent_START})
	// The answer leaves before the ports are closed.
	time.AfterFunc(300*time.Millisecond, func() {
		c.Close()
		c.mu.Lock()
		c.boots++
		c.mu.Unlock()
		time.AfterFunc(rebootTime, func() {
			for _, e := range c.all() {
				_ = e.Start() // a port that was taken meanwhile shows as an endpoint that is down
			}
			c.events.add("", &machine.MachineStatusEvent{
				Stage: machine.MachineStatusEvent_RUNNING, Status: &machine.MachineStatusEvent_MachineStatus{Ready: true},
			})
		})
	})
	return &machine.RebootResponse{Messages: []*machine.Reboot{{ActorId: actor}}}, nil
}

// bootID is the text of /proc/sys/kernel/random/boot_id.
func (c *Cluster) bootID() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Appendf(nil, "00000000-0000-4000-8000-%012d\n", c.boots)
}

// GenerateClientConfiguration implements machine.MachineServiceServer: the certificate is a real one.
func (c *Cluster) GenerateClientConfiguration(_ context.Context, r *machine.GenerateClientConfigurationRequest) (*machine.GenerateClientConfigurationResponse, error) {
	lifetime := r.CrtTtl.AsDuration()
	if lifetime <= 0 {
		return nil, status.Error(codes.InvalidArgument, "crt_ttl should be positive")
	}
	id, err := c.Authority.Client(lifetime, r.Roles...)
	if err != nil {
		return nil, err
	}
	config := Talosconfig(Context{Name: "talos", Endpoints: []string{"127.0.0.1"}, CA: c.Authority.PEM, Identity: id})
	return &machine.GenerateClientConfigurationResponse{Messages: []*machine.GenerateClientConfiguration{{
		Ca: c.Authority.PEM, Crt: id.Cert, Key: id.Key, Talosconfig: config,
	}}}, nil
}
