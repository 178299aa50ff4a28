package http

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"muxproxy/e2e/origin"
)

// has fails where the output lacks one of the lines.
func has(t *testing.T, output string, lines ...string) {
	t.Helper()
	for _, want := range lines {
		found := false
		for line := range strings.Lines(output) {
			found = found || strings.TrimSpace(line) == want
		}
		if !found {
			t.Errorf("no line %q in:\n%s", want, output)
		}
	}
}

func TestCurlReachesEachServiceWithTheDockerArgumentsAlone(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	urls := []string{
		"https://api.github.com/user", "https://uploads.github.com/repos/a/b", "https://github.com" + origin.Repository + "/info/refs?service=git-upload-pack",
		"https://api.pagerduty.com/users/me", "https://api.eu.pagerduty.com/incidents", "https://sentry.io/api/0/", "https://us.sentry.io/api/0/",
		"https://de.sentry.io/api/0/", "https://" + origin.NPMHost + "/-/whoami", "https://auth.docker.io/token?service=registry.docker.io",
		"https://" + origin.GitLab + "/api/v4/projects", "https://" + origin.Apps + "/", "https://" + origin.Tunnel + "/",
	}
	script := `for url in ` + "'" + strings.Join(urls, "' '") + "'" + `; do
		curl -sS -o /dev/null -w '%{http_code} %{url}\n' "$url"
	done
	curl -sS -o /dev/null -w '%{http_code} messages\n' -H 'anthropic-version: 2023-06-01' -d '{"model":"m"}' https://api.anthropic.com/v1/messages
	curl -sS -o /dev/null -w '%{http_code} %{http_version} two\n' --http2 https://api.github.com/user
	curl -sS -o /dev/null -w '%{http_code} large upload\n' --http1.1 -T /usr/bin/git https://` + origin.GitLab + `/api/v4/large`
	out := w.main.container(t, nil, script)
	for _, url := range urls {
		has(t, out, "200 "+url)
	}
	has(t, out, "200 messages", "200 2 two", "200 large upload")
	if line := w.main.lastLine(t, origin.Apps); !strings.HasPrefix(line.Client, "172.17.0.") || line.Decision != "injected" || line.Service != "apps" {
		t.Errorf("audit line %+v", line)
	}
}

func TestCurlReadsAnEventStreamEventByEvent(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	// Each event but the first is sent only when the one before has been read: see origin.
	out := w.main.container(t, nil, `
		curl -sSN 'https://api.github.com/lab/sse?n=4&id=curl' | while read -r name value; do
			if [ "$name" = data: ]; then
				echo "event $value"
				curl -sS 'https://api.github.com/lab/sse/ack?id=curl'
			fi
		done`)
	has(t, out, "event 0", "event 1", "event 2", "event 3")
}

func TestGitClonesAndPushesAPrivateRepositoryWithLFS(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	out := w.main.container(t, nil, `
		cd /tmp; export HOME=/tmp
		git config --global user.name agent; git config --global user.email agent@example.com
		git lfs install --skip-repo >/dev/null
		git clone -q git@github.com:`+strings.TrimPrefix(origin.Repository, "/")+` one
		cat one/README.md
		cd one; git lfs track '*.bin' >/dev/null
		head -c 3000000 /dev/urandom > object.bin; head -c 3000000 /dev/urandom > plain
		git add .; git commit -qm 'with an object'; git push -q origin HEAD:refs/heads/work
		cd ..; git clone -q -b work https://github.com`+origin.Repository+` two
		cmp one/object.bin two/object.bin && cmp one/plain two/plain && echo same
		git -C two lfs ls-files | wc -l`)
	has(t, out, "a private repository", "same", "1")
	for _, r := range w.origins.Requests(origin.Objects) {
		if len(r.AuthFields()) > 0 {
			t.Errorf("storage got %q", r.AuthFields())
		}
	}
}

func TestGhAsksForItsUser(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	// Any user of a container must be able to read what is mounted.
	out := w.main.container(t, []string{"--user", "1234:1234", "--env", "HOME=/tmp"}, `gh api user --jq .login; gh auth token`)
	has(t, out, "octo-agent", w.placeholder(t, "GH_TOKEN"))
}

func TestSkopeoPushesAndPullsAPrivateImage(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	out := w.main.container(t, []string{"-v", writeImage(t) + ":/img:ro"}, `
		cd /tmp; export HOME=/tmp
		skopeo copy -q --insecure-policy dir:/img docker://docker.io/`+w.origins.Image()+`:1
		skopeo copy -q --insecure-policy docker://docker.io/`+w.origins.Image()+`:1 dir:back
		cmp /img/manifest.json back/manifest.json && echo same
		skopeo login --username someone --password placeholder docker.io >/dev/null && cat /tmp/auth.json /run/containers/*/auth.json 2>/dev/null || true`)
	has(t, out, "same")
	if strings.Contains(out, origin.RefreshToken) || strings.Contains(out, "identitytoken") {
		t.Errorf("a login left a refresh token: %s", out)
	}
}

