package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"
)

// protoMessage gives a protobuf message of string fields: protoMessage(1, "meta", 2, "type").
func protoMessage(fields ...any) (b []byte) {
	for i := 0; i < len(fields); i += 2 {
		b = appendProtoBytes(b, uint64(fields[i].(int)), []byte(fields[i+1].(string)))
	}
	return b
}

// framed puts gRPC's prefix before a message.
func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
}

func TestEachLevelRefusesTalosMethodsAsTheTableSays(t *testing.T) {
	const (
		mint   = "/machine.MachineService/Kubeconfig"
		client = "/machine.MachineService/GenerateClientConfiguration"
		file   = "/machine.MachineService/Read"
		etcd   = "/machine.MachineService/EtcdSnapshot"
		reboot = "/machine.MachineService/Reboot"
		read   = "/machine.MachineService/Version"
		later  = "/machine.MachineService/FromTheFuture"
		cosi   = "/cosi.resource.State/Get"
	)
	type want struct {
		path                                     string
		full, noCredentials, noSecrets, readOnly string // "": through; "look"; else the level that would let it through
	}
	tests := []want{
		{mint, "", "full", "full", "full"},
		{client, "", "full", "full", "full"},
		{"/machine.MachineService/GenerateConfiguration", "", "full", "full", "full"},
		{file, "", "", "no-credentials", "no-credentials"},
		{"/machine.MachineService/Copy", "", "", "no-credentials", "no-credentials"},
		{"/machine.MachineService/PacketCapture", "", "", "no-credentials", "no-credentials"},
		{etcd, "", "", "no-credentials", "no-credentials"},
		{reboot, "", "", "", "no-secrets"},
		{"/machine.MachineService/ApplyConfiguration", "", "", "no-credentials", "no-credentials"}, // a dry run answers with a diff of the config
		{"/machine.DebugService/ContainerRun", "", "", "no-credentials", "no-credentials"},
		{"/resource.ResourceService/Get", "", "full", "full", "full"},
		{"/a/" + strings.Repeat("b", maxTalosPath-3), "", "", "", "no-secrets"},
		{"/a/" + strings.Repeat("b", maxTalosPath-2), "", "full", "full", "full"},
		{"/storage.StorageService/BlockDeviceWipe", "", "", "", "no-secrets"},
		{"/machine.ImageService/Import", "", "", "", "no-secrets"},
		{"/cosi.resource.State/Update", "", "", "", "no-secrets"},
		{later, "", "", "", "no-secrets"},
		{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "", "", "", "no-secrets"},
		{read, "", "", "", ""},
		{"/machine.MachineService/Logs", "", "", "", ""},
		{"/time.TimeService/Time", "", "", "", ""},
		{cosi, "", "look", "look", "look"},
		{"/cosi.resource.State/List", "", "look", "look", "look"},
		{"/cosi.resource.State/Watch", "", "look", "look", "look"},
		{"/cosi.resource.State/GetMany", "", "full", "full", "full"},
		{"/cosi.resource.v2.State/Get", "", "full", "full", "full"},
		// Other spellings of a path, of which some gRPC servers take some.
		{mint[1:], "", "full", "full", "full"},
		{"/" + mint, "", "full", "full", "full"},
		{mint + "/", "", "full", "full", "full"},
		{"/x" + mint, "", "full", "full", "full"},
		{mint + "?a", "", "full", "full", "full"},
		{mint + "\n", "", "full", "full", "full"},
		{"/machine.MachineService/%4bubeconfig", "", "full", "full", "full"},
		{"/machine.MachineService/./Kubeconfig", "", "full", "full", "full"},
		{strings.ToUpper(mint), "", "full", "full", "full"},
		{"/COSI.resource.State/GET", "", "look", "look", "look"},
		{"//cosi.resource.State/Get", "", "full", "full", "full"},
		{"", "", "full", "full", "full"},
		{"*", "", "full", "full", "full"},
		{"/", "", "full", "full", "full"},
	}
	for _, tt := range tests {
		for i, want := range []string{tt.full, tt.noCredentials, tt.noSecrets, tt.readOnly} {
			level := accessFull + accessLevel(i)
			v := judgeTalosMethod(level, tt.path)
			got := ""
			switch {
			case v.look:
				got = "look"
			case v.refused != "":
				got = v.level.String()
			}
			if got != want {
				t.Errorf("%s at %s: got %q, want %q", tt.path, level, got, want)
			}
			if v.refused != "" && judgeTalosMethod(v.level, tt.path).refused != "" {
				t.Errorf("%s: the level %s that a refusal names refuses it too", tt.path, v.level)
			}
		}
	}
}

