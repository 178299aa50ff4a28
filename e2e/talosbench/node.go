package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"muxproxy/e2e/measure"
)

// The node's methods: names that Talos has, so that muxproxy's access levels know them.
const (
	unaryPath = "/machine.MachineService/Version"
	smallPath = "/machine.MachineService/Read"  // a stream of messages of 1 KiB
	largePath = "/machine.MachineService/Dmesg" // one of 64 KiB
)

// answerBytes is how long the message is that answers a unary RPC.
const answerBytes = 150

// maxFrame is the size of the DATA frames that grpc-go writes.
const maxFrame = 16384

// serveNode is the node: it demands a client certificate, as apid does, and sends preformatted answers.
func serveNode(p parameters) error {
	config, err := p.server()
	if err != nil {
		return err
	}
	if config.ClientCAs, err = p.roots(); err != nil {
		return err
	}
	config.ClientAuth, config.MinVersion, config.SessionTicketsDisabled = tls.RequireAndVerifyClientCert, tls.VersionTLS13, true
	config.DynamicRecordSizingDisabled = true
	ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go newNodeConn(conn, p.Bulk).serve()
		}
	}()
	return measure.UntilEOF(ln.Addr().String())
}

// nodeConn is one connection of the node. One goroutine reads and answers; each stream of messages has another.
type nodeConn struct {
	conn net.Conn
	bulk int
	br   *bufio.Reader
	read *http2.Framer

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // the windows
	bw      *bufio.Writer
	write   *http2.Framer
	window  int // of the connection, towards the client
	initial int // of new streams
	streams map[uint32]*nodeStream

	blocks map[string][2][]byte // header blocks: the first, which fill the dynamic table, and all others
	sent   map[string]bool
}

// nodeStream is a stream on which messages are sent.
type nodeStream struct{ window int }

func newNodeConn(conn net.Conn, bulk int) *nodeConn {
	n := &nodeConn{
		conn: conn, bulk: bulk, br: bufio.NewReaderSize(conn, 32<<10), bw: bufio.NewWriterSize(conn, 32<<10),
		window: 65535, initial: 65535, streams: map[uint32]*nodeStream{}, blocks: map[string][2][]byte{}, sent: map[string]bool{},
	}
	n.changed = sync.NewCond(&n.mu)
	n.read, n.write = http2.NewFramer(nil, n.br), http2.NewFramer(n.bw, nil)
	n.read.SetReuseFrames()
	n.read.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	// The order is that in which a connection needs them: head, trailers, and both again. Streams of messages are not mixed with
	// other RPCs on one connection, so no second head comes before the first trailers.
	for range 2 {
		n.keep("head", encoded(e, &block, [][2]string{{":status", "200"}, {"content-type", "application/grpc"}}))
		n.keep("trailers", encoded(e, &block, [][2]string{{"grpc-status", "0"}, {"grpc-message", ""}}))
	}
	return n
}

// keep adds a block: the first time it is the first, then the one for all others.
func (n *nodeConn) keep(name string, block []byte) {
	b := n.blocks[name]
	if b[0] == nil {
		b[0] = block
	} else {
		b[1] = block
	}
	n.blocks[name] = b
}

func encoded(e *hpack.Encoder, block *bytes.Buffer, fields [][2]string) []byte {
	block.Reset()
	for _, f := range fields {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return bytes.Clone(block.Bytes())
}

// block gives a header block; it is called with mu held, in the order in which blocks are written.
func (n *nodeConn) block(name string) []byte {
	b := n.blocks[name]
	if !n.sent[name] {
		n.sent[name] = true
		return b[0]
	}
	return b[1]
}

// message is a gRPC message of n bytes with its prefix.
func message(n int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), bytes.Repeat([]byte("m"), n)...)
}

var answer = message(answerBytes)

func (n *nodeConn) serve() {
	defer n.conn.Close()
	defer n.changed.Broadcast()
	defer func() { n.mu.Lock(); n.streams = nil; n.mu.Unlock() }()
	preface := make([]byte, len(http2.ClientPreface))
	n.mu.Lock()
	_ = n.write.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 65535 * 32})
	_ = n.write.WriteWindowUpdate(0, 65535*15)
	err := n.bw.Flush()
	n.mu.Unlock()
	if err != nil {
		return
	}
	if _, err := io.ReadFull(n.br, preface); err != nil {
		return
	}
	paths := map[uint32]string{}
	for {
		f, err := n.read.ReadFrame()
		if err != nil {
			return
		}
		n.mu.Lock()
		err = n.take(f, paths)
		if err == nil && n.br.Buffered() == 0 {
			err = n.bw.Flush()
		}
		n.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// take handles one frame, with mu held.
func (n *nodeConn) take(f http2.Frame, paths map[uint32]string) error {
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		paths[id] = f.PseudoValue("path")
	case *http2.DataFrame:
		if f.StreamEnded() {
			path := paths[id]
			delete(paths, id)
			return n.answer(id, path)
		}
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for _, s := range n.streams {
				s.window += int(v) - n.initial
			}
			n.initial = int(v)
			n.changed.Broadcast()
		}
		return n.write.WriteSettingsAck()
	case *http2.PingFrame:
		if !f.IsAck() {
			return n.write.WritePing(true, f.Data)
		}
	case *http2.WindowUpdateFrame:
		if id == 0 {
			n.window += int(f.Increment)
		} else if s := n.streams[id]; s != nil {
			s.window += int(f.Increment)
		}
		n.changed.Broadcast()
	}
	return nil
}

// answer answers an RPC, or begins to.
func (n *nodeConn) answer(id uint32, path string) error {
	if err := n.write.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: n.block("head"), EndHeaders: true}); err != nil {
		return err
	}
	switch path {
	case smallPath, largePath:
		n.streams[id] = &nodeStream{n.initial}
		size := 1024
		if path == largePath {
			size = 64 << 10
		}
		go n.stream(id, message(size), n.bulk/size) // ends with the connection at the latest
		return nil
	}
	n.window -= len(answer)
	if err := n.write.WriteData(id, false, answer); err != nil {
		return err
	}
	return n.end(id)
}

func (n *nodeConn) end(id uint32) error {
	return n.write.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: n.block("trailers"), EndHeaders: true, EndStream: true})
}

// stream sends count messages, each in frames of its own as grpc-go does, as far as the windows allow.
func (n *nodeConn) stream(id uint32, message []byte, count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for range count {
		for rest := message; len(rest) > 0; {
			size := min(len(rest), maxFrame)
			for n.streams != nil && (n.window < size || n.streams[id].window < size) {
				if n.bw.Flush() != nil {
					return
				}
				n.changed.Wait()
			}
			if n.streams == nil || n.write.WriteData(id, false, rest[:size]) != nil {
				return
			}
			n.window -= size
			n.streams[id].window -= size
			rest = rest[size:]
		}
	}
	delete(n.streams, id)
	_ = n.end(id)
	_ = n.bw.Flush()
}
