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

func (w *world) report() *report {
	p := &report{Rounds: w.rounds, Short: w.short}
	for _, c := range w.contenders {
		p.Contenders = append(p.Contenders, c.name)
	}
	for _, m := range w.rows {
		for _, r := range m.rows {
			p.Rows = append(p.Rows, r.report(w.values[r]))
		}
	}
	return p
}

// report judges a row by the values of its rounds; a value of 0 is too small to be compared.
func (r *row) report(rounds map[string][]float64) reportRow {
	t := reportRow{Name: r.name, Unit: r.unit, Rounds: rounds, Against: r.against, Least: r.least, Most: r.most, Median: map[string]float64{}, format: r.format}
	for name, values := range rounds {
		t.Median[name] = median(values)
	}
	var ratios []float64
	own, others := rounds["muxproxy"], rounds[r.against]
	for i := range min(len(own), len(others)) {
		if others[i] != 0 {
			ratios = append(ratios, own[i]/others[i])
		}
	}
	if len(ratios) > 0 {
		t.Ratio, t.Low, t.High = median(ratios), slices.Min(ratios), slices.Max(ratios)
		t.OK = t.Ratio >= r.least && (r.most == 0 || t.Ratio <= r.most)
	}
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
	fmt.Fprintf(out, "| what | ratio | of the rounds | wanted | | %s | unit |\n", strings.Join(p.Contenders, " | "))
	fmt.Fprintf(out, "|---|---:|---|---:|---|%s---|\n", strings.Repeat("---:|", len(p.Contenders)))
	for _, t := range p.Rows {
		verdict := "short"
		switch {
		case p.Short:
			verdict = "" // too short to judge
		case t.OK:
			verdict = "ok"
		}
		fmt.Fprintf(out, "| %s | %.2f × %s | %.2f … %.2f | %s | %s |", t.Name, t.Ratio, t.Against, t.Low, t.High, t.target(), verdict)
		for _, name := range p.Contenders {
			if v := t.Median[name]; v != 0 {
				fmt.Fprintf(out, " %s |", t.format(v))
			} else {
				fmt.Fprint(out, " |")
			}
		}
		fmt.Fprintf(out, " %s |\n", t.Unit)
	}
	fmt.Fprintf(out, "\nMedians of %d interleaved rounds.\n", p.Rounds)
}
