package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// From which access level on a request of the table is refused.
const (
	never   = accessNever
	creds   = accessNoCredentials
	secrets = accessNoSecrets
	changes = accessReadOnly
)

const (
	upgradeLines = "\r\nConnection: Upgrade\r\nUpgrade: websocket"
	spdyLines    = "\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1"
	ns           = "/api/v1/namespaces/dev"
)

// kubeRequests are requests as they stand, with the first level that refuses them.
var kubeRequests = []struct {
	request string
	from    accessLevel
}{
	// Discovery and health.
	{"GET /", never}, {"GET /api", never}, {"GET /api/", never}, {"GET /apis", never}, {"GET /api/v1", never}, {"GET /apis/apps/v1", never},
	{"GET /version", never}, {"GET /version/", never}, {"GET /openapi/v3/apis/apps/v1?hash=x", never}, {"GET /openapi/v2", never},
	{"GET /healthz", never}, {"GET /livez/ping", never}, {"GET /readyz?verbose", never}, {"GET /metrics", never}, {"HEAD /version", never},
	{"GET /.well-known/openid-configuration", never}, {"GET /openid/v1/jwks", never},
	{"POST /version\r\n\r\nx", changes}, {"OPTIONS /api", changes}, {"GET /version" + upgradeLines, changes},
	// What nobody can judge.
	{"GET /logs/kube-apiserver.log", secrets}, {"GET /debug/pprof/heap", secrets}, {"GET /configz", secrets}, {"GET /version/x", secrets},
	{"GET /k8s/clusters/local/api/v1/secrets", secrets}, {"GET /clusters/root:org/api/v1/secrets", secrets}, {"GET /oapi/v1/secrets", secrets}, {"GET /API/v1/secrets", secrets},
	{"POST /k8s/clusters/local/api/v1/namespaces/dev/serviceaccounts/a/token\r\n\r\n{}", creds}, {"PUT /debug/flags/v\r\n\r\n5", creds}, {"GET /k8s/x" + upgradeLines, creds},
	{"GET /api/v1/watch", secrets}, {"GET /apis/apps/v1/proxy", secrets}, {"DELETE /api/v1/watch", creds},
	// Reads.
	{"GET /api/v1/pods", never}, {"GET " + ns + "/pods", never}, {"GET " + ns + "/pods/a", never}, {"HEAD " + ns + "/pods/a", never}, {"GET " + ns + "/pods/a/status", never},
	{"GET " + ns + "/pods/a/log?follow=true", never}, {"GET /api/v1/watch/pods", never}, {"GET /api/v1/pods?watch=1", never}, {"GET " + ns, never}, {"GET /api/v1/namespaces", never},
	{"GET /apis/apps/v1/namespaces/dev/deployments/a/scale", never}, {"GET /apis/example.com/v1/widgets", never}, {"GET /apis/certificates.k8s.io/v1/certificatesigningrequests/a", never},
	{"GET " + ns + "/serviceaccounts/a", never}, {"GET " + ns + "/configmaps/a", never}, {"GET /api/v1/pods?watch=1" + upgradeLines, never}, {"GET " + ns + "/pods/a/log" + upgradeLines, never},
	{"GET " + ns + "/events?watch=true" + upgradeLines, never}, {"GET /apis/metrics.k8s.io/v1beta1/nodes", never},
	// Questions by POST.
	{"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews\r\n\r\n{}", never}, {"POST /apis/authorization.k8s.io/v1/selfsubjectrulesreviews\r\n\r\n{}", never},
	{"POST /apis/authentication.k8s.io/v1/selfsubjectreviews\r\n\r\n{}", never}, {"POST /apis/authorization.k8s.io/v1/subjectaccessreviews\r\n\r\n{}", never},
	{"POST /apis/authorization.k8s.io/v1/namespaces/dev/localsubjectaccessreviews\r\n\r\n{}", never},
	{"POST /apis/authentication.k8s.io/v1/tokenreviews\r\n\r\n{}", changes}, {"POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x\r\n\r\n{}", changes},
	{"PUT /apis/authorization.k8s.io/v1/selfsubjectaccessreviews\r\n\r\n{}", changes}, {"POST /apis/example.com/v1/selfsubjectaccessreviews\r\n\r\n{}", changes},
	// Changes.
	{"POST " + ns + "/pods\r\n\r\n{}", changes}, {"PUT " + ns + "/pods/a\r\n\r\n{}", changes}, {"PATCH " + ns + "/pods/a\r\n\r\n{}", changes}, {"DELETE " + ns + "/pods/a", changes}, {"DELETE " + ns + "/pods", changes},
	{"PATCH " + ns + "/pods/a?dryRun=All\r\n\r\n{}", changes}, {"POST " + ns + "/pods/a/eviction\r\n\r\n{}", changes}, {"POST " + ns + "/pods/a/binding\r\n\r\n{}", changes}, {"POST " + ns + "/bindings\r\n\r\n{}", changes},
	{"PATCH " + ns + "/pods/a/ephemeralcontainers\r\n\r\n{}", changes}, {"PUT /api/v1/namespaces/dev/finalize\r\n\r\n{}", changes}, {"PATCH /api/v1/namespaces/dev/status\r\n\r\n{}", changes},
	{"POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings\r\n\r\n{}", changes}, {"POST /apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations\r\n\r\n{}", changes},
	{"PUT /apis/apiregistration.k8s.io/v1/apiservices/v1.x\r\n\r\n{}", changes}, {"POST " + ns + "/serviceaccounts\r\n\r\n{}", changes}, {"FROB " + ns + "/pods", changes}, {"POST /api/v1/watch/pods\r\n\r\n{}", changes},
	{"DELETE /apis/certificates.k8s.io/v1alpha1/clustertrustbundles/a", changes},
	// Into pods, services and nodes, whatever the method.
	{"GET " + ns + "/pods/a/exec?command=id" + upgradeLines, changes}, {"POST " + ns + "/pods/a/exec?command=id" + spdyLines, changes}, {"GET " + ns + "/pods/a/exec?command=id", changes},
	{"GET " + ns + "/pods/a/attach" + upgradeLines, changes}, {"GET " + ns + "/pods/a/portforward?ports=80" + upgradeLines, changes}, {"GET " + ns + "/pods/a/portforward/", changes}, {"GET " + ns + "/pods/a/proxy", changes},
	{"GET " + ns + "/pods/a/proxy/x/y", changes}, {"GET " + ns + "/services/https:a:443/proxy/api/v1/secrets", changes}, {"GET /api/v1/nodes/a/proxy/run/dev/a/b?cmd=id", changes}, {"GET /api/v1/nodes/a/proxy/pods", changes},
	{"GET /api/v1/proxy/namespaces/dev/pods/a", changes}, {"GET /api/v1/watch/namespaces/dev/pods/a/exec", changes}, {"GET " + ns + "/pods/a/%65xec", changes}, {"GET " + ns + "/pods/a%2Fexec", changes},
	{"GET /apis/subresources.kubevirt.io/v1/namespaces/dev/virtualmachineinstances/a/console" + upgradeLines, changes}, {"GET /apis/subresources.kubevirt.io/v1/namespaces/dev/virtualmachineinstances/a/portforward", changes},
	// Secrets.
	{"GET /api/v1/secrets", secrets}, {"GET " + ns + "/secrets", secrets}, {"GET " + ns + "/secrets/a", secrets}, {"HEAD " + ns + "/secrets/a", secrets}, {"GET /api/v1/secrets?watch=1", secrets}, {"GET /api/v1/watch/secrets", secrets},
	{"GET /api/v1/watch/namespaces/dev/secrets/a", secrets}, {"GET /api/v1/secrets?watch=1" + upgradeLines, secrets}, {"DELETE " + ns + "/secrets", secrets}, {"DELETE " + ns + "/secrets/a", secrets}, {"POST " + ns + "/secrets\r\n\r\n{}", secrets},
	{"PUT " + ns + "/secrets/a\r\n\r\n{}", secrets}, {"PATCH " + ns + "/secrets/a\r\nContent-Type: application/merge-patch+json\r\n\r\n{}", secrets}, {"GET /api%2Fv1/secrets", secrets}, {"GET /%61pi/v1/namespaces/dev/%73ecrets", secrets},
	{"GET /api/v1/namespaces/dev%2Fsecrets", secrets}, {"GET " + ns + "/secrets/", secrets}, {"GET " + ns + "/secrets/a/", secrets}, {"GET /contexts/prod" + ns + "/secrets/a", secrets}, {"FROB " + ns + "/secrets", secrets},
	{"GET /apis/image.openshift.io/v1/namespaces/dev/imagestreams/a/secrets", secrets}, {"GET /apis/example.com/v1/secrets", secrets}, {"GET /api/v1/namespaces/secrets/pods", never}, {"GET /api/v1/namespaces/secrets", never},
	{"GET " + ns + "/configmaps/secrets", never}, {"GET " + ns + "/Secrets", never},
	// What hands out credentials.
	{"POST " + ns + "/serviceaccounts/a/token\r\n\r\n{}", creds}, {"POST " + ns + "/serviceaccounts/a/token/\r\n\r\n{}", creds}, {"POST " + ns + "/serviceaccounts/a/%74oken\r\n\r\n{}", creds}, {"POST " + ns + "/serviceaccounts/a%2Ftoken\r\n\r\n{}", creds},
	{"PUT " + ns + "/serviceaccounts/a/token\r\n\r\n{}", creds}, {"GET " + ns + "/serviceaccounts/a/token", creds}, {"POST /api/v1/watch/namespaces/dev/serviceaccounts/a/token\r\n\r\n{}", creds}, {"POST " + ns + "/serviceaccounts/a/token/x\r\n\r\n{}", creds},
	{"POST /contexts/prod" + ns + "/serviceaccounts/a/token\r\n\r\n{}", creds}, {"POST /apis/certificates.k8s.io/v1/certificatesigningrequests\r\n\r\n{}", creds}, {"PUT /apis/certificates.k8s.io/v1/certificatesigningrequests/a/approval\r\n\r\n{}", creds},
	{"PATCH /apis/certificates.k8s.io/v1beta1/certificatesigningrequests/a/status\r\n\r\n{}", creds}, {"DELETE /apis/certificates.k8s.io/v1/certificatesigningrequests/a", creds}, {"POST /apis/certificates.k8s.io/v1alpha1/namespaces/dev/podcertificaterequests\r\n\r\n{}", creds},
	{"POST " + ns + "/secrets\r\n\r\n{\"type\":\"kubernetes.io/service-account-token\"}", creds},
}

