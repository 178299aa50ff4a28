package http

import (
	"net/http"
	"strings"
	"testing"

	"muxproxy/e2e/origin"
)

// noCredential fails if any of our credentials is in a request.
func noCredential(t *testing.T, w *world, requests []origin.Request) {
	t.Helper()
	for _, r := range requests {
		for name, values := range r.AuthFields() {
			for _, v := range values {
				for _, canary := range w.canaries() {
					if strings.Contains(v, canary) {
						t.Errorf("%s %s got a credential in %s", r.Host, r.Target, name)
					}
				}
			}
		}
	}
}

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
			conn := c.intercepted(t, tt.connect, tt.sni, "http/1.1")
			got := exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n")
			if got.code != http.StatusMisdirectedRequest {
				t.Errorf("status %d, want 421", got.code)
			}
			for host := range strings.FieldsSeq("api.github.com uploads.github.com sentry.io") {
				if sent := w.origins.RequestsFor(host, q); len(sent) > 0 {
					t.Errorf("%s got %d requests", host, len(sent))
				}
			}
			line := w.main.lastLine(t, strings.TrimSuffix(tt.connect, ":443"))
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
			conn := c.intercepted(t, tt.connect, "api.github.com", "http/1.1")
			got := exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: "+tt.host+"\r\n\r\n")
			if got.code != http.StatusOK {
				t.Fatalf("status %d: %s", got.code, got.body)
			}
			if line := w.main.lastLine(t, "api.github.com"); line.Decision != "injected" || !line.Injected {
				t.Errorf("audit line %+v", line)
			}
		})
	}
}

func TestNoCredentialLeavesToAnotherPortOrWithoutTLS(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	auth := "Authorization: Bearer one\r\nX-Api-Key: two\r\nProxy-Authorization: Basic b25lOnR3bw==\r\n"
	t.Run("CONNECT to 8443", func(t *testing.T) {
		q := mark(t, 0)
		conn := c.intercepted(t, "api.github.com:8443", "api.github.com", "http/1.1")
		exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com:8443\r\n\r\n")
		got := w.origins.RequestsFor("api.github.com", q)
		if len(got) != 1 {
			t.Fatalf("%d requests arrived", len(got))
		}
		noCredential(t, w, got)
	})
	t.Run("http of a ruled host", func(t *testing.T) {
		q := mark(t, 0)
		got := c.plain(t, "GET http://api.github.com/lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com\r\n"+auth+"\r\n")
		if got.code != http.StatusMovedPermanently {
			t.Errorf("status %d", got.code)
		}
		if sent := w.origins.RequestsFor("api.github.com", q); len(sent) != 1 || len(sent[0].AuthFields()) != 0 {
			t.Errorf("arrived %+v", sent)
		}
	})
	t.Run("http of another host", func(t *testing.T) {
		q := mark(t, 0)
		c.plain(t, "GET http://"+origin.Tunnel+"/x?"+q+" HTTP/1.1\r\nHost: "+origin.Tunnel+"\r\n"+auth+"\r\n")
		sent := w.origins.RequestsFor(origin.Tunnel, q)
		if len(sent) != 1 || sent[0].AuthFields().Get("Proxy-Authorization") != "" || sent[0].AuthFields().Get("Authorization") != "Bearer one" {
			t.Errorf("arrived %+v", sent)
		}
	})
	t.Run("CONNECT to 80 with plain HTTP inside", func(t *testing.T) {
		q := mark(t, 0)
		conn, code := c.connect(t, "api.github.com:80")
		if code == http.StatusOK {
			exchange(t, conn, "GET /lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
		}
		noCredential(t, w, w.origins.RequestsFor("api.github.com", q))
	})
	t.Run("absolute-form https", func(t *testing.T) {
		q := mark(t, 0)
		got := c.plain(t, "GET https://api.github.com/lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
		if got.code != http.StatusBadRequest || !strings.Contains(got.body, "CONNECT") {
			t.Errorf("status %d: %s", got.code, got.body)
		}
		if sent := w.origins.RequestsFor("api.github.com", q); len(sent) > 0 {
			t.Errorf("arrived %+v", sent)
		}
	})
	t.Run("bytes that are not TLS", func(t *testing.T) {
		q := mark(t, 0)
		conn, _ := c.connect(t, "api.github.com:443")
		_, _ = conn.Write([]byte("GET /lab/x?" + q + " HTTP/1.1\r\nHost: api.github.com\r\n\r\n"))
		if n, _ := conn.Read(make([]byte, 1)); n > 0 && len(w.origins.RequestsFor("api.github.com", q)) > 0 {
			t.Error("plain HTTP on an intercepted port was passed on")
		}
	})
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
