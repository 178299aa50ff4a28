package http

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"muxproxy/e2e/origin"
)

func TestTheConnectHostDecidesAndAnyOtherNameInsideIsMisdirected(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	for i, tt := range []struct{ name, connect, sni, host string }{
		{"foreign Host field", "sentry.io:443", "sentry.io", "api.github.com"},
		{"own service, other host", "api.github.com:443", "api.github.com", "uploads.github.com"},
		{"foreign SNI", "sentry.io:443", "api.github.com", "sentry.io"},
		{"foreign SNI and Host", "sentry.io:443", "api.github.com", "api.github.com"},
		{"port in Host", "api.github.com:443", "api.github.com", "api.github.com:8443"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := mark(t, i)
			var got answer
			line := w.main.newLine(t, strings.TrimSuffix(tt.connect, ":443"), func() {
				conn := c.intercepted(t, tt.connect, tt.sni, "http/1.1")
				got = exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n")
			})
			if got.code != http.StatusMisdirectedRequest {
				t.Errorf("status %d, want 421", got.code)
			}
			for host := range strings.FieldsSeq("api.github.com uploads.github.com sentry.io") {
				if sent := w.origins.RequestsFor(host, q); len(sent) > 0 {
					t.Errorf("%s got %d requests", host, len(sent))
				}
			}
			if line.Decision != "denied" || line.Code != http.StatusMisdirectedRequest || line.Injected {
				t.Errorf("audit line %+v", line)
			}
			if !strings.Contains(got.body, line.ID) {
				t.Errorf("the refusal does not name the audit id %q: %s", line.ID, got.body)
			}
		})
	}
}

func TestATunnelToAnUnruledHostCarriesNoCredentialWhateverItNames(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	q := mark(t, 0)
	conn := c.intercepted(t, origin.Tunnel+":443", origin.Tunnel, "http/1.1")
	exchange(t, conn, "GET /x?"+q+" HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
	got := w.origins.RequestsFor("api.github.com", q)
	if len(got) != 1 || len(got[0].AuthFields()) != 0 {
		t.Errorf("the tunnel's end got %+v", got)
	}
	if line := w.main.lastLine(t, origin.Tunnel); line.Decision != "tunneled" || line.Service != "" || line.Injected {
		t.Errorf("audit line %+v", line)
	}
}

func TestSpellingsOfARuledHostReachTheRealOneWithItsCredential(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	for i, tt := range []struct{ connect, host string }{
		{"API.GITHUB.COM:443", "api.github.com"},
		{"api.github.com.:443", "api.github.com"},
		{"Api.GitHub.com.:443", "API.github.com."},
		{"api.github.com:443", "api.github.com:443"},
	} {
		t.Run(tt.connect, func(t *testing.T) {
			q := mark(t, i)
			line := w.main.newLine(t, "api.github.com", func() {
				conn := c.intercepted(t, tt.connect, "api.github.com", "http/1.1")
				got := exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n")
				if got.code != http.StatusOK {
					t.Fatalf("status %d: %s", got.code, got.body)
				}
			})
			if line.Decision != "injected" || !line.Injected {
				t.Errorf("audit line %+v", line)
			}
		})
	}
}

func TestNoCredentialLeavesToAnotherPortOrWithoutTLS(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	auth := "Authorization: Bearer one\r\nX-Api-Key: two\r\nProxy-Authorization: Basic b25lOnR3bw==\r\n"
	head := func(target, host string) string {
		return "GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + auth + "\r\n"
	}
	plain := func(target, host string) func(*testing.T, string) answer {
		return func(t *testing.T, q string) answer { return c.plain(t, head(target+"?"+q, host)) }
	}
	for i, tt := range []struct {
		name, host string
		ask        func(t *testing.T, q string) answer
		code       int         // 0: any
		decision   string      // of the audit line
		arrives    http.Header // auth fields at the service; nil where nothing may arrive
	}{
		{"CONNECT to 8443", "api.github.com", func(t *testing.T, q string) answer {
			conn := c.intercepted(t, "api.github.com:8443", "api.github.com", "http/1.1")
			defer conn.Close()
			return exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com:8443\r\n\r\n")
		}, http.StatusUnauthorized, "tunneled", http.Header{}},
		{"CONNECT to 80 with plain HTTP inside", "api.github.com", func(t *testing.T, q string) answer {
			conn, code := c.connect(t, "api.github.com:80")
			defer conn.Close()
			if code != http.StatusOK {
				t.Fatalf("CONNECT: status %d", code)
			}
			return exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
		}, http.StatusMovedPermanently, "tunneled", http.Header{}},
		{"http of a ruled host", "api.github.com", plain("http://api.github.com/lab/x", "api.github.com"),
			http.StatusMovedPermanently, "forwarded", http.Header{}},
		{"http of another host", origin.Tunnel, plain("http://"+origin.Tunnel+"/x", origin.Tunnel),
			http.StatusOK, "forwarded", http.Header{"Authorization": {"Bearer one"}, "X-Api-Key": {"two"}}},
		{"absolute-form https", "api.github.com", plain("https://api.github.com/lab/x", "api.github.com"), http.StatusBadRequest, "denied", nil},
		{"bytes that are not TLS", "api.github.com", func(t *testing.T, q string) answer {
			conn, _ := c.connect(t, "api.github.com:443")
			_, _ = conn.Write([]byte(head("/lab/x?"+q, "api.github.com")))
			_, _ = io.Copy(io.Discard, conn)
			return answer{}
		}, 0, "denied", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := mark(t, i)
			line := w.main.newLine(t, tt.host, func() {
				if got := tt.ask(t, q); tt.code != 0 && got.code != tt.code {
					t.Errorf("status %d, want %d: %s", got.code, tt.code, got.body)
				}
			})
			if line.Decision != tt.decision || line.Injected {
				t.Errorf("audit line %+v, want it %s", line, tt.decision)
			}
			sent := w.origins.RequestsFor(tt.host, q)
			if tt.arrives == nil && len(sent) > 0 {
				t.Fatalf("arrived %+v", sent)
			}
			if tt.arrives != nil && (len(sent) != 1 || !maps.EqualFunc(sent[0].AuthFields(), tt.arrives, slices.Equal)) {
				t.Errorf("arrived %+v, want auth fields %v", sent, tt.arrives)
			}
		})
	}
}

