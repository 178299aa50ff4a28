package measure

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Row is one line of a table.
type Row struct {
	Name    string
	Unit    string
	Digits  int     // after the point
	Against string  // the contender that muxproxy is compared with
	Faster  bool    // the ratio is the other's value over muxproxy's
	Added   bool    // values count from that of direct
	Least   float64 // the ratio that is wanted, or
	Most    float64
}

// Values are those of each row by contender, in the order of rounds.
type Values map[*Row]map[string][]float64

// Add appends a value.
func (v Values) Add(r *Row, contender string, value float64) {
	if v[r] == nil {
		v[r] = map[string][]float64{}
	}
	v[r][contender] = append(v[r][contender], value)
}

// ReportRow is one row: values by contender, of every round and their median.
type ReportRow struct {
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

// Report judges a row by the values of its rounds.
func (r *Row) Report(rounds map[string][]float64) ReportRow {
	if r.Added && rounds["direct"] != nil {
		direct := Median(rounds["direct"])
		for name, values := range rounds {
			for i := range values {
				rounds[name][i] -= direct
			}
		}
		delete(rounds, "direct")
	}
	t := ReportRow{
		Name: r.Name, Unit: r.Unit, Rounds: rounds, Against: r.Against, Least: r.Least, Most: r.Most,
		Median: map[string]float64{}, format: r.format,
	}
	for name, values := range rounds {
		t.Median[name] = Median(values)
	}
	t.judge(r, rounds["muxproxy"], rounds[r.Against])
	return t
}

// judge compares the values of the rounds that both have; a value of 0 is too small to be compared.
func (t *ReportRow) judge(r *Row, own, others []float64) {
	var ratios []float64
	for i := range min(len(own), len(others)) {
		v, other := own[i], others[i]
		if r.Faster {
			v, other = other, v
		}
		if other != 0 {
			ratios = append(ratios, v/other)
		}
	}
	if len(ratios) == 0 {
		return
	}
	t.Ratio, t.Low, t.High = Median(ratios), slices.Min(ratios), slices.Max(ratios)
	t.OK = t.Ratio >= r.Least && (r.Most == 0 || t.Ratio <= r.Most)
}

// target says what is wanted: "≥ 2.0".
func (t ReportRow) target() string {
	if t.Most > 0 {
		return fmt.Sprintf("≤ %.2f", t.Most)
	}
	return fmt.Sprintf("≥ %.2f", t.Least)
}

// Columns writes the head of a table in Markdown: what stands before the contenders, and they.
func Columns(out io.Writer, head string, contenders []string) {
	fmt.Fprintln(out, head+strings.Join(contenders, " | ")+" | unit |")
	fmt.Fprintln(out, "|---|"+strings.Repeat("---:|", strings.Count(head, "|")-2+len(contenders))+"---|")
}

// JudgedHead is what stands before the contenders where rows are judged.
const JudgedHead = "| what | ratio | of the rounds | wanted | | "

// PrintJudged writes the row with its verdict, which a short run does not have.
func (t ReportRow) PrintJudged(out io.Writer, contenders []string, short bool) {
	verdict := "short"
	switch {
	case short:
		verdict = "" // too short to judge
	case t.OK:
		verdict = "ok"
	}
	fmt.Fprintf(out, "| %s | %.2f × %s | %.2f … %.2f | %s | %s |", t.Name, t.Ratio, t.Against, t.Low, t.High, t.target(), verdict)
	t.PrintValues(out, contenders)
}

// PrintValues writes the row's values, one for each contender, and its unit.
func (t ReportRow) PrintValues(out io.Writer, contenders []string) {
	for _, name := range contenders {
		if v, ok := t.Median[name]; ok {
			fmt.Fprintf(out, " %s |", t.format(v))
		} else {
			fmt.Fprint(out, " |")
		}
	}
	fmt.Fprintf(out, " %s |\n", t.Unit)
}

// Median gives the middle of the values, or the mean of the two in the middle.
func Median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// format gives a value as the table shows it.
func (r *Row) format(v float64) string { return strconv.FormatFloat(v, 'f', r.Digits, 64) }
