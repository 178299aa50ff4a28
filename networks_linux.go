package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"
)

// Numbers of linux/rtnetlink.h, linux/if_link.h and linux/in6.h that package syscall lacks.
const (
	netlinkGroups   = 1 | 0x10 | 0x100 // RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
	attrLinkInfo    = 18               // IFLA_LINKINFO
	attrInfoKind    = 1                // IFLA_INFO_KIND, inside IFLA_LINKINFO
	attrTypeMask    = 0x3fff           // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	flagInterrupted = 0x10             // NLM_F_DUMP_INTR
	ipv6Freebind    = 78               // IPV6_FREEBIND
)

// errInterrupted says that the kernel's tables changed while they were dumped, so that a dump may contradict itself.
var errInterrupted = errors.New("the interfaces changed while they were read")

// link is what is asked of one network interface.
type link struct {
	name   string // "docker0"
	kind   string // "bridge", "veth"; "" for hardware
	master int32  // the index of the bridge that it is a port of, 0 for none
}

// linkAddr is one address of an interface.
type linkAddr struct {
	index  int32
	prefix netip.Prefix // unmasked: 172.17.0.1/16
}

// readNetworks takes a snapshot over netlink: about 3 ms, and no privilege needed (rtnetlink(7)).
func readNetworks() (*networks, error) {
	for tries := 5; ; tries-- {
		n, err := dumpNetworks()
		if tries > 1 && errors.Is(err, errInterrupted) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read network interfaces: %w", err)
		}
		return n, nil
	}
}

func dumpNetworks() (*networks, error) {
	links, err := syscall.NetlinkRIB(syscall.RTM_GETLINK, syscall.AF_UNSPEC)
	if err != nil {
		return nil, os.NewSyscallError("netlink getlink", err)
	}
	addrs, err := syscall.NetlinkRIB(syscall.RTM_GETADDR, syscall.AF_UNSPEC)
	if err != nil {
		return nil, os.NewSyscallError("netlink getaddr", err)
	}
	return parseNetworks(links, addrs)
}

