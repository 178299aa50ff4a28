package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// tokenSecret is the type of the Secrets into which the cluster writes a token of a service account.
const tokenSecret = "kubernetes.io/service-account-token"

// tokenSecretOf is the annotation that says whose token is written into such a Secret. Into one that there is already, and that a patch
// gives another annotation and no token, the cluster writes a new token (tokens_controller.go).
const tokenSecretOf = "kubernetes.io/service-account.name"

// maxSecretBody is how much content a request has that writes a Secret: as much as the API server takes of any request
// (MaxRequestBodyBytes, k8s.io/apiserver/pkg/server/config.go).
const maxSecretBody = 3 << 20

// judgeSecret refuses a request that would give a Secret the type kubernetes.io/service-account-token, or whose content cannot be read well
// enough to know. Since such a Secret is a TokenRequest by another name, the rules about that one decide. On nil the content of r has been
// read, and r has it again from memory, which share counts.
func (a *kubeAccess) judgeSecret(q *kubeRequest, r *http.Request, share *kubeShare) *refusal {
	token := q.tokenRequest()
	rule := false
	for i := range a.rules {
		rule = rule || a.rules[i].deny && a.rules[i].denies(token)
	}
	if !rule && (a.access < accessNoCredentials || a.allows(token)) {
		return nil
	}
	encoding := secretEncoding(r)
	if encoding == "" {
		return a.refused(q.described()+" is refused in this encoding: send the Secret as application/json or application/yaml, without Content-Encoding", token)
	}
	content, f := readSecret(r, share)
	if f != nil {
		return f
	}
	switch found, err := namesTokenSecret(content, encoding, &share.held.parsing); {
	case err != nil:
		return a.refused(q.described()+" is refused, since its content cannot be read ("+err.Error()+")", token)
	case found:
		return a.refused(q.described()+" is refused, since a Secret of type "+tokenSecret+", or its annotation "+tokenSecretOf+", hands out a credential", token)
	}
	setContent(r, content)
	return nil
}

// readSecret reads the content of r.
func readSecret(r *http.Request, share *kubeShare) ([]byte, *refusal) {
	length := r.ContentLength
	if length < 0 {
		length = maxSecretBody
	}
	if length > maxSecretBody {
		return nil, denied(http.StatusRequestEntityTooLarge, "secret: too large", "a Secret has at most 3 MiB")
	}
	if !share.hold(length) {
		return nil, failed(http.StatusTooManyRequests, "secret: memory", "too many writes of Secrets are under way at once: try again later")
	}
	var content []byte
	var err error
	if r.ContentLength < 0 {
		content, err = io.ReadAll(http.MaxBytesReader(nil, r.Body, maxSecretBody))
	} else {
		content = make([]byte, length)
		_, err = io.ReadFull(r.Body, content)
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, denied(http.StatusRequestEntityTooLarge, "secret: too large", "a Secret has at most 3 MiB")
	case err != nil:
		return nil, failed(http.StatusBadRequest, errClientContent.Error(), "the content of the request did not arrive whole")
	}
	return content, nil
}

// setContent gives r content from memory, which can be sent again.
func setContent(r *http.Request, content []byte) {
	r.ContentLength, r.TransferEncoding, r.Trailer = int64(len(content)), nil, nil
	r.Body = newBytesBody(content)
	r.GetBody = func() (io.ReadCloser, error) { return newBytesBody(content), nil }
}

// secretEncoding tells how the API server reads the content of a request that writes a Secret: "json", "patch" (a JSON patch), "yaml"; "" for
// encodings that are not looked into. See NegotiateInputSerializer and PatchResource in k8s.io/apiserver/pkg/endpoints/handlers.
func secretEncoding(r *http.Request) string {
	if len(r.Header["Content-Type"]) > 1 || len(r.Header["Content-Encoding"]) > 0 {
		return ""
	}
	contentType := r.Header.Get("Content-Type")
	if r.Method == http.MethodPatch {
		contentType, _, _ = strings.Cut(contentType, ";")
		switch contentType {
		case "application/json-patch+json":
			return "patch"
		case "application/merge-patch+json", "application/strategic-merge-patch+json":
			return "json"
		case "application/apply-patch+yaml":
			return "yaml"
		}
		return ""
	}
	if contentType == "" {
		return "json"
	}
	switch mediaType, _, err := mime.ParseMediaType(contentType); {
	case err != nil:
		return ""
	case mediaType == "application/json":
		return "json"
	case mediaType == "application/yaml":
		return "yaml"
	}
	return ""
}

