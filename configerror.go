package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// configProblem is one thing wrong with a config file: what, under which key, and the way out. It never shows a value
// that could be a credential put in the wrong place.
type configProblem struct {
	line int    // 0 where no line is to blame
	text string // `[rule] hosts: "a.*.b": the byte '*' is not allowed in a host`
}

// configError is all that is wrong with a config file, in the order of its lines. Nothing starts with one.
type configError struct {
	file     string // absolute
	problems []configProblem
}

// Error gives `load config "/home/u/.mux/proxy.toml": proxy.toml:12: [rule] hosts: …`; several problems stand on a line each
// below a first one with their number.
func (e *configError) Error() string {
	lines := make([]string, len(e.problems))
	for i, p := range e.problems {
		lines[i] = fmt.Sprintf("%s:%d: %s", filepath.Base(e.file), p.line, p.text)
		if p.line == 0 {
			lines[i] = fmt.Sprintf("%s: %s", filepath.Base(e.file), p.text)
		}
	}
	if len(lines) == 1 {
		return fmt.Sprintf("load config %q: %s", e.file, lines[0])
	}
	return fmt.Sprintf("load config %q: %d problems\n%s", e.file, len(lines), strings.Join(lines, "\n"))
}

// sort orders the problems by line; those of one line stay in the order in which they were found.
func (e *configError) sort() {
	slices.SortStableFunc(e.problems, func(a, b configProblem) int { return a.line - b.line })
}

// nearest gives the known word that a misspelled one most likely stands for, "" if none is near.
func nearest(word string, known []string) string {
	best, distance := "", (len(word)+2)/3+1
	for _, k := range known {
		if d := editDistance(word, k); d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the bytes to insert, delete or replace to make b of a (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