func TestTheTablesAreWhole(t *testing.T) {
	effects := map[talosEffect]int{}
	for path, m := range talosMethods {
		effects[m.effect]++
		if path != strings.ToLower(m.path) || !talosPath.MatchString(m.path) || m.effect == effectUnknown {
			t.Errorf("%q: %+v", path, m)
		}
	}
	text, err := os.ReadFile("talos-methods.tsv")
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(text, []byte("\n")) - 1; lines != len(talosMethods) || len(talosMethods) != 83 {
		t.Errorf("%d methods of %d lines", len(talosMethods), lines)
	}
	if effects[effectMint] != 3 || effects[effectSecret] != 6 || effects[effectCOSIRead] != 3 {
		t.Errorf("effects %v", effects)
	}
	if len(talosSensitive) != 38 || !talosSensitive["machineconfigs.config.talos.dev"] {
		t.Errorf("%d sensitive types", len(talosSensitive))
	}
	for path, stream := range map[string]bool{
		"/machine.machineservice/logs": true, "/machine.machineservice/etcdrecover": true, "/machine.debugservice/containerrun": true, "/machine.machineservice/version": false,
	} {
		if talosMethods[path].stream != stream {
			t.Errorf("%s: stream is %v", path, !stream)
		}
	}
}

func TestACOSIReadIsJudgedByTheTypeItsServerWillRead(t *testing.T) {
	const plain, secret = "MemberStatuses.cluster.talos.dev", "MachineConfigs.config.talos.dev"
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	varint := func(number, value uint64) []byte { return appendProtoNumber(nil, number, value) }
	tests := []struct {
		name    string
		message []byte
		want    string // "", "sensitive", "malformed"
	}{
		{"a plain type", protoMessage(1, "cluster", 2, plain, 3, "x"), ""},
		{"a sensitive type", protoMessage(1, "config", 2, secret, 3, "v1alpha1"), "sensitive"},
		{"in lower case", protoMessage(2, strings.ToLower(secret)), "sensitive"},
		{"in upper case", protoMessage(2, strings.ToUpper(secret)), "sensitive"},
		{"a type of secrets that no table has", protoMessage(2, "NewKeys.secrets.talos.dev"), "sensitive"},
		{"a name that only ends alike", protoMessage(2, "Xsecrets.talos.dev"), ""},
		{"a type and then a sensitive one", protoMessage(2, plain, 2, secret), "sensitive"},
		{"a sensitive type and then another", protoMessage(2, secret, 2, plain), ""},
		{"an empty one last", protoMessage(2, secret, 2, ""), "malformed"},
		{"unknown fields before", join(protoMessage(99, "x", 1000000, "y"), varint(7, 1<<63), protoMessage(2, secret)), "sensitive"},
		{"numbers of four and eight bytes before", join([]byte{0x3d, 1, 2, 3, 4, 0x39, 1, 2, 3, 4, 5, 6, 7, 8}, protoMessage(2, secret)), "sensitive"},
		{"a tag longer than it has to be", join([]byte{0x92, 0x80, 0x00, byte(len(secret))}, []byte(secret)), "sensitive"},
		{"a length longer than it has to be", join([]byte{0x12, byte(len(secret)) | 0x80, 0x80, 0x00}, []byte(secret)), "sensitive"},
		{"a field number that is 2 once cut to 32 bits", join(binary.AppendUvarint(nil, (1<<32|2)<<3|2), []byte{byte(len(secret))}, []byte(secret)), "malformed"},
		{"a tag of 33 bits whose low half is another field", join(protoMessage(2, plain), binary.AppendUvarint(nil, 1<<32|0x12), []byte{0}), "malformed"},
		{"a tag that overflows", join(bytes.Repeat([]byte{0xff}, 10), []byte{1}), "malformed"},
		{"a tag cut off", []byte{0x92}, "malformed"},
		{"field 0", join([]byte{0x02, 0}, protoMessage(2, plain)), "malformed"},
		{"the type as a number", join(protoMessage(2, plain), varint(2, 5)), "malformed"},
		{"the type as a number before", join(varint(2, 5), protoMessage(2, plain)), "malformed"},
		{"a group with a type in it", join([]byte{0x3b}, protoMessage(2, plain), []byte{0x3c}), "malformed"},
		{"wire type 6", join(protoMessage(2, plain), []byte{0x1e}), "malformed"},
		{"a length beyond the message", []byte{0x12, 0x20, 'a'}, "malformed"},
		{"a length of 64 bits", join([]byte{0x12}, binary.AppendUvarint(nil, 1<<64-1), []byte("a")), "malformed"},
		{"a number cut off", []byte{0x08, 0x80}, "malformed"},
		{"eight bytes cut off", []byte{0x39, 1, 2}, "malformed"},
		{"no type", protoMessage(1, "config"), "malformed"},
		{"nothing", nil, "malformed"},
		{"an empty type", protoMessage(2, ""), "malformed"},
		{"a NUL in the type", protoMessage(2, secret+"\x00"), "malformed"},
		{"a blank after the type", protoMessage(2, secret+" "), "malformed"},
		{"a Kelvin sign", protoMessage(2, "\u212aubeletSecrets.secrets.talos.dev"), "malformed"},
		{"a type that is no UTF-8", protoMessage(2, "\xff"), "malformed"},
		{"the type in a nested message", join(protoMessage(2, plain), protoMessage(4, string(protoMessage(2, secret)))), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := judgeTalosContent(framed(tt.message))
			got := ""
			switch {
			case strings.HasPrefix(v.refused, "reads "):
				got = "sensitive"
			case v.refused == "cannot be judged: its first message is malformed":
				got = "malformed"
			case v.refused != "":
				got = v.refused
			}
			if got != tt.want || v.refused != "" && v.level != accessFull {
				t.Errorf("got %q (%q), want %q", got, v.refused, tt.want)
			}
		})
	}
}

