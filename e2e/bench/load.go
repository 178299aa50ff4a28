package main

import (
	"bufio"
	"bytes"
	"context"
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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"muxproxy/e2e/measure"
)

// job is what the load generator is asked to do through one contender.
type job struct {
	Kind        string   // a key of jobs
	Proxy       string   // "127.0.0.1:18080"; "" goes to the target itself
	Target      string   // "localhost:443"
	Roots       []string // files: what the certificate that is seen is verified against
	Token       string   // sent by the client itself where no proxy adds it
	Connections int
	Time        time.Duration
	Bytes       int64
	Events      int
	Resume      bool // connections resume the TLS session of an earlier one
	PIDs        []int
}

// result is what came of a job. An answer that is not the expected one is an Error.
type result struct {
	Count   int64         // of requests or connections
	Resumed int64         // of the connections
	Time    time.Duration // that it took
	Median  time.Duration // of what an event took to arrive
	CPU     []time.Duration
	Own     time.Duration // CPU time of the load generator
	Error   string
}

// jobs are the kinds of load; each runs on connections that are open and have carried a request.
var jobs = map[string]func(*client) error{
	"requests":    (*client).requests,
	"connections": (*client).connections,
	"streams":     (*client).streams,
	"download":    (*client).download,
	"upload":      (*client).upload,
	"events":      (*client).events,
	"open":        (*client).open,
}

// serveLoad is the load generator: a job a line on stdin, a result a line on stdout.
func serveLoad(struct{}) error {
	fmt.Println("ready")
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	var c client
	for {
		var j job
		if err := in.Decode(&j); err != nil {
			c.closeAll()
			return nil // the end of the benchmark
		}
		c.closeAll()
		c = client{job: j}
		if err := c.run(); err != nil {
			c.result.Error = err.Error()
		}
		if err := out.Encode(c.result); err != nil {
			return err
		}
	}
}

// do gives the load generator a job.
func (w *world) do(j job) (result, error) {
	var r result
	err := w.load.Ask(j, &r)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	return r, err
}

// client carries out a job.
type client struct {
	job
	result
	verified *verifier
	tls      *tls.Config
	small    []byte // the request for /small
	conns    []*connection
}

func (c *client) run() error {
	roots := x509.NewCertPool()
	for _, file := range c.Roots {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		roots.AppendCertsFromPEM(text)
	}
	c.verified = newVerifier(roots)
	// Verified all the same: by newVerifier's, which crypto/tls calls for resumed connections too.
	c.tls = &tls.Config{ServerName: host, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true, VerifyConnection: c.verified.verify}
	c.small = c.request("GET", "/small", 0)
	do, ok := jobs[c.Kind]
	if !ok {
		return fmt.Errorf("no job %q", c.Kind)
	}
	return do(c)
}

// request gives the text of a request like those of API clients.
func (c *client) request(method, target string, length int64) []byte {
	b := []byte(method + " " + target + " HTTP/1.1\r\nHost: " + c.Target + "\r\nUser-Agent: bench/1.0 (linux; x86-64)\r\n" +
		"Accept: application/json\r\nAccept-Encoding: gzip, br\r\nX-Api-Version: 2022-11-28\r\n")
	if c.Token != "" {
		b = append(b, "Authorization: Bearer "+c.Token+"\r\n"...)
	}
	if method == "POST" {
		b = append(b, "Content-Type: application/octet-stream\r\nContent-Length: "+strconv.FormatInt(length, 10)+"\r\n"...)
	}
	return append(b, "\r\n"...)
}

// measured does work between two looks at the clock and at what the processes have used.
func (c *client) measured(work func() error) error {
	pids := append(slices.Clone(c.PIDs), os.Getpid())
	before := make([]time.Duration, len(pids))
	for i, pid := range pids {
		before[i] = measure.CPUTime(pid)
	}
	start := time.Now()
	err := work()
	c.result.Time = time.Since(start)
	for i, pid := range pids {
		c.CPU = append(c.CPU, measure.CPUTime(pid)-before[i])
	}
	c.Own = c.CPU[len(c.PIDs)]
	c.CPU = c.CPU[:len(c.PIDs)]
	return err
}

// jobWait is how long a connection may live: an answer that does not come is an error and not a run that never ends.
const jobWait = 2 * time.Minute

// connection is one TLS connection to the origin, through the proxy or not.
type connection struct {
	*tls.Conn
	measure.Answers
}

// dial opens a connection; config may be the client's own with a session cache.
func (c *client) dial(config *tls.Config) (*connection, error) {
	to := c.Proxy
	if to == "" {
		to = c.Target
	}
	conn, err := net.Dial("tcp4", to)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(jobWait))
	if c.Proxy != "" {
		err = c.connect(conn)
	}
	tc := tls.Client(conn, config)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = tc.HandshakeContext(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &connection{tc, measure.NewAnswers(tc)}, nil
}

