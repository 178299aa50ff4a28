package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// desktopGateway is the host's address as containers of Docker Desktop see it, where there is no docker0 to look at.
const desktopGateway = "192.168.65.254"

// newContainerView is what a configuration means to containers. What belongs to the asking command is left out.
func newContainerView(c *config, creds *credentials, n *networks, httpOn bool, p *contextPlanes) containerView {
	kube, talos := p.on()
	return containerView{
		HTTP:       httpOn,
		Kube:       kube,
		Talos:      talos,
		HTTPPort:   c.httpPort,
		DockerHost: c.dockerHost,
		NoProxy:    directNames(c, n),
		Services:   serviceEnvsOf(creds.status()),
	}
}

// directNames are the names of NO_PROXY: the container itself, the host by name and by address, and the config's own. On
// a Linux host without docker0 (Podman, rootless engines) the host has no one address to name, so none is.
func directNames(c *config, n *networks) []string {
	names := []string{"localhost", "127.0.0.1", "::1", c.dockerHost}
	if runtime.GOOS != "linux" {
		names = append(names, desktopGateway)
	}
	for _, b := range n.bridges {
		for _, p := range b.prefixes {
			if b.name == "docker0" && p.Addr().Is4() {
				names = append(names, p.Addr().String())
			}
		}
	}
	var once []string
	for _, name := range append(names, c.noProxy...) {
		if !slices.Contains(once, name) {
			once = append(once, name)
		}
	}
	return once
}

// serviceEnvsOf picks the services whose credential is there and usable, each once, with the placeholders of the source
// that is in use: of the two that Claude Code knows it may see only one.
func serviceEnvsOf(status []credentialStatus) []serviceEnv {
	services := []serviceEnv{}
	for _, s := range status {
		if s.source < 0 || s.err != nil {
			continue
		}
		at := slices.IndexFunc(services, func(e serviceEnv) bool { return e.Service == s.rule.service })
		if at < 0 {
			at = len(services)
			services = append(services, serviceEnv{Service: s.rule.service, Env: []string{}})
		}
		for _, p := range s.rule.placeholders {
			env := p.env + "=" + p.value
			if p.source == s.source && !slices.Contains(services[at].Env, env) {
				services[at].Env = append(services[at].Env, env)
			}
		}
	}
	return services
}

// printDockerArgs is `muxproxy print-docker-args`. It makes what the arguments mount, so it may be the first command of
// all. stdout gets the arguments or, after an error, nothing.
func printDockerArgs(ctx context.Context, i invocation) error {
	if _, err := formatArgs(nil, i.format); err != nil {
		return err
	}
	daemon, err := i.open(ctx)
	if err != nil {
		return err
	}
	var v containerView
	if daemon != nil {
		v, err = i.viewOf(daemon)
	} else {
		v, err = i.ownView()
	}
	if err != nil {
		return err
	}
	if strings.Contains(i.muxDir, ":") {
		return &hintError{fmt.Errorf("mount from mux-dir %q: docker's -v takes no path with a colon", i.muxDir), "give another directory with --mux-dir or MUX_DIR"}
	}
	v.MuxDir, v.SELinux = i.muxDir, selinuxEnforces("/sys/fs/selinux/enforce")
	// Docker Desktop knows the default name by itself, an engine on Linux none.
	v.AddHost = runtime.GOOS == "linux" || v.DockerHost != "host.docker.internal"
	if !v.HTTP {
		fmt.Fprintln(i.stderr, "muxproxy: the http plane is off: no proxy arguments")
	}
	v.HTTP = v.HTTP && !i.noProxy
	out, err := formatArgs(dockerArgs(v), i.format)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(i.stdout, out)
	return err
}

// open finds the mux-dir of a command that is not run, and the daemon that runs there, if any.
func (i *invocation) open(ctx context.Context) (daemon *controlAnswer, err error) {
	if i.place, err = i.locate(i.getenv); err != nil {
		return nil, err
	}
	if err := openMuxDir(i.muxDir); err != nil {
		return nil, err
	}
	return askDaemon(ctx, i.muxDir)
}

// load reads the config anew, at a start and at each reload; only a file that --config named has to exist.
func (i *invocation) load() (*config, error) {
	file := i.config
	if _, err := os.Lstat(file); !i.chosen && errors.Is(err, fs.ErrNotExist) {
		file = ""
	}
	c, err := loadConfig(file, i.muxDir, i.home)
	if errors.Is(err, fs.ErrNotExist) && i.chosen {
		return nil, &hintError{err, "write it, or leave --config out"}
	}
	return c, err
}

