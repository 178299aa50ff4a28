package measure

import "testing"

func TestARowIsJudgedByTheMedianOfItsRatios(t *testing.T) {
	tests := []struct {
		name  string
		row   Row
		own   []float64
		other []float64
		ratio float64
		ok    bool
	}{
		{"reached", Row{Least: 2}, []float64{4, 1, 6}, []float64{2, 1, 2}, 2, true},
		{"short", Row{Least: 2}, []float64{3, 1, 6}, []float64{2, 1, 2}, 1.5, false},
		{"the less the better", Row{Most: 0.5}, []float64{1, 2}, []float64{2, 4}, 0.5, true},
		{"too much", Row{Most: 0.5}, []float64{3}, []float64{4}, 0.75, false},
		{"time of the other over ours", Row{Faster: true, Least: 2}, []float64{50}, []float64{150}, 3, true},
		{"counted from direct", Row{Added: true, Most: 1}, []float64{12}, []float64{14}, 0.5, true},
		{"an immeasurable round", Row{Least: 1}, []float64{1, 3}, []float64{0, 2}, 1.5, true},
		{"nothing to compare with", Row{Least: 1}, []float64{1}, nil, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.row.Against = "goproxy"
			rounds := map[string][]float64{"muxproxy": tt.own, "direct": {10}}
			if tt.other != nil {
				rounds["goproxy"] = tt.other
			}
			if got := tt.row.Report(rounds); got.Ratio != tt.ratio || got.OK != tt.ok {
				t.Errorf("ratio %v, ok %t", got.Ratio, got.OK)
			}
		})
	}
}
