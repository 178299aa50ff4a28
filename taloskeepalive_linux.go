package main

import (
	"os"
	"syscall"
)

// tcpUserTimeout is TCP_USER_TIMEOUT of tcp(7), which package syscall does not have.
const tcpUserTimeout = 18

// limitUnacknowledged ends a connection when what was sent is not acknowledged for 25 s, as long as the keep-alive probes of one on
// which nothing is sent take: the kernel would go on for a quarter of an hour.
func limitUnacknowledged(_, _ string, conn syscall.RawConn) error {
	var failed error
	if err := conn.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, 25_000)
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt", failed)
}