func TestTheFirstMessageIsTakenFromItsPrefix(t *testing.T) {
	first := framed(protoMessage(2, "A.b"))
	tests := []struct {
		name    string
		content []byte
		want    string // the message, "part", or an error
	}{
		{"one message", first, string(protoMessage(2, "A.b"))},
		{"several in one piece", append(bytes.Clone(first), framed(protoMessage(2, "C.d"))...), string(protoMessage(2, "A.b"))},
		{"an empty one", []byte{0, 0, 0, 0, 0}, ""},
		{"nothing yet", nil, "part"},
		{"half a prefix", first[:3], "part"},
		{"all but a byte", first[:len(first)-1], "part"},
		{"compressed", append([]byte{1}, first[1:]...), errCOSICompressed.Error()},
		{"another flag", []byte{2}, errCOSICompressed.Error()},
		{"too long", []byte{0, 0, 1, 0, 1}, errCOSILong.Error()},
		{"four GiB", []byte{0, 0xff, 0xff, 0xff, 0xff}, errCOSILong.Error()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			message, whole, err := cosiMessage(tt.content)
			got := string(message)
			switch {
			case err != nil:
				got = err.Error()
			case !whole:
				got = "part"
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if err != nil || !whole {
				if v := judgeTalosContent(tt.content); v.refused == "" {
					t.Error("it is let through")
				}
			}
		})
	}
}

// FuzzCOSIType holds the parser against a second one, written another way: the last field 2 from the end of a list of all fields.
func FuzzCOSIType(f *testing.F) {
	f.Add(protoMessage(1, "config", 2, "MachineConfigs.config.talos.dev", 3, "v1alpha1"))
	f.Add(protoMessage(2, "A.b", 2, "C.d"))
	f.Add([]byte{0x92, 0x80, 0x00, 1, 'a', 0x3d, 1, 2, 3, 4})
	f.Add([]byte{0x3b, 0x12, 1, 'a', 0x3c})
	f.Fuzz(func(t *testing.T, m []byte) {
		got, err := cosiType(m)
		want, ok := plainCOSIType(m)
		if ok != (err == nil) || ok && got != want {
			t.Errorf("got %q, %v, want %q, %v", got, err, want, ok)
		}
		if err == nil && judgeTalosType(m).refused == "" && isSensitiveType(got) {
			t.Errorf("%q is let through", got)
		}
	})
}

// plainCOSIType reads a message byte by byte.
func plainCOSIType(m []byte) (name string, ok bool) {
	varint := func() (v uint64, ok bool) {
		for shift := 0; shift < 70 && len(m) > 0; shift += 7 {
			b := m[0]
			m = m[1:]
			if shift == 63 && b > 1 {
				return 0, false
			}
			v |= uint64(b&0x7f) << shift
			if b < 0x80 {
				return v, true
			}
		}
		return 0, false
	}
	for len(m) > 0 {
		tag, ok := varint()
		if !ok || tag>>32 != 0 || tag < 8 {
			return "", false
		}
		n := uint64(0)
		switch tag % 8 {
		case 0:
			_, ok = varint()
		case 1:
			n = 8
		case 2:
			n, ok = varint()
		case 5:
			n = 4
		default:
			ok = false
		}
		if !ok || n > uint64(len(m)) || tag/8 == 2 && tag%8 != 2 {
			return "", false
		}
		if tag/8 == 2 {
			name = string(m[:n])
		}
		m = m[n:]
	}
	for i := range len(name) {
		if !strings.Contains("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_", name[i:i+1]) {
			return "", false
		}
	}
	return name, name != ""
}
