package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// onlyIn says which files may use a function or variable of another package ("os.Exit"; "signal." is the whole
// package), or select a method or field ("*.reveal"), and how often in all (0: any number).
var onlyIn = []struct {
	what  string
	files string
	uses  int
}{
	{"os.Getenv", "main.go", 0}, {"os.LookupEnv", "main.go", 0}, {"os.Environ", "main.go", 0}, {"os.ExpandEnv", "main.go", 0},
	{"syscall.Getenv", "main.go", 0}, {"syscall.Environ", "main.go", 0},
	{"os.Args", "main.go", 0}, {"os.Exit", "main.go", 0}, {"syscall.Exit", "main.go", 0}, {"log.Fatal", "", 0}, {"log.Fatalf", "", 0},
	{"signal.", "main.go", 0},
	{"x509.CreateCertificate", "ca.go", 0},
	{"*.reveal", "creds.go", 1},
}

// goFiles are the files that may start goroutines, by a go statement or a Go method.
const goFiles = "serve.go mitm.go http1.go upstreambody.go tunnel.go h2relay.go talos.go talosahead.go talosupstream.go kubestate.go networks*.go listeners.go"

// notImported says what a file must not import (design: "must not").
var notImported = map[string]string{
	"ca.go": "net/http", "leaf.go": "net/http", "cafile.go": "net/http", "issuer.go": "net/http",
	"rules.go":   "os time log/slog net/http net",
	"config.go":  "log/slog net/http",
	"audit.go":   "net/http",
	"h2relay.go": "log/slog",
}

