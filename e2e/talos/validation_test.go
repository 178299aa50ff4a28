package talos

import (
	"fmt"
	"os"
	"testing"

	"muxproxy/e2e/apid"
	"muxproxy/e2e/testbed"
	"muxproxy/e2e/validation"
)

// testDocument runs the commands of the document against an endpoint that a proxy may reach: loopback addresses never go through one.
func testDocument(t *testing.T, w *world) {
	address := os.Getenv("E2E_ADDRESS")
	serve(t, w.prod, address, apid.EndpointOptions{})
	config := w.write(t, "document.yaml", apid.Talosconfig(apid.Context{
		Name: "prod", Endpoints: []string{address}, Nodes: nodes[:1], CA: w.prod.Authority.PEM, Identity: w.prod.Admin,
	}))
	d := testbed.Start(t, testbed.Options{
		Roots: testbed.NewCA(t).PEM, Networks: []string{address + "/32"}, Config: fmt.Sprintf("[talos]\ntalosconfig = %q\n", config),
	})
	environ := append(d.Environ(), "TALOSCTL="+talosctlOf(t, versions[1].variable), "TALOSCONFIG="+config)
	validation.Run(t, "talos", environ, func(output string) { w.seen.add("commands of the document", output) })
}
