package main

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// kubeAccess is what a context lets through: its access level and its rules (spec sections 4 and 10). It never changes.
type kubeAccess struct {
	context string // "prod", for refusals
	kubeContextConfig
}

// accessNever is the level that no context can have: what needs it is refused by none.
const accessNever = accessReadOnly + 1

// judge gives nil for a request that may pass, or why it is refused. A deny rule beats an allow rule, and an allow rule lifts only what
// the access level refuses. What a Secret's content says is judged by judgeSecret, besides.
func (a *kubeAccess) judge(q *kubeRequest) *refusal {
	for i := range a.rules {
		if a.rules[i].deny && a.rules[i].denies(q) {
			return denied(http.StatusForbidden, "rule", q.described()+" is refused by deny rule "+strconv.Itoa(i+1)+" of "+a.table()+": its operator can change that rule")
		}
	}
	from, why := q.refusedFrom()
	if a.access < from || a.allows(q) {
		return nil
	}
	return a.refused(q.described()+" is refused, since it "+why, q)
}

// allows tells whether an allow rule fits.
func (a *kubeAccess) allows(q *kubeRequest) bool {
	return slices.ContainsFunc(a.rules, func(r kubeRule) bool { return !r.deny && r.allows(q) })
}

// refused is a refusal by the access level, with what would lift it.
func (a *kubeAccess) refused(what string, lift *kubeRequest) *refusal {
	hint := `set access = "full" there`
	if lift.resource != "" {
		hint = "add a rule there with effect = \"allow\" and resources = [" + strconv.Quote(lift.bare()) + "], or " + hint
	}
	return denied(http.StatusForbidden, "access: "+a.access.String(),
		what+": the access level of "+a.table()+" is "+strconv.Quote(a.access.String())+". Its operator can "+hint)
}

// table names the config's table of the context.
func (a *kubeAccess) table() string { return "[kube.context." + strconv.Quote(a.context) + "]" }

// bare gives the resource as rules name it: "pods/exec".
func (q *kubeRequest) bare() string {
	if q.subresource == "" {
		return q.resource
	}
	return q.resource + "/" + q.subresource
}

// described gives the request as refusals name it: `create pods/exec "web-0" in "dev"`.
func (q *kubeRequest) described() string {
	if q.resource == "" {
		return q.method + " " + strconv.Quote(cutText(q.path, 200))
	}
	s := q.String()
	if q.verb != "" {
		s = q.verb + " " + s
	}
	if q.name != "" {
		s += " " + strconv.Quote(q.name)
	}
	if q.namespace != "" && q.resource != "namespaces" {
		s += " in " + strconv.Quote(q.namespace)
	}
	return cutText(s, 500)
}

// refusedFrom gives the first level that refuses the request, with the reason; accessNever where all let it pass.
func (q *kubeRequest) refusedFrom() (accessLevel, string) {
	switch {
	case q.unknown() && (!q.reads() || q.upgrade):
		return accessNoCredentials, "is no request of the Kubernetes API that muxproxy can judge"
	case q.mintsCredential():
		return accessNoCredentials, "hands out a credential"
	case q.unknown():
		return accessNoSecrets, "is no request of the Kubernetes API that muxproxy can judge"
	case q.resource == "secrets" || q.subresource == "secrets":
		// Of any group: OpenShift has the Secrets of a namespace as imagestreams/secrets of image.openshift.io.
		return accessNoSecrets, "is about Secrets"
	case q.entersPod():
		return accessReadOnly, "acts inside the cluster whatever its method"
	case !q.keepsState():
		return accessReadOnly, "may change state"
	}
	return accessNever, ""
}

