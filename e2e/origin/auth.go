package origin

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
)

// writeJSON answers with a JSON body. A nil body is an empty object.
func writeJSON(w http.ResponseWriter, code int, body any) {
	if body == nil {
		body = struct{}{}
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}

// message is the error shape of GitHub and GitLab.
func message(text string) map[string]string { return map[string]string{"message": text} }

// presented says what a request brings in one field.
type presented int

const (
	absent presented = iota
	right
	wrong // another value, more than one, or one in the trailer section
)

// judge compares one field of header and trailer sections with the values that the service takes.
func judge(r *http.Request, field string, accepted ...string) presented {
	values := append(append([]string{}, r.Header.Values(field)...), r.Trailer.Values(field)...)
	if len(values) == 0 {
		return absent
	}
	if len(values) != 1 || len(r.Header.Values(field)) != 1 {
		return wrong
	}
	for _, a := range accepted {
		if values[0] == a {
			return right
		}
	}
	return wrong
}

// basic is the value of an Authorization field with HTTP Basic (RFC 7617).
func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// guard lets a request through that brings exactly one right field, and hands others to refuse.
func guard(field string, accepted []string, refuse func(http.ResponseWriter, presented), next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := judge(r, field, accepted...); p != right {
			refuse(w, p)
			return
		}
		next.ServeHTTP(w, r)
	})
}