// viewOf takes a running daemon's view. Its files are made again where someone removed them, since a container would
// get empty directories in their place.
func (i *invocation) viewOf(daemon *controlAnswer) (containerView, error) {
	fmt.Fprintf(i.stderr, "muxproxy: asked the running muxproxy (pid %d)\n", daemon.PID)
	v := daemon.Containers
	missing := func(f clientFile) bool { return !exists(i.muxDir, "client", f.name) }
	if exists(i.muxDir, caFileName) && !slices.ContainsFunc(clientFiles(nil, nil), missing) &&
		(!v.Kube || exists(i.muxDir, "kube", "config")) && (!v.Talos || exists(i.muxDir, "talos", "config")) {
		return v, nil
	}
	c, err := i.load()
	if err == nil {
		_, err = i.makeClientFiles(c, daemon.PID, false)
	}
	if err == nil {
		_, _, err = i.makeContextFiles(c)
	}
	return v, err
}

// ownView judges by the config, the credentials and the networks as they are now.
func (i *invocation) ownView() (containerView, error) {
	fmt.Fprintln(i.stderr, "muxproxy: no muxproxy runs: judged by the config")
	c, err := i.load()
	if err != nil {
		return containerView{}, err
	}
	if _, err := i.makeClientFiles(c, 0, false); err != nil {
		return containerView{}, err
	}
	p, _, err := i.makeContextFiles(c)
	if err != nil {
		return containerView{}, err
	}
	n, err := readNetworks()
	if err != nil {
		return containerView{}, err
	}
	return newContainerView(c, newCredentials(c.rules, c.secretsDir, i.getenv, nil), n, true, p), nil
}

// genConfigs is `muxproxy gen-configs`. What it wrote is told on stderr.
func genConfigs(ctx context.Context, i invocation) error {
	daemon, err := i.open(ctx)
	if err != nil {
		return err
	}
	pid := 0
	if daemon != nil {
		pid = daemon.PID
	}
	if i.newCA { // the lock also keeps a run from starting while its CA is replaced
		lock, err := lockRun(i.muxDir)
		if err != nil {
			return err
		}
		defer lock.release()
	}
	c, err := i.load()
	if err != nil {
		return err
	}
	changed, err := i.makeClientFiles(c, pid, i.newCA)
	if err == nil {
		var more []string
		_, more, err = i.makeContextFiles(c)
		changed = append(changed, more...)
	}
	for _, name := range changed {
		fmt.Fprintf(i.stderr, "muxproxy: wrote %s\n", filepath.Join(i.muxDir, name))
	}
	if err == nil && len(changed) == 0 {
		fmt.Fprintf(i.stderr, "muxproxy: all files that containers mount from %s are up to date\n", i.muxDir)
	}
	return err
}

// makeClientFiles makes what containers mount, where it is missing or old: the CA, its roots, the client directory. pid
// is the running daemon's, 0 where none runs: beside one no authority is added. fresh starts the CA afresh. Only run
// has the keys of an ephemeral CA, and so its roots and the trust bundle are left as they are.
func (i *invocation) makeClientFiles(c *config, pid int, fresh bool) (changed []string, err error) {
	o := newCAOptions(c)
	o.fresh, o.readOnly, o.pid = fresh, pid != 0 || c.caEphemeral, pid
	ca, notices, err := openCA(o)
	if err != nil {
		return nil, err
	}
	for _, n := range notices {
		fmt.Fprintf(i.stderr, "muxproxy: %s\n", n)
	}
	if c.caEphemeral {
		if !exists(c.muxDir, "client", bundleName) {
			return nil, &hintError{fmt.Errorf("read the ephemeral CA in %q: it has no trust bundle yet", c.muxDir), "start muxproxy run first"}
		}
		files := slices.DeleteFunc(clientFiles(nil, c.rules), func(f clientFile) bool { return f.name == bundleName })
		return writeClientFiles(c.muxDir, "client", files)
	}
	roots, _, err := hostRoots(i.getenv)
	if err != nil {
		return nil, err
	}
	return writeClientFiles(c.muxDir, "client", clientFiles(trustBundle(ca.roots(), roots), c.rules))
}

// caFileName holds the CA's roots, in the mux-dir.
const caFileName = "proxy-ca.pem"

// newCAOptions are the options of a CA that serves c.
func newCAOptions(c *config) caOptions {
	return caOptions{dir: c.muxDir, hosts: c.caHosts(), unconstrained: !c.caConstraints, ephemeral: c.caEphemeral, now: time.Now}
}

// exists tells whether a regular file is there.
func exists(elem ...string) bool {
	info, err := os.Lstat(filepath.Join(elem...))
	return err == nil && info.Mode().IsRegular()
}

// selinuxEnforces reads the kernel's switch; a host without SELinux has no such file.
func selinuxEnforces(path string) bool {
	b, err := os.ReadFile(path)
	return err == nil && bytes.Equal(bytes.TrimSpace(b), []byte("1"))
}