func TestLevelsRefuseWhatTheyPromise(t *testing.T) {
	for level := accessFull; level <= accessReadOnly; level++ {
		p := newTestKube(t, kubeEcho, kubePlaneConfig{access: level})
		for _, c := range kubeRequests {
			p.forgive()
			res, content := p.ask(t, c.request)
			reached := len(p.origin.take()) == 1
			if allowed := level < c.from; allowed != (res.StatusCode == 200) || allowed != reached {
				t.Errorf("%s: %.80q: %d %s", level, c.request, res.StatusCode, content)
				continue
			}
			if reached || c.request[:4] == "HEAD" {
				continue
			}
			s, l := status(t, content), p.lastLine(t)
			if s.Reason != "Forbidden" || !strings.Contains(s.Message, `[kube.context."prod"] is "`+level.String()+`"`) || !strings.Contains(s.Message, `access = "full"`) || l.Error != "access: "+level.String() {
				t.Errorf("%s: %.80q: %+v, audit %+v", level, c.request, s, l)
			}
		}
	}
}

func TestMethodOverridesAreRefusedBelowFullAndWithRules(t *testing.T) {
	for level, want := range map[accessLevel]int{accessFull: 200, accessNoCredentials: 400, accessReadOnly: 400} {
		p := newTestKube(t, kubeEcho, kubePlaneConfig{access: level})
		if res, content := p.ask(t, "GET "+ns+"/pods/a\r\nX-HTTP-Method-Override: DELETE"); res.StatusCode != want {
			t.Errorf("%s: %d %s", level, res.StatusCode, content)
		}
	}
	p := newTestKube(t, kubeEcho, kubePlaneConfig{context: map[string]kubeContextConfig{"prod": {access: accessFull, rules: []kubeRule{{deny: true, verbs: []string{"delete"}}}}}})
	if res, content := p.ask(t, "POST "+ns+"/pods/a\r\nX_HTTP_Method_Override: DELETE"); res.StatusCode != 400 {
		t.Errorf("full with a rule: %d %s", res.StatusCode, content)
	}
}

