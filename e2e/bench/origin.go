package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"muxproxy/e2e/measure"
)

const (
	host       = "localhost"
	smallBytes = 1 << 10 // of the content of /small
)

// pattern is what bulk content repeats, so that every byte of it is compared.
var pattern = func() []byte {
	p := make([]byte, 64<<10)
	for i := range p {
		p[i] = byte(i * 131 >> 3)
	}
	return p
}()

// matchPattern tells whether p is what stands at offset in endlessly repeated pattern.
func matchPattern(p []byte, offset int64) bool {
	for len(p) > 0 {
		want := pattern[offset%int64(len(pattern)):]
		n := min(len(p), len(want))
		if !bytes.Equal(p[:n], want[:n]) {
			return false
		}
		p, offset = p[n:], offset+int64(n)
	}
	return true
}

// originParameters are those of the role "origin".
type originParameters struct {
	Cert, Key string // files
	Token     string // requests without "Authorization: Bearer TOKEN" are answered 401
}

// serveOrigin is the server behind the proxies. It has three ports: two of HTTP/1.1, of which proxies intercept the
// first and tunnel to the second, and one of net/http's HTTP/2 for the direct row.
func serveOrigin(p originParameters) error {
	cert, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		return err
	}
	o := &origin{credential: []byte("Bearer " + p.Token)}
	o.small = []byte("HTTP/1.1 200 OK\r\nDate: Mon, 01 Jun 2026 10:00:00 GMT\r\nContent-Type: application/json; charset=utf-8\r\n" +
		"Content-Length: " + strconv.Itoa(smallBytes) + "\r\nCache-Control: private, max-age=60\r\nETag: \"6f1ed002ab5595859014ebf0951522d9\"\r\n" +
		"Server: origin\r\nX-Request-Id: 8C2A:1F3B:55D0:7A11:66E0\r\nVary: Accept, Authorization\r\n\r\n" + string(pattern[:smallBytes]))
	var addresses []string
	for range 2 {
		// Whole records, as servers that are not written in Go send them.
		config := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}, DynamicRecordSizingDisabled: true}
		ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
		if err != nil {
			return err
		}
		go o.serve(ln)
		addresses = append(addresses, ln.Addr().String())
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: o, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	go server.ServeTLS(ln, "", "")
	return measure.UntilEOF(append(addresses, ln.Addr().String())...)
}

// origin answers requests in the order they come on a connection, from text that is ready made where it can be.
type origin struct {
	credential []byte // "Bearer …"
	small      []byte // the answer to GET /small
}

func (o *origin) serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			br := bufio.NewReader(conn)
			for o.answer(conn, br) == nil {
			}
		}()
	}
}

// originRequest is what the origin looks at in a request.
type originRequest struct {
	target     string
	length     int64 // Content-Length
	authorized int   // fields with the right credential; -1 after one with a wrong one
}

// answer reads and answers one request.
func (o *origin) answer(conn net.Conn, br *bufio.Reader) error {
	r, err := o.readHead(br)
	if err != nil {
		return err
	}
	if r.authorized != 1 {
		io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return errors.New("not authorized")
	}
	path, query, _ := strings.Cut(r.target, "?")
	switch path {
	case "/small":
		_, err = conn.Write(o.small)
	case "/download":
		err = download(conn, query)
	case "/upload":
		err = upload(conn, br, r.length)
	case "/events":
		err = sendEvents(conn, query)
	default:
		_, err = io.WriteString(conn, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
	}
	return err
}

func (o *origin) readHead(br *bufio.Reader) (r originRequest, err error) {
	line, err := br.ReadSlice('\n')
	if err != nil {
		return r, err
	}
	if words := bytes.Fields(line); len(words) == 3 && len(words[1]) < 256 {
		r.target = string(words[1])
	}
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return r, err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(": "))
		switch {
		case len(name) == 0:
			return r, nil
		case bytes.EqualFold(name, []byte("Authorization")):
			if r.authorized++; !bytes.Equal(value, o.credential) {
				r.authorized = -1 << 10
			}
		case bytes.EqualFold(name, []byte("Content-Length")):
			r.length, _ = strconv.ParseInt(string(value), 10, 64)
		}
	}
}

// download sends as many bytes as the query says.
func download(w io.Writer, query string) error {
	left, err := strconv.ParseInt(query, 10, 64)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", left); err != nil {
		return err
	}
	for left > 0 {
		n := min(left, int64(len(pattern)))
		if _, err := w.Write(pattern[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// upload takes length bytes and answers whether they were right.
func upload(w io.Writer, r io.Reader, length int64) error {
	right, err := readPattern(r, length)
	if err != nil {
		return err
	}
	status := "204 No Content"
	if !right {
		status = "422 Unprocessable Content"
	}
	_, err = io.WriteString(w, "HTTP/1.1 "+status+"\r\n\r\n")
	return err
}

// readPattern reads length bytes and tells whether they are the pattern's.
func readPattern(r io.Reader, length int64) (right bool, err error) {
	buf := make([]byte, len(pattern))
	right = true
	for offset := int64(0); offset < length; {
		n, err := r.Read(buf[:min(length-offset, int64(len(buf)))])
		if n > 0 {
			right = right && matchPattern(buf[:n], offset)
			offset += int64(n)
		} else if err != nil {
			return false, err
		}
	}
	return right, nil
}

// sendEvents streams server-sent events, each with the time at which it was sent. The query is "NUMBER,GAP".
func sendEvents(w io.Writer, query string) error {
	number, pause, _ := strings.Cut(query, ",")
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	gap, err := time.ParseDuration(pause)
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
		return err
	}
	for range n {
		time.Sleep(gap) // what is measured are events that come now and then
		event := "data: " + strconv.FormatInt(time.Now().UnixNano(), 10) + "\n\n"
		if _, err := fmt.Fprintf(w, "%x\r\n%s\r\n", len(event), event); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, "0\r\n\r\n")
	return err
}

// ServeHTTP answers GET /small over HTTP/2.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != string(o.credential) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(smallBytes))
	w.Write(pattern[:smallBytes])
}
