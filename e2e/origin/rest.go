package origin

import (
	"net/http"
	"strings"
)

// github is the REST API. Public resources need no credential, but a wrong one is refused everywhere
// (docs.github.com/rest/authentication: "Failed login limit").
func (s *Server) github() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /user", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Oauth-Scopes", "repo, read:org")
		writeJSON(w, http.StatusOK, map[string]any{"login": "octo-agent", "id": 1, "type": "User"})
	})
	mux.HandleFunc("GET /zen", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("Keep it logically awesome."))
	})
	mux.HandleFunc("GET /repos/{owner}/{repo}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("owner") + "/" + r.PathValue("repo")
		writeJSON(w, http.StatusOK, map[string]any{"full_name": name, "private": true})
	})
	mux.HandleFunc("POST /repos/{owner}/{repo}/releases/{id}/assets", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusCreated, map[string]any{"name": r.URL.Query().Get("name"), "size": r.ContentLength, "state": "uploaded"})
	})
	mux.Handle("/lab/", s.lab())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusNotFound, message("Not Found")) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Github-Media-Type", "github.v3; format=json")
		switch p := judge(r, "Authorization", "Bearer "+s.secrets.GitHub, "token "+s.secrets.GitHub); {
		case p == wrong:
			writeJSON(w, http.StatusUnauthorized, githubError("Bad credentials"))
		case p == absent && r.URL.Path != "/zen":
			writeJSON(w, http.StatusUnauthorized, githubError("Requires authentication"))
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

func githubError(text string) map[string]string {
	return map[string]string{"message": text, "documentation_url": "https://docs.github.com/rest", "status": "401"}
}

// pagerduty is the REST API of both regions. Without a token it refuses with 401 and code 2006; "Bearer" is for OAuth alone.
func (s *Server) pagerduty() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/lab/", s.lab())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/users/me":
			writeJSON(w, http.StatusOK, map[string]any{"user": map[string]string{"name": "On Call", "type": "user"}})
		case "/incidents":
			writeJSON(w, http.StatusOK, map[string]any{"incidents": []any{}, "limit": 25, "offset": 0, "more": false})
		default:
			writeJSON(w, http.StatusNotFound, map[string]any{"error": map[string]any{"code": 2100, "message": "Not Found"}})
		}
	})
	refuse := func(w http.ResponseWriter, _ presented) {
		w.Header().Set("WWW-Authenticate", `Token realm="Application"`)
		writeJSON(w, http.StatusUnauthorized, map[string]any{"error": map[string]any{"code": 2006, "message": "Unauthorized"}})
	}
	return guard("Authorization", []string{"Token token=" + s.secrets.PagerDuty}, refuse, mux)
}

// sentry is the web API, /api/0/.
func (s *Server) sentry() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/lab/", s.lab())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/api/0/":
			writeJSON(w, http.StatusOK, map[string]any{"version": "0", "auth": map[string]any{"scopes": []string{"org:read"}}, "user": nil})
		case strings.HasPrefix(r.URL.Path, "/api/0/organizations/"):
			writeJSON(w, http.StatusOK, []any{map[string]string{"slug": "acme"}})
		default:
			writeJSON(w, http.StatusNotFound, map[string]string{"detail": "The requested resource does not exist"})
		}
	})
	refuse := func(w http.ResponseWriter, p presented) {
		detail := "Authentication credentials were not provided."
		if p == wrong {
			detail = "Invalid token"
		}
		writeJSON(w, http.StatusUnauthorized, map[string]string{"detail": detail})
	}
	return guard("Authorization", []string{"Bearer " + s.secrets.Sentry}, refuse, mux)
}

// gitlab is what a rule of the config file names: a token field of its own, and echo's ways of answering behind it.
func (s *Server) gitlab() http.Handler {
	refuse := func(w http.ResponseWriter, _ presented) {
		writeJSON(w, http.StatusUnauthorized, message("401 Unauthorized"))
	}
	return guard("PRIVATE-TOKEN", []string{s.secrets.GitLab}, refuse, s.echo())
}

// lab is a corner of each service in which tests find ways of answering that the real one has not. It is behind the service's own check.
func (s *Server) lab() http.Handler { return http.StripPrefix("/lab", s.echo()) }
