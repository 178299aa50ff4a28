package cluster

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The users of the contexts, as the API server's audit log names them.
const (
	Admin       = "kubernetes-admin"
	TokenUser   = "token-user"
	FileUser    = "file-user"
	RotatedUser = "rotated-user" // of the token that a test writes into the token file
	ExecUser    = "exec-user"
	AsUser      = "as-user"    // whom Admin impersonates
	BasicUser   = "basic-user" // whom the gateway impersonates
)

// Host is a directory like that of an operator: a kubeconfig and what it names. Each test has its own, to change as it likes.
type Host struct {
	// Kubeconfig is its path. The contexts are those of Contexts, and "vendor", which has an auth-provider.
	Kubeconfig string

	cluster *Cluster
	dir     string
}

// Contexts are the contexts that can be served, and who arrives through each. The current one is "cert".
func Contexts() map[string]string {
	return map[string]string{
		"cert": Admin, "exec-token": ExecUser, "token": TokenUser, "token-file": FileUser, "exec-cert": Admin, "as": AsUser, "basic": BasicUser,
	}
}

// plugin is an exec plugin. It notes that it ran, and then does what the file "plugin.mode" says.
const plugin = `#!/bin/sh
dir=$(dirname "$0")
echo "$1" >>"$dir/plugin.runs"
mode=$(cat "$dir/plugin.mode")
[ "$mode" != stale ] || { echo work >"$dir/plugin.mode"; mode=refused; }
case $mode in
fail) echo 'the plugin says: log in first' >&2; exit 3 ;;
hang) exec sleep 600 ;;
junk) echo '<html>captive portal</html>'; exit 0 ;;
expired) printf '{"apiVersion":"client.authentication.k8s.io/%s","kind":"ExecCredential","status":{"token":"expired","expirationTimestamp":"2020-01-01T00:00:00Z"}}' "$2"; exit 0 ;;
refused) printf '{"apiVersion":"client.authentication.k8s.io/%s","kind":"ExecCredential","status":{"token":"refused"}}' "$2"; exit 0 ;;
esac
printf '{"apiVersion":"client.authentication.k8s.io/%s","kind":"ExecCredential","status":%s}' "$2" "$(cat "$dir/plugin.$1")"
`

// NewHost writes a host's files to dir. Further contexts with the credential of "cert" come from NewContext.
func (c *Cluster) NewHost(dir string) (*Host, error) {
	h := &Host{Kubeconfig: filepath.Join(dir, "kubeconfig"), cluster: c, dir: dir}
	token, _ := json.Marshal(map[string]string{"token": c.tokens.Exec})
	cert, _ := json.Marshal(map[string]string{"clientCertificateData": string(c.admin.cert), "clientKeyData": string(c.admin.key)})
	err := errors.Join(
		h.write("ca.pem", c.authority.pem, 0o600), h.write("admin.pem", c.admin.cert, 0o600), h.write("admin-key.pem", c.admin.key, 0o600),
		h.write("token", []byte(c.tokens.File+"\n"), 0o600),
		h.write("plugin", []byte(plugin), 0o700), h.write("plugin.token", token, 0o600), h.write("plugin.cert", cert, 0o600), h.SetPlugin("work"),
		h.WriteConfig(nil),
	)
	return h, err
}

// write replaces one of the host's files at once.
func (h *Host) write(name string, text []byte, mode os.FileMode) error {
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path+".new", text, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// SetPlugin says what the exec plugin does from now on: "work", "fail", "hang", "junk", "expired", "refused", or "stale",
// which is "refused" once.
func (h *Host) SetPlugin(mode string) error { return h.write("plugin.mode", []byte(mode), 0o600) }

// PluginRuns is how often the plugin has run.
func (h *Host) PluginRuns() int {
	text, _ := os.ReadFile(filepath.Join(h.dir, "plugin.runs"))
	return strings.Count(string(text), "\n")
}

// WriteToken replaces the token file.
func (h *Host) WriteToken(token string) error { return h.write("token", []byte(token+"\n"), 0o600) }

// WriteConfig writes the kubeconfig: the contexts that all hosts have, and for each of servers, which maps names to
// addresses, a context with the credential of "cert".
func (h *Host) WriteConfig(servers map[string]string) error {
	data := base64.StdEncoding.EncodeToString
	c := h.cluster
	var b strings.Builder
	fmt.Fprintf(&b, `apiVersion: v1
kind: Config
current-context: cert
clusters:
- name: data
  cluster: {server: "https://%[1]s", certificate-authority-data: %[2]s}
- name: file
  cluster: {server: "https://%[1]s", certificate-authority: ca.pem, tls-server-name: localhost}
- name: gateway
  cluster: {server: "https://%[3]s%[4]s", certificate-authority: ca.pem}
`, c.Server, data(c.authority.pem), c.Gateway, GatewayPath)
	for name, server := range servers {
		fmt.Fprintf(&b, "- name: %s\n  cluster: {server: \"https://%s\", certificate-authority: ca.pem}\n", name, server)
	}
	fmt.Fprintf(&b, `users:
- name: cert
  user: {client-certificate-data: %s, client-key-data: %s}
- name: exec
  user: {exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: ./plugin, args: [token, v1beta1]}}
- name: exec-cert
  user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./plugin, args: [cert, v1], interactiveMode: Never}}
- name: token
  user: {token: %s}
- name: token-file
  user: {tokenFile: token}
- name: as
  user: {client-certificate: admin.pem, client-key: admin-key.pem, as: %s, as-groups: [%s], as-user-extra: {scopes: [e2e]}}
- name: basic
  user: {username: %s, password: %s}
- name: vendor
  user: {auth-provider: {name: gcp}}
contexts:
`, data(c.admin.cert), data(c.admin.key), c.tokens.Token, AsUser, admins, BasicUser, c.tokens.Password)
	contexts := [][3]string{
		{"cert", "data", "cert"}, {"exec-token", "file", "exec"}, {"token", "file", "token"}, {"token-file", "data", "token-file"},
		{"exec-cert", "data", "exec-cert"}, {"as", "file", "as"}, {"basic", "gateway", "basic"}, {"vendor", "data", "vendor"},
	}
	for name := range servers {
		contexts = append(contexts, [3]string{name, name, "cert"})
	}
	for _, x := range contexts {
		fmt.Fprintf(&b, "- name: %s\n  context: {cluster: %s, user: %s}\n", x[0], x[1], x[2])
	}
	return h.write("kubeconfig", []byte(b.String()), 0o600)
}
