package origin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Repository is the path of the private repository on github.com; it holds README.md on branch main.
const Repository = "/acme/private.git"

// firstCommit is a stream for git fast-import.
const firstCommit = `commit refs/heads/main
committer Octo <octo@example.com> 1700000000 +0000
data 6
first

M 100644 inline README.md
data 21
a private repository

`

// StartGit makes the private repository anew.
func (s *Server) StartGit() error {
	bare := filepath.Join(s.dir, "git", filepath.FromSlash(Repository))
	if err := os.MkdirAll(bare, 0o755); err != nil {
		return err
	}
	if _, err := run(bare, nil, "git", "init", "--quiet", "--bare", "--initial-branch=main", "."); err != nil {
		return err
	}
	_, err := run(bare, strings.NewReader(firstCommit), "git", "fast-import", "--quiet")
	return err
}

// git is github.com: the private repository by smart HTTP and Git LFS, which take HTTP Basic alone, and pages that need nothing.
func (s *Server) git() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(Repository+"/", guard("Authorization", []string{basic("x-access-token", s.secrets.GitHub)}, refuseGit, s.repository()))
	mux.Handle("/lab/", http.StripPrefix("/lab", s.echo()))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<!doctype html><title>GitHub</title>\n")
	})
	return mux
}

func refuseGit(w http.ResponseWriter, p presented) {
	text := "Repository not found."
	if p == wrong {
		text = "Invalid username or token. Password authentication is not supported for Git operations."
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="GitHub"`)
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = io.WriteString(w, text+"\n")
}

func (s *Server) repository() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(Repository+"/info/lfs/objects/batch", whole(http.HandlerFunc(s.batch)))
	mux.HandleFunc(Repository+"/info/lfs/locks/verify", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", lfsType)
		_, _ = io.WriteString(w, `{"ours":[],"theirs":[],"next_cursor":""}`)
	})
	mux.HandleFunc("/", s.backend)
	return mux
}

// backend hands the request to git http-backend. The content is spooled first, for CGI knows no chunked content.
func (s *Server) backend(w http.ResponseWriter, r *http.Request) {
	spool, err := os.CreateTemp(s.dir, "spool")
	if err != nil {
		http.Error(w, "no room", http.StatusInternalServerError)
		return
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	if r.ContentLength, err = io.Copy(spool, r.Body); err != nil {
		http.Error(w, "content is cut short", http.StatusBadRequest)
		return
	}
	_, _ = spool.Seek(0, io.SeekStart)
	r.Body, r.TransferEncoding = spool, nil
	path, _ := exec.LookPath("git")
	backend := cgi.Handler{
		Path: path, Args: []string{"http-backend"}, Dir: s.dir,
		Env: []string{
			"GIT_PROJECT_ROOT=" + filepath.Join(s.dir, "git"), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=x-access-token",
			"GIT_PROTOCOL=" + r.Header.Get("Git-Protocol"), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		Stderr: io.Discard,
	}
	backend.ServeHTTP(w, r)
}

const lfsType = "application/vnd.git-lfs+json"

// lfsObject is one object of a batch (git-lfs docs/api/batch.md).
type lfsObject struct {
	OID           string               `json:"oid"`
	Size          int64                `json:"size"`
	Authenticated bool                 `json:"authenticated,omitempty"`
	Actions       map[string]lfsAction `json:"actions,omitempty"`
	Error         *lfsError            `json:"error,omitempty"`
}

type lfsAction struct {
	Href      string `json:"href"`
	ExpiresIn int    `json:"expires_in"`
}

type lfsError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// batch says where objects are: as GitHub does, with presigned URLs at a host of its own.
func (s *Server) batch(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Operation string      `json:"operation"`
		Objects   []lfsObject `json:"objects"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "not a batch", http.StatusUnprocessableEntity)
		return
	}
	for i := range in.Objects {
		o := &in.Objects[i]
		known := s.objects.has(o.OID)
		switch {
		case in.Operation == "download" && !known:
			o.Error = &lfsError{http.StatusNotFound, "Object does not exist on the server"}
		case in.Operation == "upload" && known:
		default:
			o.Authenticated = true
			o.Actions = map[string]lfsAction{in.Operation: {Href: s.objects.href(o.OID), ExpiresIn: 3600}}
		}
	}
	w.Header().Set("Content-Type", lfsType)
	_ = json.NewEncoder(w).Encode(map[string]any{"transfer": "basic", "objects": in.Objects})
}

// objectStore is presigned storage: the signature in the query is the only credential, an auth field beside it is an error, as at S3.
type objectStore struct {
	mu   sync.Mutex
	each map[string][]byte // by object id, guarded by mu
}

const objectSignature = "?X-Signature=presigned"

func (o *objectStore) href(oid string) string {
	return "https://" + Objects + "/lfs/" + oid + objectSignature
}

func (o *objectStore) has(oid string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.each[oid]
	return ok
}

func (o *objectStore) handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		oid := strings.TrimPrefix(r.URL.Path, "/lfs/")
		switch {
		case "?"+r.URL.RawQuery != objectSignature:
			http.Error(w, "AccessDenied", http.StatusForbidden)
		case r.Header.Get("Authorization") != "":
			http.Error(w, "InvalidArgument: only one auth mechanism allowed", http.StatusBadRequest)
		case r.Method == http.MethodPut:
			o.put(w, r, oid)
		default:
			o.get(w, oid)
		}
	})
}

func (o *objectStore) put(w http.ResponseWriter, r *http.Request, oid string) {
	content, err := io.ReadAll(r.Body)
	sum := sha256.Sum256(content)
	if err != nil || hex.EncodeToString(sum[:]) != oid {
		http.Error(w, "BadDigest", http.StatusBadRequest)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.each == nil {
		o.each = map[string][]byte{}
	}
	o.each[oid] = content
	w.WriteHeader(http.StatusOK)
}

func (o *objectStore) get(w http.ResponseWriter, oid string) {
	o.mu.Lock()
	content, ok := o.each[oid]
	o.mu.Unlock()
	if !ok {
		http.Error(w, "NoSuchKey", http.StatusNotFound)
		return
	}
	_, _ = w.Write(content)
}
