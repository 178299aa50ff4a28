package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"muxproxy/e2e/measure"
)

// measurement gives the values of one or more rows for one contender.
type measurement struct {
	rows    []*measure.Row
	leaves  string // contenders that it leaves out, "mitmproxy direct"
	measure func(*world, *contender) (sample, error)
}

// sample is what one measurement of a contender gave.
type sample struct {
	values []float64 // of its rows
	cpu    float64   // µs of the proxy, for one request, connection or MB; negative where that says nothing
}

// measurements are the rows of the table in its order.
func measurements() []*measurement {
	return []*measurement{
		requests(1, &measure.Row{Name: "requests/s, 1 connection", Unit: "1/s", Against: "goproxy", Least: 2.0}),
		requests(16, &measure.Row{Name: "requests/s, 16 connections", Unit: "1/s", Against: "goproxy", Least: 1.6},
			&measure.Row{Name: "CPU a request, 16 connections", Unit: "µs", Digits: 1, Against: "goproxy", Most: 0.6}),
		requests(64, &measure.Row{Name: "requests/s, 64 connections", Unit: "1/s", Against: "goproxy", Least: 1.6}),
		connections(false, "bare", &measure.Row{Name: "new connection, full handshake", Unit: "1/s", Against: "goproxy", Least: 1.1}),
		connections(true, "bare mitmproxy", &measure.Row{Name: "new connection, resumed", Unit: "1/s", Against: "goproxy", Least: 1.3}),
		{
			rows:   []*measure.Row{{Name: "HTTP/2 requests/s, 16 streams", Unit: "1/s", Against: "goproxy", Least: 1.2}},
			leaves: "bare mitmproxy", measure: (*world).streams,
		},
		transfer("download", false, &measure.Row{Name: "intercepted bulk, download", Unit: "MB/s", Against: "goproxy", Least: 1}),
		transfer("upload", false, &measure.Row{Name: "intercepted bulk, upload", Unit: "MB/s", Against: "goproxy", Least: 1}),
		transfer("download", true, &measure.Row{Name: "tunnel bulk, download", Unit: "MB/s", Against: "goproxy", Least: 1}),
		transfer("upload", true, &measure.Row{Name: "tunnel bulk, upload", Unit: "MB/s", Against: "goproxy", Least: 1}),
		{
			rows:   []*measure.Row{{Name: "a fresh curl, 40 ms away, warm", Unit: "ms", Digits: 1, Against: "direct", Faster: true, Least: 2}},
			leaves: "bare mitmproxy", measure: (*world).curl,
		},
		{
			rows:   []*measure.Row{{Name: "latency added to an SSE event", Unit: "µs", Against: "goproxy", Added: true, Most: 1}},
			leaves: "bare mitmproxy", measure: (*world).events,
		},
		{
			rows:   []*measure.Row{{Name: "RSS per idle connection", Unit: "KiB", Digits: 1, Against: "goproxy", Most: 0.75}},
			leaves: "bare mitmproxy direct", measure: (*world).idleRSS,
		},
	}
}

// selectRows gives the measurements of which -only wants a row.
func selectRows(o options) []*measurement {
	return slices.DeleteFunc(measurements(), func(m *measurement) bool {
		return !slices.ContainsFunc(m.rows, func(r *measure.Row) bool { return o.only.MatchString(r.Name) })
	})
}

// measure runs all rounds. Another contender begins each time, so that none always follows the same one.
func (w *world) measure(all []*measurement, progress io.Writer) error {
	for round := range w.rounds {
		for _, m := range all {
			fmt.Fprintf(progress, "round %d of %d: %s\n", round+1, w.rounds, m.rows[0].Name)
			for i := range w.contenders {
				c := w.contenders[(i+round)%len(w.contenders)]
				if slices.Contains(strings.Fields(m.leaves), c.name) || c.rounds > 0 && round >= c.rounds {
					continue
				}
				s, err := m.measure(w, c)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.rows[0].Name, c.name, err)
				}
				for i, r := range m.rows {
					w.values.Add(r, c.name, s.values[i])
				}
				if s.cpu >= 0 {
					w.cpu.Add(m.rows[0], c.name, s.cpu)
				}
			}
		}
	}
	return nil
}

// perUnit is the proxy's CPU time in µs for one of n.
func (r result) perUnit(n int64) float64 { return r.CPU[0].Seconds() * 1e6 / float64(max(n, 1)) }

// job prepares what all jobs through c have in common.
func (w *world) job(kind string, c *contender) job {
	j := job{Kind: kind, Proxy: c.address, Target: w.intercepted, Roots: c.roots, Token: c.token, Connections: 1, Time: w.time, PIDs: []int{0, w.origin.PID()}}
	if c.process != nil {
		j.PIDs[0] = c.process.PID()
	}
	return j
}

