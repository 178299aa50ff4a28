package kubeconfig

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Case is a list of kubeconfigs with the files that they name, and what client-go makes of it.
type Case struct {
	Files map[string]string `json:"files"`
	List  []string          `json:"list"` // as KUBECONFIG has it
	Want  Result            `json:"want"`
}

// generator writes kubeconfigs from a seed, so that a case can be had again.
type generator struct {
	*rand.Rand
	files map[string]string
}

// Generate makes the case of a number.
func Generate(n int) Case {
	g := &generator{rand.New(rand.NewPCG(37, uint64(n))), map[string]string{
		"a.crt": "@cert-a@", "a.key": "@key-a@", "b.crt": "@cert-b@", "b.key": "@key-b@", "sub/b.crt": "@cert-b@",
		"token": "file-token\n", "sub/token": " other-token \n", "empty": "", "junk": "not PEM",
	}}
	c := Case{Files: g.files}
	for i := range 1 + g.IntN(3) {
		name := g.pick("one.yaml", "two.yaml", "sub/three.yaml") // a name may come twice
		if i == 0 || g.files[name] == "" {
			g.files[name] = g.file()
		}
		c.List = append(c.List, name)
		if g.rare() {
			c.List = append(c.List, "missing.yaml")
		}
	}
	return c
}

func (g *generator) pick(of ...string) string { return of[g.IntN(len(of))] }
func (g *generator) often() bool              { return g.IntN(2) == 0 }
func (g *generator) rare() bool               { return g.IntN(12) == 0 }

// file writes a kubeconfig, in a tenth of the cases one with a fault or a trap.
func (g *generator) file() string {
	var b strings.Builder
	b.WriteString(g.pick("apiVersion: v1\nkind: Config\n", "apiVersion: v1\nkind: Config\npreferences: {}\n", "kind: Config\n", "", "# a comment\n---\napiVersion: v1\n"))
	if g.often() {
		fmt.Fprintf(&b, "current-context: %s\n", g.pick("x", "y", "gone", `""`))
	}
	b.WriteString("clusters:\n")
	for _, name := range g.names("c1", "c2", "c3") {
		fmt.Fprintf(&b, "- name: %s\n  cluster:\n%s", name, g.cluster())
	}
	b.WriteString("users:\n")
	for _, name := range g.names("u1", "u2", "u3") {
		fmt.Fprintf(&b, "- name: %s\n  user:\n%s", name, g.user())
	}
	b.WriteString("contexts:\n")
	for _, name := range g.names("x", "y", `"arn:aws:eks:z/q"`) {
		fmt.Fprintf(&b, "- name: %s\n  context:\n    cluster: %s\n    user: %s\n", name, g.pick("c1", "c2", "c3"), g.pick("u1", "u2", "u3"))
		if g.often() {
			fmt.Fprintf(&b, "    namespace: %s\n", g.pick("default", "dev", `"123"`, "Not_A_Label"))
		}
	}
	text := b.String()
	if g.IntN(8) == 0 {
		text = g.spoil(text)
	}
	return text
}

// names gives some of the names, in any order.
func (g *generator) names(of ...string) (some []string) {
	for _, i := range g.Perm(len(of)) {
		if g.IntN(4) > 0 {
			some = append(some, of[i])
		}
	}
	return some
}

// fields writes some fields: each with its odds, and one of its values.
func (g *generator) fields(indent string, fields ...field) string {
	var b strings.Builder
	for _, i := range g.Perm(len(fields)) {
		if f := fields[i]; g.IntN(20) < f.odds {
			fmt.Fprintf(&b, "%s%s: %s\n", indent, f.key, strings.ReplaceAll(g.pick(f.values...), "\n", "\n"+indent))
		}
	}
	if b.Len() == 0 {
		return indent + "other: 1\n"
	}
	return b.String()
}

// field is a key with values to choose from.
type field struct {
	key    string
	odds   int // in twenty
	values []string
}

func (g *generator) cluster() string {
	text := g.fields("    ",
		field{"tls-server-name", 4, []string{"api.example", `""`}},
		field{"insecure-skip-tls-verify", 3, []string{"true", "false", "yes", "no"}},
		field{"certificate-authority", 4, []string{"a.crt", "sub/b.crt", "gone.crt", "junk"}},
		field{"certificate-authority-data", 7, []string{"@cert-a:64@", "@cert-b:64@", "bm90IFBFTQ==", `""`}},
		field{"proxy-url", 3, []string{"http://proxy:3128", "socks5://proxy", "https://u:p@proxy", "socks5h://proxy", "ftp://proxy", "proxy:3128"}},
		field{"disable-compression", 3, []string{"true", "false"}},
		field{"extensions", 4, []string{
			"\n- name: client.authentication.k8s.io/exec\n  extension: {audience: x<y, n: 12, list: [1, yes, null, 1.5]}",
			"\n- name: other\n  extension: 5", "[]",
		}},
	)
	if !g.rare() {
		text += "    server: " + g.pick("https://api.example:6443", "https://api.example", "https://h/k8s/clusters/c-x/", "https://h/a%2Fb?q=1#f",
			"http://plain:8080", "https://[::1]:6443", "https://u:p@h", "http://u:p@h", "bare:6443", "bare", "bare/path", "https://", "ftp://h", `""`, "https://h/", "HTTPS://H") + "\n"
	}
	return text
}

