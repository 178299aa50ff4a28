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
	Contenders []string
	Rows       []reportRow
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
	p := &report{Rounds: w.rounds, Shares: map[string][3]float64{}}
	for _, c := range w.contenders {
		p.Contenders = append(p.Contenders, c.name)
		p.addShares(c.name, w.shares[c])
	}
	for _, m := range all {
		for _, r := range m.rows {
			rounds := map[string][]float64{}
			for c, values := range w.values[r] {
				rounds[c.name] = values
			}
			p.Rows = append(p.Rows, r.report(rounds))
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
	if rounds["muxproxy"] == nil || rounds[r.against] == nil {
		return t
	}
	var ratios []float64
	for i, v := range rounds["muxproxy"] {
		if r.faster {
			ratios = append(ratios, rounds[r.against][i]/v)
		} else {
			ratios = append(ratios, v/rounds[r.against][i])
		}
	}
	t.Ratio, t.Low, t.High = median(ratios), slices.Min(ratios), slices.Max(ratios)
	t.OK = t.Ratio >= r.least && (r.most == 0 || t.Ratio <= r.most)
	return t
}

// target says what is wanted: "≥ 2.0".
func (t reportRow) target() string {
	if t.Most > 0 {
		return fmt.Sprintf("≤ %.2f", t.Most)
	}
	return fmt.Sprintf("≥ %.2f", t.Least)
}

// print writes the report as a table in Markdown.
func (p *report) print(out io.Writer) {
	head := "| what | ratio | of the rounds | wanted | | " + strings.Join(p.Contenders, " | ") + " | unit |"
	fmt.Fprintln(out, head)
	fmt.Fprintln(out, "|---|"+strings.Repeat("---:|", 3)+"---|"+strings.Repeat("---:|", len(p.Contenders))+"---|")
	for _, t := range p.Rows {
		verdict := "ok"
		if !t.OK {
			verdict = "short"
		}
		fmt.Fprintf(out, "| %s | %.2f × %s | %.2f … %.2f | %s | %s |", t.Name, t.Ratio, t.Against, t.Low, t.High, t.target(), verdict)
		for _, name := range p.Contenders {
			if v, ok := t.Median[name]; ok {
				fmt.Fprintf(out, " %s |", t.format(v))
			} else {
				fmt.Fprint(out, " |")
			}
		}
		fmt.Fprintf(out, " %s |\n", t.Unit)
	}
	if len(p.Shares) == 0 {
		return
	}
	fmt.Fprint(out, "\nCPU time at 16 connections (proxy / origin / load generator):")
	for _, name := range p.Contenders {
		if s, ok := p.Shares[name]; ok {
			fmt.Fprintf(out, " %s %.0f / %.0f / %.0f %%", name, s[0]*100, s[1]*100, s[2]*100)
		}
	}
	fmt.Fprintf(out, ".\nMedians of %d interleaved rounds.\n", p.Rounds)
}
