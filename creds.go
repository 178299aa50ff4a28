package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
)

// redacted is what every way of formatting a secret gives.
const redacted = "REDACTED"

// maxSecret bounds a credential in bytes, without the newline that ends its file.
const maxSecret = 16 << 10

// errNoCredential: none of the rule's sources has ever had one in this run.
var errNoCredential = errors.New("no credential")

// secret holds a field value that must never be shown: "Bearer ghp_…". All formatting gives REDACTED. The pointer
// matters: where fmt and slog do not ask for a method (a value in an unexported field, a slice, a header) they print
// an address. Only reveal gives the value, and only credential.set calls it.
type secret struct{ p *string }

// newSecret wraps value, which the caller then forgets.
func newSecret(value string) secret { return secret{p: &value} }

// String and the three methods below are what fmt, slog and the text encoders ask for; JSON and TOML go by MarshalText.
func (s secret) String() string               { return redacted }
func (s secret) GoString() string             { return redacted }
func (s secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// reveal gives the value, "" for the zero secret.
func (s secret) reveal() string {
	if s.p == nil {
		return ""
	}
	return *s.p
}

// credential is one auth field ready to be set: "Authorization" with the value behind a secret. It never changes, so
// many requests may use it at once.
type credential struct {
	field                    string
	value                    secret
	appendField, appendValue string
}

// newCredential renders value, which has passed checkSecret, as s wants it: "Bearer x", or HTTP Basic (RFC 7617).
// An error tells that the value or the rule has not the shape that Basic needs; it never quotes the value.
func newCredential(s source, value string) (*credential, error) {
	rendered := ""
	switch {
	case s.basicPair:
		user, token, _ := strings.Cut(value, ":")
		if user == "" || token == "" {
			return nil, errors.New("not of the form user:token: write the user name, a colon and the token on one line")
		}
		rendered = basicValue(user, token)
	case strings.Contains(s.username, ":"):
		return nil, fmt.Errorf("username %q holds a colon, which HTTP Basic cannot carry: change username in the rule", s.username)
	case s.username != "":
		rendered = basicValue(s.username, value)
	default:
		rendered = strings.ReplaceAll(s.format, "{}", value)
	}
	return &credential{
		field: s.field, value: newSecret(rendered),
		appendField: s.appendField, appendValue: s.appendValue,
	}, nil
}

// basicValue gives "Basic dXNlcjp0b2tlbg==".
func basicValue(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// set puts the field into h, which belongs to the caller, in place of every value that is there, and appends the
// append field's value where no member of that list (RFC 9110 §5.6.1) is equal to it. The only caller of reveal.
func (c *credential) set(h http.Header) {
	h.Set(c.field, c.value.reveal())
	if c.appendField == "" {
		return
	}
	lines := h.Values(c.appendField)
	for _, line := range lines {
		for member := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(member) == c.appendValue {
				return
			}
		}
	}
	// Servers that read one line of the field alone see the value too if it joins a line that is there.
	if len(lines) > 0 && strings.TrimSpace(lines[len(lines)-1]) != "" {
		lines = slices.Clone(lines)
		lines[len(lines)-1] += "," + c.appendValue
	} else {
		lines = []string{c.appendValue}
	}
	h[http.CanonicalHeaderKey(c.appendField)] = lines
}

// credentials finds the credential of a rule: environment first, then the file, re-read when a stat differs. Safe for
// concurrent use; find takes no lock, and costs one stat for each file that it asks.
type credentials struct {
	// All set once in newCredentials.
	home    string // for showing paths: "/home/u", or ""
	rules   []*rule
	origins map[*rule][]*origin // for each of a rule's sources, in their order

	// used tells for each name of a secret file, as rules give it, whether this run has ever used a credential of it.
	// The cells are shared with the credentials that follow on a reload.
	used map[string]*atomic.Bool
}

// origin is one source of one rule: what the environment gave once and for all, or a file.
type origin struct {
	name  string      // "GITHUB_TOKEN in the environment", "~/.secrets/github", "" where the source has neither
	file  *secretFile // nil where cred and err are the answer
	shape int         // index into file.shapes
	cred  *credential
	err   error
}

// find gives the credential as it is now; errNoCredential where the source has none and had none in this run.
func (o *origin) find() (*credential, error) {
	if o.file == nil {
		return o.cred, o.err
	}
	return o.file.find(o.shape)
}

// newCredentials judges all sources once. previous (nil at start) hands on what was seen in this run, so that a
// credential that is gone stays noticed over a reload. getenv is asked here and never again.
func newCredentials(rules []*rule, secretsDir string, getenv func(string) string, previous *credentials) *credentials {
	c := &credentials{
		home:    getenv("HOME"),
		rules:   slices.Clone(rules),
		origins: make(map[*rule][]*origin, len(rules)),
		used:    make(map[string]*atomic.Bool),
	}
	if previous != nil {
		maps.Copy(c.used, previous.used)
	}
	files := make(map[string]*secretFile)
	for _, r := range rules {
		for _, s := range r.sources {
			o := envOrigin(s, getenv)
			if o.err == errNoCredential && s.file != "" {
				o = c.fileOrigin(s, secretsDir, files)
			}
			c.origins[r] = append(c.origins[r], o)
		}
	}
	for _, f := range files {
		for shape := range f.shapes {
			f.find(shape) // for what it remembers: the answer is asked again by status and by requests
		}
	}
	return c
}

// envOrigin asks the environment for a source. err is errNoCredential where no variable of it is set; an empty
// variable counts as unset.
func envOrigin(s source, getenv func(string) string) *origin {
	if s.basicPair && len(s.env) == 2 {
		return envPairOrigin(s, getenv)
	}
	for _, name := range s.env {
		if value := getenv(name); value != "" {
			o := &origin{name: name + " in the environment"}
			o.cred, o.err = envCredential(s, name, "", value)
			return o
		}
	}
	return &origin{err: errNoCredential}
}

// envPairOrigin is envOrigin for a user name and a token in two variables: both or neither must be set.
func envPairOrigin(s source, getenv func(string) string) *origin {
	userName, tokenName := s.env[0], s.env[1]
	user, token := getenv(userName), getenv(tokenName)
	switch {
	case user == "" && token == "":
		return &origin{err: errNoCredential}
	case user == "":
		return &origin{name: tokenName + " in the environment", err: halfPair(tokenName, userName)}
	case token == "":
		return &origin{name: userName + " in the environment", err: halfPair(userName, tokenName)}
	}
	o := &origin{name: userName + " and " + tokenName + " in the environment"}
	if strings.Contains(user, ":") {
		o.err = envError(userName, errors.New("holds a colon, which a user name of HTTP Basic cannot"))
		return o
	}
	user, err := checkSecret(user)
	if err != nil {
		o.err = envError(userName, err)
		return o
	}
	o.cred, o.err = envCredential(s, tokenName, user+":", token)
	return o
}

// envCredential makes the credential of the variable name; prefix goes before its value: "user:" or "".
func envCredential(s source, name, prefix, value string) (*credential, error) {
	value, err := checkSecret(value)
	if err != nil {
		return nil, envError(name, err)
	}
	cred, err := newCredential(s, prefix+value)
	if err != nil {
		return nil, envError(name, err)
	}
	return cred, nil
}

// envError names the variable and the way out: the environment of a process does not change, so a restart is needed.
func envError(name string, cause error) error {
	return fmt.Errorf("load secret %q of the environment: %w: correct or unset it and restart muxproxy", name, cause)
}

// halfPair is the error of a pair of variables of which one is set: the other one may be mistyped.
func halfPair(set, unset string) error {
	return fmt.Errorf("load secret %q of the environment: %s is not set: set both or neither and restart muxproxy", set, unset)
}

// fileOrigin gives the file of a source: an absolute path, or a name inside secretsDir. Sources with one file (both rules
// of github) share one secretFile, and so what it has seen. What is remembered over a reload is remembered by the name
// as the rule gives it, so that another secretsDir does not make a lost credential one that never was.
func (c *credentials) fileOrigin(s source, secretsDir string, files map[string]*secretFile) *origin {
	path, top := s.file, filepath.Dir(s.file)
	if !filepath.IsAbs(s.file) {
		path, top = filepath.Join(secretsDir, s.file), secretsDir
		if !filepath.IsLocal(s.file) {
			return &origin{name: s.file, err: fmt.Errorf("load secret %q: the name leads out of %q: give an absolute path", s.file, secretsDir)}
		}
	}
	path = filepath.Clean(path)
	f := files[path]
	if f == nil {
		key := filepath.Clean(s.file)
		if c.used[key] == nil {
			c.used[key] = new(atomic.Bool)
		}
		f = newSecretFile(path, filepath.Clean(top), c.home, c.used[key])
		files[path] = f
	}
	f.shapes = append(f.shapes, s)
	return &origin{name: f.shown, file: f, shape: len(f.shapes) - 1}
}

// find returns the credential of the first of r's sources that has one. errNoCredential where there never was one;
// any other error says that one was there and is gone, or exists and cannot be used; its text holds the way out and
// no secret byte.
func (c *credentials) find(r *rule) (*credential, error) {
	for _, o := range c.origins[r] {
		cred, err := o.find()
		if err != errNoCredential {
			return cred, err
		}
	}
	return nil, errNoCredential
}

// credentialStatus is one line of what run says at start.
type credentialStatus struct {
	rule   *rule
	source int    // index of the source used, -1 where none
	origin string // "GITHUB_TOKEN in the environment", "~/.secrets/github"; "" where none
	hint   string // how to turn it on: `write ~/.secrets/github with mode 0600`; "" where it is on or err is set
	err    error  // a source that exists and cannot be used
}

// status says of each rule with sources, in order, what find gives now. Rules of one service with the same answer
// (both of github's) are told once.
func (c *credentials) status() []credentialStatus {
	var all []credentialStatus
	for _, r := range c.rules {
		if len(r.sources) == 0 {
			continue
		}
		s := c.statusOf(r)
		same := func(o credentialStatus) bool {
			return o.rule.service == r.service && o.origin == s.origin && o.hint == s.hint && (o.err == nil) == (s.err == nil)
		}
		if !slices.ContainsFunc(all, same) {
			all = append(all, s)
		}
	}
	return all
}

// statusOf asks the sources of r as find does, and tells which one answered.
func (c *credentials) statusOf(r *rule) credentialStatus {
	for i, o := range c.origins[r] {
		_, err := o.find()
		switch {
		case err == nil:
			return credentialStatus{rule: r, source: i, origin: o.name}
		case err != errNoCredential:
			return credentialStatus{rule: r, source: -1, origin: o.name, err: err}
		}
	}
	return credentialStatus{rule: r, source: -1, hint: c.howTo(r)}
}

// howTo gives the way out for a rule without a credential: "write ~/.secrets/github with mode 0600". Of several files
// any will do: "write ~/.secrets/anthropic or ~/.secrets/anthropic-oauth with mode 0600".
func (c *credentials) howTo(r *rule) string {
	var files, names []string
	for i, o := range c.origins[r] {
		s := r.sources[i]
		if o.file != nil && s.basicPair {
			files = append(files, o.file.typed()+" (user:token)")
		} else if o.file != nil {
			files = append(files, o.file.typed())
		}
		if s.basicPair {
			names = append(names, strings.Join(s.env, " and "))
		} else {
			names = append(names, s.env...)
		}
	}
	if len(files) > 0 {
		return "write " + strings.Join(files, " or ") + " with mode 0600"
	}
	return "set " + strings.Join(names, " or ") + " in the environment of muxproxy and restart it"
}
