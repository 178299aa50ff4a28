package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// kubeText writes text as a kubeconfig and gives a source for it.
func kubeText(t testing.TB, text string) kubeSource {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeSource{files: []string{path}, explicit: true, getenv: func(string) string { return "" }, log: slog.New(slog.DiscardHandler)}
}

// oneContext is a kubeconfig with the context x of these fields.
func oneContext(cluster, user string) string {
	return "{clusters: [{name: c, cluster: {" + cluster + "}}], users: [{name: u, user: {" + user + "}}], contexts: [{name: x, context: {cluster: c, user: u}}], current-context: x}"
}

func TestWhatIsWrongWithAContextIsToldAndTheOthersAreServed(t *testing.T) {
	const server = "server: 'https://h:6443'"
	const certificate = "client-certificate-data: YQ=="
	for _, tt := range []struct{ cluster, user, want string }{
		{"other: x", "token: a", "no server"},
		{"server: 'ftp://" + canary + "'", "token: a", "not the URL of an API server"},
		{server + ", proxy-url: 'socks5h://u:" + canary + "@p'", "token: a", "socks5:// are known"},
		{server + ", certificate-authority: a, certificate-authority-data: YQ==", "token: a", "both set"},
		{server + ", certificate-authority: a, insecure-skip-tls-verify: true", "token: a", "beside insecure-skip-tls-verify"},
		{server + ", certificate-authority-data: YQ==", "token: a", "no certificate in PEM form"},
		{server, "token: " + canary + ", username: me", "token beside username"},
		{server, "tokenFile: f, username: me, password: " + canary, "tokenFile beside username"},
		{server, "token: \"" + canary + "\\n\"", "on one line"},
		{server, certificate, "without client-key"},
		{server, certificate + ", client-certificate: f, client-key: k", "both set"},
		{server, certificate + ", client-key: k, client-key-data: YQ==", "both set"},
		{server, certificate + ", client-key-data: Y2FuYXJ5LTVmM2M5ZQ==", "cannot be used"},
		{server, "token: a, as-uid: '1'", "without as"},
		{server, "token: a, as: \"" + canary + "\\r\"", "no header field may hold"},
		{server, "auth-provider: {name: gcp, config: {access-token: " + canary + "}}", "gke-gcloud-auth-plugin"},
		{server, "auth-provider: {name: azure}", "kubelogin convert-kubeconfig"},
		{server, "auth-provider: {name: oidc}", "oidc-login"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never}", "without command"},
		{server, "exec: {command: aws, args: [" + canary + "]}", "without apiVersion"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1, command: aws}", "without interactiveMode"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, interactiveMode: never}", "not Never, IfAvailable or Always"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1, command: aws, interactiveMode: Always}", "no terminal"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1alpha1, command: aws}", "v1 and v1beta1"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: aws, env: [{value: " + canary + "}]}", "no name"},
		{server, "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: aws}, auth-provider: {name: oidc}", "beside exec"},
	} {
		text := strings.Replace(oneContext(tt.cluster, tt.user), "clusters: [", "clusters: [{name: good, cluster: {server: 'https://good'}}, ", 1)
		text = strings.Replace(text, "contexts: [", "contexts: [{name: good, context: {cluster: good}}, ", 1)
		k, err := loadKubeconfig(kubeText(t, text))
		if err != nil {
			t.Errorf("%s, %s: %v", tt.cluster, tt.user, err)
			continue
		}
		good, bad := k.contexts[0], k.contexts[1]
		if good.err != nil || bad.err == nil || !strings.Contains(bad.err.Error(), tt.want) || strings.Contains(bad.err.Error(), canary) {
			t.Errorf("%s, %s: %v, want %q", tt.cluster, tt.user, bad.err, tt.want)
		}
	}
}

