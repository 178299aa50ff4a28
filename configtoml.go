package main

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// tomlTable is one table of a config file with the lines that a decoder does not tell. Dotted keys and inline tables are
// spelled out: `audit.keep = 3`, `audit = {keep = 3}` and a [audit] section all give the entry "keep" of table "audit".
type tomlTable struct {
	name    string   // "" is the top level; "audit", "rule", `kube.context."prod"`
	parts   []string // of the name: {"kube", "context", "prod"}
	array   bool     // written [[name]]: there may be several
	line    int      // of its header
	entries []tomlEntry
}

// tomlEntry is one key of a table. Below a table's own keys it is dotted: "context.prod.access".
type tomlEntry struct {
	key string
	tomlValue
}

// tomlValue is a string, an int64, a bool, a []tomlValue, or a tomlOther; line is where it stands.
type tomlValue struct {
	value any
	line  int
}

// tomlOther names a kind of value that no key takes: "a date".
type tomlOther string

// tomlReader spells the expressions of a document out into tables; the first one is the top level.
type tomlReader struct {
	parser unstable.Parser
	tables []*tomlTable
	prefix []string // of the keys that follow: what the last table header says
}

// readTOML gives the tables of a document in the order of their appearance. What go-toml refuses, a syntax error or a key that
// stands twice, is one problem with its line, for nothing can be said of the rest then.
func readTOML(data []byte) ([]*tomlTable, *configProblem) {
	var document map[string]any
	if err := toml.Unmarshal(data, &document); err != nil {
		line := 0
		if positioned, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ = positioned.Position()
		}
		return nil, &configProblem{line, strings.TrimPrefix(err.Error(), "toml: ")}
	}
	r := &tomlReader{tables: []*tomlTable{{line: 1}}}
	r.parser.Reset(data)
	for r.parser.NextExpression() {
		r.expression(r.parser.Expression())
	}
	if err := r.parser.Error(); err != nil {
		return nil, &configProblem{0, err.Error()}
	}
	return r.tables, nil
}

// expression takes a table header or a top-level key.
func (r *tomlReader) expression(node *unstable.Node) {
	path, line := r.key(node)
	switch node.Kind {
	case unstable.ArrayTable, unstable.Table:
		r.prefix = path
		r.header(path, line, node.Kind == unstable.ArrayTable)
	case unstable.KeyValue:
		r.add(append(r.prefix[:len(r.prefix):len(r.prefix)], path...), node.Value(), line)
	}
}

// key gives the parts of a dotted key and the line of its first one.
func (r *tomlReader) key(node *unstable.Node) (path []string, line int) {
	parts := node.Key()
	for parts.Next() {
		if line == 0 {
			line = r.line(parts.Node(), 0)
		}
		path = append(path, string(parts.Node().Data))
	}
	return path, line
}

// tableDepth tells how many of the first parts of path name its table. The planes' tables have a table for each context, and that of a
// kube context has rules: {"kube", "context", "prod", "rule"}. No other table has tables below it.
func tableDepth(path []string) int {
	switch {
	case len(path) < 3 || path[1] != "context" || path[0] != "kube" && path[0] != "talos":
		return min(len(path), 1)
	case len(path) > 3 && path[0] == "kube" && path[3] == "rule":
		return 4
	}
	return 3
}

// isContexts tells the table that holds those of a plane's contexts, and nothing else.
func isContexts(path []string) bool {
	return len(path) == 2 && path[1] == "context" && (path[0] == "kube" || path[0] == "talos")
}

// header opens the table that a header or an inline table names. One below a table that can have none is an entry of
// its own, so that it is noticed even when it is empty.
func (r *tomlReader) header(path []string, line int, array bool) {
	depth := tableDepth(path)
	if array && len(path) == depth || r.table(path[:depth]) == nil {
		r.open(path[:depth], line, array && len(path) == depth)
	}
	if len(path) > depth && !isContexts(path) {
		r.leaf(path, tomlValue{tomlOther("a table"), line})
	}
}

// open begins a table.
func (r *tomlReader) open(path []string, line int, array bool) *tomlTable {
	name := slices.Clone(path)
	if len(name) > 2 {
		name[2] = strconv.Quote(name[2])
	}
	t := &tomlTable{name: strings.Join(name, "."), parts: slices.Clone(path), array: array, line: line}
	r.tables = append(r.tables, t)
	return t
}

// add spells a value out into its table.
func (r *tomlReader) add(path []string, node *unstable.Node, line int) {
	switch {
	case node.Kind == unstable.InlineTable:
		r.header(path, line, false)
		r.inline(path, node)
	case node.Kind == unstable.Array && len(path) == tableDepth(path) && node.Child() != nil && node.Child().Kind == unstable.InlineTable:
		elements := node.Children()
		for elements.Next() {
			r.header(path, r.line(elements.Node(), line), true)
			if elements.Node().Kind == unstable.InlineTable {
				r.inline(path, elements.Node())
			}
		}
	default:
		r.leaf(path, r.value(node, line))
	}
}

// inline adds the keys of an inline table below path.
func (r *tomlReader) inline(path []string, node *unstable.Node) {
	children := node.Children()
	for children.Next() {
		below, line := r.key(children.Node())
		r.add(append(path[:len(path):len(path)], below...), children.Node().Value(), line)
	}
}

// leaf puts a value into the table that its path begins with: the top level if the path is a single key.
func (r *tomlReader) leaf(path []string, value tomlValue) {
	table, depth := r.tables[0], 0
	if len(path) > 1 {
		depth = tableDepth(path[:len(path)-1])
		if table = r.table(path[:depth]); table == nil {
			table = r.open(path[:depth], value.line, false)
		}
	}
	table.entries = append(table.entries, tomlEntry{strings.Join(path[depth:], "."), value})
}

// table gives the last table of that name, nil if there is none.
func (r *tomlReader) table(path []string) *tomlTable {
	for i := len(r.tables) - 1; i > 0; i-- {
		if slices.Equal(r.tables[i].parts, path) {
			return r.tables[i]
		}
	}
	return nil
}

func (r *tomlReader) value(node *unstable.Node, line int) tomlValue {
	v := tomlValue{line: r.line(node, line)}
	switch node.Kind {
	case unstable.String:
		v.value = string(node.Data)
	case unstable.Bool:
		v.value = string(node.Data) == "true"
	case unstable.Integer:
		// The decoder has taken it, and this reads the same forms: "18_080", "0x46a0", "+1".
		text := strings.ReplaceAll(string(node.Data), "_", "")
		if n, err := strconv.ParseInt(text, 0, 64); err == nil {
			v.value = n
		} else {
			v.value = tomlOther("an integer")
		}
	case unstable.Array:
		list := []tomlValue{}
		elements := node.Children()
		for elements.Next() {
			list = append(list, r.value(elements.Node(), v.line))
		}
		v.value = list
	case unstable.Float:
		v.value = tomlOther("a float")
	case unstable.InlineTable:
		v.value = tomlOther("a table")
	default:
		v.value = tomlOther("a date or time")
	}
	return v
}

// line tells where a node stands; the parser keeps no place of some kinds, which stand where what holds them does.
func (r *tomlReader) line(node *unstable.Node, otherwise int) int {
	if node.Raw.Length == 0 {
		return otherwise
	}
	return r.parser.Shape(node.Raw).Start.Line
}

// String says what kind of value it is: "a string".
func (v tomlValue) String() string {
	switch v := v.value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case bool:
		return "a boolean"
	case []tomlValue:
		return "a list"
	case tomlOther:
		return string(v)
	}
	return "nothing"
}
