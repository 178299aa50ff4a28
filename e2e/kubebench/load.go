package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"muxproxy/e2e/measure"
)

// job is what the load generator is asked to do through one contender.
type job struct {
	Kind        string // a key of jobs
	Address     string // "127.0.0.1:18081"
	CA          []byte // of the server, PEM: direct, by TLS
	Prefix      string // "/contexts/bench"
	Token       string // where nothing adds it
	Real        bool   // the version is a real API server's, which is not known here
	Connections int
	Time        time.Duration
	Items       int // of a list, a kilobyte each
	Events      int
	PID         int // of the proxy; 0: none
}

// result is what came of a job. An answer that is not the expected one is an Error.
type result struct {
	Count  int64
	Bytes  int64
	Time   time.Duration // that it took
	Median time.Duration // of what an event took to arrive
	CPU    time.Duration // of the proxy
	Error  string
}

var jobs = map[string]func(*client) error{
	"requests": (*client).requests,
	"list":     (*client).list,
	"events":   (*client).events,
	"watches":  (*client).watches,
}

// serveLoad is the load generator: a job a line on stdin, a result a line on stdout.
func serveLoad(struct{}) error {
	fmt.Println("ready")
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var c client
	for {
		var j job
		err := in.Decode(&j)
		c.close()
		if err != nil {
			return nil // the end of the benchmark
		}
		c = client{job: j}
		if err := jobs[j.Kind](&c); err != nil {
			c.Error = err.Error()
		}
		if err := out.Encode(c.result); err != nil {
			return err
		}
	}
}

// client carries out a job.
type client struct {
	job
	result
	conns []*connection
}

// connection is one to the proxy, or by TLS to the origin.
type connection struct {
	net.Conn
	measure.Answers
}

// jobWait is how long a connection may live: an answer that does not come is an error and not a run that never ends.
const jobWait = 2 * time.Minute

// open opens connections.
func (c *client) open(n int) error {
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.CA)
	for range n {
		conn, err := net.Dial("tcp", c.Address)
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(jobWait))
		if c.CA != nil {
			conn = tls.Client(conn, &tls.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"http/1.1"}})
		}
		c.conns = append(c.conns, &connection{conn, measure.NewAnswers(conn)})
	}
	return nil
}

func (c *client) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

// request gives the text of a request like kubectl's.
func (c *client) request(path string) []byte {
	text := "GET " + c.Prefix + path + " HTTP/1.1\r\nHost: " + c.Address + "\r\nUser-Agent: kubectl/v1.37.2 (linux/amd64) kubernetes/9e3a4d1\r\n" +
		"Accept: application/json\r\nAccept-Encoding: gzip\r\nKubectl-Command: kubectl get\r\nKubectl-Session: 0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9\r\n"
	if c.Token != "" {
		text += "Authorization: Bearer " + c.Token + "\r\n"
	}
	return []byte(text + "\r\n")
}

// ask sends a request and gives the content of the answer.
func (conn *connection) ask(request []byte) (io.Reader, error) {
	if _, err := conn.Write(request); err != nil {
		return nil, err
	}
	status, content, err := conn.Head()
	if err == nil && status != 200 {
		text, _ := io.ReadAll(io.LimitReader(content, 500))
		err = fmt.Errorf("status %d: %s", status, text)
	}
	return content, err
}

// measured does work between two looks at the clock and at what the proxy has used.
func (c *client) measured(work func() error) error {
	before, start := measure.CPUTime(c.PID), time.Now()
	err := work()
	c.result.Time, c.CPU = time.Since(start), measure.CPUTime(c.PID)-before
	return err
}

// getVersion asks for /version and looks at each byte of it.
func (c *client) getVersion(conn *connection, request []byte) error {
	content, err := conn.ask(request)
	if err != nil {
		return err
	}
	var text [1 << 10]byte
	n, err := io.ReadFull(content, text[:])
	right := string(text[:n]) == version || c.Real && bytes.Contains(text[:n], []byte(`"gitVersion": "v1.37.2"`))
	if !errors.Is(err, io.ErrUnexpectedEOF) || !right {
		return fmt.Errorf("not the version: %q, %v", text[:n], err)
	}
	return nil
}

// requests asks for /version on each connection, again and again.
func (c *client) requests() error {
	if err := c.open(c.Connections); err != nil {
		return err
	}
	request := c.request("/version")
	// All at once, so that what there is behind is open when it is measured.
	err := parallel(c.Connections, func(i int) error {
		for range 20 {
			if err := c.getVersion(c.conns[i], request); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var count atomic.Int64
	err = c.measured(func() error {
		end := time.Now().Add(c.job.Time)
		return parallel(c.Connections, func(i int) error {
			for time.Now().Before(end) {
				if err := c.getVersion(c.conns[i], request); err != nil {
					return err
				}
				count.Add(1)
			}
			return nil
		})
	})
	c.Count = count.Load()
	return err
}

// list reads a long list.
func (c *client) list() error {
	if err := c.open(1); err != nil {
		return err
	}
	if err := c.getVersion(c.conns[0], c.request("/version")); err != nil {
		return err
	}
	return c.measured(func() error {
		content, err := c.conns[0].ask(c.request("/api/v1/configmaps?items=" + strconv.Itoa(c.Items)))
		if err != nil {
			return err
		}
		c.Bytes, err = io.Copy(io.Discard, content)
		if want := int64(c.Items * len(listItem())); err == nil && c.Bytes != want {
			err = fmt.Errorf("a list of %d bytes, want %d", c.Bytes, want)
		}
		return err
	})
}

// readEvent reads a line and gives how long it took to come.
func readEvent(in *bufio.Reader) (time.Duration, error) {
	line, err := in.ReadBytes('\n')
	now := time.Now()
	if err != nil {
		return 0, err
	}
	// Decoding JSON is not what is measured.
	_, rest, ok := bytes.Cut(line, []byte(`"sent":`))
	if !ok {
		return 0, fmt.Errorf("no event: %q", line)
	}
	sent, err := strconv.ParseInt(string(bytes.TrimRight(rest, "}\n")), 10, 64)
	return now.Sub(time.Unix(0, sent)), err
}

// events reads a watch.
func (c *client) events() error {
	if err := c.open(1); err != nil {
		return err
	}
	content, err := c.conns[0].ask(c.request("/api/v1/configmaps?watch=1&events=" + strconv.Itoa(c.Events)))
	if err != nil {
		return err
	}
	in, took := bufio.NewReader(content), []time.Duration{}
	for range c.Events {
		d, err := readEvent(in)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	slices.Sort(took)
	c.Median = took[len(took)/2]
	return nil
}

// watches opens watches, each with its first event, and leaves them open until the next job.
func (c *client) watches() error {
	if err := c.open(c.Connections); err != nil {
		return err
	}
	return parallel(c.Connections, func(i int) error {
		content, err := c.conns[i].ask(c.request("/api/v1/configmaps?watch=1"))
		if err != nil {
			return err
		}
		_, err = readEvent(bufio.NewReaderSize(content, 512))
		return err
	})
}

// parallel runs work in n goroutines and gives the errors.
func parallel(n int, work func(i int) error) error {
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		all.Go(func() { errs[i] = work(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}
