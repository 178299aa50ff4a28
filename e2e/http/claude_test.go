package http

import (
	"net/netip"
	"strings"
	"testing"

	"muxproxy/e2e/origin"
)

const anthropicHost = "api.anthropic.com"

// directWay lets a container reach the origin without the proxy, so that a client which tries is seen.
func (w *world) directWay() []string {
	args := []string{}
	for _, host := range w.origins.Hosts() {
		args = append(args, "--add-host", host+":"+w.address.String())
	}
	return args
}

// fromContainer tells whether a request came straight from a container.
func fromContainer(r origin.Request) bool {
	from, err := netip.ParseAddrPort(r.Remote)
	return err != nil || netip.MustParsePrefix("172.16.0.0/12").Contains(from.Addr())
}

func TestADirectRequestWouldBeSeen(t *testing.T) {
	w := theWorld(t)
	q := mark(t, 0)
	w.main.container(t, w.directWay(), `curl -sSk --noproxy '*' 'https://`+origin.Tunnel+`/x?`+q+`'`)
	if got := w.origins.RequestsFor(origin.Tunnel, q); len(got) != 1 || !fromContainer(got[0]) {
		t.Errorf("arrived %+v", got)
	}
}

func TestClaudeCodePrintsTheStreamedAnswerWithEachPlaceholder(t *testing.T) {
	w := theWorld(t)
	for _, tt := range []struct {
		name, variable, absent string
		daemon                 *daemon
		want                   map[string]string
	}{
		{"api key", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", w.main, map[string]string{"X-Api-Key": w.secrets.AnthropicKey}},
		{"subscription", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_API_KEY", w.oauth(t), map[string]string{"Authorization": "Bearer " + w.secrets.AnthropicOAuth}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, linesBefore := len(w.origins.Requests(anthropicHost)), tt.daemon.count(t, anthropicHost)
			out := tt.daemon.container(t, w.directWay(), `
				cd /tmp; export HOME=/tmp
				test -n "${`+tt.variable+`-}" && test -z "${`+tt.absent+`-}" && echo one placeholder
				claude -p 'what do you say?' </dev/null`)
			has(t, out, "one placeholder", origin.Answer)
			got := w.origins.Requests(anthropicHost)[before:]
			for _, r := range got {
				checkClaudeRequest(t, r, tt.want)
			}
			if lines := tt.daemon.count(t, anthropicHost) - linesBefore; lines != len(got) || lines == 0 {
				t.Errorf("%d audit lines for %d requests", lines, len(got))
			}
		})
	}
}

func checkClaudeRequest(t *testing.T, r origin.Request, want map[string]string) {
	t.Helper()
	if fromContainer(r) {
		t.Errorf("%s went past the proxy", r.Target)
	}
	found := r.AuthFields()
	for name, value := range want {
		if len(found) != 1 || len(found[name]) != 1 || found.Get(name) != value {
			t.Errorf("%s arrived with %q", r.Target, found)
		}
	}
}

func TestARuleAddedByReloadBreaksNoRunningProcess(t *testing.T) {
	w := theWorld(t)
	d := w.start(t, daemonOptions{config: ruleFor("gitlab", origin.GitLab), secrets: w.secrets})
	node := d.startContainer(t, nil, `exec node -e '
		require("readline").createInterface({ input: process.stdin }).on("line", async url => {
			try { console.log((await fetch(url)).status, url) } catch (e) { console.log("failed", url, e.cause) }
		})'`)
	claude := d.startContainer(t, nil, `cd /tmp; export HOME=/tmp; exec claude -p --verbose --input-format stream-json --output-format stream-json`)
	known := []string{"https://api.github.com/user", "https://" + origin.GitLab + "/api/v4/x", "https://sentry.io/api/0/"}
	ask := func() {
		t.Helper()
		for _, url := range known {
			node.say(t, url)
			node.expect(t, "200 "+url)
		}
		claude.say(t, `{"type":"user","message":{"role":"user","content":"speak"}}`)
		claude.expect(t, `"type":"result"`, origin.Answer)
	}
	ask()
	d.reconfigure(t, ruleFor("gitlab", origin.GitLab)+ruleFor("second", origin.Second))
	ask()
	out := d.container(t, nil, `node -e 'fetch("https://`+origin.Second+`/api/v4/x").then(r => console.log(r.status))'
		curl -sS -o /dev/null -w '%{http_code} curl\n' https://`+origin.Second+`/api/v4/x`)
	has(t, out, "200", "200 curl")
	if line := d.lastLine(t, origin.Second); line.Decision != "injected" || line.Service != "second" {
		t.Errorf("audit line %+v", line)
	}
	if !strings.Contains(d.stderr(), origin.Second) {
		t.Errorf("run did not name the host that running processes cannot reach:\n%s", d.stderr())
	}
}
