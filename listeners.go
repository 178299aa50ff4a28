package main

import "net"

// acceptedConn is a connection of a client that has been counted in; Close counts it out.
type acceptedConn struct{ *net.TCPConn }
