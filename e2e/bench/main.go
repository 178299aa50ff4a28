// Command bench measures what muxproxy costs, beside other proxies that do the same job and beside no proxy at all, in
// one run on one machine:
//
//	cd e2e && go run ./bench [-rounds 5] [-time 1s] [-only ROWS] [-with CONTENDERS] [-json] [-short] [-muxproxy PROGRAM]
//
// The contenders, each a process of its own:
//
//   - muxproxy: the real program, built from this checkout, with its audit log on;
//   - goproxy: github.com/elazarl/goproxy with its certificate store, HTTP/2 and a pool of connections to the origin;
//   - stock: goproxy with the pool that it has where nobody sets one, of two idle connections;
//   - net/http: the same job made of net/http's server and httputil.ReverseProxy;
//   - bare: a relay that ends TLS on both sides and copies what is inside: the floor. Its clients send the credential themselves;
//   - mitmproxy: Debian's mitmdump, where it is installed, in two rounds and a few rows;
//   - direct: no proxy.
//
// Every other proxy ends TLS for the origin's ports with a leaf of its own CA, sets "Authorization: Bearer …" on each request
// and sends it on over TLS that it verifies; the origin answers 401 to any other request, and a wrong answer ends the run. None but
// muxproxy has rules, an address guard or an audit log.
//
// The origin and the load generator are processes too, and made to cost little: both speak preformatted HTTP/1.1 on raw
// TLS connections. They share the machine's processors with the proxy, so requests a second say less than the CPU time
// of a request; what share of the CPU time they took is printed below the table.
//
// A round measures each row once with each contender, another one first each time. A value is the median of its rounds,
// a ratio the median of the rounds' ratios, so that a machine that slows down for a while does not decide. With
// -short there is one round of short measurements and no judgement by time.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"muxproxy/e2e/measure"
)

func main() {
	roles.Enter()
	measure.Main("bench", run)
}

// options say what is measured and for how long.
type options struct {
	rounds   int
	time     time.Duration  // of one measurement of requests or connections a second
	only     *regexp.Regexp // rows
	with     *regexp.Regexp // contenders
	json     bool
	short    bool
	muxproxy string // the program; built from this checkout where ""

	bulk   int64 // bytes of one transfer
	events int   // of one stream
	idle   int   // connections held open for their RSS
	curls  int   // of a round
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{bulk: 256 << 20, events: 200, idle: 1000, curls: 3}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "`number` of interleaved rounds")
	flags.DurationVar(&o.time, "time", time.Second, "`length` of a measurement by time")
	o.only, o.with = regexp.MustCompile(""), regexp.MustCompile("")
	flags.Func("only", "measure only rows whose name matches this `expression`", expression(&o.only))
	flags.Func("with", "measure only contenders whose name matches this `expression`", expression(&o.with))
	flags.BoolVar(&o.json, "json", false, "print JSON with the values of every round")
	flags.BoolVar(&o.short, "short", false, "one short round that fails only on a wrong answer")
	flags.StringVar(&o.muxproxy, "muxproxy", os.Getenv("MUXPROXY_BIN"), "`program` to measure instead of building it")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.short {
		o.rounds, o.time, o.bulk, o.events, o.idle, o.curls = 1, 100*time.Millisecond, 8<<20, 10, 50, 1
	}
	return o, nil
}

// expression parses a flag that is a regular expression.
func expression(e **regexp.Regexp) func(string) error {
	return func(text string) (err error) {
		*e, err = regexp.Compile(text)
		return err
	}
}

// roles are the benchmark's other processes.
var roles = measure.Roles{
	"origin":  measure.Role(serveOrigin),
	"relay":   measure.Role(serveRelay),
	"load":    measure.Role(serveLoad),
	"goproxy": measure.Role(serveGoproxy),
	"reverse": measure.Role(serveReverse),
	"bare":    measure.Role(serveBare),
}

// run is the program.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer w.close()
	rows := selectRows(o)
	if len(rows) == 0 {
		return fmt.Errorf("no row matches %q", o.only)
	}
	if err := w.measure(rows, stderr); err != nil {
		return err
	}
	if o.json {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "\t")
		return e.Encode(w.report(rows))
	}
	w.report(rows).print(stdout)
	return nil
}
