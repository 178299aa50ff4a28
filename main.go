package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
)

// main is the only place that knows the process: arguments, environment, standard streams, exit code.
func main() {
	err := run(context.Background(), os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	os.Exit(report(os.Stderr, err))
}

// command is one row of the command table. The help texts and the usage errors are made from the table, so a command
// that is not in it does not exist.
type command struct {
	name  string                                        // "run"
	help  string                                        // one line of the manual
	flags func(*flag.FlagSet, *options)                 // the flags that only this command has; nil: none
	run   func(ctx context.Context, i invocation) error // does the work
}

// options are the values of all flags; a command reads those that it has. The zero value of each is what holds where the
// command has no such flag.
type options struct {
	configFlag, muxDirFlag           string // as typed; see locate
	noHTTP, noKube, noTalos, noProxy bool
	logLevel, logFormat              string // "info", "text"
	format                           string // of print-docker-args: "words"
	newCA                            bool
}

// invocation is what a command gets: its flags and its view of the process. A command finds its place with locate, since
// version needs none.
type invocation struct {
	options
	place
	getenv         func(string) string
	environ        []string // "PATH=/usr/bin": of the plugins of a kubeconfig
	stdout, stderr io.Writer
}

// place is where an invocation finds its state; all paths are absolute.
type place struct {
	muxDir string // "/home/u/.mux"
	config string // "/home/u/.mux/proxy.toml"
	chosen bool   // config was named by --config, so it has to exist
	home   string // "/home/u", "" where HOME is not set
}

// commands is the command table, in the order of the manual.
func commands() []command {
	return []command{
		{"run", "start the planes; runs until SIGINT or SIGTERM", runFlags, runDaemon},
		{"print-docker-args", "print what `docker run` needs, ready for $(…)", printFlags, printDockerArgs},
		{"gen-configs", "write the containers' trust bundle and configs", genFlags, genConfigs},
		{"version", "print the version", nil, printVersion},
	}
}

// runFlags are the flags of run alone.
func runFlags(f *flag.FlagSet, o *options) {
	f.BoolVar(&o.noHTTP, "no-http", false, "leave the http plane off; its port answers /proxy/health alone")
	f.BoolVar(&o.noKube, "no-kube", false, "leave the kube plane off")
	f.BoolVar(&o.noTalos, "no-talos", false, "leave the talos plane off")
	f.BoolVar(&o.noProxy, "no-proxy", false, "leave all three off: the health endpoint alone")
	f.StringVar(&o.logLevel, "log-level", "info", "the least `LEVEL` that is logged: debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "text", "the `FORMAT` of the log on stderr: text or json")
}

// printFlags are the flags of print-docker-args alone.
func printFlags(f *flag.FlagSet, o *options) {
	f.BoolVar(&o.noProxy, "no-proxy", false, "print none of the arguments of the http plane")
	f.StringVar(&o.format, "format", "words", "the `FORMAT`: words (for $(…)), shell (for eval), lines or json")
}

// genFlags are the flags of gen-configs alone.
func genFlags(f *flag.FlagSet, o *options) {
	f.BoolVar(&o.newCA, "new-ca", false, "start the certificate authority afresh; running containers then have to be restarted")
}

// run does what args ask for and returns when it is done. Data goes to stdout, all else to stderr. ctx starts a drain,
// as the first SIGINT does. A usageError means that args were wrong, any other error that the work failed.
func run(ctx context.Context, args []string, getenv func(string) string, _ io.Reader, stdout, stderr io.Writer) error {
	i := invocation{getenv: getenv, environ: os.Environ(), stdout: stdout, stderr: stderr}
	global := newFlagSet("muxproxy", &i.options, nil)
	if wantsHelp(args) {
		return printHelp(stdout, args)
	}
	if err := global.Parse(args); err != nil {
		return &usageError{err: fmt.Errorf("parse flags: %w", err), hint: "run muxproxy -h"}
	}
	if global.NArg() == 0 {
		return &usageError{err: errors.New("no command given"), hint: "run muxproxy -h for the list"}
	}
	c, err := findCommand(global.Arg(0))
	if err != nil {
		return err
	}
	hint := fmt.Sprintf("run muxproxy %s -h", c.name)
	flags := newFlagSet(c.name, &i.options, c.flags)
	if err := flags.Parse(global.Args()[1:]); err != nil {
		return &usageError{err: fmt.Errorf("parse flags of %q: %w", c.name, err), hint: hint}
	}
	if flags.NArg() > 0 {
		return &usageError{err: fmt.Errorf("parse arguments of %q: unexpected %q", c.name, flags.Arg(0)), hint: hint}
	}
	return c.run(ctx, i)
}

// newFlagSet makes the flags of one command, or with own nil those that every command has. A value that was set before
// the command's name is the default after it.
func newFlagSet(name string, o *options, own func(*flag.FlagSet, *options)) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.StringVar(&o.configFlag, "config", o.configFlag, "the config `FILE` (default proxy.toml in the mux-dir)")
	f.StringVar(&o.muxDirFlag, "mux-dir", o.muxDirFlag, "the `DIR` that holds muxproxy's state (default $MUX_DIR, then ~/.mux)")
	if own != nil {
		own(f, o)
	}
	return f
}

// findCommand looks name up; the error of an unknown one names the nearest.
func findCommand(name string) (*command, error) {
	var names []string
	for _, c := range commands() {
		if c.name == name {
			return &c, nil
		}
		names = append(names, c.name)
	}
	hint := "run muxproxy -h for the list"
	if name == "check" {
		return nil, &usageError{err: fmt.Errorf("command %q: not in this version", name), hint: hint}
	}
	near := slices.MinFunc(names, func(a, b string) int { return editDistance(name, a) - editDistance(name, b) })
	if d := editDistance(name, near); d <= 3 && d < len(name) { // "rnu" is two from "run"
		hint = fmt.Sprintf("did you mean muxproxy %s?", near)
	}
	return nil, &usageError{err: fmt.Errorf("command %q: unknown", name), hint: hint}
}

// wantsHelp tells whether any argument asks for help, wherever it stands.
func wantsHelp(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool { return a == "-h" || a == "-help" || a == "--help" })
}

