package kube

import (
	"testing"

	"muxproxy/e2e/kube/cluster"
	"muxproxy/e2e/validation"
)

func TestTheCommandsOfTheDocumentDoWhatItSays(t *testing.T) {
	d := openDoor(t, nil, "")
	namespace := newNamespace(t)
	pod := `{"metadata":{"name":"web"},"spec":{"nodeName":"node","containers":[{"name":"main","image":"e2e"}]}}`
	if err := shared.Do(t.Context(), "POST", "/api/v1/namespaces/"+namespace+"/pods", "application/json", pod); err != nil {
		t.Fatal(err)
	}
	environ := append(d.Environ(), "KUBECTL="+tools()+"/bin/kubectl", "NAMESPACE="+namespace, "POD=web")
	validation.Run(t, "kube", environ, func(output string) { seen.add("commands of the document", output) })
	arrived(t, namespace, cluster.Admin)
}
