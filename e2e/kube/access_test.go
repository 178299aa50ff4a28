package kube

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// levels are the access levels, from the one that refuses nothing.
var levels = []string{"full", "no-credentials", "no-secrets", "read-only"}

// never is a level that no context has: what is refused from there on is allowed everywhere.
const never = "never"

// call is a request of the table, and the first level that refuses it.
type call struct {
	method, path, contentType, body, from string
	upgrade                               bool
}

// jsonType is the content type of most calls.
const jsonType = "application/json"

// accountSecret is a Secret which the API server fills with a token.
const accountSecret = `{"apiVersion":"v1","kind":"Secret","metadata":{"generateName":"x-","annotations":{"kubernetes.io/service-account.name":"default"}},"type":"kubernetes.io/service-account-token"}`

func accessTable(namespace string) []call {
	in := "/api/v1/namespaces/" + namespace
	review := `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}`
	request := `{"apiVersion":"certificates.k8s.io/v1","kind":"CertificateSigningRequest","metadata":{"generateName":"x-"},"spec":{"request":"eA==","signerName":"example.com/x","usages":["client auth"]}}`
	return []call{
		{"GET", in + "/pods", "", "", never, false},
		{"GET", "/api", "", "", never, false},
		{"GET", "/apis", "", "", never, false},
		{"GET", "/openapi/v3", "", "", never, false},
		{"GET", "/readyz?verbose", "", "", never, false},
		{"GET", in, "", "", never, false},
		{"GET", in + "/events", "", "", never, false},
		{"GET", in + "/serviceaccounts/default", "", "", never, false},
		{"GET", in + "/configmaps/secrets", "", "", never, false},
		{"GET", "/api/v1/watch/pods?timeoutSeconds=1", "", "", never, false},
		{"GET", in + "/pods/none/log?follow=true", "", "", never, false},
		{"GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "", "", never, false},
		{"GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests", "", "", never, false},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", jsonType, `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectRulesReview","spec":{"namespace":"default"}}`, never, false},
		{"POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", jsonType, `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`, never, false},
		{"GET", "/version", "", "", never, false},
		{"GET", in + "/configmaps?watch=1&timeoutSeconds=1", "", "", never, false},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", jsonType, review, never, false},
		{"POST", in + "/serviceaccounts/default/token", jsonType, `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`, "no-credentials", false},
		{"POST", in + "/serviceaccounts/default%2Ftoken", jsonType, `{}`, "no-credentials", false},
		{"POST", in + "/serviceaccounts/default/%74oken", jsonType, `{}`, "no-credentials", false},
		{"POST", in + "/serviceaccounts/default/token/", jsonType, `{}`, "no-credentials", false},
		{"PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/none/approval", jsonType, `{}`, "no-credentials", false},
		{"PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/none/status", "application/merge-patch+json", `{}`, "no-credentials", false},
		{"DELETE", "/apis/certificates.k8s.io/v1/certificatesigningrequests/none", "", "", "no-credentials", false},
		{"PUT", in + "/secrets/none", jsonType, accountSecret, "no-credentials", false},
		{"POST", in + "/secrets", "application/cbor", "\xd9\xd9\xf7\xa0", "no-credentials", false},
		{"POST", "/apis/certificates.k8s.io/v1/certificatesigningrequests", jsonType, request, "no-credentials", false},
		{"POST", in + "/secrets", jsonType, accountSecret, "no-credentials", false},
		{"POST", in + "/secrets", "application/yaml", "# a comment\nkind: Secret\napiVersion: v1\nmetadata: {generateName: x-}\ntype: kubernetes.io/service-account-token\n", "no-credentials", false},
		{"POST", in + "/secrets", jsonType, `{"type":"Opaque",` + accountSecret[1:], "no-credentials", false},
		{"PATCH", in + "/secrets/applied?fieldManager=x", "application/apply-patch+yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: applied}\ntype: kubernetes.io/service-account-token\n", "no-credentials", false},
		{"POST", in + "/secrets", "application/vnd.kubernetes.protobuf", "k8s\x00", "no-credentials", false},
		{"POST", in + "/secrets", jsonType, `{"apiVersion":"v1","kind":"Secret","metadata":{"generateName":"sh.helm.release-"},"type":"helm.sh/release.v1"}`, "no-secrets", false},
		{"GET", in + "/secrets", "", "", "no-secrets", false},
		{"GET", in + "/%73ecrets", "", "", "no-secrets", false},
		{"GET", in + "%2fsecrets", "", "", "no-secrets", false},
		{"GET", in + "/secrets/", "", "", "no-secrets", false},
		{"GET", "/%61pi/v1/secrets", "", "", "no-secrets", false},
		{"GET", "/api/v1/watch/namespaces/" + namespace + "/secrets?timeoutSeconds=1", "", "", "no-secrets", false},
		{"GET", in + "/secrets?watch=1", "", "", "no-secrets", true},
		{"DELETE", in + "/secrets/none", "", "", "no-secrets", false},
		{"GET", in + "/secrets/none", "", "", "no-secrets", false},
		{"GET", "/api%2Fv1/secrets", "", "", "no-secrets", false},
		{"GET", "/api/v1/secrets?watch=1&timeoutSeconds=1", "", "", "no-secrets", false},
		{"DELETE", in + "/secrets?labelSelector=none", "", "", "no-secrets", false},
		{"PATCH", in + "/secrets/none", "application/merge-patch+json", `{}`, "no-secrets", false},
		{"GET", "/logs/", "", "", "no-secrets", false},
		{"GET", "/debug/pprof/", "", "", "no-secrets", false},
		{"GET", "/configz", "", "", "no-secrets", false},
		{"POST", in + "/configmaps", jsonType, `{"metadata":{"generateName":"x-"}}`, "read-only", false},
		{"PATCH", in + "/configmaps/none", "application/merge-patch+json", `{}`, "read-only", false},
		{"DELETE", in + "/configmaps/none", "", "", "read-only", false},
		{"GET", in + "/pods/none/exec?command=id&stdout=1", "", "", "read-only", true},
		{"GET", in + "/pods/none/%61ttach?stdout=1", "", "", "read-only", true},
		{"GET", in + "/pods/none/portforward?ports=80", "", "", "read-only", true},
		{"POST", in + "/pods/none/exec?command=id&stdout=1", "", "", "read-only", false},
		{"GET", in + "/pods/none/proxy/", "", "", "read-only", false},
		{"GET", in + "/services/none/proxy/x", "", "", "read-only", false},
		{"GET", "/api/v1/nodes/none/proxy/pods", "", "", "read-only", false},
		{"GET", in + "/pods/none%2Fexec?command=id", "", "", "read-only", false},
		{"PATCH", in + "/pods/none/ephemeralcontainers", "application/strategic-merge-patch+json", `{}`, "read-only", false},
		{"POST", in + "/pods/none/eviction", jsonType, `{}`, "read-only", false},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", jsonType, `{}`, "read-only", false},
		{"POST", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", jsonType, `{}`, "read-only", false},
		{"PUT", "/apis/apiregistration.k8s.io/v1/apiservices/v1.none", jsonType, `{}`, "read-only", false},
		{"POST", "/apis/authentication.k8s.io/v1/tokenreviews", jsonType, `{}`, "read-only", false},
		{"PATCH", in + "/configmaps/none?dryRun=All", "application/merge-patch+json", `{}`, "read-only", false},
	}
}

func TestEachAccessLevelRefusesWhatItLists(t *testing.T) {
	servers, config := map[string]string{}, ""
	for _, level := range levels {
		servers[level] = shared.Server
		config += fmt.Sprintf("[kube.context.%q]\naccess = %[1]q\n", level)
	}
	d := openDoor(t, servers, config)
	table := accessTable("default")
	if len(table) < 60 {
		t.Errorf("%d requests", len(table))
	}
	for i, level := range levels {
		for _, c := range table {
			name := strings.Join([]string{level, c.method, c.path, c.contentType}, " ")
			path, marker := mark(c.path)
			q := question{method: c.method, target: "/contexts/" + level + path, body: c.body}
			if c.contentType != "" {
				q.fields = append(q.fields, "Content-Type: "+c.contentType)
			}
			if c.upgrade {
				q.fields = append(slices.Clone(upgrade), "Sec-WebSocket-Protocol: v4.channel.k8s.io")
			}
			a := d.ask(t, q)
			if from := slices.Index(levels, c.from); from < 0 || i < from {
				arrivals(t, marker, 1)
				continue
			}
			message, ok := a.status()
			if a.code != http.StatusForbidden || !ok || !strings.Contains(message, "access") {
				t.Errorf("%s: %v", name, a)
			}
			if all, err := shared.Arrivals(marker); err != nil || len(all) > 0 {
				t.Errorf("%s arrived: %v", name, err)
			}
		}
	}
}

func TestARuleLiftsWhatALevelRefusesAndDeniesWhatItAllows(t *testing.T) {
	d := openDoor(t, map[string]string{"dev": shared.Server}, `
[kube.context."dev"]
access = "read-only"
[[kube.context."dev".rule]]
effect = "allow"
resources = ["configmaps"]
namespaces = ["default"]
[[kube.context."dev".rule]]
effect = "deny"
verbs = ["get"]
resources = ["configmaps"]
names = ["hidden"]
`)
	create := func(namespace string) answer {
		return d.ask(t, question{method: "POST", target: "/contexts/dev/api/v1/namespaces/" + namespace + "/configmaps", fields: []string{"Content-Type: application/json"}, body: `{"metadata":{"generateName":"x-"}}`})
	}
	if a := create("default"); a.code != http.StatusCreated {
		t.Errorf("what the rule allows: %v", a)
	}
	if a := create("kube-public"); a.code != http.StatusForbidden {
		t.Errorf("what the level refuses: %v", a)
	}
	if a := d.get(t, "dev", "/api/v1/namespaces/default/configmaps/hidden"); a.code != http.StatusForbidden {
		t.Errorf("what the rule denies: %v", a)
	}
	if a := d.get(t, "dev", "/api/v1/namespaces/default/configmaps/shown"); a.code != http.StatusNotFound {
		t.Errorf("what the level allows: %v", a)
	}
}
