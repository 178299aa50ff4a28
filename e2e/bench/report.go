package main

import (
	"fmt"
	"io"
	"slices"

	"muxproxy/e2e/measure"
)

// report is what a run found.
type report struct {
	Rounds     int
	Short      bool // the measurements are too short to be judged
	Contenders []string
	Rows       []measure.ReportRow
	CPU        []measure.ReportRow // the proxy's CPU time for one request, connection or MB, by the rows where it was measured
	// Shares say of the CPU time that was used at 16 connections how much each process took: {"muxproxy": {0.45, 0.2, 0.35}} for
	// the proxy, the origin and the load generator.
	Shares map[string][3]float64
}

func (w *world) report(all []*measurement) *report {
	p := &report{Rounds: w.rounds, Short: w.short, Shares: map[string][3]float64{}}
	for _, c := range w.contenders {
		p.Contenders = append(p.Contenders, c.name)
		p.addShares(c.name, w.shares[c])
	}
	for _, m := range all {
		for _, r := range m.rows {
			p.Rows = append(p.Rows, r.Report(w.values[r]))
		}
		if cpu := w.cpu[m.rows[0]]; cpu != nil {
			r := &measure.Row{Name: m.rows[0].Name, Unit: "µs", Digits: 1, Against: "goproxy"}
			p.CPU = append(p.CPU, r.Report(cpu))
		}
	}
	return p
}

func (p *report) addShares(name string, all []shares) {
	var sum shares
	for _, s := range all {
		sum.proxy += s.proxy
		sum.origin += s.origin
		sum.load += s.load
	}
	if whole := float64(sum.proxy + sum.origin + sum.load); whole > 0 {
		p.Shares[name] = [3]float64{float64(sum.proxy) / whole, float64(sum.origin) / whole, float64(sum.load) / whole}
	}
}

// print writes the report as tables in Markdown.
func (p *report) print(out io.Writer) {
	measure.Columns(out, measure.JudgedHead, p.Contenders)
	for _, t := range p.Rows {
		t.PrintJudged(out, p.Contenders, p.Short)
	}
	fmt.Fprintln(out, "\nCPU time of the proxy for one request, connection or MB:")
	fmt.Fprintln(out)
	proxies := slices.DeleteFunc(slices.Clone(p.Contenders), func(name string) bool { return name == "direct" })
	measure.Columns(out, "| what | ratio | of the rounds | ", proxies)
	for _, t := range p.CPU {
		fmt.Fprintf(out, "| %s | %.2f × %s | %.2f … %.2f |", t.Name, t.Ratio, t.Against, t.Low, t.High)
		t.PrintValues(out, proxies)
	}
	if len(p.Shares) > 0 {
		fmt.Fprint(out, "\nCPU time at 16 connections (proxy / origin / load generator):")
		for _, name := range p.Contenders {
			if s, ok := p.Shares[name]; ok {
				fmt.Fprintf(out, " %s %.0f / %.0f / %.0f %%", name, s[0]*100, s[1]*100, s[2]*100)
			}
		}
		fmt.Fprintln(out, ".")
	}
	fmt.Fprintf(out, "\nMedians of %d interleaved rounds.\n", p.Rounds)
}
