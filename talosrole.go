package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	roleLifetime = time.Hour        // asked for
	roleMargin   = 10 * time.Minute // a certificate with less left is renewed
	roleWait     = 10 * time.Second // for one endpoint's answer
	roleBackoff  = 5 * time.Second  // between two attempts of which the first failed
	maxRoleReply = 1 << 20          // bytes
)

// talosRole holds a certificate with one role, such as "os:reader", that the cluster itself signs, so that Talos enforces the role. It
// is asked for with the talosconfig's own certificate, kept in memory alone and renewed before it ends. Safe for concurrent use.
type talosRole struct {
	name     string
	upstream *talosUpstream
	one      chan struct{} // holds an element while somebody uses what follows

	cert   *tls.Certificate
	tried  time.Time             // when the last attempt was
	err    error                 // of it
	failed atomic.Pointer[error] // err, for those who do not wait
}

// newTalosRole is for a role of the cluster that u reaches.
func newTalosRole(name string, u *talosUpstream) *talosRole {
	return &talosRole{name: name, upstream: u, one: make(chan struct{}, 1)}
}

// certificate gives a certificate that is valid for a while yet. The error says why there is none, and is ctx's where the client has gone.
func (r *talosRole) certificate(ctx context.Context) (*tls.Certificate, error) {
	select {
	case r.one <- struct{}{}:
		defer func() { <-r.one }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	now := r.upstream.now()
	if r.cert != nil && now.Before(r.cert.Leaf.NotAfter.Add(-r.margin())) {
		return r.cert, nil
	}
	if r.err == nil || now.Sub(r.tried) >= roleBackoff {
		cert, err := r.obtain(ctx)
		if err != nil && ctx.Err() != nil {
			return nil, err
		}
		if r.err, r.tried = err, now; err == nil {
			r.cert = cert
		}
		r.failed.Store(&err)
	}
	if r.cert != nil && now.Before(r.cert.Leaf.NotAfter) {
		return r.cert, nil
	}
	return nil, r.err
}

// failing is why the last attempt failed, nil where it did not. It does not wait for one that is under way.
func (r *talosRole) failing() error {
	if err := r.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// margin is how long before its end the certificate is renewed: less than roleMargin where the cluster gave one of a short life.
func (r *talosRole) margin() time.Duration {
	return min(roleMargin, r.cert.Leaf.NotAfter.Sub(r.cert.Leaf.NotBefore)/4)
}

// obtain asks the endpoints in turn: only control plane nodes can sign.
func (r *talosRole) obtain(ctx context.Context) (*tls.Certificate, error) {
	var said []string
	for _, endpoint := range r.upstream.order() {
		cert, err := r.ask(ctx, endpoint)
		if ctx.Err() != nil && err != nil {
			return nil, ctx.Err()
		}
		r.upstream.remember(endpoint, unanswered(err))
		if err == nil {
			return cert, nil
		}
		said = append(said, endpoint.String()+": "+talosCause(err))
	}
	return nil, fmt.Errorf("no certificate of role %q for context %q: %s", r.name, r.upstream.context.name, strings.Join(said, "; "))
}

// answerError is an answer of an endpoint that is up, and yet no certificate.
type answerError string

func (e answerError) Error() string { return string(e) }

// unanswered is err unless the endpoint answered.
func unanswered(err error) error {
	if _, ok := errors.AsType[answerError](err); ok {
		return nil
	}
	return err
}

// ask has one endpoint sign, by one unary call (gRPC over HTTP/2): MachineService/GenerateClientConfiguration in
// api/machine/machine.proto of Talos.
func (r *talosRole) ask(ctx context.Context, endpoint authority) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, roleWait)
	defer cancel()
	tr := &http.Transport{
		TLSClientConfig:     r.upstream.tls(endpoint, r.upstream.context.cert),
		TLSHandshakeTimeout: endpointWait,
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return r.upstream.dial(ctx, endpoint) },
		DisableCompression:  true,
		Protocols:           new(http.Protocols),
	}
	tr.Protocols.SetHTTP2(true)
	defer tr.CloseIdleConnections()
	q := &http.Request{
		Method: "POST",
		URL:    &url.URL{Scheme: "https", Host: endpoint.String(), Path: "/machine.MachineService/GenerateClientConfiguration"},
		Header: http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}},
		Body:   io.NopCloser(bytes.NewReader(roleRequest(r.name))),
	}
	res, err := tr.RoundTrip(q.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(io.LimitReader(res.Body, maxRoleReply))
	if err != nil {
		return nil, err
	}
	if err := grpcError(res); err != nil {
		return nil, err
	}
	crt, key, err := roleReply(content)
	if err != nil {
		return nil, err
	}
	return r.check(crt, key)
}

// check takes a certificate that has the role and no other.
func (r *talosRole) check(crt, key []byte) (*tls.Certificate, error) {
	cert, err := talosPair(crt, key)
	if err != nil {
		return nil, answerError("its answer: " + err.Error())
	}
	if roles := cert.Leaf.Subject.Organization; !slices.Equal(roles, []string{r.name}) {
		return nil, answerError(fmt.Sprintf("it signed for the roles %q", roles))
	}
	return cert, nil
}

// roleRequest is a GenerateClientConfigurationRequest, with its gRPC prefix: roles = 1, crt_ttl = 2 with seconds = 1.
func roleRequest(role string) []byte {
	message := appendProtoBytes(nil, 1, []byte(role))
	message = appendProtoBytes(message, 2, appendProtoNumber(nil, 1, uint64(roleLifetime/time.Second)))
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

// roleReply reads a GenerateClientConfigurationResponse with its gRPC prefix: messages = 1, with crt = 3 and key = 4 in PEM.
func roleReply(content []byte) (crt, key []byte, err error) {
	errReply := answerError("its answer is not to be understood")
	if len(content) < 5 || content[0] != 0 || uint64(binary.BigEndian.Uint32(content[1:])) != uint64(len(content)-5) {
		return nil, nil, errReply
	}
	for message := content[5:]; len(message) > 0; {
		f, rest, ok := takeProtoField(message)
		if !ok {
			return nil, nil, errReply
		}
		message = rest
		if f.number != 1 || f.wire != wireBytes {
			continue
		}
		for inner := f.value; len(inner) > 0; {
			f, rest, ok := takeProtoField(inner)
			switch inner = rest; {
			case !ok:
				return nil, nil, errReply
			case f.number == 3 && f.wire == wireBytes:
				crt = f.value
			case f.number == 4 && f.wire == wireBytes:
				key = f.value
			}
		}
	}
	return crt, key, nil
}

// grpcError gives the status of an answer that was read to its end, where it is none of success: in its trailers, or in its header
// section where there is nothing else.
func grpcError(res *http.Response) error {
	status, message := res.Trailer.Get("Grpc-Status"), res.Trailer.Get("Grpc-Message")
	if status == "" {
		status, message = res.Header.Get("Grpc-Status"), res.Header.Get("Grpc-Message")
	}
	if status == "0" {
		return nil
	}
	if text, err := url.PathUnescape(message); err == nil {
		message = text
	}
	return answerError(fmt.Sprintf("it answered HTTP %d, gRPC status %s: %s", res.StatusCode, strconv.Quote(cutText(status, 10)), strconv.Quote(cutText(message, maxCause))))
}
