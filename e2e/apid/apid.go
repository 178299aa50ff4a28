// Package apid is a stand-in for Talos' apid, for the suites and for the benchmark: the generated services of Talos behind the same
// TLS, roles, windows and routing of nodes as the real one has (siderolabs/talos, internal/app/apid).
package apid

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/siderolabs/talos/pkg/machinery/api/machine"
	timeapi "github.com/siderolabs/talos/pkg/machinery/api/time"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// maxMessage is Talos' GRPCMaxMessageSize.
const maxMessage = 32 << 20

// Cluster is a Talos cluster: all its endpoints show the same state. Its methods may be called at once.
type Cluster struct {
	machine.UnimplementedMachineServiceServer
	timeapi.UnimplementedTimeServiceServer

	Authority *Authority
	Admin     Identity // of role os:admin
	Nodes     []string // names by which metadata may address them
	Kernel    *Feed    // what dmesg shows
	Kubelet   *Feed    // the log of service kubelet
	Snapshot  []byte   // what EtcdSnapshot sends; nil is none

	table  *table
	events *eventLog

	mu        sync.Mutex // guards what follows
	files     map[string][]byte
	applied   [][]byte // configurations that were applied
	boots     int      // how often the nodes were booted
	calls     []Call
	quiet     bool // calls are not recorded
	endpoints []*Endpoint
	conns     int
}

// NewCluster makes a cluster without endpoints. tables is the directory that holds Talos' table of methods and of sensitive
// resource types: muxproxy's own.
func NewCluster(tables string, nodes ...string) (*Cluster, error) {
	table, err := loadTable(tables)
	if err != nil {
		return nil, err
	}
	authority, err := NewAuthority()
	if err != nil {
		return nil, err
	}
	admin, err := authority.Client(365*24*time.Hour, "os:admin")
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		Authority: authority, Admin: admin, Nodes: nodes, table: table, events: newEventLog(), Kernel: new(Feed), Kubelet: new(Feed),
		files: map[string][]byte{"/etc/os-release": []byte("NAME=\"Talos\"\nID=talos\nVERSION_ID=v1.12.0\n")},
	}
	for i := range 400 {
		c.Kernel.Add(fmt.Sprintf("kern:    info: [2026-08-21T10:00:00.%09dZ]: %s: message %d of the kernel", i, rand.Text()[:8], i))
		c.Kubelet.Add(fmt.Sprintf("{\"ts\":%d,\"msg\":\"kubelet says %d\"}", i, i))
	}
	return c, nil
}

// Forget makes the cluster keep no record of calls, which a benchmark does not want to pay for.
func (c *Cluster) Forget() { c.quiet = true }

// Put gives the nodes a file that Read and Copy see.
func (c *Cluster) Put(path string, text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files[path] = text
}

// Applied is the last configuration that was applied, and how many there were.
func (c *Cluster) Applied() ([]byte, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.applied) == 0 {
		return nil, 0
	}
	return c.applied[len(c.applied)-1], len(c.applied)
}

// EndpointOptions say how an endpoint differs from the usual.
type EndpointOptions struct {
	Hosts            []string      // further names and addresses of its certificate
	MaxConnectionAge time.Duration // a GOAWAY is sent to connections as old as that; 0: never
	Reject           bool          // it takes no client certificate at all
}

// Endpoint is one apid of a cluster: a TLS port.
type Endpoint struct {
	cluster *Cluster
	options EndpointOptions
	address string // "198.51.100.20:50000"
	tls     *tls.Config

	mu     sync.Mutex
	server *grpc.Server // guarded by mu; nil while it is down
}

// Serve opens an endpoint. Close ends it.
func (c *Cluster) Serve(address string, o EndpointOptions) (*Endpoint, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	id, err := c.Authority.Server(append([]string{host}, o.Hosts...)...)
	if err != nil {
		return nil, err
	}
	cert, err := id.TLS()
	if err != nil {
		return nil, err
	}
	e := &Endpoint{cluster: c, options: o, address: address}
	e.tls = &tls.Config{
		MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: c.Authority.Pool(), VerifyPeerCertificate: e.verify,
	}
	if err := e.Start(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoints = append(c.endpoints, e)
	return e, nil
}

// verify is verifyExtKeyUsage of internal/app/apid/service.go.
func (e *Endpoint) verify(_ [][]byte, chains [][]*x509.Certificate) error {
	e.cluster.mu.Lock()
	e.cluster.conns++
	e.cluster.mu.Unlock()
	if e.options.Reject {
		return errors.New("this endpoint takes no certificate")
	}
	for _, chain := range chains {
		if !slices.Equal(chain[0].ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
			return errors.New("certificate is missing the client auth extended key usage")
		}
	}
	return nil
}

// Start makes an endpoint listen, again if it was stopped.
func (e *Endpoint) Start() error {
	ln, err := net.Listen("tcp", e.address)
	if err != nil {
		return err
	}
	// The windows are apid's; its keep-alive enforcement is grpc-go's default.
	s := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(e.tls)), grpc.MaxRecvMsgSize(maxMessage),
		grpc.InitialWindowSize(65535*32), grpc.InitialConnWindowSize(65535*16),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: e.options.MaxConnectionAge, MaxConnectionAgeGrace: time.Minute}),
		grpc.UnaryInterceptor(e.unary), grpc.StreamInterceptor(e.stream),
	)
	machine.RegisterMachineServiceServer(s, e.cluster)
	timeapi.RegisterTimeServiceServer(s, e.cluster)
	v1alpha1.RegisterStateServer(s, &state{table: e.cluster.table})
	s.RegisterService(&matrixService, struct{}{})
	e.mu.Lock()
	e.server, e.address = s, ln.Addr().String()
	e.mu.Unlock()
	go func() { _ = s.Serve(ln) }() // ends with Stop or GracefulStop
	return nil
}

// Address is where it listens: "198.51.100.20:50000".
func (e *Endpoint) Address() string { return e.address }

// Stop closes the port and cuts all connections.
func (e *Endpoint) Stop() {
	if s := e.take(); s != nil {
		s.Stop()
	}
}

// GracefulStop closes the port, sends GOAWAY and returns when the calls under way have ended, or are cut after limit.
func (e *Endpoint) GracefulStop(limit time.Duration) {
	s := e.take()
	if s == nil {
		return
	}
	cut := time.AfterFunc(limit, s.Stop)
	defer cut.Stop()
	s.GracefulStop()
}

func (e *Endpoint) take() *grpc.Server {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.server
	e.server = nil
	return s
}

// Close stops all endpoints.
func (c *Cluster) Close() {
	for _, e := range c.all() {
		e.Stop()
	}
}

func (c *Cluster) all() []*Endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.endpoints)
}

// Handshakes is how many clients have presented a certificate.
func (c *Cluster) Handshakes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns
}

// Feed is a log that grows and that streams follow. The zero value is empty.
type Feed struct {
	mu      sync.Mutex
	lines   [][]byte      // guarded by mu
	changed chan struct{} // guarded by mu: closed by the next Add; nil if nobody waits
}

// Add appends a line.
func (f *Feed) Add(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, append([]byte(line), '\n'))
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// next gives the lines from the n-th on; if there are none yet, a channel that is closed when there are.
func (f *Feed) next(n int) ([][]byte, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < len(f.lines) {
		return f.lines[n:], nil
	}
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return nil, f.changed
}

// Text is all that is in it.
func (f *Feed) Text() []byte {
	lines, _ := f.next(0)
	return bytes.Join(lines, nil)
}
