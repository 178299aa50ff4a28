package thief

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// visit is one attempt of a stack to get a path from a server that shows a forgery.
type visit struct {
	host  string // the name that is dialed
	port  string // of the server, on 127.0.0.1
	path  string
	roots string // file: the roots that the stack trusts
	proxy string // "127.0.0.1:1234": takes CONNECT to every host, and goes to the port on 127.0.0.1
	dir   string // for files of the visit: leaf.pem, chain.pem (leaf and what is sent along), rest.pem (the latter)
}

func (v *visit) url() string { return "https://" + net.JoinHostPort(v.host, v.port) + v.path }
func (v *visit) isIP() bool  { return net.ParseIP(v.host) != nil }
func (v *visit) request() string {
	return fmt.Sprintf("GET %s HTTP/1.0\r\nHost: %s\r\n\r\n", v.path, v.host)
}

// stack is a TLS implementation under test, by a program that uses it.
type stack struct {
	name    string
	tool    string // looked up in PATH
	install string // the package that has it
	visit   func(v *visit) error
	// offline says that it judges the certificates without asking the server.
	offline bool
	// anyExit says that the exit code tells nothing, because the server is no real one of its kind.
	anyExit bool
	// holes are the forgeries that it is known to accept (experiments with bun 1.4.5).
	holes []string
}

// stacks are those that containers use. Compiled once before: Fetch.class in javaDir.
func stacks(javaDir string) []stack {
	const gnutls, openssl, jdk = "apt-get install gnutls-bin", "apt-get install openssl", "apt-get install openjdk-17-jdk-headless"
	return []stack{
		{name: "OpenSSL verify", tool: "openssl", install: openssl, offline: true, visit: opensslVerify("-purpose", "sslserver")},
		{name: "OpenSSL verify, strict", tool: "openssl", install: openssl, offline: true, visit: opensslVerify("-purpose", "sslserver", "-x509_strict")},
		{name: "OpenSSL s_client", tool: "openssl", install: openssl, visit: opensslClient()},
		{name: "OpenSSL s_client, strict", tool: "openssl", install: openssl, visit: opensslClient("-x509_strict")},
		{name: "curl", tool: "curl", install: "apt-get install curl", visit: curl},
		{name: "GnuTLS certtool", tool: "certtool", install: gnutls, offline: true, visit: certtool},
		{name: "GnuTLS gnutls-cli", tool: "gnutls-cli", install: gnutls, visit: gnutlsClient},
		{name: "wget (GnuTLS)", tool: "wget", install: "apt-get install wget", visit: wget},
		{name: "git (GnuTLS)", tool: "git", install: "apt-get install git", visit: git, anyExit: true},
		{name: "Go", tool: "go", install: "the Go distribution", visit: goClient},
		{name: "node", tool: "node", install: "apt-get install nodejs", visit: script("node", "NODE_EXTRA_CA_CERTS")},
		{name: "deno", tool: "deno", install: "npm install deno@2.9.6", visit: script("deno", "DENO_CERT", "run", "--quiet", "--allow-all")},
		{name: "bun", tool: "bun", install: "npm install bun@1.4.5", visit: script("bun", "NODE_EXTRA_CA_CERTS"), holes: []string{
			"email SAN, another name in the CN", "URI SAN, another name in the CN", "directory SAN, another name in the CN",
		}},
		{name: "Java", tool: "javac", install: jdk, visit: func(v *visit) error {
			_, proxyPort, _ := net.SplitHostPort(v.proxy)
			return command(v, "", nil, "java", "-Xshare:auto", "-cp", javaDir, "Fetch", v.roots, proxyPort, v.host, v.port, v.path)
		}},
	}
}

// command runs a program with nothing of the caller's environment but PATH.
func command(v *visit, stdin string, env []string, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + v.dir}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %s", errTimeout, out)
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// errTimeout is never a refusal.
var errTimeout = errors.New("the client did not end in time")

func opensslVerify(flags ...string) func(*visit) error {
	return func(v *visit) error {
		name := "-verify_hostname"
		if v.isIP() {
			name = "-verify_ip"
		}
		args := append([]string{"verify", "-CAfile", v.roots, "-untrusted", filepath.Join(v.dir, "rest.pem"), name, v.host}, flags...)
		return command(v, "", nil, "openssl", append(args, filepath.Join(v.dir, "leaf.pem"))...)
	}
}

func opensslClient(flags ...string) func(*visit) error {
	return func(v *visit) error {
		args := []string{"s_client", "-quiet", "-connect", "127.0.0.1:" + v.port, "-CAfile", v.roots, "-verify_return_error"}
		if v.isIP() {
			args = append(args, "-verify_ip", v.host)
		} else {
			args = append(args, "-verify_hostname", v.host, "-servername", v.host)
		}
		return command(v, v.request(), nil, "openssl", append(args, flags...)...)
	}
}

func curl(v *visit) error {
	return command(v, "", nil, "curl", "--silent", "--show-error", "--cacert", v.roots, "--resolve", v.host+":"+v.port+":127.0.0.1", v.url())
}

func certtool(v *visit) error {
	return command(v, "", nil, "certtool", "--verify", "--load-ca-certificate", v.roots, "--verify-hostname", v.host, "--infile", filepath.Join(v.dir, "chain.pem"))
}

func gnutlsClient(v *visit) error {
	args := []string{"--x509cafile", v.roots, "--verify-hostname", v.host, "--port", v.port, "127.0.0.1"}
	if !v.isIP() {
		args = append([]string{"--sni-hostname", v.host}, args...)
	}
	return command(v, v.request(), nil, "gnutls-cli", args...)
}

func wget(v *visit) error {
	return command(v, "", []string{"https_proxy=http://" + v.proxy}, "wget", "--no-config", "--no-hsts", "--tries=1", "--ca-certificate="+v.roots, "--output-document=/dev/null", v.url())
}

func git(v *visit) error {
	return command(v, "", []string{"https_proxy=http://" + v.proxy, "GIT_SSL_CAINFO=" + v.roots, "GIT_TERMINAL_PROMPT=0"}, "git", "ls-remote", v.url())
}

func goClient(v *visit) error {
	roots := x509.NewCertPool()
	text, err := os.ReadFile(v.roots)
	if err != nil {
		return err
	}
	roots.AppendCertsFromPEM(text)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+v.port)
		},
	}
	defer transport.CloseIdleConnections()
	answer, err := (&http.Client{Transport: transport, Timeout: 30 * time.Second}).Get(v.url())
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// script runs testdata/fetch.mjs; variable is the one by which the runtime takes further roots.
func script(runtime, variable string, flags ...string) func(*visit) error {
	return func(v *visit) error {
		env := []string{variable + "=" + v.roots, "HTTPS_PROXY=http://" + v.proxy, "DENO_NO_UPDATE_CHECK=1"}
		args := slices.Concat(flags, []string{filepath.Join("testdata", "fetch.mjs"), v.host, v.port, v.path})
		return command(v, "", env, runtime, args...)
	}
}
