package http

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"muxproxy/e2e/origin"
)

// paths of the same page with and without a rule: what an intercepted and a tunneled request share.
var pages = []struct{ name, base string }{
	{"intercepted", "https://api.github.com/lab"},
	{"tunneled", "https://" + origin.Tunnel},
}

func TestTheTargetArrivesByteForByte(t *testing.T) {
	w := theWorld(t)
	for i, target := range []string{
		`/lab/a%2Fb?q=%2B&x=;y&z`, `/lab/%7euser/..%2f?a=%zz`, `/lab/"q"|x`, `/lab//double`, `/lab/a?`, `/lab/?a=http://x//y`,
	} {
		t.Run(target, func(t *testing.T) {
			sep := "?"
			if strings.Contains(target, "?") {
				sep = "&"
			}
			q := sep + mark(t, i)
			w.main.client(t).raw(t, "api.github.com:443", "GET "+target+q+" HTTP/1.1\r\nHost: api.github.com\r\n\r\n")
			got := w.origins.RequestsFor("api.github.com", q)
			if len(got) != 1 || got[0].Target != target+q {
				t.Errorf("arrived %+v", got)
			}
		})
	}
}

func TestEarlyHintsAndTrailersReachTheClient(t *testing.T) {
	w := theWorld(t)
	for _, page := range pages {
		for _, protocol := range []string{"http/1.1", "h2"} {
			t.Run(page.name+" "+protocol, func(t *testing.T) {
				web := w.main.client(t).web(t, protocol)
				hints := 0
				trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints = code; return nil }}
				r := request(t, http.MethodGet, page.base+"/early", "", nil)
				got, err := do(t, web, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
				if err != nil || got.body != "after early hints\n" || hints != http.StatusEarlyHints {
					t.Errorf("early hints: %d, %q, %v", hints, got.body, err)
				}
				got, err = do(t, web, request(t, http.MethodGet, page.base+"/trailers", "", nil))
				if err != nil || got.trailer.Get("X-Checksum") != "abc123" {
					t.Errorf("trailers %v, %v", got.trailer, err)
				}
			})
		}
	}
}

func TestEachEventIsHandedOnBeforeTheNextIsSent(t *testing.T) {
	w := theWorld(t)
	for _, page := range pages {
		for _, protocol := range []string{"http/1.1", "h2"} {
			t.Run(page.name+" "+protocol, func(t *testing.T) {
				web := w.main.client(t).web(t, protocol)
				id := page.name + protocol[:2]
				r, err := web.Do(request(t, http.MethodGet, page.base+"/sse?n=5&id="+id, "", nil))
				if err != nil {
					t.Fatal(err)
				}
				defer r.Body.Close()
				var got []string
				for lines := bufio.NewScanner(r.Body); lines.Scan(); {
					if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
						got = append(got, data)
						if _, err := do(t, web, request(t, http.MethodGet, page.base+"/sse/ack?id="+id, "", nil)); err != nil {
							t.Fatal(err)
						}
					}
				}
				if strings.Join(got, " ") != "0 1 2 3 4" {
					t.Errorf("events %q", got)
				}
			})
		}
	}
}

func TestWebSocketFramesGoBothWays(t *testing.T) {
	w := theWorld(t)
	for _, page := range pages {
		t.Run(page.name, func(t *testing.T) {
			host, path, _ := strings.Cut(strings.TrimPrefix(page.base, "https://"), "/")
			if path != "" {
				path = "/" + path
			}
			conn := w.main.client(t).intercepted(t, host+":443", host, "http/1.1")
			_, _ = io.WriteString(conn, "GET "+path+"/ws HTTP/1.1\r\nHost: "+host+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
			// The first frame goes out before the answer is there: no early byte may be lost.
			_, _ = conn.Write([]byte{0x81, 0x82, 0, 0, 0, 0, 'h', 'i'})
			in := bufio.NewReader(conn)
			got, err := http.ReadResponse(in, nil)
			if err != nil || got.StatusCode != http.StatusSwitchingProtocols || got.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Fatalf("handshake %v, %v", got, err)
			}
			frame := make([]byte, 4)
			if _, err := io.ReadFull(in, frame); err != nil || string(frame) != "\x81\x02hi" {
				t.Errorf("frame %x, %v", frame, err)
			}
		})
	}
}

