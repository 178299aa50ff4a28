package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestATokenFileIsReadAgainAndItsLastGoodTokenHolds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := newKubeAuth(kubeAuthConfig{source: "token", tokenFile: file})
	if cred, err := a.fromFiles(0); err == nil {
		t.Errorf("no file: %v", cred)
	}
	for _, c := range []struct{ text, want string }{
		{" first\n", "Bearer first"}, {"second", "Bearer second"}, {"\n", "Bearer second"}, {"two\nlines", "Bearer second"}, {"third", "Bearer third"},
	} {
		write(c.text)
		cred, err := a.fromFiles(0)
		if err != nil || cred.header.value.reveal() != c.want {
			t.Errorf("%q: %v", c.text, err)
		}
	}
	// A change that leaves no trace in what stat says, right after the reading, is seen all the same.
	write("other")
	id, err := statID(file)
	if err != nil {
		t.Fatal(err)
	}
	a.token.id = id
	if cred, err := a.fromFiles(0); err != nil || cred.header.value.reveal() != "Bearer other" {
		t.Errorf("unsettled: %v", err)
	}
}
