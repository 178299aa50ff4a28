package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

const (
	yamlDepth = 64     // levels of a free-form value that is made JSON
	yamlNodes = 10_000 // nodes of one, each alias counted with all it stands for; and merge keys followed in a document
)

// kubeDocument is the first document of a kubeconfig or of a plugin's answer, read as client-go reads it: YAML 1.1 turned
// into JSON and then into typed fields. So of two equal keys the last counts, keys are case-sensitive and unknown ones
// ignored, an unquoted number is no string, and yes, on, no and off are booleans.
//
// The first value of the wrong kind is kept as err, which names line and key and never shows a value: it may be a secret.
type kubeDocument struct {
	root   *yaml.Node // nil where the document is empty
	err    error
	merges int // merge keys followed so far, over all look-ups
}

// kubeTable is a mapping of a document; the zero table is an empty one. Its methods give the zero value for a key that is
// not there, is null, or is of the wrong kind, which is then the document's err.
type kubeTable struct {
	doc  *kubeDocument
	node *yaml.Node
}

// parseKubeDocument reads JSON or YAML. The errors of yaml.v3 name the line and a cause; the one that quotes the document is
// left out.
func parseKubeDocument(data []byte) (*kubeDocument, error) {
	var root yaml.Node
	err := yaml.NewDecoder(bytes.NewReader(data)).Decode(&root)
	switch {
	case err == io.EOF:
		return &kubeDocument{}, nil
	case err != nil && strings.Contains(err.Error(), "anchor"):
		return nil, errors.New("yaml: an alias without its anchor")
	case err != nil:
		return nil, errors.New(err.Error())
	}
	return &kubeDocument{root: root.Content[0]}, nil
}

// table gives the document as a table.
func (d *kubeDocument) table() kubeTable { return d.asTable(d.root, "the document") }

// wrong keeps the first error.
func (d *kubeDocument) wrong(n *yaml.Node, key, want string) {
	if d.err == nil {
		d.err = fmt.Errorf("line %d: %s is not %s", n.Line, key, want)
	}
}

// resolve follows aliases and gives nil for null.
func resolve(n *yaml.Node) *yaml.Node {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil
	}
	return n
}

// asTable gives n, which stands under key, as a table.
func (d *kubeDocument) asTable(n *yaml.Node, key string) kubeTable {
	n = resolve(n)
	if n != nil && n.Kind != yaml.MappingNode {
		d.wrong(n, key, "a mapping")
		n = nil
	}
	return kubeTable{d, n}
}

// asString gives n as a string. A plain scalar that YAML 1.1 calls a number or a boolean is none, whoever meant it: client-go
// refuses it too.
func (d *kubeDocument) asString(n *yaml.Node, key string) string {
	n = resolve(n)
	if n == nil {
		return ""
	}
	if n.Kind == yaml.ScalarNode {
		switch tag := n.ShortTag(); {
		case tag == "!!timestamp", tag == "!!str" && !isYAMLBool(n):
			return n.Value
		}
	}
	d.wrong(n, key, "a string: put it in quotes")
	return ""
}

// asList gives the items of n.
func (d *kubeDocument) asList(n *yaml.Node, key string) []*yaml.Node {
	n = resolve(n)
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		d.wrong(n, key, "a list")
		return nil
	}
	return n.Content
}

// isYAMLBool tells whether n is a plain scalar that only YAML 1.1 calls a boolean.
func isYAMLBool(n *yaml.Node) bool {
	_, ok := yamlBools[n.Value]
	return ok && n.Style == 0
}

// yamlBools are the booleans of YAML 1.1 (https://yaml.org/type/bool.html).
var yamlBools = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true, "true": true, "True": true, "TRUE": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false, "false": false, "False": false, "FALSE": false,
}

// pairs yields the keys and values in their order, so that of two equal keys the later one counts. A merge key ("<<") stands
// for the pairs that it names.
func (t kubeTable) pairs(yield func(key string, value *yaml.Node) bool) { t.walk(yield, 0) }

func (t kubeTable) walk(yield func(string, *yaml.Node) bool, depth int) bool {
	if t.node == nil || depth > yamlDepth {
		return true
	}
	for i := 0; i+1 < len(t.node.Content); i += 2 {
		key, value := resolve(t.node.Content[i]), t.node.Content[i+1]
		switch {
		case key == nil || key.Kind != yaml.ScalarNode:
			t.doc.wrong(t.node.Content[i], "a key", "a string")
		case key.ShortTag() == "!!merge":
			if !t.merged(value, yield, depth+1) {
				return false
			}
		case !yield(key.Value, value):
			return false
		}
	}
	return true
}

