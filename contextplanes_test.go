package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// contextPorts gives the config of the planes' ports: free ones of loopback, as in host.configure.
func contextPorts(t *testing.T) (toml string, kube, talos int) {
	t.Helper()
	var ports [2]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return fmt.Sprintf("k8s_proxy_port = %d\ntalos_gateway_port = %d\n", ports[0], ports[1]), ports[0], ports[1]
}

// echoAPIServer answers every request with what authenticates it.
func echoAPIServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Method, " ", r.RequestURI, " ", r.Header.Get("Authorization"))
	}))
	t.Cleanup(s.Close)
	return s
}

// kubeconfig writes the host's ~/.kube/config with one context for server.
func (h *host) kubeconfig(t *testing.T, context, server string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(h.home, ".kube"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(h.home, ".kube/config"), fmt.Sprintf(`
current-context: %[1]s
contexts: [{name: %[1]s, context: {cluster: c, user: u, namespace: team}}]
clusters: [{name: c, cluster: {server: "%[2]s", insecure-skip-tls-verify: true}}]
users: [{name: u, user: {token: %[3]s}}]
`, context, server, canary), 0o600)
}

// talosconfig writes the host's ~/.talos/config with one context.
func (h *host) talosconfig(t *testing.T, context string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(h.home, ".talos"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := talosconfigText(t, context, map[string]*talosContextYAML{context: newTestTalosCA(t).context(t, "os:admin", "127.0.0.1:1")})
	write(t, filepath.Join(h.home, ".talos/config"), string(text), 0o600)
}

func TestTheHostsContextsAreServedAndContainersAreToldOfThem(t *testing.T) {
	api := echoAPIServer(t)
	h := newHost(t)
	h.kubeconfig(t, "dev", api.URL)
	h.talosconfig(t, "lab")
	ports, kube, talos := contextPorts(t)
	h.configure(t, ports)
	d := h.start(t)
	d.await(t, fmt.Sprintf("listening on 127.0.0.1:%d", kube))

	args := h.run(t, "print-docker-args", "--format", "lines").stdout
	for _, want := range []string{
		h.mux("kube") + ":/etc/mux/kube:ro", "KUBECONFIG=/etc/mux/kube/config", h.mux("talos") + ":/etc/mux/talos:ro", "TALOSCONFIG=/etc/mux/talos/config",
	} {
		if !strings.Contains(args, want+"\n") {
			t.Errorf("no %q in\n%s", want, args)
		}
	}
	for file, want := range map[string]string{
		"kube/config":  fmt.Sprintf("http://host.docker.internal:%d/contexts/dev", kube),
		"talos/config": fmt.Sprintf("host.docker.internal:%d", talos),
	} {
		text, err := os.ReadFile(h.mux(file))
		if err != nil || !strings.Contains(string(text), want) || strings.Contains(string(text), canary) || strings.Contains(string(text), "key:") {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
	}
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/contexts/dev/api?x", kube))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, _ := io.ReadAll(res.Body); string(got) != "GET /api?x Bearer "+canary {
		t.Errorf("the API server got %q", got)
	}
	d.stop(t).wants(t, 0, `kube context \"dev\": on, access no-credentials`, `talos context \"lab\": on, access no-credentials`, fmt.Sprintf("listening on 127.0.0.1:%d", talos))
	if log, err := os.ReadFile(h.mux("audit.jsonl")); err != nil || bytes.Contains(log, []byte(canary)) || !bytes.Contains(log, []byte(`"plane":"kube"`)) {
		t.Errorf("%v\n%s", err, log)
	}
}

func TestAKubeconfigThatComesLaterOpensThePort(t *testing.T) {
	h := newHost(t)
	ports, kube, _ := contextPorts(t)
	port := h.configure(t, ports)
	d, _ := h.open(t)
	if len(d.ports()) != 1 {
		t.Fatalf("%d ports are open with nothing to serve", len(d.ports()))
	}
	if to := d.handover(authority{"host.docker.internal", uint16(kube)}); to != nil {
		t.Error("a plane that is off is handed connections")
	}
	h.kubeconfig(t, "kind", echoAPIServer(t).URL)
	if err := d.reload(); err != nil {
		t.Fatal(err)
	}
	if len(d.ports()) != 2 || !exists(h.mux("kube/config")) {
		t.Errorf("%d ports", len(d.ports()))
	}
	if s := d.healthReport(); s.Planes["kube"].State != "on" || len(s.Kube) != 1 || !slices.Equal(s.Listen, []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("127.0.0.1:%d", kube)}) {
		t.Errorf("%+v", s)
	}
}

