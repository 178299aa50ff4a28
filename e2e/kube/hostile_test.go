package kube

import (
	"encoding/base64"
	"net"
	"net/http"
	"strings"
	"testing"

	"muxproxy/e2e/kube/cluster"
)

// secrets is what an attacker wants.
const secrets = "/api/v1/namespaces/kube-system/secrets"

func TestNothingThatAClientSendsChangesWhoArrives(t *testing.T) {
	d := openDoor(t, nil, "")
	stolen := shared.Tokens().Token
	asToken := base64.RawURLEncoding.EncodeToString([]byte(stolen))
	for name, c := range map[string]struct {
		context string
		fields  []string
		upgrade bool
	}{
		"a token":                                {"cert", []string{"Authorization: Bearer " + stolen}, false},
		"a token beside the host's own":          {"exec-token", []string{"Authorization: Bearer " + stolen}, false},
		"two tokens":                             {"exec-token", []string{"Authorization: Bearer " + stolen, "authorization: Bearer " + stolen}, false},
		"a wrong token":                          {"exec-token", []string{"Authorization: Bearer wrong"}, false},
		"a password":                             {"basic", []string{"Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("a:b"))}, false},
		"no credential by Connection":            {"exec-token", []string{"Connection: Authorization"}, false},
		"no token by Connection":                 {"token", []string{"Connection: close, authorization"}, false},
		"no impersonation by Connection":         {"as", []string{"Connection: Impersonate-User, Impersonate-Group"}, false},
		"a user by a front proxy's field":        {"cert", []string{"X-Remote-User: evil", "X-Remote-Group: system:masters", "X-Remote-Extra-Scopes: all"}, false},
		"a user by a front proxy's field, exec":  {"exec-cert", []string{"x-remote-user: evil"}, false},
		"a cookie":                               {"cert", []string{"Cookie: session=evil"}, false},
		"a proxy's password":                     {"cert", []string{"Proxy-Authorization: Basic YTpi"}, false},
		"an audit id and an address of its own":  {"cert", []string{"Audit-ID: chosen", "X-Forwarded-For: 192.0.2.1", "X-Real-Ip: 192.0.2.1", "Forwarded: for=192.0.2.1"}, false},
		"a token as a subprotocol":               {"cert", []string{"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io." + asToken + ", base64.binary.k8s.io"}, true},
		"a token as a subprotocol, exec":         {"exec-token", []string{"Sec-WebSocket-Protocol: base64.binary.k8s.io, base64url.bearer.authorization.k8s.io." + asToken}, true},
		"a token as a subprotocol of its own":    {"exec-token", []string{"Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io." + asToken, "Sec-WebSocket-Protocol: base64.binary.k8s.io"}, true},
		"an upgrade that drops the credential":   {"exec-token", []string{"Connection: Authorization"}, true},
		"an upgrade that drops whom it is as":    {"as", []string{"Connection: Impersonate-User"}, true},
		"an upgrade with a front proxy's fields": {"cert", []string{"X-Remote-User: evil", "X-Remote-Group: system:masters"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			path, marker := mark("/api/v1/namespaces/default/configmaps")
			fields, want := c.fields, http.StatusOK
			if c.upgrade {
				path, fields, want = strings.Replace(path, "?", "?watch=1&", 1), append(fields, watchUpgrade...), http.StatusSwitchingProtocols
			}
			if a := d.ask(t, question{method: "GET", target: "/contexts/" + c.context + path, fields: fields}); a.code != want {
				t.Errorf("answer %v", a)
			}
			for _, a := range arrivals(t, marker, 1) {
				if user := cluster.Contexts()[c.context]; a.Who() != user {
					t.Errorf("arrived as %q, want %q", a.Who(), user)
				}
				if a.AuditID == "chosen" {
					t.Error("the audit id is the client's")
				}
				if len(a.SourceIPs) == 0 || a.SourceIPs[0] != "127.0.0.1" {
					t.Errorf("source addresses %q", a.SourceIPs)
				}
			}
		})
	}
}

func TestWhatMustNotArriveIsRefused(t *testing.T) {
	d := openDoor(t, nil, "")
	_, port, _ := net.SplitHostPort(d.Kube)
	for name, q := range map[string]question{
		"impersonation":                    {fields: []string{"Impersonate-User: system:admin"}},
		"impersonation of a group":         {fields: []string{"impersonate-group: system:masters"}},
		"impersonation by uid":             {fields: []string{"Impersonate-Uid: 1"}},
		"impersonation with extra":         {fields: []string{"Impersonate-Extra-Scopes: all"}},
		"a rebound name":                   {fields: []string{"Host: rebound.example.com"}},
		"a rebound name with our port":     {fields: []string{"Host: rebound.example.com:" + port}},
		"a name that begins like ours":     {fields: []string{"Host: localhost.example.com"}},
		"a page of another site":           {fields: []string{"Origin: http://evil.example.com"}},
		"a page of no site":                {fields: []string{"Origin: null"}},
		"a page of another port":           {fields: []string{"Origin: http://127.0.0.1:1"}},
		"a browser that says cross-site":   {fields: []string{"Sec-Fetch-Site: cross-site"}},
		"a browser that says same-site":    {fields: []string{"Sec-Fetch-Site: same-site"}},
		"a WebSocket of another site":      {fields: append([]string{"Origin: http://evil.example.com", "Sec-WebSocket-Protocol: base64.binary.k8s.io"}, upgrade...)},
		"a WebSocket at a rebound name":    {fields: append([]string{"Host: rebound.example.com", "Origin: http://rebound.example.com"}, upgrade...)},
		"a form of another site":           {method: "POST", fields: []string{"Origin: http://evil.example.com"}, body: `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}`},
		"an absolute target":               {target: "http://127.0.0.1" + "/contexts/cert" + secrets},
		"an absolute target at the server": {target: "https://" + shared.Server + secrets},
		"dot segments":                     {target: "/contexts/cert/api/v1/namespaces/default/../kube-system/secrets"},
		"dot segments out of the context":  {target: "/contexts/token/../cert" + secrets},
		"escaped dot segments":             {target: "/contexts/cert/api/v1/namespaces/default/%2e%2E/kube-system/secrets"},
		"an empty segment":                 {target: "/contexts/cert/api//v1/namespaces/kube-system/secrets"},
		"a context that cannot be served":  {target: "/contexts/vendor" + secrets},
		"a context that does not exist":    {target: "/contexts/nonsense" + secrets},
	} {
		t.Run(name, func(t *testing.T) {
			if q.method == "" {
				q.method = "GET"
			}
			if q.target == "" {
				q.target = "/contexts/cert" + secrets
			}
			var marker string
			q.target, marker = mark(q.target)
			a := d.ask(t, q)
			if a.code < 400 || a.code == http.StatusUnauthorized {
				t.Errorf("answer %v", a)
			}
			if _, ok := a.status(); !ok {
				t.Errorf("no Status: %v", a)
			}
			// A later request that has arrived shows that this one did not.
			path, after := mark("/api/v1/namespaces")
			d.get(t, "cert", path)
			arrivals(t, after, 1)
			if all, err := shared.Arrivals(marker); err != nil || len(all) > 0 {
				t.Errorf("arrived: %+v, %v", all, err)
			}
		})
	}
	if a := d.ask(t, question{method: "CONNECT", target: shared.Server, fields: nil}); a.code == http.StatusOK {
		t.Errorf("CONNECT: %v", a)
	}
}

func TestHostsThatAreOursAreAnswered(t *testing.T) {
	d := openDoor(t, nil, "")
	_, port, _ := net.SplitHostPort(d.Kube)
	for _, host := range []string{"localhost", "127.0.0.1:1", "[::1]:" + port, "host.docker.internal:" + port, "gateway.docker.internal", "host.containers.internal:80", "172.17.0.1:" + port} {
		a := d.ask(t, question{method: "GET", target: "/contexts/cert/version", fields: []string{"Host: " + host}})
		if a.code != http.StatusOK {
			t.Errorf("Host %s: %v", host, a)
		}
		a = d.ask(t, question{method: "GET", target: "/version", fields: []string{"Host: " + host, "Origin: http://" + host, "Sec-Fetch-Site: same-origin"}})
		if a.code != http.StatusOK {
			t.Errorf("Origin %s: %v", host, a)
		}
	}
}