// mintsCredential tells whether the purpose of the request is to be given a credential: TokenRequest, and the writes of those resources that
// ask the cluster for a certificate, PodCertificateRequest (KEP 4317) being the younger one.
func (q *kubeRequest) mintsCredential() bool {
	switch {
	case q.resource == "serviceaccounts" && q.subresource == "token":
		return true
	case q.group == "certificates.k8s.io":
		return !q.reads() && (q.resource == "certificatesigningrequests" || q.resource == "podcertificaterequests")
	}
	return false
}

// entersPod tells whether the request runs a command, opens a stream, or is passed on to a pod, a service or a node. GET does it as well
// as POST: WebSocket is GET (kubernetes/kubernetes#78741), and so is a kubelet's /run (#136550). `ephemeralcontainers` is a
// change of state anyway.
func (q *kubeRequest) entersPod() bool {
	switch q.subresource {
	case "exec", "attach", "portforward", "proxy":
		return true
	}
	return q.verb == "proxy"
}

// keepsState tells whether the request changes nothing: a read, or a review, which is a question that is asked by POST
// (`kubectl auth can-i`). A read that wants to become a stream is one only where the stream is a watch or a log: aggregated APIs
// have others, like the consoles of KubeVirt. A dry run is a change: admission and aggregated APIs need not heed it.
func (q *kubeRequest) keepsState() bool {
	if q.reads() {
		return !q.upgrade || q.verb == "watch" || q.group == "" && q.resource == "pods" && q.subresource == "log"
	}
	if q.verb != "create" || q.name != "" || q.upgrade {
		return false
	}
	switch q.group {
	case "authorization.k8s.io":
		switch q.resource {
		case "selfsubjectaccessreviews", "selfsubjectrulesreviews", "subjectaccessreviews", "localsubjectaccessreviews":
			return true
		}
	case "authentication.k8s.io":
		return q.resource == "selfsubjectreviews"
	}
	return false
}

// unknown tells whether the path is neither a resource nor one of discovery and health. The API server has such paths (/logs, /debug,
// /configz), and whatever stands before it may have others that lead to another API server (/k8s/clusters/… of Rancher).
func (q *kubeRequest) unknown() bool {
	if q.resourceful {
		return q.resource == ""
	}
	first, rest, deep := strings.Cut(strings.Trim(q.path, "/"), "/")
	switch first {
	case "", "version":
		return deep
	case "api", "apis": // all that is deeper is a resource
		return false
	case "healthz", "livez", "readyz", "metrics", "openapi":
		return false
	case ".well-known":
		return rest != "openid-configuration"
	case "openid":
		return rest != "v1/jwks"
	}
	return true
}

// writesSecret tells whether the request has content that makes a Secret or changes one: see judgeSecret.
func (q *kubeRequest) writesSecret() bool {
	if q.resource != "secrets" || q.group != "" {
		return false
	}
	return q.method == http.MethodPost || q.method == http.MethodPut || q.method == http.MethodPatch
}

// tokenRequest is the request that a Secret of type kubernetes.io/service-account-token stands for: the cluster writes a token of the
// service account into it. So the rules about TokenRequest decide about it.
func (q *kubeRequest) tokenRequest() *kubeRequest {
	return &kubeRequest{verb: "create", namespace: q.namespace, resource: "serviceaccounts", subresource: "token", method: http.MethodPost, resourceful: true}
}

// denies tells whether a deny rule fits. In doubt it does:
//   - a rule about a resource is also about its subresources;
//   - a request without a name is about all of them: the name of an object that is created stands in its content, and
//     list, watch and deletecollection reach every object;
//   - a request without a namespace reaches all namespaces, unless its resource has none;
//   - update and patch may create what is not there, so a rule against "create" fits them;
//   - streams into pods are "create" as well as the verb of their method;
//   - a path that cannot be judged fits every rule.
func (r *kubeRule) denies(q *kubeRequest) bool {
	if q.unknown() {
		return true
	}
	if !q.resourceful {
		return r.isGeneral() && anyOf(r.verbs, q.verb)
	}
	verb := q.verb == "" || q.verb == "proxy" || anyOf(r.verbs, q.verb) ||
		(q.entersPod() || q.verb == "update" || q.verb == "patch") && anyOf(r.verbs, "create")
	resource := anyOf(r.resources, q.resource) || anyOf(r.resources, q.bare()) || q.subresource != "" && anyOf(r.resources, "*/"+q.subresource)
	namespace := anyOf(r.namespaces, q.namespace) || q.namespace == "" && !q.clusterScoped()
	return verb && anyOf(r.groups, q.group) && resource && namespace && (q.name == "" || anyOf(r.names, q.name))
}

