package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// The tests in this file hold what an attack on the whole program found.

func TestTeTrailersSendsTheTargetOnceAndAsCleaned(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{env: map[string]string{"GITHUB_TOKEN": canary, "DOCKER_USERNAME": "u", "DOCKER_TOKEN": canary}})
	for url, want := range map[string]string{
		"https://auth.docker.io/token?service=s&offline_token=true&client_id=x": "/token?service=s&client_id=x",
		"https://api.github.com/a%2Fb?c=%2B;d&e":                                "/a%2Fb?c=%2B;d&e",
		"https://api.github.com/?":                                              "/?",
	} {
		r, _ := http.NewRequest("GET", url, nil)
		r.Header.Set("Te", "trailers")
		res, err := p.client(t, 2).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := o.take()[0]; got.RequestURI != want || got.ProtoMajor != 2 {
			t.Errorf("%s: the upstream got %s %s, want %s", url, got.Proto, got.RequestURI, want)
		}
	}
}

// TestTheWatchLeavesAWebSocketAlone calls by hand what the timer of a long exchange would.
func TestTheWatchLeavesAWebSocketAlone(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	h := newHTTP1Conn(server)
	h.lim.lift()
	h.beginWatch(&requestBody{}, func() {})
	h.watch.body.done.Store(true)
	s := h.upgraded()
	h.watchNow()
	go io.WriteString(client, "message")
	got := make([]byte, len("message"))
	if _, err := io.ReadFull(s, got); err != nil || string(got) != "message" {
		t.Errorf("read %q, %v", got, err)
	}
	if h.watch.gone != nil {
		t.Error("the watch reads an upgraded connection")
	}
}

func TestAStatusBelow100IsAFailedUpstream(t *testing.T) {
	server := rawServer(t, func(_ int, conn net.Conn, br *bufio.Reader) {
		http.ReadRequest(br)
		io.WriteString(conn, "HTTP/1.1 099 odd\r\n\r\n"+okAnswer)
	})
	if _, err := newUpstream(loopbackDialer(), nil).RoundTrip(rawRequest(t, server, "GET", nil)); err == nil {
		t.Error("a status code of 99 is an answer")
	}
}

func TestAnAnswerWithoutContentKeepsItsConnection(t *testing.T) {
	p, o := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		var code int
		if n, _ := fmt.Sscanf(r.URL.Path, "/%d", &code); n == 1 {
			w.WriteHeader(code)
		}
	})
	client := p.client(t, 1)
	for _, c := range []struct{ method, path string }{{"GET", "/204"}, {"GET", "/304"}, {"HEAD", "/"}, {"GET", "/empty"}} {
		from := ""
		for range 3 {
			r, _ := http.NewRequest(c.method, "https://api.github.com"+c.path, nil)
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			got := o.take()[0]
			if from != "" && got.RemoteAddr != from {
				t.Errorf("%s %s: another connection to the upstream", c.method, c.path)
			}
			from = got.RemoteAddr
		}
	}
}

// gitlabRules are rules with a field of their own.
func gitlabRules() []*rule {
	return []*rule{{service: "gitlab", config: "proxy.toml", line: 1, hosts: on443("gitlab.example.com"),
		sources: []source{{field: "Private-Token", format: "{}", env: []string{"GITLAB_TOKEN"}}}}}
}

func TestNoOtherSpellingOfTheRulesFieldGoesOut(t *testing.T) {
	o := newOrigin(t, func(http.ResponseWriter, *http.Request) {})
	p := newTestProxy(t, o, testProxyOptions{rules: gitlabRules(), env: map[string]string{"GITLAB_TOKEN": canary}})
	exchangeRaw(t, p.intercepted(t, "gitlab.example.com:443", "gitlab.example.com"),
		"GET / HTTP/1.1\r\nHost: gitlab.example.com\r\nPrivate_Token: a\r\nprivate-token: b\r\nX_API_KEY: c\r\nX_Other: d\r\n\r\n")
	got := o.take()[0].Header
	if len(got) != 2 || got.Get("Private-Token") != canary || got.Get("X_Other") != "d" {
		t.Errorf("the upstream got %v", got)
	}
}

func TestTheRulesFieldLeavesNoPlainRequest(t *testing.T) {
	o := newPlainOrigin(t)
	p := newTestProxy(t, o, testProxyOptions{rules: gitlabRules(), env: map[string]string{"GITLAB_TOKEN": canary}})
	conn, err := dialProxy(p)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exchangeRaw(t, conn, "GET http://gitlab.example.com/ HTTP/1.1\r\nHost: x\r\nPrivate-Token: mine\r\nX-Api-Key: k\r\n\r\n")
	if got := o.take()[0].Header; len(got) != 0 {
		t.Errorf("the upstream got %v", got)
	}
}

// TestAClientThatLeavesAStalledUploadEndsIt is for HTTP/2 upstreams, whose server has begun to answer and reads nothing.
func TestAClientThatLeavesAStalledUploadEndsIt(t *testing.T) {
	ended := make(chan struct{})
	p, _ := githubProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(ended)
	})
	ctx, cancel := context.WithCancel(t.Context())
	more, _ := io.Pipe() // a client that sends nothing more, until its Transport gives up
	body := struct {
		io.Reader
		io.Closer
	}{io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), more), more}
	r, _ := http.NewRequestWithContext(ctx, "POST", "https://api.github.com/", body)
	r.Header = http.Header{"Te": {"trailers"}, "X-Stream": {"1"}}
	res, err := p.client(t, 2).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	res.Body.Close()
	<-ended
	p.quiesce()
	if l := p.lastLine(t); l.Open || l.Code != 200 || l.Error == "" {
		t.Errorf("audit line %+v", l)
	}
}