func TestRulesLiftAndDeny(t *testing.T) {
	list := func(s ...string) []string { return s }
	for _, c := range []struct {
		name    string
		access  accessLevel
		rules   []kubeRule
		allowed string // requests, one a line
		refused string
	}{
		{"allow exec in one namespace", accessReadOnly, []kubeRule{{resources: list("pods/exec"), namespaces: list("dev")}},
			"GET /api/v1/namespaces/dev/pods/a/exec\nPOST /api/v1/namespaces/dev/pods/a/exec",
			"GET /api/v1/namespaces/prod/pods/a/exec\nGET /api/v1/namespaces/dev/pods/a/attach\nDELETE /api/v1/namespaces/dev/pods/a\nGET /apis/x/v1/namespaces/dev/secrets/a"},
		{"allow of a resource is not of its subresources", accessReadOnly, []kubeRule{{resources: list("pods")}},
			"DELETE /api/v1/namespaces/dev/pods/a\nPOST /api/v1/namespaces/dev/pods", "GET /api/v1/namespaces/dev/pods/a/exec\nPOST /api/v1/namespaces/dev/pods/a/eviction"},
		{"allow of any subresource of a name", accessReadOnly, []kubeRule{{resources: list("*/scale")}}, "PATCH /apis/apps/v1/namespaces/dev/deployments/a/scale", "PATCH /apis/apps/v1/namespaces/dev/deployments/a"},
		{"allow get is not allow exec by GET", accessReadOnly, []kubeRule{{verbs: list("get")}}, "GET /api/v1/namespaces/dev/secrets/a", "GET /api/v1/namespaces/dev/pods/a/exec\nGET /api/v1/secrets\nGET /api/v1/nodes/a/proxy/run"},
		{"allow create is allow exec by GET", accessReadOnly, []kubeRule{{verbs: list("create"), resources: list("pods/exec")}}, "GET /api/v1/namespaces/dev/pods/a/exec", "PUT /api/v1/namespaces/dev/pods/a"},
		{"allow of a group", accessReadOnly, []kubeRule{{groups: list("apps")}}, "DELETE /apis/apps/v1/namespaces/dev/deployments/a", "DELETE /apis/batch/v1/namespaces/dev/jobs/a\nDELETE /api/v1/namespaces/dev/pods/a"},
		{"allow of the core group", accessReadOnly, []kubeRule{{groups: list("")}}, "DELETE /api/v1/namespaces/dev/pods/a", "DELETE /apis/apps/v1/namespaces/dev/deployments/a"},
		{"allow of names is for requests that name one", accessNoSecrets, []kubeRule{{resources: list("secrets"), names: list("tls")}},
			"GET /api/v1/namespaces/dev/secrets/tls\nGET /api/v1/namespaces/dev/secrets?fieldSelector=metadata.name%3Dtls\nGET /api/v1/secrets?watch=1&fieldSelector=metadata.name=tls",
			"GET /api/v1/namespaces/dev/secrets\nPOST /api/v1/namespaces/dev/secrets\nGET /api/v1/namespaces/dev/secrets/other\nGET /api/v1/secrets?fieldSelector=metadata.name!=tls\nGET /api/v1/secrets?fieldSelector=metadata.name=tls,x\nDELETE /api/v1/namespaces/dev/secrets?fieldSelector=metadata.name=tls\nGET /api/v1/watch/secrets?fieldSelector=metadata.name=tls"},
		{"allow of a namespace is not of all", accessNoSecrets, []kubeRule{{resources: list("secrets"), namespaces: list("dev")}}, "GET /api/v1/namespaces/dev/secrets", "GET /api/v1/secrets\nGET /api/v1/namespaces/prod/secrets"},
		{"allow all", accessReadOnly, []kubeRule{{}}, "GET /api/v1/secrets\nPOST /logs\nGET /api/v1/namespaces/dev/pods/a/exec", ""},
		{"allow all by stars", accessReadOnly, []kubeRule{{verbs: list("*"), groups: list("*"), resources: list("*"), namespaces: list("*"), names: list("*")}}, "GET /api/v1/secrets\nPOST /logs", ""},
		{"allow of TokenRequest", accessNoCredentials, []kubeRule{{resources: list("serviceaccounts/token"), namespaces: list("dev")}}, "POST /api/v1/namespaces/dev/serviceaccounts/a/token", "POST /api/v1/namespaces/prod/serviceaccounts/a/token"},
		{"deny beats allow in any order", accessFull, []kubeRule{{}, {deny: true, resources: list("pods")}, {}}, "GET /api/v1/services", "GET /api/v1/pods\nGET /api/v1/namespaces/dev/pods/a/log"},
		{"deny of a resource is of its subresources", accessFull, []kubeRule{{deny: true, resources: list("pods")}}, "GET /api/v1/nodes", "GET /api/v1/namespaces/dev/pods/a/exec\nGET /api/v1/watch/pods"},
		{"deny of namespaces is of their status", accessFull, []kubeRule{{deny: true, resources: list("namespaces")}}, "GET /api/v1/namespaces/dev/pods", "PATCH /api/v1/namespaces/dev/status\nPUT /api/v1/namespaces/dev/finalize"},
		{"deny of a subresource", accessFull, []kubeRule{{deny: true, resources: list("pods/exec")}}, "GET /api/v1/namespaces/dev/pods/a", "GET /api/v1/namespaces/dev/pods/a/exec\nPOST /api/v1/namespaces/dev/pods/a/exec/x"},
		{"deny of a namespace is of all at once", accessFull, []kubeRule{{deny: true, namespaces: list("kube-system")}},
			"GET /api/v1/namespaces/dev/pods\nGET /api/v1/nodes\nGET /api/v1/nodes/a\nGET /api/v1/namespaces\nGET /apis/storage.k8s.io/v1/storageclasses\nGET /version\nGET /apis/example.com/v1/widgets/a",
			"GET /api/v1/namespaces/kube-system/pods\nGET /api/v1/pods\nGET /api/v1/namespaces/kube-system\nGET /apis/example.com/v1/widgets\nGET /apis/example.com/v1/nodes\nGET /api/v1/pods?fieldSelector=metadata.name=a\nGET /k8s/x"},
		{"deny of names is of what names none", accessFull, []kubeRule{{deny: true, resources: list("configmaps"), names: list("x")}},
			"GET /api/v1/namespaces/dev/configmaps/y\nGET /api/v1/namespaces/dev/configmaps?fieldSelector=metadata.name=y", "GET /api/v1/namespaces/dev/configmaps/x\nGET /api/v1/configmaps\nPOST /api/v1/namespaces/dev/configmaps\nDELETE /api/v1/namespaces/dev/configmaps"},
		{"deny create is of what may create", accessFull, []kubeRule{{deny: true, verbs: list("create")}},
			"GET /api/v1/pods\nDELETE /api/v1/namespaces/dev/pods/a\nPOST /version", "POST /api/v1/namespaces/dev/pods\nPUT /api/v1/namespaces/dev/services/a\nPATCH /api/v1/namespaces/dev/pods/a\nGET /api/v1/namespaces/dev/pods/a/exec\nFROB /api/v1/pods\nGET /logs"},
		{"deny get is of GET exec", accessFull, []kubeRule{{deny: true, verbs: list("get"), resources: list("pods/exec")}}, "POST /api/v1/namespaces/dev/pods/a/exec", "GET /api/v1/namespaces/dev/pods/a/exec"},
		{"deny all", accessFull, []kubeRule{{deny: true}}, "", "GET /version\nGET /api/v1/pods\nGET /logs"},
		{"deny does not lift", accessReadOnly, []kubeRule{{deny: true, resources: list("pods")}}, "GET /api/v1/services", "DELETE /api/v1/namespaces/dev/services/a"},
	} {
		a := &kubeAccess{context: "prod", kubeContextConfig: kubeContextConfig{access: c.access, rules: c.rules}}
		for want, requests := range map[bool]string{true: c.allowed, false: c.refused} {
			for request := range strings.FieldsFuncSeq(requests, func(r rune) bool { return r == '\n' }) {
				method, target, _ := strings.Cut(request, " ")
				path, query, _ := splitTarget(target)
				q := parseKubeRequest(method, path, query)
				if f := a.judge(&q); (f == nil) != want {
					t.Errorf("%s: %s: %+v", c.name, request, f)
				}
			}
		}
	}
}

