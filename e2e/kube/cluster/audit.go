package cluster

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Arrival is a request that arrived at the API server, as its audit log tells it.
type Arrival struct {
	AuditID    string
	Stage      string
	RequestURI string
	Verb       string
	User       Identity
	// ImpersonatedUser is whom the user acts as.
	ImpersonatedUser Identity
	SourceIPs        []string
	UserAgent        string
	ResponseStatus   struct{ Code int }
	ObjectRef        struct{ Resource, Namespace, Name, Subresource string }
}

// Identity is a user of the API server.
type Identity struct {
	Username string
	Groups   []string
	Extra    map[string][]string
}

// Who is the user that the request is done as.
func (a *Arrival) Who() string {
	if a.ImpersonatedUser.Username != "" {
		return a.ImpersonatedUser.Username
	}
	return a.User.Username
}

// Arrivals gives the requests whose URI holds text. One is told when it has ended, a long one also when it begins.
func (c *Cluster) Arrivals(text string) ([]Arrival, error) {
	log, err := os.ReadFile(c.file("audit.log"))
	if err != nil {
		return nil, err
	}
	var all []Arrival
	for line := range bytes.Lines(log) {
		var a Arrival
		// The last line may be half written.
		if !bytes.HasSuffix(line, []byte("\n")) {
			continue
		}
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, fmt.Errorf("audit log of the API server: %w", err)
		}
		if strings.Contains(a.RequestURI, text) {
			all = append(all, a)
		}
	}
	return all, nil
}
