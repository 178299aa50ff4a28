package main

// hostRoots gives the host's public roots as PEM: what SSL_CERT_FILE and SSL_CERT_DIR name, else the system's.
func hostRoots(getenv func(string) string) (pem []byte, origin string, err error) { panic("stub") }
