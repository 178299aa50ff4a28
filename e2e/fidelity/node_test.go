package fidelity

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
)

// nodeRequest is one line to testdata/client.mjs. Each byte of a string is one character there, hence latin1.
type nodeRequest struct {
	Proxy   string      `json:"proxy"`
	Addr    string      `json:"addr"`
	Host    string      `json:"host"`
	Roots   string      `json:"roots"`
	Method  string      `json:"method"`
	Path    string      `json:"path"`
	Fields  [][2]string `json:"fields"`
	Content string      `json:"content"`
	Chunked bool        `json:"chunked"`
	Trailer [][2]string `json:"trailer"`
	Expects bool        `json:"expects"`
	Early   bool        `json:"early"`
	Times   int         `json:"times"`
}

// nodeAnswer is one of the answers in its line back.
type nodeAnswer struct {
	Interim  [][2]any
	Code     int
	Reason   string
	Fields   [][2]string
	Content  string
	Trailers [][2]string
	Error    string
	Message  string
	Opened   int
}

// nodeClient is node's http module, in one process for all exchanges. It is used by one goroutine.
func nodeClient(t *testing.T) client {
	t.Helper()
	cmd := exec.Command("node", "testdata/client.mjs")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	lines := bufio.NewReader(out)
	return client{name: "node", do: func(t *testing.T, w way, x *exchange, mark string) []*answers {
		t.Helper()
		if err := json.NewEncoder(in).Encode(nodeLine(w, x, mark)); err != nil {
			t.Fatal(err)
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatalf("node: %v", err)
		}
		var seen []nodeAnswer
		if err := json.Unmarshal(line, &seen); err != nil {
			t.Fatalf("node: %v", err)
		}
		var all []*answers
		for _, s := range seen {
			all = append(all, s.answers(t))
		}
		return all
	}}
}

func nodeLine(w way, x *exchange, mark string) nodeRequest {
	n := nodeRequest{
		Proxy: w.proxy, Addr: w.addr, Host: w.host, Roots: w.roots, Method: x.verb(), Path: latin1(x.path()), Content: latin1(x.content),
		Chunked: x.chunked, Early: x.early, Times: max(x.times, 1), Fields: [][2]string{{markField, mark}}, Trailer: [][2]string{},
	}
	for _, f := range x.fields {
		if (f.name == "User-Agent" || f.name == "Expect") && f.value == "" {
			continue
		}
		n.Expects = n.Expects || f.name == "Expect"
		n.Fields = append(n.Fields, [2]string{f.name, latin1(f.value)})
	}
	for _, f := range x.trailer {
		n.Trailer = append(n.Trailer, [2]string{f.name, latin1(f.value)})
	}
	return n
}

func (s *nodeAnswer) answers(t *testing.T) *answers {
	t.Helper()
	a := &answers{err: s.Error, opened: s.Opened}
	if s.Message != "" {
		t.Logf("node: %s", s.Message)
	}
	for _, i := range s.Interim {
		m := &message{fields: []field{}}
		if code, ok := i[0].(float64); ok {
			m.code = int(code)
		}
		pairs, _ := i[1].([]any)
		for _, p := range pairs {
			if p, ok := p.([]any); ok {
				m.fields = append(m.fields, field{octet(p[0].(string)), octet(p[1].(string))})
			}
		}
		a.interim = append(a.interim, m)
	}
	if s.Code != 0 {
		a.final = &message{code: s.Code, reason: octet(s.Reason), fields: nodeFields(s.Fields), content: octet(s.Content), trailers: nodeFields(s.Trailers)}
	}
	return a
}

func nodeFields(pairs [][2]string) []field {
	fields := []field{}
	for _, p := range pairs {
		fields = append(fields, field{octet(p[0]), octet(p[1])})
	}
	return fields
}

// latin1 gives the string whose characters are the bytes of s, octet the reverse.
func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

func octet(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