// parseNetworks reads the kernel's answers to RTM_GETLINK and RTM_GETADDR. A message or attribute that is too short for
// what it says is an error: a bridge whose ports are not all known must not be taken for one that has only veth ports.
func parseNetworks(links, addrs []byte) (*networks, error) {
	byIndex := map[int32]link{}
	err := eachMessage(links, syscall.RTM_NEWLINK, syscall.SizeofIfInfomsg, func(header, attrs []byte) error {
		l, err := parseLink(attrs)
		byIndex[int32(binary.NativeEndian.Uint32(header[4:]))] = l
		return err
	})
	if err != nil {
		return nil, err
	}
	var all []linkAddr
	err = eachMessage(addrs, syscall.RTM_NEWADDR, syscall.SizeofIfAddrmsg, func(header, attrs []byte) error {
		addr, err := parseAddr(attrs)
		if addr.IsValid() {
			index := int32(binary.NativeEndian.Uint32(header[4:]))
			all = append(all, linkAddr{index, netip.PrefixFrom(addr, int(header[1]))})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return newNetworks(byIndex, all), nil
}

// newNetworks finds the container bridges: of kind bridge, with a name that an engine gives, all of whose ports are veth
// (the host's ends of containers' interfaces). A bridge with any other port may lead to a LAN and is never bound.
func newNetworks(links map[int32]link, addrs []linkAddr) *networks {
	leads := map[int32]bool{} // the index of a bridge → it has a port that is no veth
	for _, l := range links {
		if l.master != 0 && l.kind != "veth" {
			leads[l.master] = true
		}
	}
	n := &networks{own: map[netip.Addr]bool{}}
	prefixes := map[int32][]netip.Prefix{}
	for _, a := range addrs {
		n.own[a.prefix.Addr()] = true
		if addr := a.prefix.Addr(); addr.Is4() || !addr.IsLinkLocalUnicast() {
			prefixes[a.index] = append(prefixes[a.index], a.prefix)
		}
	}
	for index, l := range links {
		if l.kind == "bridge" && isBridgeName(l.name) && !leads[index] {
			n.bridges = append(n.bridges, bridge{l.name, prefixes[index]})
		}
	}
	slices.SortFunc(n.bridges, func(a, b bridge) int { return cmp.Compare(a.name, b.name) })
	return n
}

// parseLink reads the attributes of an RTM_NEWLINK message.
func parseLink(attrs []byte) (l link, err error) {
	err = eachAttr(attrs, func(kind uint16, value []byte) error {
		switch kind {
		case syscall.IFLA_IFNAME:
			l.name = cString(value)
		case syscall.IFLA_MASTER:
			if len(value) < 4 {
				return syscall.EINVAL
			}
			l.master = int32(binary.NativeEndian.Uint32(value))
		case attrLinkInfo:
			return eachAttr(value, func(kind uint16, value []byte) error {
				if kind == attrInfoKind {
					l.kind = cString(value)
				}
				return nil
			})
		}
		return nil
	})
	return l, err
}

// parseAddr reads the attributes of an RTM_NEWADDR message. IFA_LOCAL is the host's own address where both are given: on
// a point-to-point interface IFA_ADDRESS is the peer's (linux/if_addr.h). IPv6 has IFA_ADDRESS alone but there.
func parseAddr(attrs []byte) (addr netip.Addr, err error) {
	var local netip.Addr
	err = eachAttr(attrs, func(kind uint16, value []byte) error {
		ok := true
		switch kind {
		case syscall.IFA_LOCAL:
			local, ok = netip.AddrFromSlice(value)
		case syscall.IFA_ADDRESS:
			addr, ok = netip.AddrFromSlice(value)
		}
		if !ok {
			return syscall.EINVAL
		}
		return nil
	})
	if local.IsValid() {
		addr = local
	}
	return addr, err
}

// eachMessage calls visit with the fixed header, of size bytes, and the attributes of each message of the given type.
func eachMessage(dump []byte, kind uint16, size int, visit func(header, attrs []byte) error) error {
	messages, err := syscall.ParseNetlinkMessage(dump)
	if err != nil {
		return fmt.Errorf("parse netlink message: %w", err)
	}
	for _, m := range messages {
		if m.Header.Flags&flagInterrupted != 0 {
			return errInterrupted
		}
		if m.Header.Type != kind {
			continue
		}
		if len(m.Data) < size {
			return fmt.Errorf("parse netlink message: %d bytes, want %d or more", len(m.Data), size)
		}
		if err := visit(m.Data[:size], m.Data[size:]); err != nil {
			return fmt.Errorf("parse netlink attributes: %w", err)
		}
	}
	return nil
}

// eachAttr calls visit with each attribute in b (linux/netlink.h: length, type, value, padding to four bytes).
func eachAttr(b []byte, visit func(kind uint16, value []byte) error) error {
	for len(b) >= syscall.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < syscall.SizeofRtAttr || size > len(b) {
			return syscall.EINVAL
		}
		if err := visit(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[syscall.SizeofRtAttr:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// cString reads a string that ends at its first NUL.
func cString(b []byte) string {
	if i := slices.Index(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// watchNetworks calls changed with a new snapshot after each change until ctx is done, which gives nil; the first call
// comes at once. It calls changed from its own goroutine, one call at a time. There is no pause before the snapshot is
// taken: the address of a new bridge is announced only some 85 ms before `docker network create` returns. Where taking
// a snapshot fails, for want of descriptors say, it is tried again each second.
func watchNetworks(ctx context.Context, changed func(*networks)) error {
	events, err := openNetlinkEvents()
	if err != nil {
		return fmt.Errorf("watch network interfaces: %w", err)
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { events.Close(); close(closed) })
	defer func() {
		if stop() {
			events.Close()
			return
		}
		<-closed
	}()
	var last *networks
	for {
		n, err := readNetworks()
		if ctx.Err() != nil {
			return nil
		}
		retry := time.Time{}
		switch {
		case err != nil:
			retry = time.Now().Add(time.Second)
		case last == nil || !n.equal(last):
			last = n
			changed(n)
		}
		if err := waitNetlinkEvent(events, retry); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch network interfaces: %w", err)
		}
	}
}

// openNetlinkEvents subscribes to changes of interfaces and addresses. The caller closes the file, which wakes a waiter.
func openNetlinkEvents() (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: netlinkGroups}); err != nil {
		syscall.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// waitNetlinkEvent returns once there is an event, or at the time of retry where that is not zero. It takes all events
// that are there, unread: a burst costs one snapshot. ENOBUFS says that events were lost, which is an event too.
func waitNetlinkEvent(events *os.File, retry time.Time) error {
	if err := events.SetReadDeadline(retry); err != nil {
		return err
	}
	conn, err := events.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Read(func(fd uintptr) (done bool) {
		var buf [4096]byte
		for ; ; done = true {
			_, _, err := syscall.Recvfrom(int(fd), buf[:], 0)
			if err == syscall.EAGAIN {
				return done
			}
			if err != nil && err != syscall.ENOBUFS && err != syscall.EINTR {
				failed = os.NewSyscallError("recvfrom", err)
				return true
			}
		}
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return cmp.Or(failed, err)
}

// freebind lets a listener bind an address that the host does not have yet (ip(7) IP_FREEBIND; unprivileged). A bridge's
// IPv6 address cannot be bound otherwise until its first container gives the bridge a carrier.
func freebind(network, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		if network == "tcp6" {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_IPV6, ipv6Freebind, 1)
		} else {
			failed = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, syscall.IP_FREEBIND, 1)
		}
	})
	return cmp.Or(err, os.NewSyscallError("setsockopt", failed))
}
