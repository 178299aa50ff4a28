package talos

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// commands are run directly with the certificate, through the gateway on the host, and in a container: all three must do the same.
var commands = []struct {
	name, script string
	expect       string // in stdout or stderr
}{
	{"version", `talosctl version`, "Tag:         v1.13.9"},
	{"version of two nodes", `talosctl -n 10.5.0.2,10.5.0.3 version`, "10.5.0.3"},
	{"version of a node that is gone", `talosctl -n 10.5.0.2,10.5.0.99 version`, "no route to host"},
	{"dmesg", `talosctl dmesg`, "message 399 of the kernel"},
	{"dmesg of two nodes", `talosctl -n 10.5.0.2,10.5.0.3 dmesg | sort`, "10.5.0.3: "},
	{"logs", `talosctl logs kubelet`, "kubelet says 399"},
	{"logs of no service", `talosctl logs nothing`, `log "nothing" was not registered`},
	{"read", `talosctl read /etc/os-release`, "ID=talos"},
	{"read 10 MB", `talosctl read /var/log/big | sha256sum`, ""},
	{"read no file", `talosctl read /nothing`, "no such file or directory"},
	{"cp to a directory", `talosctl cp /var/log x && find x -type f -exec sha256sum {} +`, "x/var/log/big"},
	{"cp to stdout", `talosctl cp /etc - | tar tz`, "etc/os-release"},
	{"memory", `talosctl memory`, "16384"},
	{"services", `talosctl services | awk '{print $1, $2, $3, $4}'`, "kubelet"},
	{"time", `talosctl time`, "2026-08-21 10:00:00"},
	{"get of a type", `talosctl get hostname`, "HostnameStatus"},
	{"get of one resource", `talosctl get hostname hostname -o yaml`, "hostname: talos-cp-1"},
	{"get of no type", `talosctl get nothing`, `"nothing" is not registered`},
	{"etcd snapshot", `talosctl etcd snapshot db && sha256sum <db`, "snapshot info: hash"},
	{"apply-config", "printf 'version: v1alpha1\\nmachine:\\n  type: worker\\n' >mc.yaml\ntalosctl apply-config --mode no-reboot -f mc.yaml", "Applied configuration without a reboot"},
	{"apply-config of 3 MB", "{ echo version: v1alpha1; head -c 3000000 /dev/zero | tr '\\0' '#'; } >mc.yaml\ntalosctl apply-config --mode no-reboot -f mc.yaml", "Applied configuration without a reboot"},
	{"apply-config that is wrong", "echo nonsense: 1 >mc.yaml; talosctl apply-config --mode no-reboot -f mc.yaml", "unknown keys found"},
	{"another context", `talosctl --context lab dmesg | sort`, "this is lab"},
	{"one context after the other", `talosctl --context prod version --short; talosctl --context lab version --short`, "10.5.0.3"},
}

// testCommands: every command does through the gateway what it does with the certificate.
func testCommands(t *testing.T, w *world) {
	var scripts []string
	for _, c := range commands {
		scripts = append(scripts, c.script)
	}
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			digests := w.digests()
			want := w.runAll(t, direct, v.variable, scripts...)
			for _, by := range []way{gateway, container} {
				got := w.runAll(t, by, v.variable, scripts...)
				for i, c := range commands {
					t.Run(fmt.Sprintf("%s by %s", c.name, by), func(t *testing.T) {
						if got[i] != want[i] {
							t.Errorf("%+v\ndirectly: %+v", shortened(got[i]), shortened(want[i]))
						}
						if digest := digests[c.name]; !strings.Contains(got[i].stdout, digest) {
							t.Errorf("%+v, want sha256 %s", shortened(got[i]), digest)
						}
						if !strings.Contains(got[i].stdout+got[i].stderr, c.expect) {
							t.Errorf("%+v, want %q", shortened(got[i]), c.expect)
						}
					})
				}
			}
		})
	}
	t.Run("the configuration that was applied arrived", func(t *testing.T) {
		text, n := w.prod.Applied()
		if want := 2 * 3 * len(versions); n != want || len(text) < 3000000 {
			t.Errorf("%d configurations, want %d; the last has %d bytes", n, want, len(text))
		}
	})
}

// digests are those of what a command gets, as sha256sum prints them.
func (w *world) digests() map[string]string {
	file := fmt.Sprintf("%x", sha256.Sum256(w.bigFile))
	return map[string]string{
		"read 10 MB": file, "cp to a directory": file, "etcd snapshot": fmt.Sprintf("%x", sha256.Sum256(w.prod.Snapshot)),
	}
}

// shortened is an answer as a failure prints it.
func shortened(a answer) answer {
	cut := func(s string) string {
		if len(s) > 600 {
			return s[:300] + " … " + s[len(s)-300:]
		}
		return s
	}
	return answer{a.code, cut(a.stdout), cut(a.stderr)}
}

// testStreams: what goes on for as long as one looks.
func testStreams(t *testing.T, w *world) {
	for _, v := range versions {
		for _, by := range []way{gateway, container} {
			t.Run(v.name+" by "+by.String(), func(t *testing.T) {
				for _, tt := range []struct {
					command, history string
					add              func(word string)
				}{
					{"dmesg -f", "message 399 of the kernel", func(word string) { w.prod.Kernel.Add("kern:    info: " + word) }},
					{"logs -f kubelet", "kubelet says 399", w.prod.Kubelet.Add},
					{"events --tail -1", "Health check successful", func(word string) { w.prod.AddEvent("kubelet", word) }},
				} {
					t.Run(tt.command, func(t *testing.T) { w.follow(t, by, v.variable, tt.command, tt.history, tt.add) })
				}
			})
		}
	}
}

// follow expects what was there, then, one after the other, words that come later, and the end on Ctrl-C.
func (w *world) follow(t *testing.T, by way, variable, command, history string, add func(string)) {
	t.Helper()
	p := w.start(t, by, variable, "exec "+program(t, by, variable)+" "+command)
	p.expect(t, history)
	for i := range 3 {
		word := fmt.Sprintf("later %d of %s", i, t.Name())
		add(word)
		p.expect(t, word)
	}
	p.interrupt(t)
	// The line comes when the stream has ended, which Ctrl-C of the client is.
	w.line(t, func(l line) bool { return l.Context == "prod" && !l.Open && l.grpc() == codeCanceled && l.ID != "" })
}
