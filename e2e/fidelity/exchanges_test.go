package fidelity

import (
	"fmt"
	"strings"
)

// exchange is one request and the answer to it, which the origin writes as it stands.
type exchange struct {
	name    string
	method  string // "" is GET
	target  string // "" is /x
	fields  []field
	content string
	chunked bool // the content is sent without a length
	trailer []field
	answer  string
	early   bool   // the origin answers before it has read the content, and does not read it
	ends    bool   // the origin closes the connection after the answer
	slow    bool   // the origin pauses within the answer
	times   int    // the same again over one connection; 0 is once
	cannot  string // clients that have no way to do this: "curl, node HTTP/1.1"; "HTTP/2" stands for all in that version
}

// plain is an answer with a length, chunks one in chunks; lines are field lines.
func plain(status, content string, lines ...string) string {
	return head(status, append(lines, fmt.Sprintf("Content-Length: %d", len(content)))...) + content
}

func head(status string, lines ...string) string {
	lines = append([]string{"HTTP/1.1 " + status}, lines...)
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

func chunks(status string, pieces []string, trailer []string, lines ...string) string {
	text := head(status, append(lines, "Transfer-Encoding: chunked")...)
	for _, p := range pieces {
		text += fmt.Sprintf("%x\r\n%s\r\n", len(p), p)
	}
	text += "0\r\n"
	for _, line := range trailer {
		text += line + "\r\n"
	}
	return text + "\r\n"
}

func list(pieces ...string) []string { return pieces }

// one is a list of one field.
func one(name, value string) []field { return []field{{name, value}} }

// mebibyte is 1 MiB in which every byte differs from the one 256 or 4,096 before it.
var mebibyte = func() string {
	b := make([]byte, 1<<20)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return string(b)
}()

// octets holds every byte value.
var octets = func() string {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return string(b)
}()

func manyFields(n int) []field {
	fields := make([]field, n)
	for i := range fields {
		fields[i] = field{fmt.Sprintf("X-Many-%d", i), fmt.Sprintf("value %d", i)}
	}
	return fields
}

func lines(fields []field) []string {
	var text []string
	for _, f := range fields {
		text = append(text, f.name+": "+f.value)
	}
	return text
}

var oddToken = "X!#$%&'*+-.^_`|~9"

// fine is an answer for exchanges in which the request is what matters.
var fine = plain("200 OK", "fine", "Content-Type: text/plain")

// exchanges is the table. Its order is the origin's key.
var exchanges = append(append(append(answerExchanges(), statusExchanges()...), requestExchanges()...), fieldExchanges()...)

// answerExchanges vary the framing of the answer, 1xx and trailers.
func answerExchanges() []exchange {
	hint := "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
	return []exchange{
		{name: "content with a length", answer: plain("200 OK", "hello", "Content-Type: text/plain")},
		{name: "content of length 0", answer: plain("200 OK", "")},
		{name: "one chunk", answer: chunks("200 OK", list("hello"), nil)},
		{name: "many chunks", answer: chunks("200 OK", strings.Split(strings.Repeat("many chunks ", 100), ""), nil)},
		{name: "no chunk", answer: chunks("200 OK", nil, nil)},
		{name: "chunk extensions", answer: head("200 OK", "Transfer-Encoding: chunked") + "5;name=value;q=\"r s\"\r\nhello\r\n0;last\r\n\r\n"},
		{name: "chunk sizes with zeros and capitals", answer: head("200 OK", "Transfer-Encoding: Chunked") + "000B\r\nhello again\r\n00\r\n\r\n"},
		{name: "content to the end of the connection", answer: head("200 OK", "Content-Type: text/plain") + "until the end", ends: true},
		{name: "no content to the end of the connection", answer: head("200 OK"), ends: true},
		{name: "HTTP/1.0 with a length", answer: "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", ends: true},
		{name: "HTTP/1.0 to the end of the connection", answer: "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold world", ends: true},
		{name: "HTTP/1.0 kept alive", answer: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"},
		{name: "1 MiB with a length", answer: plain("200 OK", mebibyte, "Content-Type: application/octet-stream")},
		{name: "1 MiB in chunks", answer: chunks("200 OK", list(mebibyte[:100], mebibyte[100:500000], mebibyte[500000:]), nil)},
		{name: "slow content with a length", answer: plain("200 OK", strings.Repeat("slow ", 100)), slow: true},
		{name: "slow chunks", answer: chunks("200 OK", list(strings.Repeat("slow ", 50), strings.Repeat("er ", 50)), nil), slow: true},
		{name: "connection closed after the answer", answer: plain("200 OK", "last", "Connection: close"), ends: true},
		{name: "Keep-Alive field", answer: plain("200 OK", "again", "Connection: keep-alive", "Keep-Alive: timeout=5, max=100")},
		{name: "103", answer: hint + fine},
		{name: "103 several", answer: hint + "HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\nLink: </c.css>; rel=preload\r\n\r\n" + hint + fine},
		{name: "102 several", answer: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 3) + fine},
		{name: "100 unasked", answer: "HTTP/1.1 100 Continue\r\n\r\n" + fine},
		{name: "100, 102 and 103", answer: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + hint + fine},
		{name: "1xx of no name", answer: "HTTP/1.1 199 Almost\r\nX-Progress: 99%\r\n\r\n" + fine},
		{name: "trailers declared", answer: chunks("200 OK", list("with trailers"), list("X-Checksum: abc"), "Trailer: X-Checksum")},
		{name: "trailers undeclared", answer: chunks("200 OK", list("with trailers"), list("X-Checksum: abc"))},
		{name: "trailers several and repeated", answer: chunks("200 OK", list("a", "b"), list("X-A: 1", "X-B: 2", "X-A: 3", "X-Empty:"), "Trailer: X-A, X-B")},
		{name: "trailers after no content", answer: chunks("200 OK", nil, list("X-Status: 0"))},
		{name: "trailer of a header field's name", answer: chunks("200 OK", list("x"), list("ETag: \"late\""), "ETag: \"early\"")},
		{name: "te: trailers", fields: one("TE", "trailers"), answer: chunks("200 OK", list("x"), list("Grpc-Status: 0", "Grpc-Message: fine"), "Content-Type: application/grpc")},
		{name: "events", answer: chunks("200 OK", list("data: 1\n\n", "data: 2\n\n"), nil, "Content-Type: text/event-stream", "Cache-Control: no-cache"), slow: true},
		{name: "reuse", answer: fine, times: 3},
		{name: "reuse after chunks and trailers", answer: chunks("200 OK", list("x"), list("X-T: 1")), times: 3},
		{name: "reuse after content was sent", method: "POST", content: "again", answer: fine, times: 3},
		{name: "reuse after HEAD", method: "HEAD", answer: head("200 OK", "Content-Length: 10000"), times: 3},
	}
}

// statusExchanges vary the status and what goes with it.
func statusExchanges() []exchange {
	ranges := "--b\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\nab\r\n--b\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\nij\r\n--b--\r\n"
	return []exchange{
		{name: "HEAD with a length", method: "HEAD", answer: head("200 OK", "Content-Length: 12345", "Content-Type: text/plain")},
		{name: "HEAD of chunks", method: "HEAD", answer: head("200 OK", "Transfer-Encoding: chunked")},
		{name: "HEAD without a length", method: "HEAD", answer: head("200 OK", "ETag: \"1\"")},
		{name: "HEAD 404", method: "HEAD", answer: head("404 Not Found", "Content-Length: 9")},
		{name: "HEAD 304", method: "HEAD", fields: one("If-None-Match", `"1"`), answer: head("304 Not Modified", `ETag: "1"`)},
		{name: "204", answer: head("204 No Content")},
		{name: "204 with fields", method: "DELETE", answer: head("204 No Content", "ETag: \"2\"", "X-Left: none")},
		{name: "205", answer: head("205 Reset Content", "Content-Length: 0")},
		{name: "304", fields: one("If-None-Match", `W/"1", "2"`), answer: head("304 Not Modified", `ETag: W/"1"`, "Cache-Control: max-age=60", "Expires: Thu, 01 Jan 2026 00:00:00 GMT")},
		{name: "304 with a length", fields: one("If-Modified-Since", "Thu, 01 Jan 2026 00:00:00 GMT"), answer: head("304 Not Modified", "Content-Length: 500", "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT")},
		{name: "412", method: "PUT", content: "new", fields: one("If-Match", `"old"`), answer: plain("412 Precondition Failed", "changed", `ETag: "new"`)},
		{name: "412 by date", method: "PUT", content: "new", fields: one("If-Unmodified-Since", "Thu, 01 Jan 2026 00:00:00 GMT"), answer: plain("412 Precondition Failed", "")},
		{name: "206", fields: one("Range", "bytes=2-5"), answer: plain("206 Partial Content", "cdef", "Content-Range: bytes 2-5/10", "Accept-Ranges: bytes")},
		{name: "206 from the end", fields: []field{{"Range", "bytes=-2"}, {"If-Range", `"1"`}}, answer: plain("206 Partial Content", "ij", "Content-Range: bytes 8-9/10", `ETag: "1"`)},
		{name: "206 multipart/byteranges", fields: one("Range", "bytes=0-1,8-9"), answer: plain("206 Partial Content", ranges, "Content-Type: multipart/byteranges; boundary=b")},
		{name: "416", fields: one("Range", "bytes=100-"), answer: plain("416 Range Not Satisfiable", "", "Content-Range: bytes */10")},
		{name: "201", method: "POST", content: "{}", answer: plain("201 Created", "{}", "Location: /things/1", "Content-Type: application/json")},
		{name: "301", answer: plain("301 Moved Permanently", "gone", "Location: /there?a=%2F#part")},
		{name: "302 to another host", answer: plain("302 Found", "", "Location: https://elsewhere.example/x")},
		{name: "307", method: "POST", content: "again", answer: plain("307 Temporary Redirect", "", "Location: ../y")},
		{name: "308 without Location", answer: plain("308 Permanent Redirect", "")},
		{name: "401", answer: plain("401 Unauthorized", "who?", `WWW-Authenticate: Basic realm="a, b"`, `WWW-Authenticate: Bearer realm="https://auth.example/token",service="x"`)},
		{name: "402", answer: plain("402 Payment Required", "")},
		{name: "418", answer: plain("418 I'm a teapot", "short and stout")},
		{name: "426", answer: plain("426 Upgrade Required", "", "Upgrade: TLS/1.3", "Connection: Upgrade")},
		{name: "429", answer: plain("429 Too Many Requests", `{"error":"slow down"}`, "Retry-After: 1", "X-RateLimit-Remaining: 0")},
		{name: "502 of the upstream itself", answer: plain("502 Bad Gateway", "<html>", "Content-Type: text/html", "Via: 1.1 edge")},
		{name: "503", answer: plain("503 Service Unavailable", "", "Retry-After: Thu, 01 Jan 2026 00:00:00 GMT")},
		{name: "a status of no name", answer: plain("299 Nearly", "odd")},
		{name: "the highest status", answer: plain("599 Far Out", "odd")},
		{name: "no reason phrase", answer: plain("200 ", "terse")},
		{name: "a long reason phrase", answer: plain("200 All is well: \"very\" well; truly, \xe4\xf6", "wordy")},
	}
}