// allows tells whether an allow rule fits. In doubt it does not: "pods" does not allow "pods/exec", a rule with names allows only requests
// whose path or field selector has one of them, and streams into pods must be allowed as "create", since the API server asks for
// that too (AuthorizePodWebsocketUpgradeCreatePermission).
func (r *kubeRule) allows(q *kubeRequest) bool {
	if !q.resourceful || q.resource == "" {
		return r.isGeneral() && anyOf(r.verbs, q.verb)
	}
	if !anyOf(r.verbs, q.verb) && !(q.entersPod() && anyOf(r.verbs, "create")) || q.entersPod() && !anyOf(r.verbs, "create") {
		return false
	}
	resource := anyOf(r.resources, q.bare()) || q.subresource != "" && anyOf(r.resources, "*/"+q.subresource)
	return anyOf(r.groups, q.group) && resource && anyOf(r.namespaces, q.namespace) && anyOf(r.names, q.name)
}

// isGeneral tells whether the rule is about all resources, and so about paths that are none.
func (r *kubeRule) isGeneral() bool {
	return anyOf(r.groups, "*") && anyOf(r.resources, "*") && anyOf(r.namespaces, "*") && anyOf(r.names, "*")
}

// anyOf tells whether a rule's list has what, or is about all.
func anyOf(list []string, what string) bool {
	return list == nil || slices.Contains(list, what) || slices.Contains(list, "*")
}

// clusterScoped tells whether the resource surely has no namespace: requests for one object of a resource that has one name it. Of
// requests for all objects that is known for Kubernetes' own resources only.
func (q *kubeRequest) clusterScoped() bool {
	return q.name != "" && q.verb != "list" && q.verb != "watch" || slices.Contains(clusterResources[q.group], q.resource)
}

// clusterResources are Kubernetes' own resources that have no namespace, by group (`kubectl api-resources --namespaced=false`, 1.37).
var clusterResources = map[string][]string{
	"":                             {"componentstatuses", "namespaces", "nodes", "persistentvolumes"},
	"admissionregistration.k8s.io": {"mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "mutatingwebhookconfigurations", "validatingadmissionpolicies", "validatingadmissionpolicybindings", "validatingwebhookconfigurations"},
	"apiextensions.k8s.io":         {"customresourcedefinitions"},
	"apiregistration.k8s.io":       {"apiservices"},
	"authentication.k8s.io":        {"selfsubjectreviews", "tokenreviews"},
	"authorization.k8s.io":         {"selfsubjectaccessreviews", "selfsubjectrulesreviews", "subjectaccessreviews"},
	"certificates.k8s.io":          {"certificatesigningrequests", "clustertrustbundles"},
	"flowcontrol.apiserver.k8s.io": {"flowschemas", "prioritylevelconfigurations"},
	"networking.k8s.io":            {"ingressclasses", "ipaddresses", "servicecidrs"},
	"node.k8s.io":                  {"runtimeclasses"},
	"rbac.authorization.k8s.io":    {"clusterrolebindings", "clusterroles"},
	"resource.k8s.io":              {"deviceclasses", "resourceslices"},
	"scheduling.k8s.io":            {"priorityclasses"},
	"storage.k8s.io":               {"csidrivers", "csinodes", "storageclasses", "volumeattachments", "volumeattributesclasses"},
}