// writeImage makes an image of one layer in skopeo's directory format.
func writeImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	blob := func(content []byte) map[string]any {
		sum := sha256.Sum256(content)
		name := hex.EncodeToString(sum[:])
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"digest": "sha256:" + name, "size": len(content)}
	}
	empty := make([]byte, 1024) // a tar archive of nothing is two blocks of zeros
	diffID := sha256.Sum256(empty)
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	_, _ = zip.Write(empty)
	_ = zip.Close()
	layer := blob(packed.Bytes())
	config, _ := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "config": struct{}{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diffID[:])}},
	})
	description := blob(config)
	layer["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	description["mediaType"] = "application/vnd.docker.container.image.v1+json"
	manifest, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "config": description, "layers": []any{layer},
	})
	for name, content := range map[string]string{"manifest.json": string(manifest), "version": "Directory Transport Version: 1.1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNpmKnowsWhoItIsAndInstallsAPrivatePackage(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	out := w.main.container(t, nil, `
		mkdir /tmp/p; cd /tmp/p; export HOME=/tmp; echo '{"private":true}' > package.json
		npm whoami
		npm install --no-audit --no-fund --loglevel=error `+origin.Package+` >&2
		node -p 'require("`+origin.Package+`")'`)
	has(t, out, origin.NPMUser, origin.PackageValue)
}

func TestPythonRequestsReachesRuledAndTunneledHosts(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	out := w.main.container(t, nil, `python3 - <<'PY'
import requests
print("user", requests.get("https://api.github.com/user").json()["login"])
print("page", requests.get("https://`+origin.Tunnel+`/page").json()["target"])
print("stream", sum(len(c) for c in requests.get("https://api.github.com/lab/bytes?n=1000000", stream=True).iter_content(4096)))
PY`)
	has(t, out, "user octo-agent", "page /page", "stream 1000000")
}

func TestNodeFetchAndHTTPSReachARuledHost(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	out := w.main.container(t, nil, `node - <<'JS'
const https = require("https");
(async () => {
  console.log("major", process.versions.node.split(".")[0]);
  console.log("fetch", (await (await fetch("https://api.github.com/user")).json()).login);
  https.get("https://api.github.com/user", { headers: { "User-Agent": "node" } }, r => {
    let text = ""; r.on("data", c => text += c); r.on("end", () => console.log("https", JSON.parse(text).login));
  });
  const socket = new WebSocket("wss://api.github.com/lab/ws");
  socket.onmessage = m => { console.log("websocket", m.data); socket.close(); };
  socket.onopen = () => socket.send("frame");
  socket.onerror = e => console.log("websocket error", e.message);
})();
JS`)
	has(t, out, "major 24", "fetch octo-agent", "https octo-agent", "websocket frame")
}

func TestARefusalTellsTheAgentWhatToDo(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	out := w.main.container(t, nil, `
		curl -sS -X TRACE https://api.github.com/user; echo
		curl -sS -o /dev/null https://169.254.169.254/ 2>&1 || true
		curl -sS -X TRACE -w '\n' https://api.anthropic.com/v1/messages`)
	var refusal struct{ Message, Error string }
	first, _, _ := strings.Cut(out, "\n")
	if err := json.Unmarshal([]byte(first), &refusal); err != nil || refusal.Message == "" || refusal.Error == "" {
		t.Errorf("github's refusal is %q: %v", first, err)
	}
	if !strings.Contains(out, "403") || !strings.Contains(out, `"type":"error"`) {
		t.Errorf("refusals:\n%s", out)
	}
}

func TestWithoutProxyNoProxyArgumentIsThere(t *testing.T) {
	w := theWorld(t)
	t.Parallel()
	d := w.start(t, daemonOptions{flags: []string{"--no-proxy"}})
	args := strings.ToLower(fmt.Sprint(d.dockerArgs(t), d.dockerArgs(t, "--no-proxy"), w.main.dockerArgs(t, "--no-proxy")))
	for word := range strings.FieldsSeq("http_proxy https_proxy no_proxy :18080 node_use_env_proxy ssl_cert_file node_extra_ca_certs placeholder") {
		if strings.Contains(args, word) {
			t.Errorf("%s is among the arguments: %s", word, args)
		}
	}
	out := d.container(t, nil, `env | grep -ci proxy || true; curl -sS --max-time 5 https://api.github.com/user >/dev/null 2>&1 || echo unreachable`)
	has(t, out, "0", "unreachable")
}