// expect reads an answer that must have this status and so many bytes of content.
func (c *connection) expect(status int, length int) error {
	got, content, err := c.Head()
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

// connect asks the proxy for the target. Nothing follows the answer until the client speaks.
func (c *client) connect(conn net.Conn) error {
	if _, err := io.WriteString(conn, "CONNECT "+c.Target+" HTTP/1.1\r\nHost: "+c.Target+"\r\n\r\n"); err != nil {
		return err
	}
	var buf [4096]byte
	head := buf[:0]
	for !strings.HasSuffix(string(head), "\r\n\r\n") {
		n, err := conn.Read(buf[len(head):])
		if err != nil {
			return fmt.Errorf("answer to CONNECT: %w", err)
		}
		head = buf[:len(head)+n]
	}
	if line, _, _ := strings.Cut(string(head), "\r\n"); !strings.HasPrefix(line, "HTTP/1.") || !strings.HasPrefix(line[8:], " 200") {
		return fmt.Errorf("answer to CONNECT: %q", line)
	}
	return nil
}

// getSmall asks for /small and reads the answer.
func (c *client) getSmall(conn *connection) error {
	if _, err := conn.Write(c.small); err != nil {
		return err
	}
	return conn.expect(200, smallBytes)
}

// openAll opens n connections, some at once, and asks each for /small.
func (c *client) openAll(n int) error {
	c.conns = make([]*connection, n)
	return parallel(min(n, 8), func(worker int) error {
		for i := worker; i < n; i += min(n, 8) {
			conn, err := c.dial(c.tls)
			if err != nil {
				return err
			}
			c.conns[i] = conn
			if err := c.getSmall(conn); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *client) closeAll() {
	for _, conn := range c.conns {
		if conn != nil {
			conn.Close()
		}
	}
}

// parallel runs work in n goroutines and gives the first error.
func parallel(n int, work func(worker int) error) error {
	var all sync.WaitGroup
	errs := make([]error, n)
	for worker := range n {
		all.Go(func() { errs[worker] = work(worker) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// requests asks for /small on each connection, again and again.
func (c *client) requests() error {
	if err := c.openAll(c.Connections); err != nil {
		return err
	}
	var count atomic.Int64
	err := c.measured(func() error {
		end := time.Now().Add(c.job.Time)
		return parallel(c.Connections, func(worker int) error {
			n := int64(0)
			defer func() { count.Add(n) }()
			for ; time.Now().Before(end); n++ {
				if err := c.getSmall(c.conns[worker]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	c.Count = count.Load()
	return err
}

// connections opens connections, asks each for /small and closes it.
func (c *client) connections() error {
	caches := make([]*tls.Config, c.Connections)
	for i := range caches {
		caches[i] = c.tls.Clone()
		if c.Resume {
			caches[i].ClientSessionCache = tls.NewLRUClientSessionCache(0)
		}
		if err := c.oneConnection(caches[i]); err != nil {
			return err
		}
	}
	c.Count, c.Resumed = 0, 0
	return c.measured(func() error {
		end := time.Now().Add(c.job.Time)
		return parallel(c.Connections, func(worker int) error {
			for time.Now().Before(end) {
				if err := c.oneConnection(caches[worker]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (c *client) oneConnection(config *tls.Config) error {
	conn, err := c.dial(config)
	if err != nil {
		return err
	}
	defer conn.Close()
	if conn.ConnectionState().DidResume {
		atomic.AddInt64(&c.Resumed, 1)
	}
	atomic.AddInt64(&c.Count, 1)
	return c.getSmall(conn)
}

// open opens connections and leaves them open until the next job.
func (c *client) open() error { return c.openAll(c.Connections) }

// download reads the pattern from the origin.
func (c *client) download() error {
	if err := c.openAll(1); err != nil {
		return err
	}
	conn := c.conns[0]
	return c.measured(func() error {
		if _, err := conn.Write(c.request("GET", "/download?"+strconv.FormatInt(c.Bytes, 10), 0)); err != nil {
			return err
		}
		status, body, err := conn.Head()
		if err != nil {
			return err
		}
		right, err := readPattern(body, c.Bytes)
		if err == nil && (status != 200 || !right) {
			return fmt.Errorf("download: status %d, content right: %t", status, right)
		}
		return err
	})
}

// upload sends the pattern to the origin.
func (c *client) upload() error {
	if err := c.openAll(1); err != nil {
		return err
	}
	conn := c.conns[0]
	return c.measured(func() error {
		if _, err := conn.Write(c.request("POST", "/upload", c.Bytes)); err != nil {
			return err
		}
		for left := c.Bytes; left > 0; {
			n, err := conn.Write(pattern[:min(left, int64(len(pattern)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
		return conn.expect(204, 0)
	})
}

// eventGap is what the origin waits between two events.
const eventGap = 5 * time.Millisecond

// events reads server-sent events and notes when each arrives.
func (c *client) events() error {
	if err := c.openAll(1); err != nil {
		return err
	}
	conn := c.conns[0]
	if _, err := conn.Write(c.request("GET", fmt.Sprintf("/events?%d,%v", c.Events, eventGap), 0)); err != nil {
		return err
	}
	status, body, err := conn.Head()
	if err != nil || status != 200 {
		return fmt.Errorf("events: status %d: %v", status, err)
	}
	lines := bufio.NewReader(body)
	var took []time.Duration
	for {
		line, err := lines.ReadString('\n')
		now := time.Now()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if sent, ok := strings.CutPrefix(strings.TrimSpace(line), "data: "); ok {
			ns, err := strconv.ParseInt(sent, 10, 64)
			if err != nil {
				return err
			}
			took = append(took, now.Sub(time.Unix(0, ns)))
		}
	}
	if len(took) != c.Events {
		return fmt.Errorf("events: %d of %d came", len(took), c.Events)
	}
	slices.Sort(took)
	c.Median = took[len(took)/2]
	return nil
}
