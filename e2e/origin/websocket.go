package origin

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// webSocketGUID is the constant of RFC 6455 §1.3.
const webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// frameLimit is the largest frame that is echoed.
const frameLimit = 1 << 20

// webSocket takes an upgrade and echoes each frame, until a close frame has been echoed too (RFC 6455).
func (s *Server) webSocket(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Header.Get("Sec-WebSocket-Key") == "" {
		http.Error(w, "not a WebSocket handshake", http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		http.Error(w, "WebSocket needs HTTP/1.1", http.StatusBadRequest)
		return
	}
	defer conn.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + webSocketGUID))
	_, _ = fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for {
		if rw.Flush() != nil {
			return
		}
		opcode, payload, err := readFrame(rw.Reader)
		if err != nil {
			return
		}
		writeFrame(rw.Writer, opcode, payload)
		if opcode == 8 {
			_ = rw.Flush()
			return
		}
	}
}

// readFrame reads one masked frame of a client (RFC 6455 §5.2); messages in several frames are echoed frame by frame.
func readFrame(r *bufio.Reader) (opcode byte, payload []byte, err error) {
	var head [2]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1] & 0x7f)
	if extra := map[uint64]int{126: 2, 127: 8}[size]; extra > 0 {
		var long [8]byte
		if _, err = io.ReadFull(r, long[8-extra:]); err != nil {
			return 0, nil, err
		}
		size = binary.BigEndian.Uint64(long[:])
	}
	if head[1]&0x80 == 0 || size > frameLimit {
		return 0, nil, fmt.Errorf("frame of %d bytes, masked %t", size, head[1]&0x80 != 0)
	}
	data := make([]byte, 4+size)
	if _, err = io.ReadFull(r, data); err != nil {
		return 0, nil, err
	}
	mask, payload := data[:4], data[4:]
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 0x0f, payload, nil
}

// writeFrame writes one whole message, unmasked as a server must.
func writeFrame(w *bufio.Writer, opcode byte, payload []byte) {
	head := []byte{0x80 | opcode}
	switch n := len(payload); {
	case n < 126:
		head = append(head, byte(n))
	case n < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 126), uint16(n))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 127), uint64(n))
	}
	_, _ = w.Write(head)
	_, _ = w.Write(payload)
}