func TestOtherUpgradesThanWebSocketAreNotPassedOn(t *testing.T) {
	w := theWorld(t)
	q := mark(t, 0)
	w.main.client(t).raw(t, "api.github.com:443", "GET /lab/x?"+q+" HTTP/1.1\r\nHost: api.github.com\r\n"+
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
	for _, r := range w.origins.RequestsFor("api.github.com", q) {
		if r.Header.Get("Upgrade") != "" || r.Header.Get("Http2-Settings") != "" {
			t.Errorf("the service got %v", r.Header)
		}
	}
}

func TestGRPCStreamsBothWaysAndEndsWithItsStatus(t *testing.T) {
	w := theWorld(t)
	c := w.main.client(t)
	// The content of a gRPC call to a ruled host goes through the file rule's host, whose pages are at the root as gRPC wants them.
	for _, host := range []string{origin.GitLab, origin.Tunnel} {
		t.Run(host, func(t *testing.T) {
			dial := func(context.Context, string) (net.Conn, error) { return c.intercepted(t, host+":443", host, "h2"), nil }
			// TLS is made by the dialer, which knows the proxy.
			conn, err := grpc.NewClient("passthrough:///"+host, grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			chat(t, conn)
		})
	}
}

func chat(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	stream, err := origin.Chat(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two", "fail"} {
		if err := stream.SendMsg(wrapperspb.String(word)); err != nil {
			t.Fatal(err)
		}
		out := new(wrapperspb.StringValue)
		err := stream.RecvMsg(out)
		switch {
		case word == "fail":
			if counts := stream.Trailer().Get("chat-count"); status.Code(err) != codes.Aborted || len(counts) != 1 || counts[0] != "2" {
				t.Errorf("end %v, trailer %v", err, stream.Trailer())
			}
		case err != nil || out.Value != "echo "+word:
			t.Fatalf("answer %q, %v", out.Value, err)
		}
	}
}

// bulk is the size of the large transfers, bytes.
const bulk = 64 << 20

func TestLargeContentGoesBothWaysUnchanged(t *testing.T) {
	w := theWorld(t)
	want := sha256.New()
	_, _ = io.Copy(want, origin.Pattern(bulk))
	sum := hex.EncodeToString(want.Sum(nil))
	for _, base := range []string{"https://" + origin.GitLab + "/api", "https://" + origin.Tunnel} {
		for _, protocol := range []string{"http/1.1", "h2"} {
			t.Run(base+" "+protocol, func(t *testing.T) {
				web := w.main.client(t).web(t, protocol)
				q := mark(t, 0)
				up := request(t, http.MethodPut, base+"/v4/upload?"+q, "", nil)
				up.Body, up.ContentLength = io.NopCloser(origin.Pattern(bulk)), bulk
				if got, err := do(t, web, up); err != nil || got.code != http.StatusOK {
					t.Fatalf("upload: status %d, %v", got.code, err)
				}
				host := up.URL.Hostname()
				if got := w.origins.RequestsFor(host, q); len(got) != 1 || got[0].SHA256 != sum {
					t.Errorf("the upload arrived as %+v", got)
				}
			})
		}
	}
	t.Run("download", func(t *testing.T) {
		for _, page := range pages {
			r, err := w.main.client(t).web(t, "http/1.1").Do(request(t, http.MethodGet, fmt.Sprintf("%s/bytes?n=%d", page.base, bulk), "", nil))
			if err != nil {
				t.Fatal(err)
			}
			got := sha256.New()
			if _, err := io.Copy(got, r.Body); err != nil || r.ContentLength != bulk || hex.EncodeToString(got.Sum(nil)) != sum {
				t.Errorf("%s: content differs, length %d, %v", page.name, r.ContentLength, err)
			}
			_ = r.Body.Close()
		}
	})
}
