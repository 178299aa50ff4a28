package testbed

import (
	"net"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// ServeDNS answers on port 53 of Address(), which the daemon asks about names that are not in Options.Hosts, until the test
// ends: with the error that codes has for "name.", else that there is no such name. Without it nobody answers there.
func ServeDNS(t testing.TB, codes map[string]dnsmessage.RCode) {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(Address(), "53"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		query := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(query[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			code, ok := codes[m.Questions[0].Name.String()]
			if !ok {
				code = dnsmessage.RCodeNameError
			}
			answer := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true, RCode: code}, Questions: m.Questions}
			if b, err := answer.Pack(); err == nil {
				_, _ = conn.WriteTo(b, from)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-served })
}
