package fidelity

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"muxproxy/e2e/testbed"
)

var talk = grpc.StreamDesc{StreamName: "Talk", ServerStreams: true, ClientStreams: true}

// grpcOrigin serves grpc-go on port 443. left gets nil when a call waits, and then the error with which
// its context has ended.
func grpcOrigin(t *testing.T, ca *testbed.CA) (left chan error) {
	t.Helper()
	left = make(chan error, 2)
	ln, err := net.Listen("tcp", net.JoinHostPort(testbed.Address(), "443"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{GetCertificate: ca.Leaf})))
	stream := talk
	stream.Handler = func(_ any, s grpc.ServerStream) error { return serveTalk(s, left) }
	unary := grpc.MethodDesc{MethodName: "Ask", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		return ask(ctx, in)
	}}
	server.RegisterService(&grpc.ServiceDesc{ServiceName: "lab.Lab", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{stream}, Methods: []grpc.MethodDesc{unary}}, t)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }()
	t.Cleanup(func() { server.Stop(); <-served })
	return left
}

// serveTalk echoes messages; some words mean something else.
func serveTalk(s grpc.ServerStream, left chan<- error) error {
	_ = s.SetHeader(metadata.Pairs("talk-head", "early", "talk-bin", "\x00\xff"))
	n := 0
	defer func() { s.SetTrailer(metadata.Pairs("talk-count", fmt.Sprint(n))) }()
	for {
		in := new(wrapperspb.StringValue)
		if err := s.RecvMsg(in); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		switch in.Value {
		case "abort":
			return status.Error(codes.Aborted, "told to: 100% \u00e4")
		case "wait":
			left <- nil
			<-s.Context().Done()
			left <- s.Context().Err()
			return s.Context().Err()
		}
		if err := s.SendMsg(in); err != nil {
			return err
		}
		n++
	}
}

func ask(ctx context.Context, in *wrapperspb.StringValue) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if in.Value == "who" {
		return wrapperspb.String(strings.Join(md.Get(ruleField), ",")), nil
	}
	st, err := status.New(codes.ResourceExhausted, "no more").WithDetails(wrapperspb.String("a detail"), wrapperspb.String(strings.Repeat("long ", 500)))
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

// dialGRPC gives a connection through the proxy: in the manner of grpc-go, which dials HTTPS_PROXY itself, TLS inside.
func dialGRPC(t *testing.T, d *testbed.Daemon, host string) *grpc.ClientConn {
	t.Helper()
	config := &tls.Config{RootCAs: d.Pool(t)}
	dial := func(ctx context.Context, _ string) (net.Conn, error) { return d.ConnectTLS(ctx, config, host, "h2") }
	conn, err := grpc.NewClient("passthrough:///"+host, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestGRPCCallsEndAsTheServerEndsThem(t *testing.T) {
	ca := testbed.NewCA(t)
	left := grpcOrigin(t, ca)
	d := startDaemon(t, ca)
	for _, host := range routes {
		conn := dialGRPC(t, d, host)
		t.Run(host+" bidi", func(t *testing.T) { talkBothWays(t, conn) })
		t.Run(host+" unary", func(t *testing.T) { askOnce(t, conn, host) })
		t.Run(host+" cancel", func(t *testing.T) { cancelTalk(t, conn, left) })
	}
}

func openTalk(ctx context.Context, t *testing.T, conn *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	s, err := conn.NewStream(ctx, &talk, "/lab.Lab/Talk", grpc.MaxCallRecvMsgSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func talkBothWays(t *testing.T, conn *grpc.ClientConn) {
	for _, end := range []string{"", "abort"} {
		s := openTalk(t.Context(), t, conn)
		for _, word := range []string{"one", "", mebibyteText, "four"} {
			out := new(wrapperspb.StringValue)
			if err := s.SendMsg(wrapperspb.String(word)); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(out); err != nil || out.Value != word {
				t.Fatalf("%d bytes came back as %d, %v", len(word), len(out.Value), err)
			}
		}
		head, err := s.Header()
		if err != nil || strings.Join(head.Get("talk-head"), "") != "early" || strings.Join(head.Get("talk-bin"), "") != "\x00\xff" {
			t.Errorf("header metadata %v, %v", head, err)
		}
		if end == "" {
			_ = s.CloseSend()
		} else {
			_ = s.SendMsg(wrapperspb.String(end))
		}
		err = s.RecvMsg(new(wrapperspb.StringValue))
		st := status.Convert(err)
		if end == "" && err != io.EOF || end == "abort" && (st.Code() != codes.Aborted || st.Message() != "told to: 100% \u00e4") {
			t.Errorf("the stream ended with %v", err)
		}
		if n := s.Trailer().Get("talk-count"); len(n) != 1 || n[0] != "4" {
			t.Errorf("trailer %v", s.Trailer())
		}
	}
}

var mebibyteText = strings.Repeat("0123456789abcdef", 1<<16)

func askOnce(t *testing.T, conn *grpc.ClientConn, host string) {
	out := new(wrapperspb.StringValue)
	err := conn.Invoke(t.Context(), "/lab.Lab/Ask", wrapperspb.String("who"), out)
	want := ""
	if host == injectedHost {
		want = credential
	}
	if err != nil || out.Value != want {
		t.Errorf("the server saw the credential %q, %v", out.Value, err)
	}
	st := status.Convert(conn.Invoke(t.Context(), "/lab.Lab/Ask", wrapperspb.String("fail"), out))
	if st.Code() != codes.ResourceExhausted || st.Message() != "no more" || len(st.Details()) != 2 {
		t.Errorf("status %v, details %v", st, st.Details())
	}
	if st := status.Convert(conn.Invoke(t.Context(), "/lab.Lab/None", wrapperspb.String(""), out)); st.Code() != codes.Unimplemented {
		t.Errorf("status of a method that is none: %v", st)
	}
}

func cancelTalk(t *testing.T, conn *grpc.ClientConn, left <-chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	s := openTalk(ctx, t, conn)
	if err := s.SendMsg(wrapperspb.String("first")); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(new(wrapperspb.StringValue)); err != nil {
		t.Fatal(err)
	}
	if err := s.SendMsg(wrapperspb.String("wait")); err != nil {
		t.Fatal(err)
	}
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-left:
	case <-time.After(time.Second):
		t.Error("the server's call goes on a second after the client has left")
	}
}
