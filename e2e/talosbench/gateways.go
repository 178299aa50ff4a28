package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"

	"github.com/siderolabs/grpc-proxy/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"muxproxy/e2e/measure"
)

// parameters are those of all roles: files of certificates and keys, and where the node is.
type parameters struct {
	Cert, Key             string // what it serves with
	Roots                 string // what the node's certificate is verified against, and, by the node, the clients'
	ClientCert, ClientKey string
	Node                  string // "127.0.0.1:4001"
	Bulk                  int    // bytes of one of the node's streams
}

func (p parameters) roots() (*x509.CertPool, error) {
	text, err := os.ReadFile(p.Roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool, nil
}

// server is the TLS configuration towards clients.
func (p parameters) server() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}}, err
}

// client is the TLS configuration towards the node.
func (p parameters) client() (*tls.Config, error) {
	roots, err := p.roots()
	if err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(p.ClientCert, p.ClientKey)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13, ServerName: "localhost"}, err
}

// serveCopy is TLS on both sides, and bytes copied between.
func serveCopy(p parameters) error {
	server, err := p.server()
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	// As muxproxy does: small records cost a system call each.
	server.DynamicRecordSizingDisabled, client.DynamicRecordSizingDisabled = true, true
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go copyBoth(conn, p.Node, client)
		}
	}()
	return measure.UntilEOF(ln.Addr().String())
}

func copyBoth(down net.Conn, node string, config *tls.Config) {
	defer down.Close()
	up, err := tls.Dial("tcp", node, config)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{up}, struct{ io.Reader }{down}, make([]byte, 64<<10))
		up.Close()
	}()
	_, _ = io.CopyBuffer(struct{ io.Writer }{down}, struct{ io.Reader }{up}, make([]byte, 64<<10))
}

// serveGRPCProxy is a gateway on grpc-go with apid's windows and limits (siderolabs/talos, internal/app/apid).
func serveGRPCProxy(p parameters) error {
	server, err := p.server()
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	const maxMessage = 32 << 20
	node, err := grpc.NewClient("dns:///"+p.Node, grpc.WithTransportCredentials(credentials.NewTLS(client)),
		grpc.WithInitialWindowSize(65535*32), grpc.WithInitialConnWindowSize(65535*16),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.ForceCodecV2(proxy.Codec())))
	if err != nil {
		return err
	}
	backend := &proxy.SingleBackend{GetConn: func(ctx context.Context) (context.Context, *grpc.ClientConn, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		return metadata.NewOutgoingContext(ctx, md.Copy()), node, nil
	}}
	director := func(context.Context, string) (proxy.Mode, []proxy.Backend, error) {
		return proxy.One2One, []proxy.Backend{backend}, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(server)), grpc.ForceServerCodecV2(proxy.Codec()), grpc.MaxRecvMsgSize(maxMessage),
		grpc.InitialWindowSize(65535*32), grpc.InitialConnWindowSize(65535*16),
		grpc.UnknownServiceHandler(proxy.TransparentHandler(director)))
	go func() { _ = s.Serve(ln) }()
	return measure.UntilEOF(ln.Addr().String())
}