func TestAddressesThatAreNotOfTheInternetAreRefused(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	for authority := range strings.FieldsSeq(`127.0.0.1:80 [::1]:80 0.0.0.0:80 169.254.169.254:80 10.1.2.3:443 [fd00::1]:443 [::ffff:127.0.0.1]:443
		[64:ff9b::7f00:1]:443 [2002:7f00:1::]:443 2130706433:80 0177.0.0.1:80 0x7f.1:80 localhost:80 127.0.0.1:18080 127.0.0.1:18081
		host.docker.internal:22 host.docker.internal:18080 224.0.0.1:443`) {
		t.Run(authority, func(t *testing.T) {
			_, code := c.connect(t, authority)
			if code < 400 {
				t.Errorf("status %d", code)
			}
		})
	}
}

func TestTRACEIsRefusedWhereACredentialWouldComeBack(t *testing.T) {
	w := theWorld(t)
	for _, protocol := range []string{"http/1.1", "h2"} {
		q := mark(t, 0)
		r := request(t, http.MethodTrace, "https://api.github.com/lab/x?"+q, "", nil)
		got, err := do(t, w.main.client(t).web(t, protocol), r)
		if err != nil {
			t.Fatal(err)
		}
		if got.code < 400 || len(w.origins.RequestsFor("api.github.com", q)) > 0 {
			t.Errorf("%s: status %d, arrived %+v", protocol, got.code, w.origins.RequestsFor("api.github.com", q))
		}
	}
}

func TestRedirectReachesTheClientAndTheNextHostGetsNoCredential(t *testing.T) {
	w := theWorld(t)
	web := w.main.client(t).web(t, "http/1.1")
	q := mark(t, 0)
	next := "https://" + origin.Other + "/landed?" + q
	got, err := do(t, web, request(t, http.MethodGet, "https://api.github.com/lab/redirect?to="+next, "", nil))
	if err != nil {
		t.Fatal(err)
	}
	if got.code != http.StatusFound || got.header.Get("Location") != next {
		t.Fatalf("status %d to %q", got.code, got.header.Get("Location"))
	}
	if len(w.origins.RequestsFor(origin.Other, q)) > 0 {
		t.Fatal("the proxy followed the redirect")
	}
	if _, err := do(t, web, request(t, http.MethodGet, next, "", nil)); err != nil {
		t.Fatal(err)
	}
	sent := w.origins.RequestsFor(origin.Other, q)
	if len(sent) != 1 || len(sent[0].AuthFields()) != 0 {
		t.Errorf("the next host got %+v", sent)
	}
}
