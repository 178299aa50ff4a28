//go:build !linux

package main

import (
	"net"
	"time"
)

// limitUnacknowledged does nothing here: the kernel's own time-out for retransmissions remains.
func limitUnacknowledged(*net.TCPConn, time.Duration) {}
