package main

import "slices"

// accessLevel says what a plane, a context or a rule refuses. Each level refuses what the ones before it refuse (spec section 10). The
// zero value is the default, so that one that was never set is not the weakest.
type accessLevel int

const (
	accessFull          accessLevel = iota - 1 // nothing
	accessNoCredentials                        // calls whose purpose is to hand out a credential; the default everywhere
	accessNoSecrets                            // also reads of what holds keys
	accessReadOnly                             // also every change of state
)

// accessNames are the words of the config, by level.
var accessNames = []string{"full", "no-credentials", "no-secrets", "read-only"}

// String gives the word of the config: "no-credentials".
func (l accessLevel) String() string { return accessNames[l-accessFull] }

// access reads a level; the key says what refuses, so refusals name it.
func (t *configTable) access(key string, otherwise accessLevel) accessLevel {
	word := t.choice(key, otherwise.String(), accessNames...)
	return accessFull + accessLevel(slices.Index(accessNames, word))
}