func TestRefusalNamesTheRequestAndTheRule(t *testing.T) {
	for _, c := range []struct {
		access  accessLevel
		rules   []kubeRule
		request string
		want    string
	}{
		{accessReadOnly, nil, "GET /apis/apps/v1/namespaces/dev/deployments/a/exec", `muxproxy: get deployments.apps/exec "a" in "dev" is refused, since it acts inside the cluster whatever its method: the access level of [kube.context."prod"] is "read-only". Its operator can add a rule there with effect = "allow" and resources = ["deployments/exec"], or set access = "full" there`},
		{accessNoSecrets, nil, "GET /logs/x", `muxproxy: GET "/logs/x" is refused, since it is no request of the Kubernetes API that muxproxy can judge: the access level of [kube.context."prod"] is "no-secrets". Its operator can set access = "full" there`},
		{accessFull, []kubeRule{{}, {deny: true}}, "FROB /api/v1/namespaces/dev", `muxproxy: namespaces "dev" is refused by deny rule 2 of [kube.context."prod"]: its operator can change that rule`},
	} {
		a := &kubeAccess{context: "prod", kubeContextConfig: kubeContextConfig{access: c.access, rules: c.rules}}
		method, path, _ := strings.Cut(c.request, " ")
		q := parseKubeRequest(method, path, "")
		if f := a.judge(&q); f == nil || f.text != c.want {
			t.Errorf("%s\n got %+v\nwant %s", c.request, f, c.want)
		}
	}
}

