package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// fakeDNS is a resolver for which every name has the given IPv4 addresses, in this order.
func fakeDNS(addresses ...string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			for answerDNS(server, addresses) == nil {
			}
		}()
		return client, nil
	}}
}

// answerDNS answers one query in the framing of DNS over TCP (RFC 1035 section 4.2.2), which net uses on what is no packet
// connection.
func answerDNS(conn io.ReadWriter, addresses []string) error {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	query := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, query); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return err
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
		for _, a := range addresses {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()},
			})
		}
	}
	packed, err := m.Pack()
	if err != nil {
		return err
	}
	_, err = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	return err
}

// namesDialer is a dialer for which every name has the given addresses; allowed is its allowed_networks.
func namesDialer(allowed string, addresses ...string) *dialer {
	d := newDialer(dialerConfig{guard: guard{isOwn: func(netip.Addr) bool { return false }}})
	if allowed != "" {
		d.guard.allowed = []netip.Prefix{netip.MustParsePrefix(allowed)}
	}
	d.resolver = fakeDNS(addresses...)
	d.guarded = (&net.Dialer{Resolver: d.resolver, ControlContext: d.control}).DialContext
	return d
}

func TestANameIsJudgedByTheAddressThatIsDialed(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).AddrPort().Port()
	for _, c := range []struct {
		name      string
		addresses []string
		allowed   string
		guarded   bool
		connected bool
	}{
		{"loopback", []string{"127.0.0.1"}, "", true, false},
		{"a private address", []string{"10.0.0.1"}, "", true, false},
		{"a metadata service", []string{"169.254.169.254"}, "", true, false},
		{"two forbidden ones", []string{"10.0.0.1", "127.0.0.1"}, "", true, false},
		// 127.0.0.2 stands for a public address on which nobody listens.
		{"a good one first, loopback second", []string{"127.0.0.2", "127.0.0.1"}, "127.0.0.2/32", false, false},
		{"loopback first, a good one second", []string{"127.0.0.1", "127.0.0.2"}, "127.0.0.2/32", true, false},
		{"allowed", []string{"127.0.0.1"}, "127.0.0.1/32", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := namesDialer(c.allowed, c.addresses...).dial(t.Context(), authority{"name.example", port})
			var guarded *guardError
			if errors.As(err, &guarded) != c.guarded || (err == nil) != c.connected {
				t.Errorf("dial: %v", err)
			}
			if err == nil {
				conn.Close()
			}
		})
	}
}

func TestAForbiddenAnswerRefusesThroughAnUpstreamProxyToo(t *testing.T) {
	via := &url.URL{Scheme: "http", Host: "127.0.0.1:1"} // nobody listens: whoever gets there fails to connect
	for _, c := range []struct {
		addresses []string
		guarded   bool
	}{
		{[]string{"93.184.215.14", "127.0.0.1"}, true},
		{[]string{"93.184.215.14"}, false},
		{nil, false}, // the upstream proxy may know more names than we do
	} {
		d := namesDialer("", c.addresses...)
		d.proxy = func(*url.URL) (*url.URL, error) { return via, nil }
		_, err := d.dial(t.Context(), authority{"name.example", 443})
		var guarded *guardError
		if errors.As(err, &guarded) != c.guarded {
			t.Errorf("%q: %v", c.addresses, err)
		}
		if !c.guarded && (err == nil || !strings.Contains(err.Error(), "127.0.0.1:1")) {
			t.Errorf("%q did not go through the upstream proxy: %v", c.addresses, err)
		}
	}
}
