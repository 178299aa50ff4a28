package testbed

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"
)

// Client gives net/http's client set to the daemon; version is 1 or 2.
func (d *Daemon) Client(t testing.TB, version int) *http.Client {
	t.Helper()
	tr := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: d.Proxy}), DisableCompression: true,
		TLSClientConfig: &tls.Config{RootCAs: d.Pool(t)}, Protocols: new(http.Protocols),
	}
	tr.Protocols.SetHTTP1(version == 1)
	tr.Protocols.SetHTTP2(version == 2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Connect opens a CONNECT to authority. The error tells the status where it is not 200.
func (d *Daemon) Connect(ctx context.Context, authority string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.Proxy)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_, _ = io.WriteString(conn, "CONNECT "+authority+" HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
	// Nothing comes behind a 200 until the client speaks, and what stands behind a refusal is not looked at.
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: "CONNECT"})
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("CONNECT %s: %s", authority, res.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// ConnectTLS opens a TLS connection inside a CONNECT to port 443 of host. protocol is "http/1.1" or "h2".
func (d *Daemon) ConnectTLS(ctx context.Context, config *tls.Config, host, protocol string) (*tls.Conn, error) {
	conn, err := d.Connect(ctx, net.JoinHostPort(host, "443"))
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName, config.NextProtos = host, []string{protocol}
	tc := tls.Client(conn, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS to %s: %w", host, err)
	}
	return tc, nil
}
