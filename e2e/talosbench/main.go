// Command talosbench measures what muxproxy's talos plane costs, beside two other gateways and beside none, in one run on one machine:
//
//	cd e2e && go run ./talosbench [-rounds 5] [-time 1s] [-ends raw|grpc] [-json] [-short] [-muxproxy PROGRAM]
//
// The contenders, each a process of its own:
//
//   - muxproxy: the real program, built from this checkout, with its audit log on;
//   - grpc-proxy: a gateway made of grpc-go and github.com/siderolabs/grpc-proxy, which Talos itself routes with;
//   - copy: TLS on both sides and nothing but bytes copied between, which is the floor: it can refuse nothing;
//   - direct: no gateway, but the client's own certificate.
//
// Every gateway ends TLS with a certificate of its own and opens TLS 1.3 connections with a client certificate to the node. There are
// two pairs of ends, both with the windows of apid and talosctl: -ends raw, node and load generator that cost little, since both
// speak preformatted gRPC on raw HTTP/2 frames; and -ends grpc, which are grpc-go and e2e/apid, what talosctl and apid are made of.
// The ends share the machine's processors with the gateway, so with grpc-go RPCs a second say less than the CPU time of an RPC; raw
// ends send RPCs that are under way at once in one TLS record, of which a copy gains more than any real client lets it.
//
// A round measures each row once with each contender, another one first each time. A value is the median of its rounds, a ratio the
// median of the rounds' ratios. With -short there is one round of short measurements and no judgement.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"muxproxy/e2e/measure"
)

func main() {
	roles.Enter()
	measure.Main("talosbench", run)
}

// options say what is measured and for how long.
type options struct {
	rounds   int
	time     time.Duration // of one measurement by time
	ends     string        // "raw" or "grpc"
	json     bool
	short    bool
	muxproxy string // the program; built from this checkout where ""
	bulk     int    // bytes of one stream
	idle     int    // connections held open for the RSS
}

func parseOptions(args []string, stderr io.Writer) (options, error) {
	o := options{bulk: 128 << 20, idle: 200}
	flags := flag.NewFlagSet("talosbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.rounds, "rounds", 5, "`number` of interleaved rounds")
	flags.DurationVar(&o.time, "time", time.Second, "`length` of a measurement by time")
	flags.StringVar(&o.ends, "ends", "raw", "node and load generator: raw or `grpc`")
	flags.BoolVar(&o.json, "json", false, "print JSON with the values of every round")
	flags.BoolVar(&o.short, "short", false, "one short round that fails only on a wrong answer")
	flags.StringVar(&o.muxproxy, "muxproxy", os.Getenv("MUXPROXY_BIN"), "`program` to measure instead of building it")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.ends != "raw" && o.ends != "grpc" {
		return o, fmt.Errorf("ends %q: there are raw and grpc", o.ends)
	}
	if o.short {
		o.rounds, o.time, o.bulk, o.idle = 1, 100*time.Millisecond, 4<<20, 20
	}
	return o, nil
}

// roles are the processes that this program is besides the one that measures.
var roles = measure.Roles{"node": measure.Role(serveNode), byCopy: measure.Role(serveCopy), byGRPC: measure.Role(serveGRPCProxy)}

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
	if err := w.measureAll(stderr); err != nil {
		return err
	}
	return w.report(stdout)
}
