package main

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// kubeContent is the content of a client's request.
type kubeContent struct {
	io.ReadCloser
	x    *kubeExchange
	read atomic.Int64
	done atomic.Bool // read to its end
}

func (b *kubeContent) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.read.Add(int64(n))
	if err == io.EOF {
		b.done.Store(true)
	} else if err != nil {
		err = errors.Join(errClientContent, err)
	}
	return n, err
}

// Buffered tells how much can be read without waiting.
func (b *kubeContent) Buffered() int { return buffered(b.ReadCloser) }

// keep tells whether there is memory to keep all of the content, n bytes, until the exchange is over.
func (b *kubeContent) keep(n int64) bool { return b.x.share.hold(n) }

// pending tells whether there is content that has not been read.
func (b *kubeContent) pending() bool { return b.ReadCloser != nil && !b.done.Load() }

// Close says that no more is wanted. A Read that waits for the client holds a lock that net/http's own Close would wait for, so it is
// ended first.
func (b *kubeContent) Close() error {
	if b.pending() {
		http.NewResponseController(b.x.ResponseWriter).SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}

// kubeStream is the upstream's side of an upgraded connection.
type kubeStream struct {
	io.ReadWriteCloser
	x *kubeExchange
}

func (s *kubeStream) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	s.x.answer.read.Add(int64(n))
	return n, err
}

func (s *kubeStream) Write(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Write(p)
	s.x.request.read.Add(int64(n))
	return n, err
}

// CloseWrite passes a half-close on.
func (s *kubeStream) CloseWrite() error { return closeWrite(s.ReadWriteCloser) }
