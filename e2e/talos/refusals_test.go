package talos

import (
	"strings"
	"testing"
)

// refused is what talosctl says of an RPC that the gateway refuses.
const refused = "code = PermissionDenied desc = muxproxy: "

// testRefusals: what the access level of a context refuses talosctl reports as PermissionDenied, with the gateway's own text.
func testRefusals(t *testing.T, w *world) {
	config3MB := "{ echo version: v1alpha1; head -c 3000000 /dev/zero | tr '\\0' '#'; } >mc.yaml; "
	tests := []struct {
		name, script string
		method       string // that must not arrive
		says         []string
	}{
		{"kubeconfig hands out a key", `talosctl kubeconfig k`, "Kubeconfig", []string{refused, "/machine.MachineService/Kubeconfig"}},
		{"config new hands out a key", `talosctl config new new.yaml`, "GenerateClientConfiguration", []string{refused, "GenerateClientConfiguration"}},
		{"a sensitive resource", `talosctl get machineconfig`, "", []string{refused, "MachineConfigs.config.talos.dev"}},
		{"a sensitive resource by its name", `talosctl get OSRootSecrets.secrets.talos.dev os -o yaml`, "cosi.resource.State/Get", []string{refused}},
		{"read-only: a unary call", `talosctl --context strict reboot --wait=false`, "Reboot", []string{refused, "/machine.MachineService/Reboot"}},
		{"read-only: reboot --wait", `talosctl --context strict reboot --wait --timeout 4s`, "Reboot", []string{"muxproxy: "}},
		{"read-only: a server stream", `talosctl --context strict read /etc/os-release`, "", []string{refused, "/machine.MachineService/Read"}},
		{"read-only: cp", `talosctl --context strict cp /etc x`, "Copy", []string{refused}},
		{"read-only: a client stream", `talosctl --context lab -n 10.5.0.2 etcd snapshot db; talosctl --context strict bootstrap --recover-from db`, "EtcdRecover", []string{refused, "/machine.MachineService/EtcdRecover"}},
		{"read-only: 3 MB", config3MB + `talosctl --context strict apply-config -f mc.yaml`, "", []string{refused, "ApplyConfiguration"}},
		{"read-only: etcd snapshot", `talosctl --context strict etcd snapshot db`, "", []string{refused}},
		{"no-secrets: read", `talosctl --context secrets read /etc/os-release`, "", []string{refused, "/machine.MachineService/Read"}},
		{"no-secrets: apply-config", `talosctl --context secrets apply-config --mode no-reboot -f <(echo version: v1alpha1)`, "ApplyConfiguration", []string{refused, `access = "no-secrets"`}},
		{"no-secrets: etcd snapshot", `talosctl --context secrets etcd snapshot db`, "", []string{refused}},
	}
	allowed := []string{
		`talosctl --context strict version`, `talosctl --context strict dmesg`, `talosctl --context strict get hostname`,
		`talosctl --context secrets dmesg`, `talosctl --context secrets services`, `talosctl --context full kubeconfig --merge=false k && grep -c client-key-data k`,
	}
	var scripts []string
	for _, tt := range tests {
		scripts = append(scripts, tt.script)
	}
	for _, v := range versions {
		for _, by := range []way{gateway, container} {
			before := len(w.prod.Calls(""))
			got := w.runAll(t, by, v.variable, scripts...)
			arrived := w.prod.Calls("")[before:]
			for i, tt := range tests {
				t.Run(v.name+" by "+by.String()+", "+tt.name, func(t *testing.T) {
					if got[i].code == 0 {
						t.Errorf("succeeded: %+v", shortened(got[i]))
					}
					for _, word := range tt.says {
						if !strings.Contains(got[i].stderr, word) {
							t.Errorf("no %q in %+v", word, shortened(got[i]))
						}
					}
					for _, call := range arrived {
						if tt.method != "" && strings.HasSuffix(call.Method, tt.method) {
							t.Errorf("%s arrived", call.Method)
						}
					}
				})
			}
			for i, a := range w.runAllowed(t, by, v.variable, allowed...) {
				if a.code != 0 {
					t.Errorf("%s by %s: %s: %+v", v.name, by, allowed[i], shortened(a))
				}
			}
		}
	}
	t.Run("a role that the cluster itself enforces", w.testReader)
}

// runAllowed is runAll without a look for credentials: one of the scripts gets one, which the level full allows.
func (w *world) runAllowed(t *testing.T, by way, variable string, scripts ...string) []answer {
	t.Helper()
	w.seen.pause(true)
	defer w.seen.pause(false)
	return w.runAll(t, by, variable, scripts...)
}

// testReader: with role = "os:reader" the gateway presents a certificate of that role, which it had the cluster issue.
func (w *world) testReader(t *testing.T) {
	before := len(w.prod.Calls(""))
	got := w.runAll(t, gateway, versions[1].variable,
		`talosctl --context reader version`, `talosctl --context reader read /etc/os-release`, `talosctl --context reader get machineconfig`,
		`talosctl --context reader reboot --wait=false`, `talosctl --context reader kubeconfig k`)
	if got[0].code != 0 {
		t.Errorf("version: %+v", shortened(got[0]))
	}
	for _, a := range got[1:] {
		if a.code == 0 || !strings.Contains(a.stderr, "code = PermissionDenied desc = not authorized") {
			t.Errorf("%+v, want the cluster's own refusal", shortened(a))
		}
	}
	generated := false
	for _, call := range w.prod.Calls("")[before:] {
		if strings.HasSuffix(call.Method, "GenerateClientConfiguration") {
			generated = true
			if call.Serial != w.prod.Admin.Serial() {
				t.Errorf("%s was called with another certificate than the host's", call.Method)
			}
		} else if len(call.Roles) != 1 || call.Roles[0] != "os:reader" || call.Serial == w.prod.Admin.Serial() {
			t.Errorf("%s arrived with roles %v", call.Method, call.Roles)
		}
	}
	if !generated && len(w.prod.Calls("GenerateClientConfiguration")) == 0 {
		t.Errorf("no certificate was asked for")
	}
}
