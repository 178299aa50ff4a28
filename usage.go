package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// usageError says that the command line was wrong: exit code 2. Nothing was opened or written then.
type usageError struct {
	err  error
	hint string // the next thing to type
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// hintError is a failure whose way out is known. The hint is a line of its own, so that the error stays one line:
//
//	muxproxy: lock mux-dir "/home/u/.mux": muxproxy runs there already with pid 4711
//	muxproxy: hint: run kill -HUP 4711 to reload it, kill 4711 to stop it, or give another --mux-dir
type hintError struct {
	err  error
	hint string // the next thing to type, "" for none
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// report tells the operator of err on w, one line and a hint line, and gives the exit code: 0 done, 1 failure, 2 usage.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code, hint := 1, ""
	var usage *usageError
	var hinted *hintError
	switch {
	case errors.As(err, &usage):
		code, hint = 2, usage.hint
	case errors.As(err, &hinted):
		hint = hinted.hint
	}
	fmt.Fprintf(w, "muxproxy: %v\n", err)
	if hint != "" {
		fmt.Fprintf(w, "muxproxy: hint: %s\n", hint)
	}
	return code
}

// printHelp writes the manual of the command that args name, or the whole one. Help that was asked for is data: it goes
// to stdout and is no error, even where the rest of args is wrong.
func printHelp(w io.Writer, args []string) error {
	for _, a := range args {
		for _, c := range commands() {
			if a == c.name {
				return printCommandHelp(w, c)
			}
		}
	}
	var b strings.Builder
	b.WriteString(manualHead)
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-18s %s\n", c.name, c.help)
	}
	b.WriteString("\nFlags of every command:\n")
	writeFlags(&b, newFlagSet("", &options{}, nil))
	b.WriteString(manualTail)
	_, err := io.WriteString(w, b.String())
	return err
}

// printCommandHelp writes what one command does and which flags it takes.
func printCommandHelp(w io.Writer, c command) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: muxproxy %s [flags]\n\n%s\n\nFlags:\n", c.name, c.help)
	writeFlags(&b, newFlagSet(c.name, &options{}, c.flags))
	_, err := io.WriteString(w, b.String())
	return err
}

// writeFlags lists flags as they are typed, "--config FILE".
func writeFlags(b *strings.Builder, flags *flag.FlagSet) {
	flags.VisitAll(func(f *flag.Flag) {
		value, help := flag.UnquoteUsage(f)
		fmt.Fprintf(b, "  %-22s %s\n", strings.TrimSpace("--"+f.Name+" "+value), help)
	})
}

const manualHead = `muxproxy runs on the host, holds its credentials, and gives containers doors through
which their requests are authenticated on the way out. The containers hold none.

Usage: muxproxy COMMAND [flags]

  muxproxy run &
  docker run $(muxproxy print-docker-args) IMAGE …

Commands:
`

const manualTail = `
Files, in the mux-dir (0700):
  proxy.toml           the config, optional
  proxy-ca.pem         the CA roots, mounted at /etc/mux/proxy-ca.pem
  client/              trust bundle and client configs, mounted at /etc/mux/client
  kube/, talos/        the containers' kubeconfig and talosconfig, mounted at /etc/mux/kube and /etc/mux/talos
  proxy-ca-key.pem     the CA's keys: never mounted, never shown
  audit.jsonl          one JSON line a request
  run.lock             held by the one muxproxy that runs here
  control.sock         where the other commands ask it
~/.secrets/NAME holds one credential each (0600): github, anthropic, npm, …

Signals: SIGHUP reloads config, rules, credentials and contexts and reopens the audit log;
the first SIGINT or SIGTERM drains, the second ends at once.

muxproxy run's own HTTPS_PROXY, HTTP_PROXY and NO_PROXY are honoured on the way out.

Exit codes: 0 done, 1 failure, 2 usage.
`
