package main

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"unsafe"
)

// limitFiles sets how many files a running process may have open (prlimit(2)).
func limitFiles(t *testing.T, pid int, files uint64) {
	t.Helper()
	limit := syscall.Rlimit{Cur: files, Max: files}
	if _, _, errno := syscall.RawSyscall6(syscall.SYS_PRLIMIT64, uintptr(pid), syscall.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&limit)), 0, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}

func TestWithoutDescriptorsConnectionsWaitAndAreServedLater(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	port := h.configure(t, "")
	d := h.start(t)
	limitFiles(t, d.cmd.Process.Pid, 40)
	var conns []net.Conn
	for range 60 {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	d.await(t, "connections wait: accept fails")
	for _, conn := range conns {
		conn.Close()
	}
	if code, _ := getHealth(t, port); code != 200 {
		t.Errorf("health answers %d after the connections have gone", code)
	}
	d.stop(t).wants(t, 0)
}
