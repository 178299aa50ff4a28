// Package validation runs the commands of docs/validation.md, as a reader of it would: in a shell, one block after the other.
// A suite runs those whose fence names it.
package validation

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// document is where the commands are, seen from the directory of a suite, in which its tests run.
const document = "../../docs/validation.md"

// blockLimit is how long one block may take: containers start slowly where much else runs.
const blockLimit = 5 * time.Minute

// block is one fenced script, and what the document says that it prints.
type block struct {
	question string   // the heading that it stands under: "1. Do clients …?"
	line     int      // of the fence
	script   string   // for bash
	seen     []string // lines that its output has to have, blanks at their ends aside
}

// Run runs the blocks of a suite, "http", each in a shell with the options -euo pipefail, in a directory that has muxproxy. One that
// fails, or does not print what the document says that it prints, fails the test. environ is the reader's: HOME is the daemon's,
// and what the document has the reader set is set. see is given all that a block printed.
func Run(t *testing.T, suite string, environ []string, see func(output string)) {
	t.Helper()
	blocks := documentBlocks(t, suite)
	dir := t.TempDir()
	for name, program := range map[string]string{"muxproxy": os.Getenv("MUXPROXY_BIN"), "docker": "/usr/bin/docker"} {
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	environ = append(slices.Clone(environ), "PATH="+dir+":"+os.Getenv("PATH"), "TMPDIR="+dir, "IMAGE="+os.Getenv("E2E_IMAGE"),
		"DOCKER_HOST="+os.Getenv("DOCKER_HOST"), "DOCKER_CONFIG="+os.Getenv("DOCKER_CONFIG"))
	for _, b := range blocks {
		t.Run(b.question, func(t *testing.T) { b.run(t, dir, environ, see) })
	}
}

// documentBlocks gives the document's blocks of a suite.
func documentBlocks(t testing.TB, suite string) []block {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := parse(string(text), suite)
	if err != nil {
		t.Fatalf("%s: %v", document, err)
	}
	return blocks
}

func (b block) run(t *testing.T, dir string, environ []string, see func(string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), blockLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", b.script)
	cmd.Dir, cmd.Env = dir, environ
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	see(string(out) + stderr.String())
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("%s:%d: %v\n%s", document, b.line, err, stderr.String())
	}
	for _, want := range b.missing(string(out)) {
		t.Errorf("%s:%d: no line %q in what it printed\n%s", document, b.line, want, stderr.String())
	}
}

// missing gives the lines of seen that are not in the output.
func (b block) missing(output string) []string {
	var printed []string
	for line := range strings.Lines(output) {
		printed = append(printed, strings.TrimSpace(line))
	}
	return slices.DeleteFunc(slices.Clone(b.seen), func(line string) bool { return slices.Contains(printed, line) })
}

// parse gives the blocks of a suite: a fence "```sh http" begins one, and its lines "#> …" are what it prints. A suite without
// blocks, and a block of which nothing is said, are errors: they would show nothing.
func parse(text, suite string) ([]block, error) {
	var all []block
	var question string
	inside, n := false, 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		seen, isSeen := strings.CutPrefix(line, "#> ")
		switch {
		case line == "```sh "+suite:
			inside = true
			all = append(all, block{question: question, line: n})
		case !inside:
			if heading, ok := strings.CutPrefix(line, "## "); ok {
				question = heading
			}
		case line == "```":
			inside = false
		case isSeen:
			last := &all[len(all)-1]
			last.seen = append(last.seen, strings.TrimSpace(seen))
		default:
			all[len(all)-1].script += line + "\n"
		}
	}
	for _, b := range all {
		if len(b.seen) == 0 {
			return nil, fmt.Errorf("line %d: a block of which nothing is said that it prints", b.line)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no block of suite %q", suite)
	}
	return all, nil
}