func TestSecretsOfTheTokenTypeAreFoundInAnyDisguise(t *testing.T) {
	const token = "kubernetes.io/service-account-token"
	json := "\r\nContent-Type: application/json"
	yaml := "\r\nContent-Type: application/yaml"
	apply := "\r\nContent-Type: application/apply-patch+yaml"
	post, put, patch := "POST "+ns+"/secrets", "PUT "+ns+"/secrets/a", "PATCH "+ns+"/secrets/a"
	p := newTestKube(t, kubeEcho, kubePlaneConfig{access: accessNoCredentials})
	for _, c := range []struct {
		name, request string
		allowed       bool
	}{
		{"an opaque Secret", post + json + "\r\n\r\n" + `{"kind":"Secret","type":"Opaque","data":{"a":"Yg=="}}`, true},
		{"of no type", post + "\r\n\r\n{}", true},
		{"helm's", post + json + "; charset=utf-8\r\n\r\n" + `{"type":"helm.sh/release.v1","data":{"release":"` + strings.Repeat("A", 1<<20) + `"}}`, true},
		{"chunked", post + json + "\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", true},
		{"YAML", post + yaml + "\r\n\r\nkind: Secret\ntype: Opaque\n", true},
		{"YAML of two documents", post + yaml + "\r\n\r\ntype: Opaque\n---\ntype: Opaque\n", true},
		{"applied as JSON", patch + apply + "\r\n\r\n" + `{"type":"Opaque"}`, true},
		{"patched", patch + "\r\nContent-Type: application/json-patch+json\r\n\r\n" + `[{"op":"replace","path":"/data/a","value":"Yg=="}]`, true},
		{"strategically", patch + "\r\nContent-Type: application/strategic-merge-patch+json\r\n\r\n" + `{"data":{"a":"Yg=="}}`, true},
		{"deleted with content", "DELETE " + ns + "/secrets/a" + json + "\r\n\r\n{}", true},
		{"another kind that names the type", "POST " + ns + "/configmaps" + json + "\r\n\r\n" + `{"type":"` + token + `"}`, true},

		{"created", post + json + "\r\n\r\n" + `{"type":"` + token + `"}`, false},
		{"created without content type", post + "\r\n\r\n" + `{"type":"` + token + `"}`, false},
		{"chunked and so", post + "\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(`{"type":"`+token+`"}`), `{"type":"`+token+`"}`), false},
		{"escaped", post + json + "\r\n\r\n" + `{"t\u0079pe":"kubernetes.io\/service-\u0061ccount-token"}`, false},
		{"first of two keys", post + json + "\r\n\r\n" + `{"type":"` + token + `","type":"Opaque"}`, false},
		{"last of two keys", post + json + "\r\n\r\n" + `{"type":"Opaque","type":"` + token + `"}`, false},
		{"replaced", put + json + "\r\n\r\n" + `{"type":"` + token + `"}`, false},
		{"in YAML", post + yaml + "\r\n\r\ntype: " + token, false},
		{"in YAML, quoted and escaped", post + yaml + "\r\n\r\n\"t\\x79pe\": \"kubernetes.io/service-\\x61ccount-token\"", false},
		{"in YAML, folded", post + yaml + "\r\n\r\ntype: \"kubernetes.io/service-\\\n  account-token\"", false},
		{"in YAML with directives", post + yaml + "\r\n\r\n%TAG !a a\n--- a", false},
		{"in YAML with directives behind a line", post + yaml + "\r\n\r\n# x\n%YAML 1.2\n--- a", false},
		{"in YAML behind a comment", post + yaml + "\r\n\r\n# type: Opaque\n# x\ntype: " + token, false},
		{"in YAML, anchored", post + yaml + "\r\n\r\nmetadata: {name: a, labels: {x: &t \"kubernetes.io/service\\u002daccount-token\"}}\ntype: *t", false},
		{"in YAML, merged", post + yaml + "\r\n\r\n<<: {type: \"kubernetes.io/service\\u002daccount-token\"}", false},
		{"in YAML, in base64", post + yaml + "\r\n\r\ntype: !!binary a3ViZXJuZXRlcy5pby9zZXJ2aWNlLWFjY291bnQtdG9rZW4=", false},
		{"in YAML, in base64 by the long tag", post + yaml + "\r\n\r\ntype: !<tag:yaml.org,2002:binary> a3ViZXJuZXRlcy5pby9zZXJ2aWNlLWFjY291bnQtdG9rZW4=", false},
		{"in YAML's second document", post + yaml + "\r\n\r\n---\ntype: Opaque\n---\ntype: \"kubernetes.io/service\\u002daccount-token\"", false},
		{"in YAML in UTF-16", post + yaml + "\r\n\r\n\xff\xfet\x00y\x00p\x00e\x00:\x00 \x00a\x00", false},
		{"in YAML that is none", post + yaml + "\r\n\r\ntype: {", false},
		{"applied as YAML", patch + apply + "\r\n\r\ntype: " + token, false},
		{"applied as JSON and so", patch + apply + "\r\n\r\n" + `{"type":"` + token + `"}`, false},
		{"merged", patch + "\r\nContent-Type: application/merge-patch+json\r\n\r\n" + `{"type":"` + token + `"}`, false},
		{"merged with a charset", patch + "\r\nContent-Type: application/merge-patch+json; charset=utf-8\r\n\r\n" + `{"type":"` + token + `"}`, false},
		{"merged strategically", patch + "\r\nContent-Type: application/strategic-merge-patch+json\r\n\r\n" + `{"$patch":"replace","type":"` + token + `"}`, false},
		{"patched and so", patch + "\r\nContent-Type: application/json-patch+json\r\n\r\n" + `[{"op":"replace","path":"/type","value":"` + token + `"}]`, false},
		{"patched whole", patch + "\r\nContent-Type: application/json-patch+json\r\n\r\n" + `[{"op":"add","path":"","value":{"type":"` + token + `"}}]`, false},
		{"patched by copying", patch + "\r\nContent-Type: application/json-patch+json\r\n\r\n" + `[{"op":"copy","from":"/metadata/labels/x","path":"/type"}]`, false},
		{"patched by moving", patch + "\r\nContent-Type: application/json-patch+json\r\n\r\n" + `[{"op":"m\u006fve","from":"/metadata/labels/x","path":"/type"}]`, false},
		{"annotated", patch + "\r\nContent-Type: application/merge-patch+json\r\n\r\n" + `{"metadata":{"annotations":{"kubernetes.io/service-\u0061ccount.name":"admin"}},"data":null}`, false},
		{"annotated by a patch", patch + "\r\nContent-Type: application/json-patch+json\r\n\r\n" + `[{"op":"replace","path":"/metadata/annotations/kubernetes.io~1service-account.name","value":"admin"}]`, false},
		{"annotated in YAML", patch + apply + "\r\n\r\nmetadata: {annotations: {kubernetes.io/service-account.name: admin}}", false},
		{"annotated in YAML, escaped", patch + apply + "\r\n\r\nmetadata: {annotations: {\"kubernetes.io/service\\u002daccount.name\": admin}}", false},
		{"YAML of a great many lines", post + yaml + "\r\n\r\n" + strings.Repeat("a: #x\n", 20<<10), false},
		{"YAML of one long line", post + yaml + "\r\n\r\ndata: {a: " + strings.Repeat("A", 1<<20) + "}", true},
		{"protobuf", post + "\r\nContent-Type: application/vnd.kubernetes.protobuf\r\n\r\nk8s\x00", false},
		{"CBOR", post + "\r\nContent-Type: application/cbor\r\n\r\n\xa0", false},
		{"applied as CBOR", patch + "\r\nContent-Type: application/apply-patch+cbor\r\n\r\n\xa0", false},
		{"an unknown type", post + "\r\nContent-Type: text/plain\r\n\r\n{}", false},
		{"a patch of no type", patch + "\r\n\r\n{}", false},
		{"two types", post + json + "\r\nContent-Type: application/yaml\r\n\r\n{}", false},
		{"compressed", post + json + "\r\nContent-Encoding: gzip\r\n\r\n{}", false},
		{"not JSON", post + json + "\r\n\r\ntype: Opaque", false},
		{"two of JSON", post + json + "\r\n\r\n{}{}", false},
		{"too large", post + json + "\r\n\r\n\"" + strings.Repeat("A", 3<<20) + "\"", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.forgive()
			res, content := p.ask(t, c.request)
			got := p.origin.take()
			if (res.StatusCode == 200) != c.allowed || (len(got) == 1) != c.allowed {
				t.Fatalf("%d %.300s", res.StatusCode, content)
			}
			if _, body, _ := strings.Cut(c.request, "\r\n\r\n"); c.allowed && !strings.Contains(c.request, "chunked") && got[0].content != body {
				t.Errorf("the content arrives as %.100q", got[0].content)
			}
			if s := content; !c.allowed && c.name != "too large" && (!strings.Contains(s, "serviceaccounts/token") || !strings.Contains(s, "no-credentials")) {
				t.Errorf("%s", content)
			}
		})
	}
}

