package main

import (
	"net/http"
)

// body2 puts a requestBody in the place of the content of out, a copy of the HTTP/2 request in.
func body2(in, out *http.Request) *requestBody {
	b := &requestBody{Reader: in.Body, in: in, out: out, clean: removeHopByHop, buffered: func() int { return 0 }}
	if in.Body == nil || in.Body == http.NoBody {
		out.Body = http.NoBody
		b.done.Store(true)
		return b
	}
	b.cut = func() { in.Body.Close() }
	out.Body = b
	return b
}

// reply2 writes one answer to a stream of a client's HTTP/2 connection, through net/http's server.
type reply2 struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (p *reply2) inform(code int, h http.Header) error {
	own := p.w.Header()
	for name, values := range h {
		own[name] = values
	}
	p.w.WriteHeader(code)
	clear(own)
	return nil
}

func (p *reply2) begin(res *http.Response) {
	h := p.w.Header()
	h["Date"], h["Content-Type"] = nil, nil // else the server adds them
	for name, values := range res.Header {
		h[name] = values
	}
	if names := trailerNames(res.Trailer); names != "" {
		h["Trailer"] = []string{names}
	}
	p.w.WriteHeader(res.StatusCode)
}

func (p *reply2) Write(b []byte) (int, error) { return p.w.Write(b) }

func (p *reply2) flush() error { return p.rc.Flush() }

func (p *reply2) end(trailer http.Header) error {
	h := p.w.Header()
	for name, values := range trailer {
		h[http.TrailerPrefix+name] = values
	}
	return nil
}