func TestOnlyThePortsOfPlanesThatAreOnAreHandedOver(t *testing.T) {
	h := newHost(t)
	h.kubeconfig(t, "dev", echoAPIServer(t).URL)
	h.talosconfig(t, "lab")
	ports, kube, talos := contextPorts(t)
	port := h.configure(t, ports+"docker_host = \"host.example\"\n")
	d, _ := h.open(t)
	for a, want := range map[authority]string{
		{"host.example", uint16(kube)}:         "http",
		{"host.example", uint16(talos)}:        "other",
		{"host.example", uint16(port)}:         "",
		{"host.example", 443}:                  "",
		{"127.0.0.1", uint16(kube)}:            "",
		{"localhost", uint16(kube)}:            "",
		{"evil.example", uint16(kube)}:         "",
		{"10.0.0.1", uint16(talos)}:            "",
		{"host.docker.internal", uint16(kube)}: "",
	} {
		got := ""
		if to := d.handover(a); to != nil {
			got = map[bool]string{true: "http", false: "other"}[to.http]
		}
		if got != want {
			t.Errorf("%v: %q, want %q", a, got, want)
		}
	}
}

func TestAContainerThatIgnoresNoProxyReachesThePlanesThroughTheProxy(t *testing.T) {
	h := newHost(t)
	h.kubeconfig(t, "dev", echoAPIServer(t).URL)
	ports, kube, _ := contextPorts(t)
	port := h.configure(t, ports)
	d := h.start(t)
	proxy := &url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	defer client.CloseIdleConnections()
	res, err := client.Get(fmt.Sprintf("http://host.docker.internal:%d/api", kube))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, _ := io.ReadAll(res.Body); string(got) != "GET /api Bearer "+canary {
		t.Errorf("%d %q", res.StatusCode, got)
	}
	d.stop(t)
	var lines []string
	log, _ := os.ReadFile(h.mux("audit.jsonl"))
	for line := range bytes.Lines(log) {
		var l struct{ Plane, Context, Path, Client string }
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, l.Plane+" "+l.Context+" "+l.Path+" "+strings.Split(l.Client, ":")[0])
	}
	if !slices.Equal(lines, []string{"kube dev /api 127.0.0.1"}) {
		t.Errorf("%q", lines)
	}
}

func TestAPlaneWhoseFileTheConfigNamesMustServe(t *testing.T) {
	h := newHost(t)
	h.configure(t, "[kube]\nkubeconfig = \"not-there\"\n")
	d, _ := h.open(t)
	if code, body := d.answerHealth(true); code != 503 || !strings.Contains(string(body), "not-there") {
		t.Errorf("%d %s", code, body)
	}
}

func TestFlagsTurnThePlanesOff(t *testing.T) {
	h := newHost(t)
	h.kubeconfig(t, "dev", echoAPIServer(t).URL)
	h.talosconfig(t, "lab")
	ports, _, _ := contextPorts(t)
	h.configure(t, ports)
	for flags, want := range map[string]string{"--no-kube --no-talos": "off: --no-kube, off: --no-talos", "--no-proxy": "off: --no-proxy, off: --no-proxy"} {
		d, _ := h.open(t, strings.Fields(flags)...)
		r := d.healthReport()
		if got := r.Planes["kube"].String() + ", " + r.Planes["talos"].String(); got != want || len(d.ports()) != 1 {
			t.Errorf("%s: %s, %d ports", flags, got, len(d.ports()))
		}
		d.close()
	}
}
