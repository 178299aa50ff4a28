package origin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var testSecrets = Secrets{
	GitHub: "gh-canary", AnthropicKey: "key-canary", AnthropicOAuth: "oauth-canary", PagerDuty: "pd-canary", Sentry: "sentry-canary",
	NPM: "npm-canary", DockerUser: "octo", DockerToken: "docker-canary", GitLab: "gitlab-canary",
}

func startServer(t *testing.T) *Server {
	t.Helper()
	s, err := Start(Options{Addr: "127.0.0.1", TLSPorts: []int{0}, PlainPorts: []int{0}, Dir: t.TempDir(), Secrets: testSecrets})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// clientFor reaches every name at the server and trusts both roots.
func clientFor(t *testing.T, s *Server) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Bundle())
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			to := s.TLSAddr()
			if strings.HasSuffix(addr, ":80") {
				to = s.PlainAddr()
			}
			return new(net.Dialer).DialContext(ctx, "tcp", to)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// get asks with the fields given as "Name: value" and gives status and content.
func ask(t *testing.T, c *http.Client, method, url, body string, fields ...string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Header.Add(name, value)
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func TestEachServiceTakesItsOwnFieldAloneAndRefusesInItsOwnShape(t *testing.T) {
	s := startServer(t)
	c := clientFor(t, s)
	body := `{"model":"m","stream":true}`
	version := "Anthropic-Version: 2023-06-01"
	git := "https://github.com" + Repository + "/info/refs?service=git-upload-pack"
	if err := s.StartGit(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, method, url string
		fields            []string
		code              int
		has               string
	}{
		{"github right", "GET", "https://api.github.com/user", []string{"Authorization: Bearer gh-canary"}, 200, "octo-agent"},
		{"github none", "GET", "https://api.github.com/user", nil, 401, "Requires authentication"},
		{"github public without", "GET", "https://api.github.com/zen", nil, 200, "logically"},
		{"github public with a wrong one", "GET", "https://api.github.com/zen", []string{"Authorization: Bearer x"}, 401, "Bad credentials"},
		{"github two", "GET", "https://api.github.com/user", []string{"Authorization: Bearer gh-canary", "Authorization: Bearer gh-canary"}, 401, "Bad credentials"},
		{"github upload", "POST", "https://uploads.github.com/repos/a/b/releases/1/assets?name=x", []string{"Authorization: Bearer gh-canary"}, 201, `"uploaded"`},
		{"git right", "GET", git, []string{"Authorization: " + basic("x-access-token", "gh-canary")}, 200, "git-upload-pack"},
		{"git bearer", "GET", git, []string{"Authorization: Bearer gh-canary"}, 401, "Invalid username or token"},
		{"git none", "GET", git, nil, 401, "not found"},
		{"github pages", "GET", "https://github.com/about", nil, 200, "GitHub"},
		{"anthropic key", "POST", "https://api.anthropic.com/v1/messages", []string{version, "X-Api-Key: key-canary"}, 200, "message_stop"},
		{"anthropic oauth", "POST", "https://api.anthropic.com/v1/messages", []string{version, "Authorization: Bearer oauth-canary", "Anthropic-Beta: a, oauth-2025-04-20"}, 200, "message_stop"},
		{"anthropic oauth without beta", "POST", "https://api.anthropic.com/v1/messages", []string{version, "Authorization: Bearer oauth-canary"}, 401, "not supported"},
		{"anthropic key as bearer", "POST", "https://api.anthropic.com/v1/messages", []string{version, "Authorization: Bearer key-canary"}, 401, "authentication_error"},
		{"anthropic both", "POST", "https://api.anthropic.com/v1/messages", []string{version, "Authorization: Bearer oauth-canary", "X-Api-Key: key-canary"}, 401, "invalid x-api-key"},
		{"pagerduty right", "GET", "https://api.eu.pagerduty.com/users/me", []string{"Authorization: Token token=pd-canary"}, 200, "On Call"},
		{"pagerduty bearer", "GET", "https://api.pagerduty.com/users/me", []string{"Authorization: Bearer pd-canary"}, 401, "2006"},
		{"sentry right", "GET", "https://de.sentry.io/api/0/", []string{"Authorization: Bearer sentry-canary"}, 200, "org:read"},
		{"sentry none", "GET", "https://sentry.io/api/0/", nil, 401, "not provided"},
		{"npm wrong", "GET", "https://" + NPMHost + "/-/whoami", []string{"Authorization: Bearer x"}, 401, "expired"},
		{"docker right", "GET", "https://auth.docker.io/token?service=registry.docker.io&scope=repository:octo/private:pull", []string{"Authorization: " + basic("octo", "docker-canary")}, 200, "access_token"},
		{"docker offline token", "GET", "https://auth.docker.io/token?offline_token=true", []string{"Authorization: " + basic("octo", "docker-canary")}, 200, RefreshToken},
		{"docker wrong", "GET", "https://auth.docker.io/token", []string{"Authorization: Bearer docker-canary"}, 401, "incorrect username"},
		{"docker form", "POST", "https://auth.docker.io/token", []string{"Authorization: " + basic("octo", "docker-canary")}, 401, "incorrect username"},
		{"gitlab right", "GET", "https://" + GitLab + "/api/v4/x", []string{"Private-Token: gitlab-canary"}, 200, "/api/v4/x"},
		{"gitlab none", "GET", "https://" + GitLab + "/api/v4/x", nil, 401, "401 Unauthorized"},
		{"ruled host without TLS", "GET", "http://api.github.com/user", nil, 301, "https://api.github.com/user"},
		{"tunnel", "GET", "https://" + Tunnel + "/a%2Fb?c=%2B", nil, 200, `"target":"/a%2Fb?c=%2B"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			content := ""
			if tt.method == "POST" {
				content = body
			}
			code, got := ask(t, c, tt.method, tt.url, content, tt.fields...)
			if code != tt.code || !strings.Contains(got, tt.has) {
				t.Errorf("got %d %s, want %d with %q", code, got, tt.code, tt.has)
			}
		})
	}
}

func TestRecordHoldsWhatArrived(t *testing.T) {
	s := startServer(t)
	c := clientFor(t, s)
	r, err := http.NewRequest("POST", "https://"+Tunnel+"/a%2fb?q=%2B&x", io.MultiReader(strings.NewReader("content")))
	if err != nil {
		t.Fatal(err)
	}
	r.Header["X-Two"] = []string{"1", "2"}
	r.Trailer = http.Header{"X-Api-Key": {"late"}}
	if _, err := c.Do(r); err != nil {
		t.Fatal(err)
	}
	got := s.Requests(Tunnel)
	if len(got) != 1 {
		t.Fatalf("%d requests recorded, want 1", len(got))
	}
	x := got[0]
	if x.Method != "POST" || x.Target != "/a%2fb?q=%2B&x" || x.SNI != Tunnel || x.ALPN != "h2" || x.Bytes != 7 || x.Status != 200 || len(x.Header["X-Two"]) != 2 {
		t.Errorf("recorded %+v", x)
	}
	if values := x.AuthFields()["X-Api-Key"]; len(values) != 1 || values[0] != "late" {
		t.Errorf("auth fields %v, want the one in the trailer section", x.AuthFields())
	}
}

func TestEarlyHintsTrailersAndGateReachTheClient(t *testing.T) {
	s := startServer(t)
	c := clientFor(t, s)
	hints := 0
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints += code; return nil }}
	r, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", "https://"+Tunnel+"/early", nil)
	if _, err := c.Do(r); err != nil || hints != 103 {
		t.Errorf("early hints: %d, %v", hints, err)
	}
	answer, err := c.Get("https://" + Tunnel + "/trailers")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	if answer.Trailer.Get("X-Checksum") != "abc123" || answer.Trailer.Get("X-Late") != "undeclared" {
		t.Errorf("trailers %v", answer.Trailer)
	}
	done := make(chan string)
	go func() { _, text := ask(t, c, "GET", "https://"+Tunnel+"/gate/g", ""); done <- text }()
	<-s.Gate("g").Arrived()
	s.Gate("g").Open()
	if got := <-done; got != "through the gate\n" {
		t.Errorf("gate gave %q", got)
	}
}

func TestEventsWaitForTheirReader(t *testing.T) {
	s := startServer(t)
	c := clientFor(t, s)
	answer, err := c.Get("https://" + Tunnel + "/sse?id=e&n=3")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var got []string
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			got = append(got, data)
			ask(t, c, "GET", "https://"+Tunnel+"/sse/ack?id=e", "")
		}
	}
	if strings.Join(got, " ") != "0 1 2" {
		t.Errorf("events %q", got)
	}
}

func TestWebSocketEchoesFrames(t *testing.T) {
	s := startServer(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Bundle())
	conn, err := tls.Dial("tcp", s.TLSAddr(), &tls.Config{RootCAs: roots, ServerName: Tunnel})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: "+Tunnel+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	// A masked text frame "hi" with the mask 0.
	_, _ = conn.Write([]byte{0x81, 0x82, 0, 0, 0, 0, 'h', 'i'})
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, nil)
	if err != nil || answer.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("handshake %v, %v", answer, err)
	}
	frame := make([]byte, 4)
	if _, err := io.ReadFull(in, frame); err != nil || !bytes.Equal(frame, []byte{0x81, 2, 'h', 'i'}) {
		t.Errorf("frame %x, %v", frame, err)
	}
}

func TestChatStreamsBothWaysAndEndsWithTrailers(t *testing.T) {
	s := startServer(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.Bundle())
	conn, err := grpc.NewClient("passthrough:///"+s.TLSAddr(), grpc.WithAuthority(Tunnel),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: Tunnel})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	chat, err := Chat(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two", "fail"} {
		if err := chat.SendMsg(wrapperspb.String(word)); err != nil {
			t.Fatal(err)
		}
		out := new(wrapperspb.StringValue)
		err := chat.RecvMsg(out)
		if word == "fail" {
			if status.Code(err) != codes.Aborted || chat.Trailer().Get("chat-count")[0] != "2" {
				t.Errorf("end %v, trailer %v", err, chat.Trailer())
			}
		} else if err != nil || out.Value != "echo "+word {
			t.Errorf("answer %q, %v", out.Value, err)
		}
	}
}

func TestGitClonesAndPushesThroughTheBackend(t *testing.T) {
	s := startServer(t)
	if err := s.StartGit(); err != nil {
		t.Fatal(err)
	}
	relay := httptest.NewServer(connectRelay(s))
	t.Cleanup(relay.Close)
	bundle := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.WriteFile(bundle, s.Bundle(), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-euc", `
		git -c http.extraHeader="$FIELD" clone -q "$URL" a
		cd a && head -c 3000000 /dev/urandom > big && git add . && git -c user.name=a -c user.email=a@b commit -qm big
		git -c http.extraHeader="$FIELD" push -q origin main
		git -c http.extraHeader="$FIELD" clone -q "$URL" ../b && cmp big ../b/big`)
	cmd.Dir = t.TempDir()
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + cmd.Dir, "HTTPS_PROXY=" + relay.URL, "GIT_SSL_CAINFO=" + bundle, "GIT_TERMINAL_PROMPT=0",
		"FIELD=Authorization: " + basic("x-access-token", testSecrets.GitHub), "URL=https://github.com" + Repository,
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("git: %v: %s", err, out)
	}
}

// connectRelay is a proxy that leads every CONNECT to the server.
func connectRelay(s *Server) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up, err := net.Dial("tcp", s.TLSAddr())
		if err != nil || r.Method != http.MethodConnect {
			http.Error(w, "CONNECT alone", http.StatusBadGateway)
			return
		}
		defer up.Close()
		down, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer down.Close()
		_, _ = io.WriteString(down, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(up, down); _ = up.Close() }()
		_, _ = io.Copy(down, up)
	})
}