func TestAFileThatIsNoKubeconfigIsToldWithoutWhatItHolds(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"token: [" + canary, "line 1"},
		{"users: *" + canary, "an alias without its anchor"},
		{canary, "line 1: the document is not a mapping"},
		{"apiVersion: " + canary, "no kubeconfig"},
		{"kind: Pod", "no kubeconfig"},
		{"users:\n- name: u\n  user:\n    token: 12345", "line 4: token is not a string"},
		{"users:\n- name: u\n  user:\n    password: {" + canary + ": 1}", "line 4: password is not a string"},
		{"users:\n- name: u\n  user: {client-key-data: '" + canary + "!'}", "line 3: client-key-data is not base64"},
		{"users: [{name: u}, {name: u}]", "each of its own"},
		{"clusters: {}", "clusters is not a list"},
		{"clusters: [{name: c, cluster: {insecure-skip-tls-verify: '" + canary + "'}}]", "not true or false"},
		{"a: &a\n  <<: [*a, *a]\nusers: [*a]", "followed any further"},
		{"\x00", "control characters"},
		{strings.Repeat("#", maxKubeconfig+1), "over 16384 KiB"},
	} {
		_, err := loadKubeconfig(kubeText(t, tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), canary) {
			t.Errorf("%.60q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

func TestWhatALoadGivesPrintsNoSecret(t *testing.T) {
	keys := newTestKeys(t, "me")
	for _, user := range []string{"token: " + canary, "username: me, password: " + canary,
		"exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: aws, args: [" + canary + "]}"} {
		k, err := loadKubeconfig(kubeText(t, oneContext("server: 'https://u:"+canary+"@h'", user+", "+keys.show("client-certificate-data: @cert-me:64@, client-key-data: @key-me:64@"))))
		if err != nil {
			t.Fatal(err)
		}
		c := k.contexts[0]
		u := newKubeUpstream(c, kubeUpstreamOptions{})
		for _, v := range []any{k, *k, c, *c, c.auth, u, u.auth, containerKubeconfig(k, "http://h", kubeSlug)} {
			for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
				if text := fmt.Sprintf(format, v); strings.Contains(text, canary) {
					t.Errorf("%s of %T shows the canary", format, v)
				}
			}
		}
	}
}

func TestTheFilesAreThoseOfKubectl(t *testing.T) {
	env := map[string]string{"HOME": "/home/u"}
	getenv := func(name string) string { return env[name] }
	if got := fmt.Sprint(kubeSourceFiles(getenv)); got != "[/home/u/.kube/config]" {
		t.Error(got)
	}
	env["KUBECONFIG"] = "/a::b:/a"
	if got := fmt.Sprint(kubeSourceFiles(getenv)); got != "[/a b]" {
		t.Error(got)
	}
	s := kubeText(t, "")
	s.files = append(s.files, "/gone/config")
	if _, err := loadKubeconfig(s); err == nil || errors.Is(err, errNoKubeconfig) {
		t.Errorf("a file that the operator named and that is not there: %v", err)
	}
	s.explicit = false
	if k, err := loadKubeconfig(s); err != nil || len(k.files) != 2 {
		t.Errorf("a file that is not there: %v", err)
	}
	s.files = s.files[1:]
	if _, err := loadKubeconfig(s); !errors.Is(err, errNoKubeconfig) {
		t.Errorf("no file: %v", err)
	}
}

func TestAPodsServiceAccountIsServedWhereThatIsAskedFor(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "token"), "good", 0o600)
	write(t, filepath.Join(dir, "namespace"), "ns\n", 0o600)
	env := map[string]string{"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
	s := kubeSource{account: dir, getenv: func(name string) string { return env[name] }, files: []string{"/gone"}}
	if _, err := loadKubeconfig(s); !errors.Is(err, errNoKubeconfig) {
		t.Errorf("not asked for: %v", err)
	}
	s.inCluster = true
	k, err := loadKubeconfig(s)
	if err != nil {
		t.Fatal(err)
	}
	c := k.contexts[0]
	if c.err != nil || c.name != k.current || c.server.String() != "https://[fd00::1]:443" || c.namespace != "ns" || c.authority.file != dir+"/ca.crt" || c.auth.tokenFile != dir+"/token" {
		t.Errorf("%+v", c)
	}
	env["KUBERNETES_SERVICE_HOST"] = ""
	if _, err := loadKubeconfig(s); !errors.Is(err, errNoKubeconfig) {
		t.Errorf("outside a pod: %v", err)
	}
}

func TestSlugsAreReadableAndTheirOwn(t *testing.T) {
	for name, want := range map[string]string{
		"prod": "prod", "kubernetes-admin@kubernetes": "kubernetes-admin@kubernetes", "gke_p_europe-west1-b_c": "gke_p_europe-west1-b_c", "a.b": "a.b",
		"arn:aws:eks:eu-west-1:1234:cluster/prod": "arn-aws-eks-eu-west-1-1234-cluster-prod-*",
		"default/api:6443/admin":                  "default-api-6443-admin-*", ".": "*", "..": "*", "a b": "a-b-*", "%2e%2e": "2e-2e-*", "ü": "*", "/": "*",
		strings.Repeat("x", 101): strings.Repeat("x", 100) + "-*",
	} {
		got := kubeSlug(name)
		if head, ok := strings.CutSuffix(want, "*"); got != want && !(ok && strings.HasPrefix(got, head) && len(got) == len(head)+8) {
			t.Errorf("%q: %q", name, got)
		}
	}
	if kubeSlug("a:b") == kubeSlug("a/b") {
		t.Error("two names have one slug")
	}
	taken := kubeSlug("a/b")
	k, err := loadKubeconfig(kubeText(t, "{clusters: [{name: c, cluster: {server: h}}], contexts: [{name: a/b, context: {cluster: c}}, {name: "+taken+", context: {cluster: c}}]}"))
	if err != nil || k.contexts[0].err == nil || k.contexts[1].err != nil {
		t.Errorf("a name that is the slug of another: %v %v", err, k)
	}
}

func TestTheContainersKubeconfigHasTheSameContexts(t *testing.T) {
	names := []string{"prod", "on", "1:30", "=", "0x1f", "null", "~", "a: b #c", "arn:aws:eks:x:1:cluster/y", "ü\"'\\", "<<", "*a", "1e3", "2020-01-01", "tab\there"}
	text := "clusters: [{name: c, cluster: {server: 'https://h', certificate-authority-data: ''}}]\nusers: [{name: u, user: {token: " + canary + "}}]\ncurrent-context: \"on\"\ncontexts:\n"
	for _, name := range names {
		text += fmt.Sprintf("- {name: %q, context: {cluster: c, user: u, namespace: \"1\"}}\n", name)
	}
	k, err := loadKubeconfig(kubeText(t, text))
	if err != nil {
		t.Fatal(err)
	}
	out := containerKubeconfig(k, "http://host.docker.internal:18081", kubeSlug)
	if strings.Contains(string(out), canary) {
		t.Error("it holds the token")
	}
	var plain any
	if err := yaml.Unmarshal(out, &plain); err != nil {
		t.Fatal(err)
	}
	again, err := loadKubeconfig(kubeText(t, string(out)))
	if err != nil || again.current != "on" || len(again.contexts) != len(names) {
		t.Fatalf("read again: %v, %d contexts", err, len(again.contexts))
	}
	for i, c := range again.contexts {
		if want := "http://host.docker.internal:18081/contexts/" + kubeSlug(names[i]); c.err != nil || c.name != names[i] || c.namespace != "1" || c.server.String() != want || !c.insecure || c.auth.source != "" {
			t.Errorf("%q: %+v", names[i], c)
		}
	}
}

func TestTheDigestTellsContextsApart(t *testing.T) {
	load := func(cluster, user string) *kubeContext {
		k, err := loadKubeconfig(kubeText(t, oneContext(cluster, user)))
		if err != nil {
			t.Fatal(err)
		}
		return k.contexts[0]
	}
	const server = "server: 'https://h'"
	first := load(server, "token: a")
	if load(server, "token: a").digest != first.digest {
		t.Error("one text, two digests")
	}
	for _, other := range []*kubeContext{load(server, "token: b"), load(server+", tls-server-name: x", "token: a"), load("server: 'https://i'", "token: a"), load(server, "token: a, as: x"),
		load(server, "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: a}")} {
		if other.digest == first.digest {
			t.Errorf("%+v has the digest of another", other)
		}
	}
}

func FuzzKubeconfig(f *testing.F) {
	f.Add("")
	f.Add(oneContext("server: 'https://h:6443/p', certificate-authority-data: YQ==, extensions: [{name: client.authentication.k8s.io/exec, extension: {a: [1, yes]}}]", "token: a, as: b, as-user-extra: {k: [v]}"))
	f.Add(oneContext("server: h, proxy-url: 'http://p'", "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: ./p, provideClusterInfo: true, env: [{name: A, value: b}]}"))
	f.Add("a: &a\n  <<: [*a, *a]\nclusters: [*a]\ncontexts: &b\n- *b\n")
	f.Add("{\"contexts\":\t[{\"name\": \"x\"}]}\n---\n{")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseKubeconfig([]byte(text), "/dir")
		if err != nil {
			return
		}
		for name := range entries.contexts {
			c := newKubeContext(name, entries, kubeSource{log: slog.New(slog.DiscardHandler)})
			a := c.auth
			switch {
			case c.err != nil:
				if c.server != nil {
					t.Error("a context that cannot be served has a server")
				}
				continue
			case c.server.Scheme != "https" && c.server.Scheme != "http", c.server.Host == "", strings.HasSuffix(c.server.Path, "/"), c.server.User != nil, c.server.RawQuery != "":
				t.Errorf("server %q", c.server)
			case a.exec != nil && (a.tokenFile != "" || a.hasCertificate()):
				t.Error("a plugin beside something static")
			case c.server.Scheme == "http" && (a.exec != nil || a.hasCertificate() || a.tokenFile != ""):
				t.Error("a credential for plain http")
			case c.insecure && (c.authority.file != "" || c.authority.roots != nil) && c.server.Scheme == "https":
				t.Error("an authority beside insecure-skip-tls-verify")
			}
		}
		k := &kubeconfig{}
		for _, name := range entries.order {
			k.contexts = append(k.contexts, &kubeContext{name: name})
		}
		if _, err := parseKubeconfig(containerKubeconfig(k, "http://h", kubeSlug), "/"); err != nil {
			t.Errorf("the container's: %v", err)
		}
	})
}
