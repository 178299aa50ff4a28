package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// containerView is all that docker arguments depend on: asked of a running daemon, or the command's own view.
type containerView struct {
	HTTP       bool         `json:"http"`      // the http plane is on
	HTTPPort   uint16       `json:"http_port"` // 18080
	Kube       bool         `json:"kube"`      // the kube plane is on: its kubeconfig is mounted
	Talos      bool         `json:"talos"`
	DockerHost string       `json:"docker_host"`
	NoProxy    []string     `json:"no_proxy"` // in the order in which they are printed
	Services   []serviceEnv `json:"services"` // those that have a credential

	// What the asking command finds out itself.

	MuxDir  string `json:"-"` // "/home/u/.mux"
	AddHost bool   `json:"-"` // containers need an entry for DockerHost in /etc/hosts
	SELinux bool   `json:"-"` // mounts have to be relabelled
}

// serviceEnv is a service that has a credential, and the placeholders that make its clients send their requests.
type serviceEnv struct {
	Service string   `json:"service"` // "github"
	Env     []string `json:"env"`     // "GH_TOKEN=ghp_muxproxy-placeholder…"
}

// The mounts, as containers see them.
const (
	caMount     = "/etc/mux/proxy-ca.pem"
	clientMount = "/etc/mux/client"
	kubeMount   = "/etc/mux/kube"
	talosMount  = "/etc/mux/talos"
)

// dockerArgs gives the arguments of `docker run`, one a string: "-e", "HTTP_PROXY=http://host.docker.internal:18080". They
// are those that clients were found to need, for ruled and tunneled hosts, in images with and without roots of their own.
func dockerArgs(v containerView) []string {
	var args []string
	if v.AddHost {
		args = append(args, "--add-host="+v.DockerHost+":host-gateway")
	}
	options := ":ro"
	if v.SELinux {
		options = ":ro,z"
	}
	// Directories, since the files in them are replaced while containers run.
	if v.Kube {
		args = append(args, "-v", v.MuxDir+"/kube:"+kubeMount+options, "-e", "KUBECONFIG="+kubeMount+"/config")
	}
	if v.Talos {
		args = append(args, "-v", v.MuxDir+"/talos:"+talosMount+options, "-e", "TALOSCONFIG="+talosMount+"/config")
	}
	if !v.HTTP {
		return args
	}
	args = append(args, "-v", v.MuxDir+"/proxy-ca.pem:"+caMount+options, "-v", v.MuxDir+"/client:"+clientMount+options)
	for _, env := range slices.Concat(proxyEnv(v), trustEnv(), toolEnv(), serviceEnvs(v.Services)) {
		args = append(args, "-e", env)
	}
	return args
}

// proxyEnv names the proxy, and what is reached without it. Both cases are needed: wget, ruby and curl for http:// read
// the lower one alone, and the `proxies` of ~/.docker/config.json may have set the other. Node has to be told to look at
// them, and yarn 3 reads names of its own.
func proxyEnv(v containerView) []string {
	proxy := "http://" + v.DockerHost + ":" + strconv.Itoa(int(v.HTTPPort))
	direct := strings.Join(v.NoProxy, ",")
	return []string{
		"HTTP_PROXY=" + proxy, "HTTPS_PROXY=" + proxy, "http_proxy=" + proxy, "https_proxy=" + proxy,
		"NO_PROXY=" + direct, "no_proxy=" + direct,
		"NODE_USE_ENV_PROXY=1", "YARN_HTTP_PROXY=" + proxy, "YARN_HTTPS_PROXY=" + proxy,
	}
}

// trustEnv names the CA to variables that add roots, and the bundle to those that replace them: with the CA alone there
// each tunneled host would fail. wget and php have no such variable, only files that say the same.
func trustEnv() []string {
	env := []string{"NODE_EXTRA_CA_CERTS=" + caMount, "DENO_CERT=" + caMount}
	for _, name := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE", "PIP_CERT", "AWS_CA_BUNDLE",
		"CARGO_HTTP_CAINFO", "NIX_SSL_CERT_FILE", "PERL_LWP_SSL_CA_FILE", "YARN_HTTPS_CA_FILE_PATH",
	} {
		env = append(env, name+"="+clientMount+"/"+bundleName)
	}
	return append(env, "WGETRC="+clientMount+"/wgetrc", "PHP_INI_SCAN_DIR=:"+clientMount+"/php.d")
}

// toolEnv keeps git from hanging on a prompt, and sends it over HTTPS to where ssh would go, which no proxy can authenticate.
func toolEnv() []string {
	return []string{
		"GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_COUNT=2",
		"GIT_CONFIG_KEY_0=url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_0=git@github.com:",
		"GIT_CONFIG_KEY_1=url.https://github.com/.insteadOf", "GIT_CONFIG_VALUE_1=ssh://git@github.com/",
	}
}

// serviceEnvs are the placeholders, each variable once. npm and pnpm take theirs from a file, since shells drop
// variables that are named like a registry's host.
func serviceEnvs(services []serviceEnv) []string {
	var env []string
	seen := map[string]bool{}
	add := func(e string) {
		name, _, _ := strings.Cut(e, "=")
		if !seen[name] {
			seen[name] = true
			env = append(env, e)
		}
	}
	for _, s := range services {
		for _, e := range s.Env {
			add(e)
		}
		if s.Service == "npm" {
			add("NPM_CONFIG_GLOBALCONFIG=" + clientMount + "/npmrc")
		}
	}
	return env
}

// formatArgs renders arguments for stdout, with a final newline. format is "words", "shell", "lines" or "json"; another
// is a usageError. What a format cannot carry unchanged is an error that names the formats which can.
func formatArgs(args []string, format string) (string, error) {
	switch format {
	case "words":
		if bad := firstUnsafe(args, unsafeWord); bad != "" {
			return "", &hintError{fmt.Errorf("print %q as words: a shell would change it in $(…)", bad), "give --format shell, lines or json"}
		}
		return strings.Join(args, " ") + "\n", nil
	case "shell":
		quoted := make([]string, len(args))
		for i, a := range args {
			quoted[i] = shellQuote(a)
		}
		return strings.Join(quoted, " ") + "\n", nil
	case "lines":
		if bad := firstUnsafe(args, unicode.IsControl); bad != "" {
			return "", &hintError{fmt.Errorf("print %q as a line: it holds a control character", bad), "give --format shell or json"}
		}
		return strings.Join(append(args, ""), "\n"), nil
	case "json":
		b, err := json.Marshal(append([]string{}, args...)) // never null
		return string(b) + "\n", err
	}
	return "", &usageError{err: fmt.Errorf("flag --format %q: no such format", format), hint: "formats: words, shell, lines, json"}
}

// firstUnsafe gives the first argument that has a character of the kind, "" where there is none.
func firstUnsafe(args []string, unsafe func(rune) bool) string {
	for _, a := range args {
		if strings.ContainsFunc(a, unsafe) {
			return a
		}
	}
	return ""
}

// unsafeWord tells whether r means something to a shell that splits and expands words. Quotes do not in what $(…) gives,
// and would reach docker as they are: whoever has one expects otherwise.
func unsafeWord(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune("\"'`\\$*?[]", r)
}

// shellQuote quotes s for a POSIX shell where it has to be: "a b" becomes 'a b', "/a/b" stays.
func shellQuote(s string) string {
	safe := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !safe(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
