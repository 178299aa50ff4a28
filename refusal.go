package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
)

// refusal is an answer that muxproxy gives itself: a request or CONNECT refused by policy, or one whose upstream failed.
// Its text is made for the agent in the container, holds nothing that an upstream said, and tells what to do next.
type refusal struct {
	code     int    // 400, 403, 421, 429, 502, 504; 0: nobody is left to answer to
	text     string // "muxproxy: refuses TRACE where it would add a credential"
	decision string // decisionDenied or decisionFailed
	cause    string // for the audit log: kind and rule
}

// denied is a refusal by policy.
func denied(code int, cause, text string) *refusal {
	return &refusal{code: code, text: "muxproxy: " + text, decision: decisionDenied, cause: cause}
}

// failed is a refusal because the upstream, or muxproxy's own means, failed.
func failed(code int, cause, text string) *refusal {
	return &refusal{code: code, text: "muxproxy: " + text, decision: decisionFailed, cause: cause}
}

// errClientLeft is the cause of an exchange that the client broke off.
var errClientLeft = errors.New("client left")

// upstreamRefusal tells what an error of dialer.dial, dialer.dialPlain or upstream.RoundTrip means for the client: 403 for
// the guard, 504 for a time-out, 502 for all else.
func upstreamRefusal(host string, err error) *refusal {
	var guarded *guardError
	var dns *net.DNSError
	var tlsErr *handshakeError
	var timeout net.Error
	switch {
	case errors.As(err, &guarded):
		return denied(http.StatusForbidden, "address guard: "+guarded.why, guarded.Error())
	case errors.Is(err, errDockerHost):
		return denied(http.StatusForbidden, "docker_host", strconv.Quote(host)+" is "+errDockerHost.Error())
	case errors.Is(err, context.Canceled):
		return failed(0, errClientLeft.Error(), "")
	case errors.Is(err, errClientContent):
		return failed(0, errClientContent.Error(), "")
	case errors.As(err, &dns) && dns.IsNotFound:
		return failed(http.StatusBadGateway, "dns: no such host", "the name "+strconv.Quote(host)+" does not resolve: check its spelling")
	case errors.As(err, &timeout) && timeout.Timeout():
		return failed(http.StatusGatewayTimeout, "time-out", strconv.Quote(host)+" did not answer in time: try again later")
	case errors.As(err, &dns):
		return failed(http.StatusBadGateway, "dns: look-up failed", "the name "+strconv.Quote(host)+" could not be looked up: try again later")
	case errors.As(err, &tlsErr):
		return failed(http.StatusBadGateway, "tls handshake with the upstream", "the TLS certificate of "+strconv.Quote(host)+" is not valid for the host that runs muxproxy: its operator may add ca_file to the rule")
	case errors.Is(err, errNothingBack):
		return failed(http.StatusBadGateway, "upstream closed without an answer", strconv.Quote(host)+" closed the connection without an answer: try again later")
	case isOpError(err):
		return failed(http.StatusBadGateway, "connect", "no connection to "+strconv.Quote(host)+": try again later")
	}
	return failed(http.StatusBadGateway, "upstream", "the exchange with "+strconv.Quote(host)+" failed: try again later")
}

func isOpError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// body gives the content of the refusal in the error shape of the service ("", "anthropic", "registry", "git": rule.errorShape)
// and its media type. The text ends with the audit id.
func (f *refusal) body(shape, id string) (contentType string, content []byte) {
	text := f.text + " (audit id " + id + ")"
	var v any
	switch shape {
	case "git":
		return "text/plain; charset=utf-8", []byte(text + "\n")
	case "anthropic":
		v = anthropicError{Type: "error", Error: typedMessage{Type: anthropicType(f.code), Message: text}}
	case "registry":
		v = registryErrors{Errors: []codedMessage{{Code: "DENIED", Message: text}}}
	default:
		v = plainError{Message: text, Error: text}
	}
	content, err := json.Marshal(v)
	if err != nil { // strings always marshal
		return "text/plain; charset=utf-8", []byte(text + "\n")
	}
	return "application/json", append(content, '\n')
}

// response gives the refusal as an answer to r; the audit id stands in its content.
func (f *refusal) response(r *http.Request, shape, id string) *http.Response {
	contentType, content := f.body(shape, id)
	return localResponse(r, f.code, contentType, content)
}

// localResponse is an answer that muxproxy gives itself.
func localResponse(r *http.Request, code int, contentType string, content []byte) *http.Response {
	h := http.Header{
		"Content-Type":   {contentType},
		"Content-Length": {strconv.Itoa(len(content))},
		"Cache-Control":  {"no-store"},
	}
	return &http.Response{
		Status: strconv.Itoa(code) + " " + http.StatusText(code), StatusCode: code,
		ProtoMajor: 1, ProtoMinor: 1,
		Header: h, ContentLength: int64(len(content)), Body: newBytesBody(content), Request: r,
	}
}

type plainError struct {
	Message string `json:"message"`
	Error   string `json:"error"`
}

// anthropicError is the shape that Anthropic's API documents under "Errors".
type anthropicError struct {
	Type  string       `json:"type"`
	Error typedMessage `json:"error"`
}

type typedMessage struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// anthropicType is the error type that Anthropic's API gives with a status code.
func anthropicType(code int) string {
	switch code {
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusGatewayTimeout:
		return "timeout_error"
	case http.StatusBadGateway:
		return "api_error"
	}
	return "invalid_request_error"
}

// registryErrors is the shape of the OCI distribution specification, "Error Codes".
type registryErrors struct {
	Errors []codedMessage `json:"errors"`
}

type codedMessage struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// bytesBody is content at hand. Like the standard body reader it gives io.EOF together with the last bytes.
type bytesBody struct{ left []byte }

func newBytesBody(b []byte) io.ReadCloser { return &bytesBody{left: b} }

func (b *bytesBody) Read(p []byte) (int, error) {
	n := copy(p, b.left)
	if b.left = b.left[n:]; len(b.left) == 0 {
		return n, io.EOF
	}
	return n, nil
}

func (b *bytesBody) Buffered() int { return len(b.left) }
func (b *bytesBody) Close() error  { return nil }
