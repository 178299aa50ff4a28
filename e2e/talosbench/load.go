package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// client is the client's side of one connection (RFC 9113): one goroutine, and requests that are the same bytes, with talosctl's
// windows.
type client struct {
	*http2.Framer
	conn   net.Conn
	br     *bufio.Reader
	bw     *bufio.Writer
	blocks map[string][2][]byte // by path: the first header block, and all others
	sent   map[string]bool
	next   uint32 // stream
	open   map[uint32]*request
	used   int // of the connection's window
	count  int // RPCs that were answered
	took   []time.Duration
}

// request is one RPC under way.
type request struct {
	path  string
	began time.Time
	got   int // bytes of content
	used  int // of the stream's window
}

// The windows that talosctl opens (talos.md, section 3.1): of a stream, and of the connection.
const (
	streamWindow     = 65535 * 32
	connectionWindow = 65535 * 16
)

// dial opens a connection.
func dial(address string, config *tls.Config) (*client, error) {
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return nil, err
	}
	// An answer that does not come is an error and not a run that never ends.
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		return nil, err
	}
	c := &client{
		conn: conn, br: bufio.NewReaderSize(conn, 64<<10), bw: bufio.NewWriterSize(conn, 32<<10), next: 1,
		blocks: map[string][2][]byte{}, sent: map[string]bool{}, open: map[uint32]*request{},
	}
	c.Framer = http2.NewFramer(c.bw, c.br)
	c.SetReuseFrames()
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := c.bw.WriteString(http2.ClientPreface); err != nil {
		return nil, err
	}
	if err := c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow}); err != nil {
		return nil, err
	}
	return c, c.WriteWindowUpdate(0, connectionWindow-65535)
}

// block gives the header block of a path. One connection asks for one path alone, so that two encodings are enough.
func (c *client) block(path string) []byte {
	if c.blocks[path][0] == nil {
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		fields := [][2]string{
			{":method", "POST"}, {":scheme", "https"}, {":path", path}, {":authority", "localhost:18082"}, {"content-type", "application/grpc"},
			{"user-agent", "grpc-go/1.81.0"}, {"te", "trailers"}, {"grpc-accept-encoding", "gzip"}, {"runtime", "Talos"}, {"nodes", "10.5.0.2"}, {"context", "bench"},
		}
		c.blocks[path] = [2][]byte{encoded(e, &block, fields), encoded(e, &block, fields)}
	}
	if !c.sent[path] {
		c.sent[path] = true
		return c.blocks[path][0]
	}
	return c.blocks[path][1]
}

var emptyMessage = message(0)

// ask begins an RPC.
func (c *client) ask(path string) error {
	if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next, BlockFragment: c.block(path), EndHeaders: true}); err != nil {
		return err
	}
	c.open[c.next] = &request{path: path, began: time.Now()}
	c.next += 2
	return c.WriteData(c.next-2, true, emptyMessage)
}

