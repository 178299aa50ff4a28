package kubeconfig

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"k8s.io/klog/v2"
)

var (
	cases = flag.Int("cases", 800, "how many kubeconfigs are generated")
	keep  = flag.String("keep", "", "a `DIR` to write the cases to, instead of comparing them")
)

// TestMuxproxyReadsKubeconfigsAsClientGo has client-go read the generated cases, and then the loader's own test, which is in another
// module and package main, compare.
func TestMuxproxyReadsKubeconfigsAsClientGo(t *testing.T) {
	klog.SetLogger(klog.Background().V(100))
	corpus := *keep
	if corpus == "" {
		corpus = t.TempDir()
	}
	keys, err := NewKeys("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	loaded, contexts, served := 0, 0, 0
	for n := range *cases {
		c := Generate(n)
		dir := t.TempDir()
		for name, text := range c.Files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(keys.Show(text)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		c.Want = ClientGo(dir, c.List, keys)
		c.Want.relative(dir)
		if !c.Want.Error {
			loaded++
		}
		for _, context := range c.Want.Contexts {
			contexts++
			if !context.Error {
				served++
			}
		}
		text, err := json.MarshalIndent(c, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(corpus, fmt.Sprintf("%04d.json", n)), append(text, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d cases, of which client-go loads %d, with %d contexts, of which it serves %d", *cases, loaded, contexts, served)
	if *keep != "" {
		return
	}
	test := exec.Command("go", "test", "-count=1", "-run", "^TestKubeconfigsAreReadAsClientGoReadsThem$", ".", "-kubeconfigs", corpus)
	test.Dir = filepath.Join("..", "..")
	if out, err := test.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// relative takes the directory of a case out of a result.
func (r *Result) relative(dir string) {
	for _, c := range r.Contexts {
		if c.Exec != nil {
			if path, err := filepath.Rel(dir, c.Exec.Command); err == nil && filepath.IsAbs(c.Exec.Command) {
				c.Exec.Command = path
			}
		}
	}
}
