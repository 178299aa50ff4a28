package main

import (
	"io"
	"log"
)

// discardLog keeps the handshake errors that tests provoke out of the output.
var discardLog = log.New(io.Discard, "", 0)