func TestWallsBetweenFilesStand(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*ast.File{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		if files[name], err = parser.ParseFile(token.NewFileSet(), name, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range breaches(files) {
		t.Error(b)
	}
}

// breaches gives a line for each rule that a file breaks.
func breaches(files map[string]*ast.File) (out []string) {
	uses := map[string]int{}
	for name, file := range files {
		for _, spec := range file.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			if slices.Contains(strings.Fields(notImported[name]), path) {
				out = append(out, name+" imports "+path)
			}
			if spec.Name != nil && (path == "os" || path == "os/signal" || path == "crypto/x509" || path == "syscall" || path == "log") {
				out = append(out, name+" renames "+path)
			}
		}
		for n := range ast.Preorder(file) {
			switch n := n.(type) {
			case *ast.GoStmt:
				if !listed(goFiles, name) {
					out = append(out, name+" starts a goroutine")
				}
			case *ast.SelectorExpr:
				if n.Sel.Name == "Go" && !listed(goFiles, name) {
					out = append(out, name+" starts a goroutine by Go")
				}
				x, _ := n.X.(*ast.Ident)
				for _, o := range onlyIn {
					pkg, sel, _ := strings.Cut(o.what, ".")
					if (pkg == "*" || x != nil && x.Name == pkg) && (sel == "" || sel == n.Sel.Name) {
						uses[o.what]++
						if !listed(o.files, name) {
							out = append(out, name+" uses "+o.what)
						}
					}
				}
			}
		}
	}
	for _, o := range onlyIn {
		if n := uses[o.what]; o.uses > 0 && n > o.uses {
			out = append(out, fmt.Sprintf("%s is used %d times", o.what, n))
		}
	}
	return append(out, rootKeyBreaches(files)...)
}

func listed(patterns, name string) bool {
	return slices.ContainsFunc(strings.Fields(patterns), func(p string) bool {
		ok, _ := filepath.Match(p, name)
		return ok
	})
}

// rootKeyBreaches holds that the root's private key is a local of newIssuer that signs certificates and nothing else:
// it comes from ecdsa.GenerateKey, and is used as the signer of x509.CreateCertificate and for its public half. No
// other certificate authority key signs there, so the root's cannot go by another name; and none but newIssuer and
// openCA (the leaves' key) makes keys.
func rootKeyBreaches(files map[string]*ast.File) (out []string) {
	for name, file := range files {
		for _, decl := range file.Decls {
			function := ""
			if f, ok := decl.(*ast.FuncDecl); ok {
				function = f.Name.Name
			}
			allowed := map[*ast.Ident]bool{}
			for n := range ast.Preorder(decl) {
				call, isCall := n.(*ast.CallExpr)
				switch n := n.(type) {
				case *ast.AssignStmt:
					if made, ok := n.Rhs[0].(*ast.CallExpr); ok && isCallOf(made, "ecdsa.GenerateKey") && n.Tok == token.DEFINE {
						id, _ := n.Lhs[0].(*ast.Ident)
						allowed[id] = function == "newIssuer" && name == "ca.go"
					}
				case *ast.SelectorExpr:
					if id, ok := n.X.(*ast.Ident); ok && n.Sel.Name == "PublicKey" {
						allowed[id] = function == "newIssuer"
					}
				case *ast.FuncLit:
					if function == "newIssuer" {
						out = append(out, "newIssuer holds a function literal")
					}
				}
				if isCall && isCallOf(call, "ecdsa.GenerateKey") && function != "newIssuer" && function != "openCA" {
					out = append(out, function+" makes a key")
				}
				if isCall && isCallOf(call, "x509.CreateCertificate") && len(call.Args) == 5 {
					id, _ := call.Args[len(call.Args)-1].(*ast.Ident)
					if function == "newIssuer" && (id == nil || id.Name != "rootKey") {
						out = append(out, "newIssuer signs with something else than rootKey")
					}
					allowed[id] = function == "newIssuer"
				}
			}
			for n := range ast.Preorder(decl) {
				if id, ok := n.(*ast.Ident); ok && id.Name == "rootKey" && !allowed[id] {
					out = append(out, fmt.Sprintf("%s: %s uses rootKey for something else than signing", name, function))
				}
			}
		}
	}
	return out
}

// isCallOf tells whether call calls "package.Function".
func isCallOf(call *ast.CallExpr, what string) bool {
	s, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name+"."+s.Sel.Name == what
}

func TestBrokenWallsAreNoticed(t *testing.T) {
	const rootKey = "func newIssuer() any { rootKey, err := ecdsa.GenerateKey(c, r); x509.CreateCertificate(r, t, t, &rootKey.PublicKey, rootKey); "
	tests := []struct{ name, file, text, want string }{
		{"nothing", "ca.go", rootKey + "return nil }", ""},
		{"environment", "config.go", "func f() { os.Getenv(`X`) }", "config.go uses os.Getenv"},
		{"arguments", "serve.go", "var a = os.Args[1:]", "serve.go uses os.Args"},
		{"exit", "serve.go", "func f() { os.Exit(1) }", "serve.go uses os.Exit"},
		{"signals", "serve.go", "func f() { signal.Notify(nil) }", "serve.go uses signal."},
		{"signals in main", "main.go", "func f() { signal.Notify(nil); os.Exit(len(os.Args)) }", ""},
		{"a renamed package", "serve.go", `import o "os"`, "serve.go renames os"},
		{"a certificate", "leaf.go", "func f() { x509.CreateCertificate() }", "leaf.go uses x509.CreateCertificate"},
		{"reveal elsewhere", "mitm.go", "func f(s secret) { s.reveal() }", "mitm.go uses *.reveal"},
		{"reveal as a value", "mitm.go", "var f = secret.reveal", "mitm.go uses *.reveal"},
		{"reveal twice", "creds.go", "func f(s secret) { s.reveal(); s.reveal() }", "*.reveal is used 2 times"},
		{"goroutine", "ca.go", "func f() { go f() }", "ca.go starts a goroutine"},
		{"goroutine in a group", "ca.go", "func f() { g.Go(f) }", "ca.go starts a goroutine by Go"},
		{"goroutine where it may be", "networks_linux.go", "func f() { go f() }", ""},
		{"import", "rules.go", `import "time"`, "rules.go imports time"},
		{"another's root key", "leaf.go", "func f() { rootKey := 1 }", "leaf.go: f uses rootKey"},
		{"root key returned", "ca.go", rootKey + "return rootKey }", "newIssuer uses rootKey"},
		{"root key stored", "ca.go", rootKey + "x.k = rootKey; return nil }", "newIssuer uses rootKey"},
		{"root key in a value", "ca.go", rootKey + "return &issuer{key: rootKey} }", "newIssuer uses rootKey"},
		{"root key sent", "ca.go", rootKey + "ch <- rootKey; return nil }", "newIssuer uses rootKey"},
		{"root key passed on", "ca.go", rootKey + "save(rootKey); return nil }", "newIssuer uses rootKey"},
		{"root key copied", "ca.go", rootKey + "k := *rootKey; _ = k; return nil }", "newIssuer uses rootKey"},
		{"root key's number", "ca.go", rootKey + "return rootKey.D }", "newIssuer uses rootKey"},
		{"root key captured", "ca.go", rootKey + "return func() { sign(rootKey) } }", "newIssuer holds a function literal"},
		{"root key given", "ca.go", "func newIssuer(rootKey any) {}", "newIssuer uses rootKey"},
		{"root key global", "ca.go", "var rootKey any", "uses rootKey"},
		{"root key by another name", "ca.go", "func newIssuer() { k, err := ecdsa.GenerateKey(); x509.CreateCertificate(r, t, t, p, k) }", "newIssuer signs with something else"},
		{"key made elsewhere", "ca.go", "func root() any { return must(ecdsa.GenerateKey(c, r)) }", "root makes a key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file, err := parser.ParseFile(token.NewFileSet(), tt.file, "package main\n"+tt.text, 0)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(breaches(map[string]*ast.File{tt.file: file}), "; ")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
