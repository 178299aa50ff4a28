package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// tokenSecret is the type of the Secrets into which the cluster writes a token of a service account.
const tokenSecret = "kubernetes.io/service-account-token"

// maxSecretBody is how much content a request has that writes a Secret: as much as the API server takes of any request
// (MaxRequestBodyBytes, k8s.io/apiserver/pkg/server/config.go).
const maxSecretBody = 3 << 20

// judgeSecret refuses a request that would give a Secret the type kubernetes.io/service-account-token, or whose content cannot be read well
// enough to know. Since such a Secret is a TokenRequest by another name, the rules about that one decide. On nil the content of r has been
// read, and r has it again from memory.
func (a *kubeAccess) judgeSecret(q *kubeRequest, r *http.Request) *refusal {
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
	content, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxSecretBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return denied(http.StatusRequestEntityTooLarge, "secret: too large", "a Secret has at most 3 MiB")
	case err != nil:
		return failed(http.StatusBadRequest, errClientContent.Error(), "the content of the request did not arrive whole")
	}
	switch found, err := namesTokenSecret(content, encoding); {
	case err != nil:
		return a.refused(q.described()+" is refused, since its content cannot be read ("+err.Error()+")", token)
	case found:
		return a.refused(q.described()+" is refused, since a Secret of type "+tokenSecret+" hands out a credential", token)
	}
	setContent(r, content)
	return nil
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

// namesTokenSecret tells whether content could make a Secret of the type: whether any string in it is that type. Which of two keys of one
// name counts, what a merge key or an anchor stands for, or what a patch directive does is then no matter. A JSON patch may also copy the
// type from elsewhere in the object, so it may not copy or move at all.
func namesTokenSecret(content []byte, encoding string) (bool, error) {
	if json.Valid(content) { // which is YAML too
		return jsonNames(content, encoding == "patch")
	}
	if encoding != "yaml" {
		return false, errors.New("it is not JSON")
	}
	if !utf8.Valid(content) {
		return false, errors.New("it is not UTF-8")
	}
	return yamlNames(content)
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
		if s == tokenSecret {
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
	if bytes.Contains(bytes.ToLower(content), []byte("service-account-token")) {
		return true, nil
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
	if n.Kind == yaml.ScalarNode && n.Value == tokenSecret {
		return true, nil
	}
	for _, child := range n.Content {
		if found, err := nodeNames(child); found || err != nil {
			return found, err
		}
	}
	return false, nil
}
