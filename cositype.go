package main

import (
	"encoding/binary"
	"errors"
	"strings"
)

// maxCOSIMessage bounds the first message of a COSI read, which names a resource: talosctl's have some 100 bytes.
const maxCOSIMessage = 64 << 10

// The errors of cosiMessage and cosiType: what a server might read in another way than muxproxy does.
var (
	errCOSICompressed = errors.New("its first message is compressed")
	errCOSILong       = errors.New("its first message is over 64 KiB")
	errCOSIMalformed  = errors.New("its first message is malformed")
)

// cosiMessage takes the first message out of the content of an RPC, which may come in any number of pieces: a byte that tells
// compression, four of length, and the message (gRPC over HTTP/2, "Length-Prefixed-Message"). whole is false while some of it is
// missing.
func cosiMessage(content []byte) (message []byte, whole bool, err error) {
	if len(content) > 0 && content[0] != 0 {
		return nil, false, errCOSICompressed
	}
	if len(content) < 5 {
		return nil, false, nil
	}
	n := binary.BigEndian.Uint32(content[1:])
	if n > maxCOSIMessage {
		return nil, false, errCOSILong
	}
	message = content[5:]
	if uint32(len(message)) < n {
		return nil, false, nil
	}
	return message[:n], true, nil
}

// cosiType gives the field "type" of a GetRequest, ListRequest or WatchRequest (api/v1alpha1/state.proto of COSI): field 2 in all
// three, the last one where there are several, as protobuf has it. The message passes through more than one decoder on its way, so
// what those disagree on is an error: see takeProtoField; the field with another wire type, which one skips and another
// refuses; and names that are no resource type.
func cosiType(message []byte) (string, error) {
	var name []byte
	for len(message) > 0 {
		f, rest, ok := takeProtoField(message)
		if !ok || f.number == 2 && f.wire != wireBytes {
			return "", errCOSIMalformed
		}
		if f.number == 2 {
			name = f.value
		}
		message = rest
	}
	if len(name) == 0 || strings.ContainsFunc(string(name), notInResourceType) {
		return "", errCOSIMalformed
	}
	return string(name), nil
}

// notInResourceType tells the characters that no resource type has ("MachineConfigs.config.talos.dev").
func notInResourceType(c rune) bool {
	return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_'
}