// requests measures the rate of requests on kept connections and, where there is a second row, the proxy's CPU time.
func requests(n int, rows ...*measure.Row) *measurement {
	return &measurement{rows: rows, measure: func(w *world, c *contender) (sample, error) {
		j := w.job("requests", c)
		j.Connections = n
		r, err := w.do(j)
		if err != nil {
			return sample{}, err
		}
		if len(rows) > 1 {
			w.shares[c] = append(w.shares[c], shares{r.CPU[0], r.CPU[1], r.Own})
		}
		cpu := r.perUnit(r.Count)
		return sample{[]float64{float64(r.Count) / r.Time.Seconds(), cpu}, cpu}, nil
	}}
}

// connections measures the rate of new connections, by four clients at once.
func connections(resume bool, leaves string, r *measure.Row) *measurement {
	return &measurement{rows: []*measure.Row{r}, leaves: leaves, measure: func(w *world, c *contender) (sample, error) {
		j := w.job("connections", c)
		j.Connections, j.Resume = 4, resume
		got, err := w.do(j)
		if err != nil {
			return sample{}, err
		}
		if c.name == "muxproxy" && resume && got.Resumed != got.Count {
			return sample{}, fmt.Errorf("%d of %d connections were resumed", got.Resumed, got.Count)
		}
		return sample{[]float64{float64(got.Count) / got.Time.Seconds()}, got.perUnit(got.Count)}, nil
	}}
}

// streams measures the rate of requests on one HTTP/2 connection.
func (w *world) streams(c *contender) (sample, error) {
	j := w.job("streams", c)
	j.Connections = 16
	if c.process == nil {
		j.Target = w.http2
	}
	r, err := w.do(j)
	if err != nil {
		return sample{}, err
	}
	return sample{[]float64{float64(r.Count) / r.Time.Seconds()}, r.perUnit(r.Count)}, nil
}

// transfer measures the rate of one long transfer, through an intercepted connection or a tunnel.
func transfer(kind string, tunnel bool, r *measure.Row) *measurement {
	leaves := "mitmproxy"
	if tunnel {
		leaves = "bare mitmproxy"
	}
	return &measurement{rows: []*measure.Row{r}, leaves: leaves, measure: func(w *world, c *contender) (sample, error) {
		j := w.job(kind, c)
		j.Bytes = w.bulk
		if tunnel {
			j.Target, j.Token, j.Roots = w.tunneled, w.token, []string{w.path("root.pem")}
		}
		got, err := w.do(j)
		if err != nil {
			return sample{}, err
		}
		return sample{[]float64{float64(w.bulk) / 1e6 / got.Time.Seconds()}, got.perUnit(w.bulk / 1e6)}, nil
	}}
}

// curl measures runs of curl, each a new process, which asks the origin behind the relay for a small answer. The time is curl's
// own, from its first look-up to its last byte: what it takes to load a program is not ours.
func (w *world) curl(c *contender) (sample, error) {
	args := []string{"--silent", "--show-error", "--fail", "--output", "/dev/null", "--write-out", "%{time_total}", "--cacert", c.roots[0]}
	if c.process == nil {
		args = append(args, "--header", "Authorization: Bearer "+c.token)
	} else {
		args = append(args, "--proxy", "http://"+c.address)
	}
	args = append(args, "https://"+w.far+"/small")
	var took []float64
	for range w.curls + 1 { // the first one warms the pool
		ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
		text, err := exec.CommandContext(ctx, "curl", args...).CombinedOutput()
		cancel()
		if err != nil {
			return sample{}, fmt.Errorf("%w: %s", err, text)
		}
		seconds, err := strconv.ParseFloat(string(text), 64)
		if err != nil {
			return sample{}, err
		}
		took = append(took, seconds*1e3)
	}
	return sample{[]float64{measure.Median(took[1:])}, -1}, nil
}

// events measures how long a server-sent event takes.
func (w *world) events(c *contender) (sample, error) {
	j := w.job("events", c)
	j.Events = w.options.events
	r, err := w.do(j)
	if err != nil {
		return sample{}, err
	}
	return sample{[]float64{float64(r.Median.Nanoseconds()) / 1e3}, -1}, nil
}

// idleRSS measures what idle connections cost in a new process, in which each has carried one request.
func (w *world) idleRSS(c *contender) (sample, error) {
	p, address, err := c.start()
	if err != nil {
		return sample{}, err
	}
	defer p.Stop()
	j := w.job("open", c)
	j.Proxy = address
	j.Connections = 16
	if _, err := w.do(j); err != nil { // what is needed once, code pages too, does not count
		return sample{}, err
	}
	before, err := measure.SettledRSS(p.PID())
	if err != nil {
		return sample{}, err
	}
	j.Connections = w.idle
	if _, err := w.do(j); err != nil {
		return sample{}, err
	}
	after, err := measure.SettledRSS(p.PID())
	if err != nil {
		return sample{}, err
	}
	j = w.job("open", c)
	if _, err := w.do(j); err != nil { // has the load generator close what it holds
		return sample{}, err
	}
	return sample{[]float64{float64(after-before) / 1024 / float64(w.idle)}, -1}, nil
}
