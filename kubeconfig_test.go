package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kubeFileSource writes text as a kubeconfig and gives a source for it.
func kubeFileSource(t *testing.T, text string) kubeSource {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	write(t, path, text, 0o600)
	return kubeSource{files: []string{path}, explicit: true, getenv: func(string) string { return "" }, log: slog.New(slog.DiscardHandler)}
}

func TestSmoke(t *testing.T) {
	k, err := loadKubeconfig(kubeFileSource(t, strings.Join([]string{"apiVersion: v1", "kind: Config", "current-context: a", "clusters: [{name: c, cluster: {server: 'https://h:6443/x/'}}]", "users: [{name: u, user: {token: abc}}]", "contexts: [{name: a, context: {cluster: c, user: u, namespace: ns}}, {name: 'arn:x/y', context: {cluster: zz}}]"}, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range k.contexts {
		t.Logf("%+v", c)
	}
	os.Stdout.Write(containerKubeconfig(k, "http://host.docker.internal:18081", kubeSlug))
}