func TestTokenSecretsFollowTheRulesOfTokenRequest(t *testing.T) {
	content := "POST " + ns + "/secrets\r\n\r\n{\"type\":\"" + tokenSecret + "\"}"
	lift := kubeRule{resources: []string{"serviceaccounts/token"}, namespaces: []string{"dev"}}
	for _, c := range []struct {
		name   string
		config kubeContextConfig
		want   int
	}{
		{"refused", kubeContextConfig{access: accessNoCredentials}, 403},
		{"lifted", kubeContextConfig{access: accessNoCredentials, rules: []kubeRule{lift}}, 200},
		{"an allow of secrets does not lift it", kubeContextConfig{access: accessNoSecrets, rules: []kubeRule{{resources: []string{"secrets"}}}}, 403},
		{"both do", kubeContextConfig{access: accessReadOnly, rules: []kubeRule{{resources: []string{"secrets"}}, lift}}, 200},
		{"full", kubeContextConfig{access: accessFull}, 200},
		{"full with a deny rule", kubeContextConfig{access: accessFull, rules: []kubeRule{{deny: true, resources: []string{"serviceaccounts/token"}}}}, 403},
		{"deny beats lift", kubeContextConfig{access: accessNoCredentials, rules: []kubeRule{lift, {deny: true, resources: []string{"serviceaccounts/token"}}}}, 403},
	} {
		p := newTestKube(t, kubeEcho, kubePlaneConfig{context: map[string]kubeContextConfig{"prod": c.config}})
		if res, answer := p.ask(t, content); res.StatusCode != c.want {
			t.Errorf("%s: %d %s", c.name, res.StatusCode, answer)
		}
	}
}

