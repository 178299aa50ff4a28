package http

import (
	"strings"
	"testing"

	"muxproxy/e2e/origin"
	"muxproxy/e2e/validation"
)

func TestTheCommandsOfTheDocumentDoWhatItSays(t *testing.T) {
	w := theWorld(t)
	everything := w.secrets
	everything.AnthropicOAuth = ""
	d := w.start(t, daemonOptions{secrets: everything})
	environ := append(d.command().Env, "REPOSITORY="+strings.TrimSuffix(strings.TrimPrefix(origin.Repository, "/"), ".git"), "OTHER="+origin.Tunnel)
	validation.Run(t, "http", environ, func(output string) { w.seen.add("commands of the document", output) })
}
