package apid

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The service matrix.Matrix has a method of each kind, for comparisons of what grpc-go sees directly and through a gateway.
// Metadata tells it what to do besides: each "echo-…" comes back in header and trailer, "matrix-fail: 9 text" ends the call with
// that status and details, "matrix-count: 3" has Download send so many messages, "matrix-hang" waits until the client gives up.
const (
	MatrixUnary    = "/matrix.Matrix/Unary"    // gives back the message
	MatrixDownload = "/matrix.Matrix/Download" // gives it back several times
	MatrixUpload   = "/matrix.Matrix/Upload"   // gives the number of messages and the digest of all
	MatrixChat     = "/matrix.Matrix/Chat"     // gives back each message at once
)

var matrixService = grpc.ServiceDesc{
	ServiceName: "matrix.Matrix", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: matrixUnary}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Download", Handler: matrixDownload, ServerStreams: true},
		{StreamName: "Upload", Handler: matrixUpload, ClientStreams: true},
		{StreamName: "Chat", Handler: matrixChat, ServerStreams: true, ClientStreams: true},
	},
}

// first gives the first value of a key of the call's metadata.
func first(ctx context.Context, key string) string {
	if values := metadata.ValueFromIncomingContext(ctx, key); len(values) > 0 {
		return values[0]
	}
	return ""
}

// echoed is what comes back.
func echoed(ctx context.Context) metadata.MD {
	md, _ := metadata.FromIncomingContext(ctx)
	back := metadata.MD{}
	for key, values := range md {
		if strings.HasPrefix(key, "echo-") {
			back[key] = values
		}
	}
	return back
}

// verdict is how a call ends: nil where nothing else was asked for.
func verdict(ctx context.Context) error {
	if first(ctx, "matrix-hang") != "" {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	code, text, ok := strings.Cut(first(ctx, "matrix-fail"), " ")
	if !ok {
		return nil
	}
	n, err := strconv.Atoi(code)
	if err != nil {
		return err
	}
	s, err := status.New(codes.Code(n), text).WithDetails(wrapperspb.String("details of " + text))
	if err != nil {
		return err
	}
	return s.Err()
}

func matrixUnary(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	in := new(wrapperspb.BytesValue)
	if err := decode(in); err != nil {
		return nil, err
	}
	answer := func(ctx context.Context, in any) (any, error) {
		if md := echoed(ctx); len(md) > 0 {
			if err := grpc.SetHeader(ctx, md); err != nil {
				return nil, err
			}
			if err := grpc.SetTrailer(ctx, md); err != nil {
				return nil, err
			}
		}
		return in, verdict(ctx)
	}
	return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: MatrixUnary}, answer)
}

// begin sends what comes back in the header, at once, so that a client sees it before any message; a call that is to fail without
// any message sends it with the trailers alone.
func begin(s grpc.ServerStream) error {
	md := echoed(s.Context())
	s.SetTrailer(md)
	if strings.HasPrefix(first(s.Context(), "matrix-count"), "0") {
		return nil
	}
	return s.SendHeader(md)
}

func matrixDownload(_ any, s grpc.ServerStream) error {
	in := new(wrapperspb.BytesValue)
	if err := s.RecvMsg(in); err != nil {
		return err
	}
	if err := begin(s); err != nil {
		return err
	}
	n, err := strconv.Atoi(first(s.Context(), "matrix-count"))
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	for range n {
		if err := s.SendMsg(in); err != nil {
			return err
		}
	}
	return verdict(s.Context())
}

func matrixUpload(_ any, s grpc.ServerStream) error {
	if err := begin(s); err != nil {
		return err
	}
	digest, n := sha256.New(), 0
	for in := new(wrapperspb.BytesValue); ; n++ {
		if err := s.RecvMsg(in); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		digest.Write(in.Value)
	}
	if err := verdict(s.Context()); err != nil {
		return err
	}
	return s.SendMsg(wrapperspb.Bytes(fmt.Appendf(nil, "%d %x", n, digest.Sum(nil))))
}

func matrixChat(_ any, s grpc.ServerStream) error {
	if err := begin(s); err != nil {
		return err
	}
	for in := new(wrapperspb.BytesValue); ; {
		if err := s.RecvMsg(in); err == io.EOF {
			return verdict(s.Context())
		} else if err != nil {
			return err
		}
		if err := s.SendMsg(in); err != nil {
			return err
		}
	}
}
