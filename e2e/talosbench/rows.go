package main

import (
	"encoding/json"
	"fmt"
	"io"

	"muxproxy/e2e/measure"
)

// measurement gives the values of one or more rows for one contender.
type measurement struct {
	rows   []*measure.Row
	values func(*world, *contender) ([]float64, error)
}

const (
	byGRPC = "grpc-proxy"
	byCopy = "copy"
)

// measurements are the rows of the table in its order.
func measurements() []*measurement {
	return []*measurement{
		unaryRows(1, &measure.Row{Name: "unary RPC/s, 1 stream", Unit: "1/s", Against: byGRPC, Least: 1.3},
			&measure.Row{Name: "unary p50, 1 stream", Unit: "µs", Against: byCopy, Most: 1.2}),
		unaryRows(16, &measure.Row{Name: "unary RPC/s, 16 streams", Unit: "1/s", Against: byGRPC, Least: 2},
			&measure.Row{Name: "CPU of 10,000 unary RPCs, 16 streams", Unit: "ms", Against: byGRPC, Most: 0.3},
			&measure.Row{Name: "the same", Unit: "ms", Against: byCopy, Most: 1.5}),
		unaryRows(64, &measure.Row{Name: "unary RPC/s, 64 streams", Unit: "1/s", Against: byGRPC, Least: 2}),
		streamRow(1<<10, &measure.Row{Name: "stream of 1 KiB messages", Unit: "MB/s", Against: byGRPC, Least: 1.5}),
		streamRow(64<<10, &measure.Row{Name: "stream of 64 KiB messages", Unit: "MB/s", Against: byGRPC, Least: 1.15}),
		{[]*measure.Row{{Name: "new connection and first RPC", Unit: "ms", Digits: 2, Against: byCopy, Most: 1.2}}, (*world).connections},
		{[]*measure.Row{{Name: "RSS at 200 idle connections", Unit: "MiB", Digits: 1, Against: byGRPC, Most: 1}}, (*world).idleRSS},
	}
}

// unaryRows measures unary RPCs; each row says which of the numbers it shows.
func unaryRows(width int, rows ...*measure.Row) *measurement {
	return &measurement{rows, func(w *world, c *contender) ([]float64, error) {
		before := c.cpuTime()
		u, err := w.load.unary(c.address, c.tls, width, w.time)
		if err != nil {
			return nil, err
		}
		cpu := (c.cpuTime() - before).Seconds() * 1e3 * 10_000 / float64(u.all)
		var values []float64
		for _, r := range rows {
			values = append(values, map[string]float64{"1/s": u.perSecond, "µs": float64(u.median.Nanoseconds()) / 1e3, "ms": cpu}[r.Unit])
		}
		return values, nil
	}}
}

func streamRow(size int, r *measure.Row) *measurement {
	return &measurement{[]*measure.Row{r}, func(w *world, c *contender) ([]float64, error) {
		v, err := w.load.stream(c.address, c.tls, size, w.bulk)
		return []float64{v}, err
	}}
}

func (w *world) connections(c *contender) ([]float64, error) {
	took, err := measureConnections(w.load, c.address, c.tls, w.time)
	return []float64{took.Seconds() * 1e3}, err
}

// idleRSS measures what a new process holds when connections idle in it, each of which has carried one RPC.
func (w *world) idleRSS(c *contender) ([]float64, error) {
	if c.start == nil {
		return nil, nil
	}
	fresh, err := c.start()
	if err != nil {
		return nil, err
	}
	defer fresh.process.Stop()
	close, err := hold(w.load, fresh.address, fresh.tls, w.idle)
	defer close()
	if err != nil {
		return nil, err
	}
	n, err := measure.SettledRSS(fresh.process.PID())
	return []float64{float64(n) / (1 << 20)}, err
}

// measureAll runs all rounds. Another contender begins each time, so that none always follows the same one.
func (w *world) measureAll(progress io.Writer) error {
	for round := range w.rounds {
		for _, m := range w.all {
			fmt.Fprintf(progress, "round %d of %d: %s\n", round+1, w.rounds, m.rows[0].Name)
			for i := range w.contenders {
				c := w.contenders[(i+round)%len(w.contenders)]
				values, err := m.values(w, c)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.rows[0].Name, c.name, err)
				}
				for i, v := range values {
					w.values.Add(m.rows[i], c.name, v)
				}
			}
		}
	}
	return nil
}

// report prints what the run found, as a table in Markdown or as JSON.
func (w *world) report(out io.Writer) error {
	var names []string
	for _, c := range w.contenders {
		names = append(names, c.name)
	}
	var rows []measure.ReportRow
	for _, m := range w.all {
		for _, r := range m.rows {
			rows = append(rows, r.Report(w.values[r]))
		}
	}
	if w.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "\t")
		return e.Encode(rows)
	}
	measure.Columns(out, measure.JudgedHead, names)
	for _, t := range rows {
		t.PrintJudged(out, names, w.short)
	}
	fmt.Fprintf(out, "\nMedians of %d interleaved rounds.\n", w.rounds)
	return nil
}