// merged yields the pairs of the mapping, or of the list of mappings, that a merge key names.
func (t kubeTable) merged(value *yaml.Node, yield func(string, *yaml.Node) bool, depth int) bool {
	if t.doc.merges++; t.doc.merges > yamlNodes {
		t.doc.wrong(value, "<<", "followed any further")
		return false
	}
	from := []*yaml.Node{value}
	if n := resolve(value); n != nil && n.Kind == yaml.SequenceNode {
		from = slices.Clone(n.Content)
		slices.Reverse(from) // an earlier mapping counts before a later one
	}
	for _, n := range from {
		if !t.doc.asTable(n, "<<").walk(yield, depth) {
			return false
		}
	}
	return true
}

// get gives the value of key, nil where there is none.
func (t kubeTable) get(key string) (value *yaml.Node) {
	for k, v := range t.pairs {
		if k == key {
			value = v
		}
	}
	return value
}

// table gives the mapping under key; has tells whether there is one.
func (t kubeTable) table(key string) kubeTable { return t.doc.asTable(t.get(key), key) }
func (t kubeTable) has() bool                  { return t.node != nil }

// str gives the string under key.
func (t kubeTable) str(key string) string { return t.doc.asString(t.get(key), key) }

// flag gives the boolean under key.
func (t kubeTable) flag(key string) bool {
	n := resolve(t.get(key))
	if n == nil {
		return false
	}
	if value, ok := yamlBools[n.Value]; ok && n.Kind == yaml.ScalarNode && n.Style == 0 {
		return value
	}
	t.doc.wrong(n, key, "true or false")
	return false
}

// data gives the bytes under key, which are base64 in the document.
func (t kubeTable) data(key string) []byte {
	n := t.get(key)
	data, err := base64.StdEncoding.DecodeString(t.doc.asString(n, key))
	if err != nil {
		t.doc.wrong(resolve(n), key, "base64")
		return nil
	}
	return data
}

// strs gives the list of strings under key.
func (t kubeTable) strs(key string) (list []string) {
	for _, n := range t.doc.asList(t.get(key), key) {
		list = append(list, t.doc.asString(n, "an item of "+key))
	}
	return list
}

// tables gives the list of mappings under key.
func (t kubeTable) tables(key string) (list []kubeTable) {
	for _, n := range t.doc.asList(t.get(key), key) {
		list = append(list, t.doc.asTable(n, "an item of "+key))
	}
	return list
}

// json gives the value under key as JSON with sorted keys, nil where there is none or null.
func (t kubeTable) json(key string) json.RawMessage {
	n := t.get(key)
	if resolve(n) == nil {
		return nil
	}
	left := yamlNodes
	value, err := yamlValue(n, &left, 0)
	var text []byte
	if err == nil {
		text, err = json.Marshal(value)
	}
	if err != nil {
		t.doc.wrong(n, key, "a value that JSON can hold")
		return nil
	}
	return text
}

// errYAMLValue is a value that JSON has no words for, or that is too large.
var errYAMLValue = errors.New("no JSON")

// yamlValue gives n as encoding/json wants it. left counts down the nodes, so that aliases of aliases cannot grow without bound.
func yamlValue(n *yaml.Node, left *int, depth int) (any, error) {
	if n = resolve(n); n == nil {
		return nil, nil
	}
	if *left--; *left < 0 || depth > yamlDepth {
		return nil, errYAMLValue
	}
	switch n.Kind {
	case yaml.MappingNode:
		object, doc := map[string]any{}, &kubeDocument{}
		for key, value := range (kubeTable{doc, n}).pairs {
			v, err := yamlValue(value, left, depth+1)
			if err != nil {
				return nil, err
			}
			object[key] = v
		}
		return object, doc.err
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Content {
			value, err := yamlValue(item, left, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		return list, nil
	}
	return yamlScalar(n)
}

// yamlScalar gives a scalar that is not null.
func yamlScalar(n *yaml.Node) (any, error) {
	if value, ok := yamlBools[n.Value]; ok && n.Style == 0 {
		return value, nil
	}
	switch n.ShortTag() {
	case "!!str", "!!timestamp":
		return n.Value, nil
	case "!!int", "!!float":
		var value any
		if err := n.Decode(&value); err != nil {
			return nil, errYAMLValue
		}
		if text, err := strconv.ParseUint(n.Value, 10, 64); err == nil {
			return text, nil
		}
		return value, nil
	}
	return nil, errYAMLValue
}
