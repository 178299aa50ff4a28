package apid

import (
	"context"
	"strings"

	"github.com/cosi-project/runtime/api/v1alpha1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// definition is a type of resource with its one resource.
type definition struct {
	kind, display, namespace string
	aliases                  []string
	id, yaml                 string
}

// definitions are the types that the nodes have, by their name in lower case.
var definitions = func() map[string]definition {
	all := map[string]definition{}
	for _, d := range []definition{
		{"ResourceDefinitions.meta.cosi.dev", "ResourceDefinition", "meta", []string{"rd"}, "", ""},
		{"HostnameStatuses.net.talos.dev", "HostnameStatus", "network", []string{"hostname", "hostnamestatus"}, "hostname", "hostname: talos-cp-1\ndomainname: example.com\n"},
		{"MachineConfigs.config.talos.dev", "MachineConfig", "config", []string{"mc", "machineconfig"}, "v1alpha1", "version: v1alpha1\nmachine:\n    token: " + SecretToken + "\n"},
		{"OSRootSecrets.secrets.talos.dev", "OSRootSecret", "secrets", []string{"osrootsecret"}, "os", "token: " + SecretToken + "\n"},
	} {
		all[strings.ToLower(d.kind)] = d
	}
	return all
}()

// SecretToken is in the sensitive resources, for tests to look for.
const SecretToken = "abcdef.canarycanarycana"

// state is the COSI API of a node.
type state struct {
	v1alpha1.UnimplementedStateServer
	table *table
}

// resource is what the API sends.
func resource(namespace, kind, id, yaml string, spec proto.Message) (*v1alpha1.Resource, error) {
	text, err := proto.Marshal(spec)
	at := timestamppb.New(clockTime)
	return &v1alpha1.Resource{
		Metadata: &v1alpha1.Metadata{Namespace: namespace, Type: kind, Id: id, Version: "1", Phase: "running", Created: at, Updated: at},
		Spec:     &v1alpha1.Spec{ProtoSpec: text, YamlSpec: yaml},
	}, err
}

// resources gives all resources of a type.
func resources(kind string) ([]*v1alpha1.Resource, error) {
	d := definitions[strings.ToLower(kind)]
	if d.id != "" {
		r, err := resource(d.namespace, d.kind, d.id, d.yaml, &v1alpha1.ResourceDefinitionSpec{})
		return []*v1alpha1.Resource{r}, err
	}
	var all []*v1alpha1.Resource
	for name, d := range definitions {
		r, err := resource("meta", "ResourceDefinitions.meta.cosi.dev", name, "type: "+d.kind+"\n", &v1alpha1.ResourceDefinitionSpec{
			ResourceType: d.kind, DisplayType: d.display, DefaultNamespace: d.namespace, Aliases: d.aliases, AllAliases: d.aliases,
		})
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// Get implements v1alpha1.StateServer.
func (t *state) Get(ctx context.Context, r *v1alpha1.GetRequest) (*v1alpha1.GetResponse, error) {
	if err := t.table.access(ctx, r.Type); err != nil {
		return nil, err
	}
	all, err := resources(r.Type)
	for _, found := range all {
		if found.Metadata.Id == r.Id {
			return &v1alpha1.GetResponse{Resource: found}, err
		}
	}
	return nil, status.Errorf(codes.NotFound, "resource %s(%s/%s@undefined) doesn't exist", r.Type, r.Namespace, r.Id)
}

// List implements v1alpha1.StateServer.
func (t *state) List(r *v1alpha1.ListRequest, s grpc.ServerStreamingServer[v1alpha1.ListResponse]) error {
	if err := t.table.access(s.Context(), r.Type); err != nil {
		return err
	}
	all, err := resources(r.Type)
	for _, found := range all {
		if err := s.Send(&v1alpha1.ListResponse{Resource: found}); err != nil {
			return err
		}
	}
	return err
}

// Watch implements v1alpha1.StateServer: nothing ever changes after the first look.
func (t *state) Watch(r *v1alpha1.WatchRequest, s grpc.ServerStreamingServer[v1alpha1.WatchResponse]) error {
	if err := t.table.access(s.Context(), r.Type); err != nil {
		return err
	}
	all, err := resources(r.Type)
	if err != nil {
		return err
	}
	// The first message is empty: it says that the watch stands.
	if err := s.Send(&v1alpha1.WatchResponse{}); err != nil {
		return err
	}
	for _, found := range all {
		event := &v1alpha1.Event{Resource: found, EventType: v1alpha1.EventType_CREATED}
		if err := s.Send(&v1alpha1.WatchResponse{Event: []*v1alpha1.Event{event}}); err != nil {
			return err
		}
	}
	if err := s.Send(&v1alpha1.WatchResponse{Event: []*v1alpha1.Event{{EventType: v1alpha1.EventType_BOOTSTRAPPED}}}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}