// until keeps as many RPCs under way as width says until end, and returns when all are answered.
func (c *client) until(path string, width int, end time.Time) error {
	for range width {
		if err := c.ask(path); err != nil {
			return err
		}
	}
	for len(c.open) > 0 {
		if c.br.Buffered() == 0 {
			if err := c.bw.Flush(); err != nil {
				return err
			}
		}
		f, err := c.ReadFrame()
		if err != nil {
			return err
		}
		ended, err := c.take(f)
		if err != nil {
			return err
		}
		if ended && time.Now().Before(end) {
			if err := c.ask(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// take handles one frame and tells whether it ended an RPC.
func (c *client) take(f http2.Frame) (ended bool, err error) {
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		if f.StreamEnded() {
			return true, c.finish(id, f)
		}
	case *http2.DataFrame:
		return false, c.data(id, f)
	case *http2.SettingsFrame:
		if !f.IsAck() {
			err = c.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			err = c.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		err = fmt.Errorf("stream %d: reset: %v", id, f.ErrCode)
	case *http2.GoAwayFrame:
		err = fmt.Errorf("the connection ends: %v", f.ErrCode)
	}
	return false, err
}

// data counts content, and gives windows back when a quarter is used, as grpc-go does.
func (c *client) data(id uint32, f *http2.DataFrame) error {
	r := c.open[id]
	r.got += len(f.Data())
	r.used += int(f.Length)
	c.used += int(f.Length)
	if r.used >= streamWindow/4 {
		if err := c.WriteWindowUpdate(id, uint32(r.used)); err != nil {
			return err
		}
		r.used = 0
	}
	if c.used < connectionWindow/4 {
		return nil
	}
	n := c.used
	c.used = 0
	return c.WriteWindowUpdate(0, uint32(n))
}

// finish judges an answer by its trailers.
func (c *client) finish(id uint32, f *http2.MetaHeadersFrame) error {
	r := c.open[id]
	delete(c.open, id)
	for _, field := range f.Fields {
		if field.Name == "grpc-status" && field.Value != "0" {
			return fmt.Errorf("%s: %v", r.path, f.Fields)
		}
	}
	if r.got < len(answer) {
		return fmt.Errorf("%s: %d bytes: %v", r.path, r.got, f.Fields)
	}
	c.count++
	c.took = append(c.took, time.Since(r.began))
	return nil
}

// unary is what a measurement of unary RPCs gave.
type unary struct {
	perSecond float64
	median    time.Duration
	all       int // RPCs, those before the clock was started too
}

// load is a load generator.
type load interface {
	// unary runs RPCs on one connection for a time, width of them at once.
	unary(address string, config *tls.Config, width int, length time.Duration) (unary, error)
	// stream receives one stream of bulk bytes in messages of size and gives MB/s.
	stream(address string, config *tls.Config, size, bulk int) (float64, error)
	// connection opens a connection and runs one RPC on it.
	connection(address string, config *tls.Config) (close func() error, err error)
}

// rawLoad is the load generator that costs little.
type rawLoad struct{}

func (rawLoad) unary(address string, config *tls.Config, width int, length time.Duration) (unary, error) {
	c, err := dial(address, config)
	if err != nil {
		return unary{}, err
	}
	defer c.conn.Close()
	if err := c.until(unaryPath, width, time.Now().Add(length/10)); err != nil { // unmeasured
		return unary{}, err
	}
	before := c.count
	c.took = c.took[:0]
	start := time.Now()
	if err := c.until(unaryPath, width, start.Add(length)); err != nil {
		return unary{}, err
	}
	seconds := time.Since(start).Seconds()
	return unary{float64(c.count-before) / seconds, medianOf(c.took), c.count}, nil
}

func medianOf(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

func (rawLoad) stream(address string, config *tls.Config, size, bulk int) (float64, error) {
	c, err := dial(address, config)
	if err != nil {
		return 0, err
	}
	defer c.conn.Close()
	start := time.Now()
	if err := c.until(map[int]string{1 << 10: smallPath, 64 << 10: largePath}[size], 1, start); err != nil {
		return 0, err
	}
	return float64(bulk) / 1e6 / time.Since(start).Seconds(), nil
}

func (rawLoad) connection(address string, config *tls.Config) (close func() error, err error) {
	c, err := dial(address, config)
	if err != nil {
		return nil, err
	}
	return c.conn.Close, c.until(unaryPath, 1, time.Now())
}

// measureConnections opens one connection after the other and gives the median time.
func measureConnections(l load, address string, config *tls.Config, length time.Duration) (time.Duration, error) {
	var took []time.Duration
	for end := time.Now().Add(length); time.Now().Before(end) || len(took) < 3; {
		start := time.Now()
		close, err := l.connection(address, config)
		took = append(took, time.Since(start))
		if close != nil {
			_ = close()
		}
		if err != nil {
			return 0, err
		}
	}
	return medianOf(took), nil
}

// hold opens connections that have carried an RPC each; close closes them.
func hold(l load, address string, config *tls.Config, n int) (close func(), err error) {
	var all []func() error
	close = func() {
		for _, c := range all {
			_ = c()
		}
	}
	for range n {
		c, err := l.connection(address, config)
		if c != nil {
			all = append(all, c)
		}
		if err != nil {
			return close, err
		}
	}
	return close, nil
}
