package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary be the benchmark's other processes too.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "role" {
		if err := runRole(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestEveryContenderGivesTheRightAnswersInEveryRow(t *testing.T) {
	var out, progress bytes.Buffer
	if err := run(t.Context(), []string{"-short"}, &out, &progress); err != nil {
		t.Fatalf("%v, after %s", err, progress.String())
	}
	for _, m := range measurements() {
		for _, r := range m.rows {
			if !strings.Contains(out.String(), "| "+r.name+" | ") {
				t.Errorf("no row %q in %s", r.name, out.String())
			}
		}
	}
}

func TestARowIsJudgedByTheMedianOfItsRatios(t *testing.T) {
	tests := []struct {
		name  string
		row   row
		own   []float64
		other []float64
		ratio float64
		ok    bool
	}{
		{"reached", row{least: 2}, []float64{4, 1, 6}, []float64{2, 1, 2}, 2, true},
		{"short", row{least: 2}, []float64{3, 1, 6}, []float64{2, 1, 2}, 1.5, false},
		{"the less the better", row{most: 0.5}, []float64{1, 2}, []float64{2, 4}, 0.5, true},
		{"too much", row{most: 0.5}, []float64{3}, []float64{4}, 0.75, false},
		{"time of the other over ours", row{faster: true, least: 2}, []float64{50}, []float64{150}, 3, true},
		{"counted from direct", row{added: true, most: 1}, []float64{12}, []float64{14}, 0.5, true},
		{"an immeasurable round", row{least: 1}, []float64{1, 3}, []float64{0, 2}, 1.5, true},
		{"nothing to compare with", row{least: 1}, []float64{1}, nil, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.row.against = "goproxy"
			rounds := map[string][]float64{"muxproxy": tt.own, "direct": {10}}
			if tt.other != nil {
				rounds["goproxy"] = tt.other
			}
			if got := tt.row.report(rounds); got.Ratio != tt.ratio || got.OK != tt.ok {
				t.Errorf("ratio %v, ok %t", got.Ratio, got.OK)
			}
		})
	}
}
