package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxKubeconfig bounds a kubeconfig file in bytes; a thousand contexts with certificates are half of it.
const maxKubeconfig = 16 << 20

// kubeSource says where the host's kubeconfig is, and what the plugins that it names may have.
type kubeSource struct {
	files     []string // in the order of precedence; "" and those that are not there are passed over
	explicit  bool     // files is one that the operator named: it has to be there
	inCluster bool     // where no file says anything, the service account of the pod that muxproxy runs in is served
	account   string   // its directory; "" is that of every pod

	getenv     func(string) string
	environ    []string // of plugins: "AWS_PROFILE=prod"
	pluginPath string   // PATH of plugins; "" is that of environ
	log        *slog.Logger
	plugins    *kubePlugins // those of earlier loads, so that a reload forgets no credential; nil: none
}

// kubeSourceFiles gives the files of a kubeSource as client-go finds them: the list in KUBECONFIG, each once, then
// ~/.kube/config.
func kubeSourceFiles(getenv func(string) string) (files []string) {
	list := getenv("KUBECONFIG")
	if list == "" {
		if home := getenv("HOME"); home != "" {
			files = append(files, filepath.Join(home, ".kube", "config"))
		}
		return files
	}
	for _, file := range filepath.SplitList(list) {
		if file != "" && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files
}

// kubeconfig is what the host's files say once merged. It never changes.
type kubeconfig struct {
	current  string         // name of the current context; "" or one that is not in contexts where the files say so
	contexts []*kubeContext // in the order of the files
	files    []string       // that were looked for, absolute, those that are not there included: to be watched for changes
}

// errNoKubeconfig: none of the files is there.
var errNoKubeconfig = errors.New("no kubeconfig: looked for")

// loadKubeconfig reads and merges the files: of two entries of one name the one of the earlier file counts, whole, and so
// does the earlier current-context. An error means that nothing can be served: errNoKubeconfig, or a file that cannot be
// read or is no kubeconfig, which kubectl refuses as well. What is wrong with one context is that context's err.
//
// No error here or there shows a value of a file, since it may be a secret.
func loadKubeconfig(s kubeSource) (*kubeconfig, error) {
	merged := newKubeEntries()
	k := &kubeconfig{}
	found := false
	for _, file := range s.files {
		if file == "" {
			continue
		}
		path, err := filepath.Abs(file)
		if err != nil {
			return nil, fmt.Errorf("load kubeconfig %q: %w", file, err)
		}
		k.files = append(k.files, path)
		entries, err := readKubeconfig(path)
		if errors.Is(err, fs.ErrNotExist) && !s.explicit {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("load kubeconfig %q: %w", path, err)
		}
		found = true
		merged.add(entries)
	}
	if len(merged.contexts) == 0 && s.inCluster {
		return inClusterKubeconfig(s, k.files)
	}
	if !found {
		return nil, fmt.Errorf("%w %s", errNoKubeconfig, strings.Join(k.files, ", "))
	}
	k.current = merged.current
	for _, name := range merged.order {
		if name != "" {
			k.contexts = append(k.contexts, newKubeContext(name, merged, s))
		}
	}
	k.tellSlugsApart()
	return k, nil
}

// kubeEntries are the named entries of one file, or of all once merged.
type kubeEntries struct {
	current  string
	order    []string // names of the contexts
	contexts map[string]kubeContextEntry
	clusters map[string]*kubeCluster
	users    map[string]*kubeUser
}

// kubeContextEntry is a context as a file has it.
type kubeContextEntry struct{ cluster, user, namespace string }

func newKubeEntries() *kubeEntries {
	return &kubeEntries{contexts: map[string]kubeContextEntry{}, clusters: map[string]*kubeCluster{}, users: map[string]*kubeUser{}}
}

// add puts what later has and e has not into e.
func (e *kubeEntries) add(later *kubeEntries) {
	if e.current == "" {
		e.current = later.current
	}
	for _, name := range later.order {
		if _, ok := e.contexts[name]; !ok {
			e.contexts[name] = later.contexts[name]
			e.order = append(e.order, name)
		}
	}
	addMissing(e.clusters, later.clusters)
	addMissing(e.users, later.users)
}

func addMissing[T any](to, from map[string]T) {
	for name, entry := range from {
		if _, ok := to[name]; !ok {
			to[name] = entry
		}
	}
}

// readKubeconfig reads one file. Paths in it are relative to its directory.
func readKubeconfig(path string) (*kubeEntries, error) {
	data, err := readRegular(path, maxKubeconfig)
	if err != nil {
		return nil, err
	}
	return parseKubeconfig(data, filepath.Dir(path))
}

// bareCause drops the operation and the path, which the caller names.
func bareCause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// parseKubeconfig reads the text of a file in dir.
func parseKubeconfig(data []byte, dir string) (*kubeEntries, error) {
	doc, err := parseKubeDocument(data)
	if err != nil {
		return nil, err
	}
	e, t := newKubeEntries(), doc.table()
	if v, kind := t.str("apiVersion"), t.str("kind"); v != "" && v != "v1" || kind != "" && kind != "Config" {
		return nil, errors.New(`is no kubeconfig: it has another apiVersion than "v1" or another kind than "Config"`)
	}
	e.current = t.str("current-context")
	extensions(t)
	preferences := t.table("preferences")
	preferences.flag("colors")
	extensions(preferences)
	named(t, "clusters", e.clusters, func(item kubeTable) *kubeCluster { return readCluster(item.table("cluster"), dir) })
	named(t, "users", e.users, func(item kubeTable) *kubeUser { return readUser(item.table("user"), dir) })
	e.order = named(t, "contexts", e.contexts, func(item kubeTable) kubeContextEntry {
		c := item.table("context")
		extensions(c)
		return kubeContextEntry{c.str("cluster"), c.str("user"), c.str("namespace")}
	})
	return e, doc.err
}

// named reads the items of a list into m, by their names, and gives the names in order. Two of one name are an error.
func named[T any](t kubeTable, list string, m map[string]T, read func(item kubeTable) T) (names []string) {
	for _, item := range t.tables(list) {
		name := item.str("name")
		if _, ok := m[name]; ok {
			t.doc.wrong(t.get(list), list, "a list of items with a name each of its own")
		}
		m[name] = read(item)
		names = append(names, name)
	}
	return names
}

// extensions reads a list of named extensions.
func extensions(t kubeTable) map[string]kubeTable {
	found := map[string]kubeTable{}
	named(t, "extensions", found, func(item kubeTable) kubeTable { return item })
	return found
}

// containerKubeconfig gives the kubeconfig of containers: the same contexts, namespaces and current context, each context a
// path of muxproxy's kube port, and no credential. server is "http://host.docker.internal:18081"; slug gives the path segment
// of a context. insecure-skip-tls-verify means nothing to http, but @kubernetes/client-node takes no http server without it.
func containerKubeconfig(k *kubeconfig, server string, slug func(name string) string) []byte {
	clusters, contexts := yamlList(), yamlList()
	for _, c := range k.contexts {
		clusters.Content = append(clusters.Content, yamlTable(
			"name", yamlText(c.name),
			"cluster", yamlTable("server", yamlText(server+"/contexts/"+slug(c.name)), "insecure-skip-tls-verify", &yaml.Node{Kind: yaml.ScalarNode, Value: "true"})))
		context := yamlTable("cluster", yamlText(c.name), "user", yamlText("muxproxy"))
		if c.namespace != "" {
			context.Content = append(context.Content, yamlWord("namespace"), yamlText(c.namespace))
		}
		contexts.Content = append(contexts.Content, yamlTable("name", yamlText(c.name), "context", context))
	}
	users := yamlList(yamlTable("name", yamlText("muxproxy"), "user", yamlTable()))
	root := yamlTable("apiVersion", yamlWord("v1"), "kind", yamlWord("Config"),
		"clusters", clusters, "users", users, "contexts", contexts, "current-context", yamlText(k.current))
	var text bytes.Buffer
	text.WriteString("# Written by muxproxy for containers: it holds no credential. Changes are overwritten.\n")
	e := yaml.NewEncoder(&text)
	e.SetIndent(2)
	if err := e.Encode(root); err != nil {
		panic(err) // nodes of our own, to memory
	}
	return text.Bytes()
}

// yamlTable makes a mapping of keys and values in turn.
func yamlTable(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i < len(pairs); i += 2 {
		n.Content = append(n.Content, yamlWord(pairs[i].(string)), pairs[i+1].(*yaml.Node))
	}
	return n
}

func yamlList(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Content: items}
}

