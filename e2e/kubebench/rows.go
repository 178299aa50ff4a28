package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"muxproxy/e2e/measure"
)

// proxy is the name of the contender that the rows are compared with.
const proxy = "kubectl proxy"

// measurement gives the values of one or more rows for one contender.
type measurement struct {
	rows    []*measure.Row
	proxies bool // direct has no value
	measure func(*world, *contender) ([]float64, error)
}

// measurements are the rows of the table in its order.
func measurements() []*measurement {
	rate := func(name string, least float64) *measure.Row {
		return &measure.Row{Name: name, Unit: "1/s", Against: proxy, Least: least}
	}
	speed := func(name string) *measure.Row {
		return &measure.Row{Name: name, Unit: "MB/s", Against: proxy, Least: 1.2}
	}
	return []*measurement{
		{rows: []*measure.Row{rate("GET /version, 1 connection", 1.4)}, measure: requests(1, false)},
		{rows: []*measure.Row{rate("GET /version, 16 connections", 1.6)}, measure: requests(16, false)},
		{rows: []*measure.Row{rate("GET /version, 64 connections", 1.6)}, measure: requests(64, false)},
		{
			rows:    []*measure.Row{{Name: "CPU a request, 16 connections", Unit: "µs", Digits: 1, Against: proxy, Most: 0.65}},
			proxies: true, measure: requestCPU,
		},
		{rows: []*measure.Row{rate("GET /version of a real API server, 16 connections", 1)}, measure: requests(16, true)},
		{rows: []*measure.Row{speed("a list of 10 MB")}, measure: list(0)},
		{rows: []*measure.Row{speed("a list of 100 MB")}, measure: list(1)},
		{
			rows:    []*measure.Row{{Name: "latency added to a watch event", Unit: "µs", Against: proxy, Added: true, Most: 0.8}},
			measure: (*world).eventLatency,
		},
		{
			rows: []*measure.Row{
				{Name: "RSS, idle", Unit: "MB", Digits: 1, Against: proxy, Most: 0.3},
				{Name: "RSS per watch", Unit: "KiB", Digits: 1, Against: proxy, Most: 0.9},
			},
			proxies: true, measure: (*world).memory,
		},
		{
			rows:    []*measure.Row{{Name: "a fresh kubectl get, exec plugin, real API server", Unit: "ms", Digits: 1, Against: "direct", Faster: true, Least: 1}},
			measure: (*world).kubectlGet,
		},
	}
}

// measure runs all rounds. Another contender begins each time, so that none always follows the same one.
func (w *world) measure(all []*measurement, progress io.Writer) error {
	for round := range w.rounds {
		for _, m := range all {
			fmt.Fprintf(progress, "round %d of %d: %s\n", round+1, w.rounds, m.rows[0].Name)
			for i := range w.contenders {
				c := w.contenders[(i+round)%len(w.contenders)]
				if m.proxies && c.start == nil {
					continue
				}
				values, err := m.measure(w, c)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.rows[0].Name, c.name, err)
				}
				for i, r := range m.rows {
					w.values.Add(r, c.name, values[i])
				}
			}
		}
	}
	return nil
}

// requests measures the rate of requests on kept connections.
func requests(n int, real bool) func(*world, *contender) ([]float64, error) {
	return func(w *world, c *contender) ([]float64, error) {
		j := w.job("requests", c)
		if real {
			j = w.realJob("requests", c)
		}
		j.Connections = n
		r, err := w.do(j)
		return []float64{float64(r.Count) / r.Time.Seconds()}, err
	}
}

// requestCPU measures what a request costs the proxy.
func requestCPU(w *world, c *contender) ([]float64, error) {
	j := w.job("requests", c)
	j.Connections = 16
	r, err := w.do(j)
	return []float64{r.CPU.Seconds() * 1e6 / float64(max(r.Count, 1))}, err
}

// list measures how fast a long list comes.
func list(which int) func(*world, *contender) ([]float64, error) {
	return func(w *world, c *contender) ([]float64, error) {
		j := w.job("list", c)
		j.Items = w.lists[which]
		r, err := w.do(j)
		return []float64{float64(r.Bytes) / 1e6 / r.Time.Seconds()}, err
	}
}

func (w *world) eventLatency(c *contender) ([]float64, error) {
	j := w.job("events", c)
	j.Events = w.options.events
	r, err := w.do(j)
	return []float64{float64(r.Median.Nanoseconds()) / 1e3}, err
}

// memory measures a new process: once it has served a few requests, and with many watches.
func (w *world) memory(c *contender) ([]float64, error) {
	fresh := *c
	if err := fresh.begin(); err != nil {
		return nil, err
	}
	defer fresh.end()
	j := w.job("requests", &fresh)
	j.Connections, j.Time = 4, 50*time.Millisecond
	if _, err := w.do(j); err != nil {
		return nil, err
	}
	idle, err := measure.SettledRSS(j.PID)
	if err != nil {
		return nil, err
	}
	j = w.job("watches", &fresh)
	j.Connections = w.options.watches
	if _, err := w.do(j); err != nil {
		return nil, err
	}
	full, err := measure.SettledRSS(j.PID)
	if err != nil {
		return nil, err
	}
	// The next job has the load generator close what it holds.
	_, err = w.do(w.job("requests", c))
	return []float64{float64(idle) / 1e6, float64(full-idle) / 1024 / float64(w.options.watches)}, err
}

// kubectlGet measures runs of kubectl, each a new process. Its caches are warm.
func (w *world) kubectlGet(c *contender) ([]float64, error) {
	var took []float64
	for range w.gets + 1 { // the first one warms what there is to warm
		ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(w.tools, "bin/kubectl"), "get", "namespaces", "-o", "name")
		cmd.Env = []string{"HOME=" + w.path("home-"+strings.ReplaceAll(c.name, " ", "-")), "KUBECONFIG=" + c.kubeconfig, "PATH=/usr/bin:/bin"}
		start := time.Now()
		text, err := cmd.CombinedOutput()
		took = append(took, time.Since(start).Seconds()*1e3)
		cancel()
		if err != nil || !strings.Contains(string(text), "namespace/kube-system\n") {
			return nil, fmt.Errorf("kubectl get: %v: %s", err, text)
		}
	}
	return []float64{measure.Median(took[1:])}, nil
}
