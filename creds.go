package main

import (
	"errors"
	"net/http"
)

// secret holds a credential and never shows it: all formatting gives REDACTED. Only reveal gives the value.
type secret struct{ p *string }

// credential is one auth field ready to be set: "Authorization" with the value behind a secret.
type credential struct {
	field                    string
	value                    secret
	appendField, appendValue string
}

// set puts the field into h: replaces every value. The only caller of reveal.
func (c *credential) set(h http.Header) { panic("stub") }

// credentials finds the credential of a rule: environment first, then the file, re-read when a stat differs. Safe for concurrent use.
type credentials struct{}

// errNoCredential: none of the rule's sources has ever had one in this run.
var errNoCredential = errors.New("no credential")

// newCredentials judges all sources once. previous (nil at start) hands on what was seen in this run, so that a credential that is gone stays noticed over a reload.
func newCredentials(rules []*rule, secretsDir string, getenv func(string) string, previous *credentials) *credentials {
	panic("stub")
}

// find returns the credential of the first of r's sources that has one. errNoCredential where there never was one;
// any other error says that one was there and is gone, or exists and cannot be used; its text holds the way out and no secret byte.
func (c *credentials) find(r *rule) (*credential, error) { panic("stub") }

// credentialStatus is one line of what run says at start.
type credentialStatus struct {
	rule   *rule
	source int    // index of the source used, -1 where none
	origin string // "GITHUB_TOKEN in the environment", "~/.secrets/github"
	hint   string // how to turn it on: `write ~/.secrets/github with mode 0600`
	err    error  // a source that exists and cannot be used
}

func (c *credentials) status() []credentialStatus { panic("stub") }

// howTo gives the way out for a rule without a credential: "write ~/.secrets/github with mode 0600".
func (c *credentials) howTo(r *rule) string { panic("stub") }
