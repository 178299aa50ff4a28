package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// NodeName is the node whose pods run.
const NodeName = "node"

// Kubelet serves what the API server asks of a node: processes of "containers" are the machine's own, in a directory that
// all share, and their logs are made up.
type Kubelet struct {
	dir string

	mu        sync.Mutex
	followers map[string]int // by namespace; guarded by mu
}

// Followers is how many clients follow a log of a namespace now.
func (k *Kubelet) Followers(namespace string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.followers[namespace]
}

// follow counts a follower.
func (k *Kubelet) follow(namespace string, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.followers[namespace] += n
}

// startNode registers the node and serves it, and begins to look after its pods.
func (c *Cluster) startNode(ctx context.Context) error {
	c.Node = &Kubelet{dir: c.file("node"), followers: map[string]int{}}
	if err := os.Mkdir(c.Node.dir, 0o755); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s := &http.Server{Handler: c.Node.handler(), ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{
		Certificates: []tls.Certificate{c.serving.tls()}, ClientCAs: c.authority.pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		// SPDY needs HTTP/1.1.
		NextProtos: []string{"http/1.1"},
	}}
	c.ending.Go(func() { _ = s.ServeTLS(ln, "", "") })
	c.closers = append(c.closers, s)
	port := ln.Addr().(*net.TCPAddr).Port
	err = errors.Join(
		c.Do(ctx, "POST", "/api/v1/nodes", "application/json", fmt.Sprintf(`{"metadata":{"name":%q}}`, NodeName)),
		c.Do(ctx, "PATCH", "/api/v1/nodes/"+NodeName+"/status", "application/merge-patch+json", fmt.Sprintf(
			`{"status":{"addresses":[{"type":"InternalIP","address":"127.0.0.1"}],"daemonEndpoints":{"kubeletEndpoint":{"Port":%d}},"conditions":[{"type":"Ready","status":"True"}]}}`, port)),
		// The API server taints a new node, since no kubelet has spoken yet.
		c.Do(ctx, "PATCH", "/api/v1/nodes/"+NodeName, "application/merge-patch+json", `{"spec":{"taints":null}}`),
	)
	if err != nil {
		return err
	}
	return c.watchPods(ctx)
}

// handler has the four paths that the API server asks for.
func (k *Kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", session(func(w http.ResponseWriter, r *http.Request, o *remotecommand.Options) {
		remotecommand.ServeExec(w, r, k, r.PathValue("pod"), "", r.PathValue("container"), r.Form["command"], o, 0, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	}))
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", session(func(w http.ResponseWriter, r *http.Request, o *remotecommand.Options) {
		remotecommand.ServeAttach(w, r, k, r.PathValue("pod"), "", r.PathValue("container"), o, 0, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
	}))
	mux.HandleFunc("/portForward/{namespace}/{pod}", func(w http.ResponseWriter, r *http.Request) {
		o, err := portforward.NewV4Options(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, r, k, r.PathValue("pod"), "", o, 0, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
	})
	mux.HandleFunc("/containerLogs/{namespace}/{pod}/{container}", k.logs)
	return mux
}

// session reads which streams a request wants.
func session(serve func(http.ResponseWriter, *http.Request, *remotecommand.Options)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		o, err := remotecommand.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		serve(w, r, o)
	}
}

// ExecInContainer runs a process; it is a remotecommand.Executor.
func (k *Kubelet) ExecInContainer(ctx context.Context, _, _, _ string, command []string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = k.dir
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "TERM=xterm", "HOME=" + k.dir}
	var err error
	if tty {
		err = runInTerminal(cmd, in, out, resize)
	} else {
		err = runInPipes(cmd, in, out, stderr)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return utilexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	case errors.Is(err, exec.ErrNotFound):
		return utilexec.CodeExitError{Err: err, Code: 127}
	}
	return err
}

// runInPipes does not wait for the client to end its stdin.
func runInPipes(cmd *exec.Cmd, in io.Reader, out, stderr io.Writer) error {
	if out != nil {
		cmd.Stdout = out
	}
	if stderr != nil {
		cmd.Stderr = stderr
	}
	if in == nil {
		return cmd.Run()
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _, _ = io.Copy(stdin, in); stdin.Close() }() // ends with the session, which closes in
	return cmd.Wait()
}

// runInTerminal gives the process a terminal, whose size follows the client's.
func runInTerminal(cmd *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	control, terminal, err := OpenPTY()
	if err != nil {
		return err
	}
	defer control.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = newSession()
	err = cmd.Start()
	terminal.Close()
	if err != nil {
		return err
	}
	go func() {
		for size := range resize {
			_ = Resize(control, size.Height, size.Width)
		}
	}()
	if in != nil {
		go func() { _, _ = io.Copy(control, in) }()
	}
	_, _ = io.Copy(out, control) // ends when no process has the terminal
	return cmd.Wait()
}

// AttachContainer attaches to a process that answers each line; it is a remotecommand.Attacher.
func (k *Kubelet) AttachContainer(ctx context.Context, name, _, container string, in io.Reader, out, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	answer := []string{"sh", "-c", `while read -r line; do echo "$0 got $line"; done; echo "$0 ends" >&2`, name}
	return k.ExecInContainer(ctx, name, "", container, answer, in, out, stderr, tty, resize, 0)
}

// PortForward copies to and from a port of loopback; it is a portforward.PortForwarder.
func (k *Kubelet) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer stream.Close()
	go func() { _, _ = io.Copy(conn, stream); _ = conn.(*net.TCPConn).CloseWrite() }()
	_, err = io.Copy(stream, conn)
	return err
}

// bigLog is the size of the log of a pod named "big".
const bigLog = 32 << 20

// logs answers with twenty lines. Who follows gets ten more, one by one, then the end; of a pod named "ticker" lines come until the client leaves.
func (k *Kubelet) logs(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	first, lines := 0, 20
	line := func(n int) string {
		return fmt.Sprintf("%s/%s line %d\n", r.PathValue("pod"), r.PathValue("container"), n)
	}
	if r.FormValue("timestamps") == "true" {
		plain := line
		line = func(n int) string {
			return time.Date(2026, 1, 2, 3, 4, n, 0, time.UTC).Format(time.RFC3339Nano) + " " + plain(n)
		}
	}
	if tail, err := strconv.Atoi(r.FormValue("tailLines")); err == nil {
		first = max(0, lines-tail)
	}
	if r.PathValue("pod") == "big" {
		lines = bigLog / len(line(0))
	}
	for n := first; n < lines; n++ {
		if _, err := io.WriteString(w, line(n)); err != nil {
			return
		}
	}
	if r.FormValue("follow") == "true" {
		k.follow(r.PathValue("namespace"), 1)
		defer k.follow(r.PathValue("namespace"), -1)
		follow(w, r, lines, line)
	}
}

// follow writes a line every 50 ms.
func follow(w http.ResponseWriter, r *http.Request, from int, line func(int) string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	flush := http.NewResponseController(w).Flush
	for n := from; n < from+10 || r.PathValue("pod") == "ticker"; n++ {
		if _, err := io.WriteString(w, line(n)); err != nil || flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

var (
	_ remotecommand.Executor    = (*Kubelet)(nil)
	_ remotecommand.Attacher    = (*Kubelet)(nil)
	_ portforward.PortForwarder = (*Kubelet)(nil)
)