func TestMemoryForContentsIsBounded(t *testing.T) {
	p := newTestKube(t, kubeEcho, kubePlaneConfig{access: accessNoCredentials})
	held := func() int64 {
		p.held.mu.Lock()
		defer p.held.mu.Unlock()
		return p.held.all
	}
	// Writers that never finish, each of which may send 3 MiB.
	for range 5 {
		conn, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(conn, "POST "+ns+"/secrets HTTP/1.1\r\nHost: "+p.addr+"\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.StatusCode != 100 { // which is sent when it is read
			t.Fatal(res, err)
		}
	}
	if held() != 5*maxSecretBody {
		t.Errorf("%d bytes held", held())
	}
	res, content := p.ask(t, "POST "+ns+"/secrets\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
	if s := status(t, content); res.StatusCode != 429 || s.Reason != "TooManyRequests" || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", res.StatusCode, content)
	}
	if res, content := p.ask(t, "POST "+ns+"/secrets\r\n\r\n{}"); res.StatusCode != 200 {
		t.Errorf("a small one: %d %s", res.StatusCode, content)
	}
	if res, _ := p.ask(t, "POST "+ns+"/secrets\r\nContent-Length: 3145729"); res.StatusCode != 413 {
		t.Errorf("a large one: %d", res.StatusCode)
	}
	// What finds no memory to be kept is sent all the same.
	if res, content := p.ask(t, "POST "+ns+"/pods\r\n\r\n"+strings.Repeat("A", maxReplayable)); res.StatusCode != 200 || held() != 5*maxSecretBody {
		t.Errorf("another resource: %d %s", res.StatusCode, content)
	}
	other := p.held.share("172.17.0.3:1")
	if !other.hold(maxHeldByOne) || other.hold(1) {
		t.Error("another client does not have its own share")
	}
	for _, client := range []string{"172.17.0.4:1", "172.17.0.5:1"} {
		s := p.held.share(client)
		s.hold(maxHeldByOne)
	}
	if last := p.held.share("172.17.0.6:1"); last.hold(2<<20) || !last.hold(1<<20) {
		t.Error("the bound of all is not kept")
	}
	other.release()
	if other.release(); held() != 5*maxSecretBody+2*maxHeldByOne+1<<20 || !other.hold(maxHeldByOne) {
		t.Errorf("%d bytes held after a release", held())
	}
}
