package measure

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http/httputil"
	"strconv"
)

// Answers reads HTTP/1.1 answers, as little of them as it takes to know that they are right.
type Answers struct{ br *bufio.Reader }

// NewAnswers reads a connection.
func NewAnswers(conn io.Reader) Answers { return Answers{bufio.NewReader(conn)} }

// Head reads the head of an answer and gives its content.
func (a Answers) Head() (status int, content io.Reader, err error) {
	line, err := a.br.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(line) < len("HTTP/1.1 200") {
		return 0, nil, fmt.Errorf("status line %q", line)
	}
	status, err = strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, nil, fmt.Errorf("status line %q", line)
	}
	length, chunked := int64(0), false
	for {
		line, err := a.br.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		if len(line) <= len("\r\n") {
			break
		}
		name, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
		switch {
		case len(name) == len("content-length") && bytes.EqualFold(name, []byte("content-length")):
			length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			if err != nil {
				return 0, nil, err
			}
		case len(name) == len("transfer-encoding") && bytes.EqualFold(name, []byte("transfer-encoding")):
			chunked = true
		}
	}
	if chunked {
		return status, &chunkedContent{httputil.NewChunkedReader(a.br), a.br}, nil
	}
	return status, io.LimitReader(a.br, length), nil
}

// chunkedContent is chunked content without a trailer section, and takes the blank line at its end too.
type chunkedContent struct {
	io.Reader
	br *bufio.Reader
}

func (c *chunkedContent) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err == io.EOF {
		if _, err := c.br.Discard(len("\r\n")); err != nil {
			return n, err
		}
	}
	return n, err
}
