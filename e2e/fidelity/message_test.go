package fidelity

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// field is one field line as sent: the name in its own case, the value without the blanks around it.
type field struct{ name, value string }

// message is one HTTP message, parsed without any library that would tidy it.
type message struct {
	version  string // "HTTP/1.1", "HTTP/2"
	method   string // of a request
	target   string
	code     int // of an answer
	reason   string
	fields   []field
	content  string
	chunks   []string // the chunk header lines, extensions included: "5;a=b"; nil where content was not chunked
	trailers []field
}

// get gives the values of the field name, in lower case, in their order.
func get(fields []field, name string) []string {
	var values []string
	for _, f := range fields {
		if strings.EqualFold(f.name, name) {
			values = append(values, f.value)
		}
	}
	return values
}

// hasToken tells whether the comma list name holds token.
func hasToken(fields []field, name, token string) bool {
	for _, v := range get(fields, name) {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}

// readHead reads the start line and the header section of an HTTP/1 message.
func readHead(in *bufio.Reader, answer bool) (*message, error) {
	line, err := readLine(in)
	if err != nil {
		return nil, err
	}
	m := &message{}
	first, rest, ok := strings.Cut(line, " ")
	second, third, _ := strings.Cut(rest, " ")
	if !ok {
		return nil, fmt.Errorf("start line %q", line)
	}
	if answer {
		m.version, m.reason = first, third
		if m.code, err = strconv.Atoi(second); err != nil {
			return nil, fmt.Errorf("status line %q", line)
		}
	} else {
		m.method, m.target, m.version = first, second, third
	}
	m.fields, err = readFields(in)
	return m, err
}

func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	if !strings.HasSuffix(line, "\r\n") {
		return "", fmt.Errorf("a bare LF ends %q", line)
	}
	return line[:len(line)-2], nil
}

// readFields reads a header or trailer section. A folded line keeps its line break.
func readFields(in *bufio.Reader) ([]field, error) {
	fields := []field{}
	for {
		line, err := readLine(in)
		if err != nil || line == "" {
			return fields, err
		}
		if line[0] == ' ' || line[0] == '\t' {
			if len(fields) == 0 {
				return nil, fmt.Errorf("field line %q", line)
			}
			fields[len(fields)-1].value += "\r\n" + line
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("field line %q", line)
		}
		fields = append(fields, field{name, strings.Trim(value, " \t")})
	}
}

// readContent reads what follows the head: in chunks, by length, or, an answer, to the end of the connection.
func (m *message) readContent(in *bufio.Reader, answer bool) error {
	if hasToken(m.fields, "transfer-encoding", "chunked") {
		return m.readChunks(in)
	}
	if length := get(m.fields, "content-length"); length != nil {
		n, err := strconv.Atoi(length[0])
		if err != nil {
			return err
		}
		b := make([]byte, n)
		got, err := io.ReadFull(in, b)
		m.content = string(b[:got])
		return err
	}
	if !answer {
		return nil
	}
	b, err := io.ReadAll(in)
	m.content = string(b)
	return err
}

func (m *message) readChunks(in *bufio.Reader) error {
	var content strings.Builder
	defer func() { m.content = content.String() }()
	for {
		line, err := readLine(in)
		if err != nil {
			return err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 64)
		if err != nil {
			return fmt.Errorf("chunk line %q", line)
		}
		m.chunks = append(m.chunks, line)
		if n == 0 {
			m.trailers, err = readFields(in)
			return err
		}
		if _, err := io.CopyN(&content, in, n); err != nil {
			return err
		}
		if end, err := readLine(in); err != nil || end != "" {
			return fmt.Errorf("end of a chunk %q: %v", end, err)
		}
	}
}

// bodyless tells whether the answer with code to method has no content (RFC 9112 §6.3).
func bodyless(method string, code int) bool {
	return method == "HEAD" || code < 200 || code == 204 || code == 304
}

// answers is what comes back for one request: 1xx, and the answer.
type answers struct {
	interim []*message
	final   *message
	err     string // how the client saw it fail, in one word: "" or "broken"
	opened  int    // connections that the client opened for it
}

// readAnswers reads the answers to one request with method.
func readAnswers(in *bufio.Reader, method string) (*answers, error) {
	a := &answers{}
	for {
		m, err := readHead(in, true)
		if err != nil {
			return a, err
		}
		if m.code < 200 && m.code != 101 {
			a.interim = append(a.interim, m)
			continue
		}
		a.final = m
		if bodyless(method, m.code) {
			return a, nil
		}
		return a, m.readContent(in, true)
	}
}
