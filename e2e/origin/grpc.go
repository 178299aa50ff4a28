package origin

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// ChatMethod is a gRPC method with streams both ways: each message is answered at once. "fail" ends it with Aborted; the trailer
// metadata "chat-count" tells how many were answered.
const ChatMethod = "/origin.Echo/Chat"

var chatStream = grpc.StreamDesc{StreamName: "Chat", ServerStreams: true, ClientStreams: true}

// grpc serves ChatMethod on net/http's HTTP/2 server, so that it shares the listener with all else.
func (s *Server) grpc() http.Handler {
	server := grpc.NewServer()
	stream := chatStream
	stream.Handler = func(_ any, ss grpc.ServerStream) error { return chat(ss) }
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "origin.Echo", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{stream},
	}, s)
	return server
}

func chat(stream grpc.ServerStream) error {
	count := 0
	defer func() { stream.SetTrailer(metadata.Pairs("chat-count", strconv.Itoa(count))) }()
	for {
		in := new(wrapperspb.StringValue)
		if err := stream.RecvMsg(in); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if in.Value == "fail" {
			return status.Error(codes.Aborted, "told to fail")
		}
		if err := stream.SendMsg(wrapperspb.String("echo " + in.Value)); err != nil {
			return err
		}
		count++
	}
}

// Chat opens ChatMethod on a client connection.
func Chat(ctx context.Context, conn *grpc.ClientConn) (grpc.ClientStream, error) {
	return conn.NewStream(ctx, &chatStream, ChatMethod)
}
