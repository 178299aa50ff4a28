// Command kubebench measures what muxproxy's kube plane costs, beside kubectl proxy and beside no proxy at all, in one run
// on one machine:
//
//	cd e2e && go run ./kubebench [-rounds 5] [-time 1s] [-only ROWS] [-json] [-short] [-muxproxy PROGRAM] [-tools DIRECTORY]
//
// The contenders, each a process of its own:
//
//   - muxproxy: the real program, built from this checkout, with its audit log on and the default access level;
//   - kubectl proxy, which has neither;
//   - direct: no proxy; the load generator sends the token itself.
//
// A real API server takes more time for a request than either proxy, on processors that it shares with them here, so most rows
// have a stand-in that speaks TLS, HTTP/2 and HTTP/1.1 and costs little. The rows that say so have a real one.
//
// A round measures each row once with each contender, another one first each time. A value is the median of its rounds,
// a ratio the median of the rounds' ratios, so that a machine that slows down for a while does not decide. With
// -short there is one round of short measurements and no judgement by time.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"muxproxy/e2e/measure"
)

func main() {
	roles.Enter()
	measure.Main("kubebench", run)
}

// roles are the benchmark's other processes.
var roles = measure.Roles{"origin": measure.Role(serveOrigin), "load": measure.Role(serveLoad)}

// options say what is measured and for how long.
type options struct {
	rounds   int
	time     time.Duration // of one measurement of requests a second
	only     *regexp.Regexp
	json     bool
	short    bool
	muxproxy string // the program; built from this checkout where ""
	tools    string // what kube/tools/build made

	lists   [2]int // KB
	events  int    // of one watch
	watches int    // held open for their RSS
	gets    int    // of kubectl, in a round
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{only: regexp.MustCompile(""), lists: [2]int{10_000, 100_000}, events: 200, watches: 300, gets: 5}
	flags := flag.NewFlagSet("kubebench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "`number` of interleaved rounds")
	flags.DurationVar(&o.time, "time", time.Second, "`length` of a measurement by time")
	flags.Func("only", "measure only rows whose name matches this `expression`", func(text string) (err error) {
		o.only, err = regexp.Compile(text)
		return err
	})
	flags.BoolVar(&o.json, "json", false, "print JSON with the values of every round")
	flags.BoolVar(&o.short, "short", false, "one short round that fails only on a wrong answer")
	flags.StringVar(&o.muxproxy, "muxproxy", os.Getenv("MUXPROXY_BIN"), "`program` to measure instead of building it")
	flags.StringVar(&o.tools, "tools", cachedTools(), "`directory` with kubectl, kube-apiserver and etcd in bin")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.tools == "" {
		return o, errors.New("no kubectl and API server: run e2e/run kube once, which builds and keeps them")
	}
	if o.short {
		o.rounds, o.time, o.lists, o.events, o.watches, o.gets = 1, 100*time.Millisecond, [2]int{100, 1000}, 10, 20, 1
	}
	return o, nil
}

// cachedTools gives the directory in which e2e/run keeps the tools, "" where it has not made them.
func cachedTools() string {
	if dir := os.Getenv("E2E_KUBE"); dir != "" {
		return dir
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	found, _ := filepath.Glob(filepath.Join(cache, "muxproxy-e2e", "kube-*", "bin"))
	if len(found) == 0 {
		return ""
	}
	return filepath.Dir(found[0])
}

// run is the program.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	all := slices.DeleteFunc(measurements(), func(m *measurement) bool {
		return !slices.ContainsFunc(m.rows, func(r *measure.Row) bool { return o.only.MatchString(r.Name) })
	})
	if len(all) == 0 {
		return fmt.Errorf("no row matches %q", o.only)
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.measure(all, stderr); err != nil {
		return err
	}
	return w.report(all, stdout)
}

// report prints the table.
func (w *world) report(all []*measurement, out io.Writer) error {
	var rows []measure.ReportRow
	for _, m := range all {
		for _, r := range m.rows {
			rows = append(rows, r.Report(w.values[r]))
		}
	}
	if w.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "\t")
		return e.Encode(rows)
	}
	var names []string
	for _, c := range w.contenders {
		names = append(names, c.name)
	}
	measure.Columns(out, measure.JudgedHead, names)
	for _, r := range rows {
		r.PrintJudged(out, names, w.short)
	}
	_, err := fmt.Fprintf(out, "\nMedians of %d interleaved rounds.\n", w.rounds)
	return err
}
