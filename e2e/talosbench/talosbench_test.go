package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test binary be the benchmark's other processes too.
func TestMain(m *testing.M) {
	roles.Enter()
	os.Exit(m.Run())
}

func TestEveryContenderGivesTheRightAnswersInEveryRow(t *testing.T) {
	for _, ends := range []string{"raw", "grpc"} {
		var out, progress bytes.Buffer
		if err := run(t.Context(), []string{"-short", "-ends", ends}, &out, &progress); err != nil {
			t.Fatalf("%v, after %s", err, progress.String())
		}
		for _, m := range measurements() {
			for _, r := range m.rows {
				if !strings.Contains(out.String(), "| "+r.Name+" | ") {
					t.Errorf("no row %q in %s", r.Name, out.String())
				}
			}
		}
	}
}