func yamlWord(word string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: word} }

// yamlText makes a string in double quotes: a name like "on", "=" or "1:30" is a string to no two parsers otherwise.
func yamlText(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Style: yaml.DoubleQuotedStyle}
}

// kubeSlug gives the path segment for a context: its name where that is safe there, else a readable text that ends with a part
// of the name's digest: "arn-aws-eks-eu-west-1-1234-cluster-prod-5f3c9a1b".
func kubeSlug(name string) string {
	slug := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("-_.~@+", r):
			return r
		}
		return '-'
	}, name)
	if slug == name && len(name) <= 100 && strings.Trim(name, ".") != "" {
		return name
	}
	for strings.Contains(slug, "--") {
		slug = strings.ReplaceAll(slug, "--", "-")
	}
	slug = strings.Trim(slug[:min(len(slug), 100)], "-.")
	return strings.TrimPrefix(slug+"-"+digestOf(name), "-")
}

// digestOf gives 8 hex digits of the SHA-256 of text.
func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:4])
}

// tellSlugsApart makes a context unusable whose slug is the slug of another: that of a name which was safe as it is.
func (k *kubeconfig) tellSlugsApart() {
	taken := map[string]string{}
	for _, c := range k.contexts {
		if slug := kubeSlug(c.name); slug == c.name {
			taken[slug] = c.name
		}
	}
	for _, c := range k.contexts {
		slug := kubeSlug(c.name)
		if other, ok := taken[slug]; ok && other != c.name {
			c.err = fmt.Errorf("its path segment is the name of context %q: rename one of them", other)
			continue
		}
		taken[slug] = c.name
	}
}
