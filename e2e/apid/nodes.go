package apid

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/siderolabs/talos/pkg/machinery/api/common"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Call is what arrived: the oracle of what a gateway lets through.
type Call struct {
	Method   string
	Metadata metadata.MD // ":authority" included
	Endpoint string      // where
	Roles    []string    // of the client's certificate
	Serial   string      // of the client's certificate
}

// Calls are all calls so far of which the method has this ending; "" gives all.
func (c *Cluster) Calls(ending string) []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var found []Call
	for _, call := range c.calls {
		if strings.HasSuffix(call.Method, ending) {
			found = append(found, call)
		}
	}
	return found
}

// enter records a call and judges it as apid and machined do.
func (e *Endpoint) enter(ctx context.Context, method string) error {
	cert := clientCert(ctx)
	if c := e.cluster; !c.quiet {
		md, _ := metadata.FromIncomingContext(ctx)
		c.mu.Lock()
		c.calls = append(c.calls, Call{method, md.Copy(), e.address, cert.Subject.Organization, cert.SerialNumber.String()})
		c.mu.Unlock()
	}
	return e.cluster.table.authorize(method, rolesOf(ctx))
}

// route is apid's director: nodes gives those that a call goes to, whose answers bear their names; nil is the endpoint itself.
func route(ctx context.Context, method string) (nodes []string, named bool, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if len(md.Get("proxyfrom")) > 0 {
		return nil, false, nil
	}
	if nodes = md.Get("nodes"); len(nodes) > 0 {
		for _, prefix := range []string{"/machine.MachineService/", "/cluster.ClusterService/", "/inspect.InspectService/", "/storage.StorageService/", "/time.TimeService/"} {
			if strings.HasPrefix(method, prefix) {
				return nodes, true, nil
			}
		}
		return nil, false, status.Errorf(codes.InvalidArgument, "one-2-many proxying is not supported for method %s", method)
	}
	nodes = md.Get("node")
	if len(nodes) > 1 {
		return nil, false, status.Error(codes.InvalidArgument, "node metadata must be single-valued")
	}
	return nodes, false, nil
}

// unreachable is the error of a node that the cluster does not have.
func (c *Cluster) unreachable(node string) error {
	if slices.Contains(c.Nodes, node) {
		return nil
	}
	return status.Errorf(codes.Unavailable, "connection error: desc = \"transport: Error while dialing: dial tcp %s:50000: connect: no route to host\"", node)
}

// named is what a node that does not answer has to say.
func named(node string, err error) *common.Empty {
	return &common.Empty{Metadata: &common.Metadata{Hostname: node, Error: err.Error(), Status: status.Convert(err).Proto()}}
}

func (e *Endpoint) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := e.enter(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	nodes, many, err := route(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if !many {
		if len(nodes) == 1 {
			if err := e.cluster.unreachable(nodes[0]); err != nil {
				return nil, err
			}
		}
		return handle(ctx, request)
	}
	return e.everyNode(ctx, nodes, request, handle)
}

// everyNode joins the answers of all nodes: each answer of these services is a list of messages that can bear a node's name.
func (e *Endpoint) everyNode(ctx context.Context, nodes []string, request any, handle grpc.UnaryHandler) (any, error) {
	var joined proto.Message
	var errors []*common.Empty
	for _, node := range nodes {
		answer, err := any(nil), e.cluster.unreachable(node)
		if err == nil {
			answer, err = handle(ctx, request)
		}
		if err != nil {
			errors = append(errors, named(node, err))
			continue
		}
		m := answer.(proto.Message).ProtoReflect()
		list := m.Get(m.Descriptor().Fields().ByNumber(1)).List()
		for i := range list.Len() {
			bearName(list.Get(i).Message(), node)
		}
		if joined == nil {
			joined = m.Interface()
		} else {
			proto.Merge(joined, m.Interface())
		}
	}
	failed := &common.EmptyResponse{Messages: errors}
	if joined == nil {
		return failed, nil
	}
	text, err := proto.Marshal(failed)
	if err != nil {
		return nil, err
	}
	return joined, proto.UnmarshalOptions{Merge: true}.Unmarshal(text, joined)
}

// bearName sets the metadata field of a message: field 1 of all.
func bearName(m protoreflect.Message, node string) {
	md := &common.Metadata{Hostname: node}
	m.Set(m.Descriptor().Fields().ByNumber(1), protoreflect.ValueOfMessage(md.ProtoReflect()))
}

func (e *Endpoint) stream(server any, s grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx := s.Context()
	if err := e.enter(ctx, info.FullMethod); err != nil {
		return err
	}
	nodes, many, err := route(ctx, info.FullMethod)
	if err != nil {
		return err
	}
	if !many {
		if len(nodes) == 1 {
			if err := e.cluster.unreachable(nodes[0]); err != nil {
				return err
			}
		}
		return handle(server, s)
	}
	shared := &sharedStream{ServerStream: s}
	var all sync.WaitGroup
	for _, node := range nodes {
		all.Go(func() {
			err := e.cluster.unreachable(node)
			if err == nil {
				err = handle(server, &namedStream{shared, node})
			}
			if err != nil && ctx.Err() == nil {
				_ = shared.send(named(node, err))
			}
		})
	}
	all.Wait()
	return ctx.Err()
}

// sharedStream is a stream to which several nodes answer. Its request is read once.
type sharedStream struct {
	grpc.ServerStream
	mu      sync.Mutex // held while a message is sent
	once    sync.Once
	request []byte
	err     error
}

func (s *sharedStream) send(m any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ServerStream.SendMsg(m)
}

// namedStream is the stream of one node.
type namedStream struct {
	*sharedStream
	node string
}

func (s *namedStream) SendMsg(m any) error {
	bearName(m.(proto.Message).ProtoReflect(), s.node)
	return s.send(m)
}

func (s *namedStream) RecvMsg(m any) error {
	s.once.Do(func() {
		if s.err = s.ServerStream.RecvMsg(m); s.err == nil {
			s.request, s.err = proto.Marshal(m.(proto.Message))
		}
	})
	if s.err != nil {
		return s.err
	}
	return proto.Unmarshal(s.request, m.(proto.Message))
}
