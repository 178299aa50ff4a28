package main

import "encoding/binary"

// The wire types of protobuf that are still written (protobuf.dev, "Encoding").
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

// protoField is one field of a protobuf message as it stands on the wire.
type protoField struct {
	number uint64
	wire   uint64
	value  []byte // of wireBytes the content, else the bytes of the number
}

// takeProtoField takes the first field off a message that is not empty. It refuses what decoders read in different ways: groups, field
// number 0, and tags beyond 32 bits (some cut the field number to 32, others refuse it). Varints may be longer than they
// have to be, which all decoders take.
func takeProtoField(message []byte) (f protoField, rest []byte, ok bool) {
	tag, n := binary.Uvarint(message)
	if n <= 0 || tag > 1<<32-1 || tag>>3 == 0 {
		return f, nil, false
	}
	f.number, f.wire = tag>>3, tag&7
	message = message[n:]
	size, skip := uint64(0), 0
	switch f.wire {
	case wireVarint:
		_, n := binary.Uvarint(message)
		if n <= 0 {
			return f, nil, false
		}
		size = uint64(n)
	case wire64:
		size = 8
	case wire32:
		size = 4
	case wireBytes:
		if size, skip = binary.Uvarint(message); skip <= 0 {
			return f, nil, false
		}
	default:
		return f, nil, false
	}
	if size > uint64(len(message)-skip) {
		return f, nil, false
	}
	end := skip + int(size)
	f.value = message[skip:end]
	return f, message[end:], true
}

// appendProtoBytes appends a field of wireBytes.
func appendProtoBytes(b []byte, number uint64, value []byte) []byte {
	b = binary.AppendUvarint(b, number<<3|wireBytes)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

// appendProtoNumber appends a field of wireVarint.
func appendProtoNumber(b []byte, number, value uint64) []byte {
	b = binary.AppendUvarint(b, number<<3|wireVarint)
	return binary.AppendUvarint(b, value)
}
