package validation

import (
	"reflect"
	"strings"
	"testing"
)

const text = "# Title\n```sh\nnot run\n```\n## 1. First?\n```sh http\na <<EOF\n## no heading\n#> seen \n```\n#> words\n## 2. Second?\n```sh kube\nb\n#> of kube\n```\n" +
	"## 3. Third?\n```sh http\n  c\n#> one\n#> two\n```\n"

func TestASuiteGetsItsBlocksInOrderWithWhatTheyPrint(t *testing.T) {
	got, err := parse(text, "http")
	want := []block{
		{question: "1. First?", line: 6, script: "a <<EOF\n## no heading\n", seen: []string{"seen"}},
		{question: "3. Third?", line: 18, script: "  c\n", seen: []string{"one", "two"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWhatWouldShowNothingIsAnError(t *testing.T) {
	for name, text := range map[string]string{
		"no block": strings.ReplaceAll(text, "sh http", "sh"), "a block of which nothing is said": strings.ReplaceAll(text, "#> seen", "# seen"),
	} {
		if got, err := parse(text, "http"); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestLinesThatWereNotPrintedAreMissing(t *testing.T) {
	b := block{seen: []string{"one", "two"}}
	if got := b.missing("  two\nand one\n"); !reflect.DeepEqual(got, []string{"one"}) {
		t.Errorf("missing %q", got)
	}
	if got := b.missing("two\none"); len(got) > 0 {
		t.Errorf("missing %q", got)
	}
}

// The commands are run by the suites of the doors, each in its world.
func TestEachDoorHasItsQuestions(t *testing.T) {
	for suite, questions := range map[string]int{"http": 4, "kube": 1, "talos": 1} {
		blocks := documentBlocks(t, suite)
		seen := map[string]bool{}
		for _, b := range blocks {
			seen[b.question] = true
		}
		if len(seen) != questions {
			t.Errorf("%s: questions %v", suite, seen)
		}
	}
}
