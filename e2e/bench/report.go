package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// report is what a run found.
type report struct {
	Rounds     int
	Short      bool // the measurements are too short to be judged
	Contenders []string
	Rows       []reportRow
	CPU        []reportRow // the proxy's CPU time for one request, connection or MB, by the rows where it was measured
	// Shares say of the CPU time that was used at 16 connections how much each process took: {"muxproxy": {0.45, 0.2, 0.35}} for
	// the proxy, the origin and the load generator.
	Shares map[string][3]float64
}

// reportRow is one row: values by contender, of every round and their median.
type reportRow struct {
	Name    string
	Unit    string
	Median  map[string]float64
	Rounds  map[string][]float64
	Against string
	Ratio   float64 // the median of the rounds' ratios
	Low     float64 // the lowest of them
	High    float64
	Least   float64 `json:",omitempty"`
	Most    float64 `json:",omitempty"`
	OK      bool

	format func(float64) string
}

func (w *world) report(all []*measurement) *report {
	p := &report{Rounds: w.rounds, Short: w.short, Shares: map[string][3]float64{}}
	for _, c := range w.contenders {
		p.Contenders = append(p.Contenders, c.name)
		p.addShares(c.name, w.shares[c])
	}
	for _, m := range all {
		for _, r := range m.rows {
			p.Rows = append(p.Rows, r.report(byName(w.values[r])))
		}
		if cpu := w.cpu[m.rows[0]]; cpu != nil {
			r := &row{name: m.rows[0].name, unit: "µs", digits: 1, against: "goproxy"}
			p.CPU = append(p.CPU, r.report(byName(cpu)))
		}
	}
	return p
}

func byName(values map[*contender][]float64) map[string][]float64 {
	named := map[string][]float64{}
	for c, v := range values {
		named[c.name] = v
	}
	return named
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

// report judges a row by the values of its rounds.
func (r *row) report(rounds map[string][]float64) reportRow {
	if r.added && rounds["direct"] != nil {
		direct := median(rounds["direct"])
		for name, values := range rounds {
			for i := range values {
				rounds[name][i] -= direct
			}
		}
		delete(rounds, "direct")
	}
	t := reportRow{
		Name: r.name, Unit: r.unit, Rounds: rounds, Against: r.against, Least: r.least, Most: r.most,
		Median: map[string]float64{}, format: r.format,
	}
	for name, values := range rounds {
		t.Median[name] = median(values)
	}
	t.judge(r, rounds["muxproxy"], rounds[r.against])
	return t
}

// judge compares the values of the rounds that both have; a value of 0 is too small to be compared.
func (t *reportRow) judge(r *row, own, others []float64) {
	var ratios []float64
	for i := range min(len(own), len(others)) {
		v, other := own[i], others[i]
		if r.faster {
			v, other = other, v
		}
		if other != 0 {
			ratios = append(ratios, v/other)
		}
	}
	if len(ratios) == 0 {
		return
	}
	t.Ratio, t.Low, t.High = median(ratios), slices.Min(ratios), slices.Max(ratios)
	t.OK = t.Ratio >= r.least && (r.most == 0 || t.Ratio <= r.most)
}

// target says what is wanted: "≥ 2.0".
func (t reportRow) target() string {
	if t.Most > 0 {
		return fmt.Sprintf("≤ %.2f", t.Most)
	}
	return fmt.Sprintf("≥ %.2f", t.Least)
}

// print writes the report as tables in Markdown.
func (p *report) print(out io.Writer) {
	columns := func(head string, names []string) {
		fmt.Fprintln(out, head+strings.Join(names, " | ")+" | unit |")
		fmt.Fprintln(out, "|---|"+strings.Repeat("---:|", strings.Count(head, "|")-2+len(names))+"---|")
	}
	columns("| what | ratio | of the rounds | wanted | | ", p.Contenders)
	for _, t := range p.Rows {
		verdict := "short"
		switch {
		case p.Short:
			verdict = "" // too short to judge
		case t.OK:
			verdict = "ok"
		}
		fmt.Fprintf(out, "| %s | %.2f × %s | %.2f … %.2f | %s | %s |", t.Name, t.Ratio, t.Against, t.Low, t.High, t.target(), verdict)
		t.printValues(out, p.Contenders)
	}
	fmt.Fprintln(out, "\nCPU time of the proxy for one request, connection or MB:")
	fmt.Fprintln(out)
	proxies := slices.DeleteFunc(slices.Clone(p.Contenders), func(name string) bool { return name == "direct" })
	columns("| what | ratio | of the rounds | ", proxies)
	for _, t := range p.CPU {
		fmt.Fprintf(out, "| %s | %.2f × %s | %.2f … %.2f |", t.Name, t.Ratio, t.Against, t.Low, t.High)
		t.printValues(out, proxies)
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

// printValues writes the row's values, one for each contender, and its unit.
func (t reportRow) printValues(out io.Writer, contenders []string) {
	for _, name := range contenders {
		if v, ok := t.Median[name]; ok {
			fmt.Fprintf(out, " %s |", t.format(v))
		} else {
			fmt.Fprint(out, " |")
		}
	}
	fmt.Fprintf(out, " %s |\n", t.Unit)
}
