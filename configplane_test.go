package main

import (
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

func TestThePlanesTablesAreRead(t *testing.T) {
	c := mustLoadText(t, `
[[kube.context."prod.example".rule]]
effect = "allow"
verbs = ["create", "get"]
resources = ["pods/exec"]
namespaces = ["dev"]

[[kube.context."prod.example".rule]]
effect = "deny"
groups = ["", "apps"]
names = ["*", "x"]

[kube.context."prod.example"]
access = "read-only"

[kube.context.dev]

[kube]
kubeconfig = "k/config"
contexts = ["prod.example", "dev"]
access = "no-secrets"
plugin_path = "/opt/bin:/usr/bin"

[talos.context."lab"]
access = "full"
role = "os:reader"

[talos]
talosconfig = "/t/config"
access = "no-secrets"
`)
	kube := kubePlaneConfig{
		kubeconfig: filepath.Join(filepath.Dir(c.file), "k/config"),
		contexts:   []string{"prod.example", "dev"},
		access:     accessNoSecrets,
		pluginPath: "/opt/bin:/usr/bin",
		context: map[string]kubeContextConfig{
			"prod.example": {access: accessReadOnly, rules: []kubeRule{
				{verbs: []string{"create", "get"}, resources: []string{"pods/exec"}, namespaces: []string{"dev"}},
				{deny: true, groups: []string{"", "apps"}},
			}},
			"dev": {access: accessNoSecrets},
		},
	}
	if !reflect.DeepEqual(c.kube, kube) {
		t.Errorf("kube is %+v,\nwant %+v", c.kube, kube)
	}
	talos := talosPlaneConfig{talosconfig: "/t/config", access: accessNoSecrets, context: map[string]talosContextConfig{"lab": {accessFull, "os:reader"}}}
	if !reflect.DeepEqual(c.talos, talos) {
		t.Errorf("talos is %+v,\nwant %+v", c.talos, talos)
	}
	if got := c.talos.of("other").access; got != accessNoSecrets {
		t.Errorf("a context without a table has %s", got)
	}
}

func TestAContextsTableIsReadInEverySpelling(t *testing.T) {
	want := kubeContextConfig{access: accessReadOnly, rules: []kubeRule{{verbs: []string{"get"}}}}
	for _, text := range []string{
		"[kube.context.a]\naccess = \"read-only\"\n[[kube.context.a.rule]]\neffect = \"allow\"\nverbs = [\"get\"]\n",
		"[kube.context]\na.access = \"read-only\"\na.rule = [{effect = \"allow\", verbs = [\"get\"]}]\n",
		"[kube]\ncontext.a = {access = \"read-only\", rule = [{effect = \"allow\", verbs = [\"get\"]}]}\n",
		"kube.context.a.access = \"read-only\"\nkube.context.a.rule = [{effect = \"allow\", verbs = [\"get\"]}]\n",
		"kube = {context = {a = {rule = [{effect = \"allow\", verbs = [\"get\"]}], access = \"read-only\"}}}\n",
	} {
		if got := mustLoadText(t, text).kube.of("a"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

func TestBadPlaneTablesAreReportedWithLineKeyAndWayOut(t *testing.T) {
	verbs := quotedList(ruleVerbs)
	checkBadConfigs(t, []badConfig{
		{"level", "[kube]\naccess = \"none\"\n", `proxy.toml:2: [kube] access: "none" is none of "full", "no-credentials", "no-secrets", "read-only"`},
		{"level of a context", "[kube.context.\"a.b\"]\naccess = 3\n", `proxy.toml:2: [kube.context."a.b"] access: want a string, not an integer`},
		{"unknown key", "[kube]\ncontext = 3\n", "proxy.toml:2: [kube] context: unknown key: did you mean contexts?"},
		{"unknown key of a context", "[talos.context.a]\nroles = \"x\"\n", `proxy.toml:2: [talos.context."a"] roles: unknown key: did you mean role?`},
		{"context that is a value", "[kube.context]\na = 3\n", "proxy.toml:2: [kube] context: unknown key: did you mean contexts?"},
		{"table below a context", "[kube.context.a.x]\ny = 1\n", `proxy.toml:1: [kube.context."a"] x: unknown key`},
		{"single rule", "[kube.context.a.rule]\neffect = \"deny\"\n", `proxy.toml:1: [kube.context."a".rule]: there may be several: write [[kube.context."a".rule]]`},
		{"many planes", "[[kube]]\naccess = \"full\"\n", "proxy.toml:1: [[kube]]: there is only one: write [kube]"},
		{"many contexts", "[[talos.context.a]]\naccess = \"full\"\n", `proxy.toml:1: [[talos.context."a"]]: there is only one: write [talos.context."a"]`},
		{"rule of a talos context", "[[talos.context.a.rule]]\n", `proxy.toml:1: [talos.context."a"] rule: unknown key: did you mean role?`},
		{"rule without effect", "[[kube.context.a.rule]]\nverbs = [\"get\"]\n", `proxy.toml:1: [kube.context."a".rule] effect: is missing: write "allow" or "deny"`},
		{"effect", "[[kube.context.a.rule]]\neffect = \"permit\"\n", `proxy.toml:2: [kube.context."a".rule] effect: "permit" is none of "allow", "deny"`},
		{"verb", "[[kube.context.a.rule]]\neffect = \"deny\"\nverbs = [\"exec\"]\n", `proxy.toml:3: [kube.context."a".rule] verbs: "exec" is none of ` + verbs},
		{"empty list", "[kube]\ncontexts = []\n", "proxy.toml:2: [kube] contexts: the list is empty: leave the key out instead"},
		{"context that is not served", "[kube]\ncontexts = [\"a\"]\n[kube.context.b]\n", `proxy.toml:3: [kube.context."b"] access: "b" is not among the contexts of [kube]: add it there, or take this table out`},
		{"in-cluster beside a file", "[kube]\nin_cluster = true\nkubeconfig = \"x\"\n", "proxy.toml:2: [kube] in_cluster: goes with no kubeconfig: take one of the two out"},
		{"role", "[talos.context.a]\nrole = \"os:admin\"\n", `proxy.toml:2: [talos.context."a"] role: "os:admin" is none of "os:reader", "os:operator", "os:etcd:backup"`},
	})
}

func TestAccessLevelsHaveTheirWords(t *testing.T) {
	for level, word := range []string{"full", "no-credentials", "no-secrets", "read-only"} {
		c := mustLoadText(t, fmt.Sprintf("[kube]\naccess = %q\n", word))
		if c.kube.access != accessFull+accessLevel(level) || c.kube.access.String() != word {
			t.Errorf("%q is level %d, %s", word, c.kube.access, c.kube.access)
		}
	}
	if !slices.Equal(accessNames, []string{"full", "no-credentials", "no-secrets", "read-only"}) {
		t.Error("the words changed")
	}
}
