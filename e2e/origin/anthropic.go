package origin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Answer is the text that the Messages API always gives, word by word.
const Answer = "All roads lead through the proxy, said the origin."

// oauthBeta must be in anthropic-beta for an OAuth token to be taken.
const oauthBeta = "oauth-2025-04-20"

// wordDelay is the time between two events of a streamed answer.
const wordDelay = 20 * time.Millisecond

// anthropic is the Messages API with what Claude Code asks beside it.
func (s *Server) anthropic() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/messages", messages)
	mux.HandleFunc("POST /v1/messages/count_tokens", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, map[string]int{"input_tokens": 10})
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"data": []any{map[string]string{"type": "model", "id": "claude-sonnet-4-5"}}, "has_more": false})
	})
	mux.HandleFunc("GET /api/hello", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, http.StatusOK, message("hello")) })
	mux.Handle("/lab/", s.lab())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		anthropicError(w, http.StatusNotFound, "not_found_error", "Not found")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if why := s.refuseAnthropic(r); why != "" {
			anthropicError(w, http.StatusUnauthorized, "authentication_error", why)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// refuseAnthropic says what is wrong with the request's credential, "" if nothing: exactly one of the two fields, and for OAuth its beta.
func (s *Server) refuseAnthropic(r *http.Request) string {
	key := judge(r, "X-Api-Key", s.secrets.AnthropicKey)
	token := judge(r, "Authorization", "Bearer "+s.secrets.AnthropicOAuth)
	switch {
	case key == absent && token == absent:
		return "x-api-key header is required"
	case key == right && token == absent:
		return ""
	case key != absent:
		return "invalid x-api-key"
	case token == wrong:
		return "invalid bearer token"
	case !slices.Contains(betas(r), oauthBeta):
		return "OAuth authentication is currently not supported."
	}
	return ""
}

// betas are the members of all anthropic-beta fields.
func betas(r *http.Request) []string {
	var all []string
	for member := range strings.SplitSeq(strings.Join(r.Header.Values("Anthropic-Beta"), ","), ",") {
		all = append(all, strings.TrimSpace(member))
	}
	return all
}

func anthropicError(w http.ResponseWriter, code int, kind, text string) {
	writeJSON(w, code, map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": text}, "request_id": "req_origin"})
}

// messages answers one turn, streamed where that is asked for.
func messages(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Model  string `json:"model"`
		Stream bool   `json:"stream"`
	}
	if r.Header.Get("Anthropic-Version") == "" {
		anthropicError(w, http.StatusBadRequest, "invalid_request_error", "anthropic-version: header is required")
		return
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Model == "" {
		anthropicError(w, http.StatusBadRequest, "invalid_request_error", "model: Field required")
		return
	}
	w.Header().Set("Request-Id", "req_origin")
	if in.Stream {
		streamAnswer(w, r, in.Model)
		return
	}
	m := answer(in.Model)
	m["content"], m["stop_reason"] = []any{map[string]string{"type": "text", "text": Answer}}, "end_turn"
	writeJSON(w, http.StatusOK, m)
}

// answer is a Message object whose content is still empty.
func answer(model string) map[string]any {
	return map[string]any{
		"id": "msg_origin", "type": "message", "role": "assistant", "model": model, "content": []any{},
		"stop_reason": nil, "stop_sequence": nil, "usage": map[string]int{"input_tokens": 10, "output_tokens": 1},
	}
}

// streamAnswer sends the events of one text block, each flushed, wordDelay apart (docs.anthropic.com, "Streaming Messages").
func streamAnswer(w http.ResponseWriter, r *http.Request, model string) {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	send := func(kind string, event map[string]any) {
		event["type"] = kind
		data, _ := json.Marshal(event)
		_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
		w.(http.Flusher).Flush()
	}
	send("message_start", map[string]any{"message": answer(model)})
	send("content_block_start", map[string]any{"index": 0, "content_block": map[string]string{"type": "text", "text": ""}})
	send("ping", map[string]any{})
	for word := range strings.SplitAfterSeq(Answer, " ") {
		if !pause(r.Context(), wordDelay) {
			return
		}
		send("content_block_delta", map[string]any{"index": 0, "delta": map[string]string{"type": "text_delta", "text": word}})
	}
	send("content_block_stop", map[string]any{"index": 0})
	send("message_delta", map[string]any{"delta": map[string]any{"stop_reason": "end_turn", "stop_sequence": nil}, "usage": map[string]int{"output_tokens": 12}})
	send("message_stop", map[string]any{})
}