// locate finds the mux-dir (--mux-dir, then MUX_DIR, then ~/.mux) and the config file (--config, then proxy.toml in the
// mux-dir). Nothing is opened. The error is of a user without HOME who named no path.
func (o *options) locate(getenv func(string) string) (place, error) {
	p := place{home: getenv("HOME"), chosen: o.configFlag != ""}
	dir := o.muxDirFlag
	if dir == "" {
		dir = getenv("MUX_DIR")
	}
	if dir == "" && p.home == "" {
		return place{}, &hintError{errors.New("find the mux-dir: HOME is not set"), "set HOME, or give --mux-dir DIR or MUX_DIR"}
	}
	if dir == "" {
		dir = "~/.mux"
	}
	var err error
	if p.muxDir, err = absolute(dir, p.home); err != nil {
		return place{}, err
	}
	p.config = filepath.Join(p.muxDir, "proxy.toml")
	if p.chosen {
		p.config, err = absolute(o.configFlag, p.home)
	}
	return p, err
}

// absolute makes a path from a flag or variable absolute. A shell leaves the ~ of --mux-dir=~/x as it is, and a service
// manager that of MUX_DIR.
func absolute(path, home string) (string, error) {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		if home == "" {
			return "", &hintError{fmt.Errorf("expand %q: HOME is not set", path), "set HOME, or give an absolute path"}
		}
		path = filepath.Join(home, rest)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("resolve %q: %w", path, err)
	}
	return abs, nil
}

// signals are what the operator tells a running daemon. A nil channel is one on which nothing comes.
type signals struct {
	stop   <-chan os.Signal // the first drains, the second ends at once
	reload <-chan os.Signal
}

// runDaemon is `muxproxy run`. It returns nil after a drain, errCutShort after a second signal, and any other error
// where the daemon could not start or lost a listener.
func runDaemon(ctx context.Context, i invocation) error {
	log, err := newLogger(i.stderr, i.logLevel, i.logFormat)
	if err != nil {
		return err
	}
	if i.place, err = i.locate(i.getenv); err != nil {
		return err
	}
	// Caught before anything is opened, so that no signal cuts a start in half. Two stops are kept while nobody reads.
	stop, reload := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(stop)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	// Whoever read the log may end before the daemon does.
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Reset(syscall.SIGPIPE)

	d, err := openDaemon(ctx, i, log)
	if err != nil {
		return err
	}
	defer d.close()
	return d.serve(ctx, signals{stop, reload})
}

// newLogger makes the one logger of the process; level is "debug" to "error", format "text" or "json".
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var o slog.HandlerOptions
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil || !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
		return nil, &usageError{err: fmt.Errorf("flag --log-level %q: no such level", level), hint: "levels: debug, info, warn, error"}
	}
	o.Level = l
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, &o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &o)), nil
	}
	return nil, &usageError{err: fmt.Errorf("flag --log-format %q: no such format", format), hint: "formats: text, json"}
}

// printVersion is `muxproxy version`: "muxproxy v1.0.0 go1.26.0 linux/amd64".
func printVersion(_ context.Context, i invocation) error {
	_, err := fmt.Fprintln(i.stdout, "muxproxy", version(), runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
	return err
}

// version is the module's version and the commit it was built from, where the build knows them: "v1.0.0",
// "(devel) 0123456789ab modified".
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	v := info.Main.Version
	if v == "" {
		v = "(devel)"
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12 && !strings.Contains(v, s.Value[:12]):
			v += " " + s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true" && !strings.Contains(v, "dirty"):
			v += " modified"
		}
	}
	return v
}
