package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
)

// row is one line of the table.
type row struct {
	name    string
	unit    string
	digits  int    // after the point
	against string // the contender that muxproxy is compared with
	least   float64
	most    float64
}

// measurement gives the values of one or more rows for one contender.
type measurement struct {
	rows    []*row
	measure func(*world, *contender) ([]float64, error)
}

const (
	byGRPC = "grpc-proxy"
	byCopy = "copy"
)

// measurements are the rows of the table in its order.
func measurements() []*measurement {
	return []*measurement{
		unaryRows(1, &row{name: "unary RPC/s, 1 stream", unit: "1/s", against: byGRPC, least: 1.3},
			&row{name: "unary p50, 1 stream", unit: "µs", against: byCopy, most: 1.2}),
		unaryRows(16, &row{name: "unary RPC/s, 16 streams", unit: "1/s", against: byGRPC, least: 2},
			&row{name: "CPU of 10,000 unary RPCs, 16 streams", unit: "ms", against: byGRPC, most: 0.3},
			&row{name: "the same", unit: "ms", against: byCopy, most: 1.5}),
		unaryRows(64, &row{name: "unary RPC/s, 64 streams", unit: "1/s", against: byGRPC, least: 2}),
		streamRow(smallPath, &row{name: "stream of 1 KiB messages", unit: "MB/s", against: byGRPC, least: 1.5}),
		streamRow(largePath, &row{name: "stream of 64 KiB messages", unit: "MB/s", against: byGRPC, least: 1.15}),
		{[]*row{{name: "new connection and first RPC", unit: "ms", digits: 2, against: byCopy, most: 1.2}}, (*world).connections},
		{[]*row{{name: "RSS at 200 idle connections", unit: "MiB", digits: 1, against: byGRPC, most: 1}}, (*world).idleRSS},
	}
}

// unaryRows measures unary RPCs; each row says which of the numbers it shows.
func unaryRows(width int, rows ...*row) *measurement {
	return &measurement{rows, func(w *world, c *contender) ([]float64, error) {
		before := c.process.cpuTime()
		u, err := measureUnary(c.address, c.tls, width, w.time)
		if err != nil {
			return nil, err
		}
		cpu := (c.process.cpuTime() - before).Seconds() * 1e3 * 10_000 / float64(u.all)
		var values []float64
		for _, r := range rows {
			values = append(values, map[string]float64{"1/s": u.perSecond, "µs": float64(u.median.Nanoseconds()) / 1e3, "ms": cpu}[r.unit])
		}
		return values, nil
	}}
}

func streamRow(path string, r *row) *measurement {
	return &measurement{[]*row{r}, func(w *world, c *contender) ([]float64, error) {
		v, err := measureStream(c.address, c.tls, path, w.bulk)
		return []float64{v}, err
	}}
}

func (w *world) connections(c *contender) ([]float64, error) {
	took, err := measureConnections(c.address, c.tls, w.time)
	return []float64{took.Seconds() * 1e3}, err
}

// settle is how long a gateway gets to finish with what it was asked before its RSS is read.
const settle = 300 * time.Millisecond

// idleRSS measures what a new process holds when connections idle in it, each of which has carried one RPC.
func (w *world) idleRSS(c *contender) ([]float64, error) {
	if c.start == nil {
		return []float64{0}, nil
	}
	fresh, err := c.start()
	if err != nil {
		return nil, err
	}
	defer fresh.process.stop()
	all, err := hold(fresh.address, fresh.tls, w.idle)
	defer func() {
		for _, held := range all {
			held.conn.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	time.Sleep(settle)
	n, err := fresh.process.rss()
	return []float64{float64(n) / (1 << 20)}, err
}

// measure runs all rounds. Another contender begins each time, so that none always follows the same one.
func (w *world) measure(progress io.Writer) error {
	for round := range w.rounds {
		for _, m := range w.rows {
			fmt.Fprintf(progress, "round %d of %d: %s\n", round+1, w.rounds, m.rows[0].name)
			for i := range w.contenders {
				c := w.contenders[(i+round)%len(w.contenders)]
				values, err := m.measure(w, c)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.rows[0].name, c.name, err)
				}
				for i, r := range m.rows {
					if w.values[r] == nil {
						w.values[r] = map[string][]float64{}
					}
					w.values[r][c.name] = append(w.values[r][c.name], values[i])
				}
			}
		}
	}
	return nil
}

// median gives the middle of the values, or the mean of the two in the middle.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// format gives a value as the table shows it.
func (r *row) format(v float64) string { return strconv.FormatFloat(v, 'f', r.digits, 64) }