func (g *generator) user() string {
	exec := "\n  command: " + g.pick("aws", "./plugin", "/bin/plugin", "sub/plugin") + "\n  apiVersion: client.authentication.k8s.io/" + g.pick("v1", "v1beta1", "v1beta1", "v1alpha1", "v2") + "\n" +
		g.fields("  ", field{"args", 10, []string{"[a, b]", "[]", `["1", "{}"]`}},
			field{"env", 8, []string{"[{name: A, value: b}]", "[{name: A, value: \"1\"}, {name: B}]", "[{value: b}]"}},
			field{"interactiveMode", 14, []string{"IfAvailable", "Never", "IfAvailable", "Always", "Sometimes"}},
			field{"provideClusterInfo", 10, []string{"true", "false"}},
			field{"installHint", 4, []string{"install it", "|\n    two\n    lines"}})
	if g.often() { // what most people have: one way
		return g.single(exec)
	}
	return g.fields("    ",
		field{"token", 5, []string{"abc", `"123"`, `""`, `"a\nb"`, "grün"}},
		field{"tokenFile", 4, []string{"token", "sub/token", "empty", "gone"}},
		field{"client-certificate", 3, []string{"a.crt", "b.crt", "junk", "gone"}},
		field{"client-certificate-data", 4, []string{"@cert-a:64@", "@cert-b:64@", "anVuaw=="}},
		field{"client-key", 4, []string{"a.key", "b.key", "junk"}},
		field{"client-key-data", 4, []string{"@key-a:64@", "@key-b:64@", "anVuaw=="}},
		field{"username", 3, []string{"me", `""`}},
		field{"password", 3, []string{"pass", `"1"`}},
		field{"as", 5, []string{"other", "system:admin"}},
		field{"as-uid", 2, []string{"u-1"}},
		field{"as-groups", 3, []string{"[g1, g2]", "[]"}},
		field{"as-user-extra", 3, []string{"{scope/x: [a, b], Up: [c]}", "{}", "{a%b: [c]}"}},
		field{"auth-provider", 1, []string{"{name: gcp}", "{name: oidc, config: {id-token: x}}"}},
		field{"exec", 4, []string{exec}},
	)
}

// single gives a user with one way to authenticate.
func (g *generator) single(exec string) string {
	return "    " + g.pick("token: abc", "tokenFile: token", "exec:"+strings.ReplaceAll(strings.TrimSuffix(exec, "\n"), "\n", "\n    "), "client-certificate-data: @cert-a:64@\n    client-key-data: @key-a:64@",
		"client-certificate: a.crt\n    client-key: a.key", "username: me\n    password: p", "as: other\n    token: abc", "client-certificate: a.crt\n    client-key-data: @key-a:64@") + "\n"
}

// spoil makes one change that a reader may stumble over.
func (g *generator) spoil(text string) string {
	switch g.IntN(17) {
	case 0:
		return strings.Replace(text, "apiVersion: v1", "apiVersion: v2", 1)
	case 1:
		return strings.Replace(text, "kind: Config", "kind: Pod", 1)
	case 2:
		return text + "---\nclusters: [{name: c9}]\nbroken: [\n"
	case 3:
		return text + "users: []\n" // a key twice: the last one counts
	case 4:
		return strings.Replace(text, "token: abc", "token: 12345", 1)
	case 5:
		return strings.Replace(text, "contexts:\n", "contexts:\n- name: x\n  context: {}\n- name: x\n  context: {}\n", 1)
	case 6:
		return strings.Replace(text, "clusters:\n", "clusters:\n  bad: indent\n wrong\n", 1)
	case 7:
		return text + "\tjunk: tab\n"
	case 8:
		return strings.Replace(text, "token: abc", "token: abc\n    token: def", 1)
	case 9:
		return strings.Replace(text, "as: other", "as: yes", 1)
	case 10:
		return strings.ReplaceAll(text, "server:", "Server:")
	case 11:
		return text + "extensions: " + g.pick("nope", "[{name: a}, {name: a}]", "null", "[{name: a, extension: {b: c}}]") + "\n"
	case 12:
		return strings.Replace(text, "token: abc", "token: "+g.pick("~", "null", "!!str 12", "2020-01-01", "0x1f", "1e3", "1_000", "09", "on", "y", "TRUE", "1:30", "[a]", "{a: b}", "&t abc", "*t", "|\n      abc", ">-\n      a\n      b"), 1)
	case 13:
		return g.pick("", "# nothing\n", "null\n", "[]\n", "text\n", "{}\n", "---\n", "{", "\"\"", "%YAML 1.2\n---\n{}\n")
	case 14:
		return "x-common: &c {server: \"https://merged\"}\n" + strings.Replace(text, "    tls-server-name: api.example\n", "    <<: *c\n", 1)
	case 15:
		return "{\"apiVersion\": \"v1\",\t\"clusters\": [{\"name\": \"c1\", \"cluster\": {\"server\": \"https://json\"}}],\n\t\"contexts\": [{\"name\": \"x\", \"context\": {\"cluster\": \"c1\", \"user\": \"u1\"}}], \"users\": [{\"name\": \"u1\", \"user\": {\"token\": \"t\\u0041\"}}]}"
	}
	return strings.Replace(text, "certificate-authority-data: ", "certificate-authority-data: "+g.pick("***", "YQ", "12", "|\n      YWJj\n      ZGVm\n#"), 1)
}
