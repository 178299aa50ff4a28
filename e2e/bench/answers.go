package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http/httputil"
	"strconv"
)

// answers reads HTTP/1.1 answers, as little of them as it takes to know that they are right.
type answers struct{ br *bufio.Reader }

// head reads the head of an answer and gives its content.
func (a answers) head() (status int, content io.Reader, err error) {
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

// expect reads an answer that must have this status and so many bytes of content.
func (a answers) expect(status int, length int) error {
	got, content, err := a.head()
	if err != nil {
		return err
	}
	if got != status {
		return fmt.Errorf("status %d", got)
	}
	var buf [smallBytes + 1]byte
	n, err := io.ReadFull(content, buf[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if n != length || !bytes.Equal(buf[:n], pattern[:n]) {
		return fmt.Errorf("%d bytes of content, %d of them expected, or other bytes", n, length)
	}
	return nil
}
