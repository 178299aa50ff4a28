package main

import "net/http"

type upstream struct{}

func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) { panic("stub") }