// namesTokenSecret tells whether content could make a Secret of the type, or have a token written into one: whether any string in it is that
// type or its annotation. Which of two keys of one
// name counts, what a merge key or an anchor stands for, or what a patch directive does is then no matter. A JSON patch may also copy the
// type from elsewhere in the object, so it may not copy or move at all. parsing is held while YAML is parsed.
func namesTokenSecret(content []byte, encoding string, parsing *sync.Mutex) (bool, error) {
	if json.Valid(content) { // which is YAML too
		return jsonNames(content, encoding == "patch")
	}
	if encoding != "yaml" {
		return false, errors.New("it is not JSON")
	}
	if !utf8.Valid(content) {
		return false, errors.New("it is not UTF-8")
	}
	parsing.Lock()
	defer parsing.Unlock()
	return yamlNames(content)
}

// maxYAMLMarks bounds what begins a node, a line or a comment in YAML: the parser takes 300 bytes for each, and a time that grows with their
// square. What has more can be sent as JSON, as kubectl does with all.
const maxYAMLMarks = 32 << 10

// mintsToken tells whether s is the type or the annotation, as a value, a key, or in the path of a JSON patch.
func mintsToken(s string) bool {
	return s == tokenSecret || s == tokenSecretOf || strings.HasSuffix(s, "/kubernetes.io~1service-account.name")
}

// jsonNames is namesTokenSecret for valid JSON.
func jsonNames(content []byte, patch bool) (bool, error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	for {
		token, err := decoder.Token()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, errors.New("it is not JSON")
		}
		s, _ := token.(string)
		if mintsToken(s) {
			return true, nil
		}
		if patch && (s == "copy" || s == "move") {
			return false, errors.New("it is a JSON patch that copies or moves")
		}
	}
}

// yamlNames is namesTokenSecret for YAML. The API server's parser is of another version, so where the two might differ about what is a comment or
// how a scalar is folded, the plain words anywhere are enough; and what is written in base64 is not looked into.
func yamlNames(content []byte) (bool, error) {
	lower := bytes.ToLower(content)
	if bytes.Contains(lower, []byte("service-account-token")) || bytes.Contains(lower, []byte("service-account.name")) {
		return true, nil
	}
	if bytes.HasPrefix(content, []byte("%")) || bytes.Contains(content, []byte("\n%")) || bytes.Contains(content, []byte("\r%")) {
		return false, errors.New("it is YAML with directives: send it as JSON") // the parser's time grows with the square of a tag's prefix
	}
	marks := 0
	for _, mark := range []string{"\n", "\r", ",", ":", "[", "{", "?", "- ", "#", "\u0085", "\u2028", "\u2029"} {
		marks += bytes.Count(content, []byte(mark))
	}
	if marks > maxYAMLMarks {
		return false, errors.New("it is YAML with too many lines: send it as JSON")
	}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var document yaml.Node
		err := decoder.Decode(&document)
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, errors.New("it is not YAML that both ends read alike")
		}
		if found, err := nodeNames(&document); found || err != nil {
			return found, err
		}
	}
}

// nodeNames looks at a YAML node and at all below it. What an alias stands for is looked at where it is anchored.
func nodeNames(n *yaml.Node) (bool, error) {
	if n.ShortTag() == "!!binary" {
		return false, errors.New("it holds !!binary")
	}
	if n.Kind == yaml.ScalarNode && mintsToken(n.Value) {
		return true, nil
	}
	for _, child := range n.Content {
		if found, err := nodeNames(child); found || err != nil {
			return found, err
		}
	}
	return false, nil
}
