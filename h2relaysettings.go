package main

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/net/http2"
)

// h2Streams is how many streams a client may have open at once. It is told so by SETTINGS_MAX_CONCURRENT_STREAMS; one more is
// refused in a way that lets it try again (REFUSED_STREAM).
const h2Streams = 1000

// h2Window is what every window is at first (RFC 9113 §6.9.2).
const h2Window = 65535

// h2Settings is what one peer has announced, by kind.
type h2Settings struct {
	known [7]bool
	value [7]uint32
}

// set takes over the settings of frame, the last of each kind, and drops those that the relay has no knowledge of: they could
// change what frames mean (RFC 9113 §5.5). An error is one of the connection.
func (s *h2Settings) set(frame *http2.SettingsFrame) error {
	return frame.ForeachSetting(func(one http2.Setting) error {
		switch {
		case one.ID == http2.SettingInitialWindowSize && one.Val > 1<<31-1:
			return &h2ConnError{http2.ErrCodeFlowControl, "an initial window beyond 2^31-1"}
		case one.ID == http2.SettingMaxFrameSize && (one.Val < 1<<14 || one.Val > 1<<24-1):
			return &h2ConnError{http2.ErrCodeProtocol, "a largest frame that is not allowed"}
		case one.ID == http2.SettingEnablePush && one.Val > 1:
			return &h2ConnError{http2.ErrCodeProtocol, "SETTINGS_ENABLE_PUSH that is neither 0 nor 1"}
		case int(one.ID) < len(s.known):
			s.known[one.ID], s.value[one.ID] = true, one.Val
		}
		return nil
	})
}

// passed gives the settings that the other peer is told: those of end to end meaning, within the relay's own limits.
// SETTINGS_HEADER_TABLE_SIZE is between a peer and the relay, and pushes are not relayed.
func (s *h2Settings) passed() (out []http2.Setting) {
	limits := []http2.Setting{
		{ID: http2.SettingMaxConcurrentStreams, Val: h2Streams},
		{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1},
		{ID: http2.SettingMaxFrameSize, Val: h2MaxFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: h2FieldsLimit},
	}
	for _, limit := range limits {
		if s.known[limit.ID] {
			out = append(out, http2.Setting{ID: limit.ID, Val: min(s.value[limit.ID], limit.Val)})
		}
	}
	return out
}

// earlySettings is what a client is told before there is an upstream: the defaults but for the relay's own limits.
var earlySettings = []http2.Setting{
	{ID: http2.SettingMaxConcurrentStreams, Val: h2Streams},
	{ID: http2.SettingMaxHeaderListSize, Val: h2FieldsLimit},
}

// helloFrames gives what a client begins a connection with (RFC 9113 §3.4): the preface, its SETTINGS, and WINDOW_UPDATE for the
// connection unless window is 0.
func helloFrames(s h2Settings, window uint32) []byte {
	b := bytes.NewBufferString(http2.ClientPreface)
	framer := http2.NewFramer(b, nil)
	framer.WriteSettings(s.hello()...)
	if window > 0 {
		framer.WriteWindowUpdate(0, window)
	}
	return b.Bytes()
}

// hello gives the settings of a client for the beginning of its upstream's connection.
func (s *h2Settings) hello() []http2.Setting {
	out := []http2.Setting{{ID: http2.SettingEnablePush, Val: 0}}
	if !s.known[http2.SettingMaxHeaderListSize] {
		out = append(out, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: h2FieldsLimit})
	}
	return append(out, s.passed()...)
}

// announcedMessage gives how many bytes gRPC's first message is with its prefix, 5 or more, or 0 while the prefix is not
// whole: a flag, and the length in four bytes (PROTOCOL-HTTP2.md, "Length-Prefixed-Message").
func announcedMessage(content []byte) int64 {
	if len(content) < 5 {
		return 0
	}
	return 5 + int64(binary.BigEndian.Uint32(content[1:]))
}
