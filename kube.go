package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	kubeHeaderWait = 10 * time.Second // for a request's header section
	kubeIdle       = 5 * time.Minute  // between two requests of a connection
	// kubeHeaderLimit bounds a header section; net/http's server adds 4 KiB of its own to it: 64 KiB in all.
	kubeHeaderLimit = 60 << 10
)

// kubePlaneOptions is what openKubePlane needs.
type kubePlaneOptions struct {
	config   kubePlaneConfig
	source   kubeSource // of the kubeconfig, with what plugins may have; files, explicit, inCluster and pluginPath follow config
	upstream kubeUpstreamOptions
	audit    *auditLog
	log      *slog.Logger
	// local tells whether a Host field is ours: loopback, docker_host, an address we listen on; any port.
	local func(host string) bool
}

// kubePlane is the kube plane (spec section 8): an HTTP/1.1 server that forwards each context of the host's kubeconfig under
// /contexts/NAME/, and the current one under /, with the host's authentication. Its life is openKubePlane, serve, shutdown; the other
// methods may be called at any time, by many at once.
//
// HTTP/1.1 alone, since that is what every client speaks over http://, and what upgrades need. There is no limit on how long an
// answer takes: watches, `logs -f` and `exec` go on for days.
type kubePlane struct {
	kubePlaneOptions
	door   kubeDoor
	server *http.Server
	ctx    context.Context // of all requests; ends when a drain is over
	stop   context.CancelFunc
	live   sync.WaitGroup // requests that are under way, upgraded ones too, which http.Server forgets
	denied kubeDenials
	held   kubeHeld
	probes atomic.Int64 // when the health of the contexts was asked for last, in Unix seconds

	serving atomic.Pointer[kubeServing] // what is served now
	loading sync.Mutex                  // held while serving is replaced
}

// openKubePlane makes the plane with the contexts that the kubeconfig has now. Where it cannot be loaded the plane is there too, with no
// context, and state tells why: watch finds one that is written later. It opens no port.
func openKubePlane(o kubePlaneOptions) *kubePlane {
	k := &kubePlane{kubePlaneOptions: o, door: kubeDoor{o.local}}
	k.ctx, k.stop = context.WithCancel(context.Background())
	if k.source.plugins == nil {
		k.source.plugins = &kubePlugins{}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	k.server = &http.Server{
		Handler:                      http.HandlerFunc(k.serveHTTP),
		Protocols:                    protocols,
		ReadHeaderTimeout:            kubeHeaderWait,
		IdleTimeout:                  kubeIdle,
		MaxHeaderBytes:               kubeHeaderLimit,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(o.log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return k.ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			_, handed := conn.(*handedConn)
			return context.WithValue(ctx, kubeConnKey{}, &kubeConn{handed: handed})
		},
	}
	k.serving.Store(&kubeServing{config: o.config})
	k.load(o.config)
	return k
}

// serve accepts connections on ln until shutdown or until ln fails or is closed, which gives nil. It is called once, after openKubePlane.
func (k *kubePlane) serve(ln net.Listener) error {
	if err := k.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// handOver serves a connection that the http plane has accepted, and that speaks to the kube port from here on. Its RemoteAddr is the
// client's. It returns at once; the connection is closed when it is over, or now if the plane ends.
func (k *kubePlane) handOver(conn net.Conn) {
	if k.server.Serve(&handedListener{conn: &handedConn{conn}}) == http.ErrServerClosed {
		conn.Close() // again, where it was being served for a moment
	}
}

// shutdown drains: nothing new is accepted, requests that are under way go on until they are done, and when ctx ends those that are left
// are cut, watches and upgrades among them. It returns when none is left.
func (k *kubePlane) shutdown(ctx context.Context) {
	cut := context.AfterFunc(ctx, k.stop)
	k.server.Shutdown(ctx)
	k.live.Wait() // upgraded connections, which Shutdown does not know, and what ctx has just cut
	cut()
	k.stop()
	k.server.Close()
	k.serving.Load().closeIdle(nil)
}

// handedListener is a listener for one connection.
type handedListener struct{ conn net.Conn }

// errHanded ends the Serve that has taken the connection.
var errHanded = errors.New("handed over")

// Accept gives the connection, then errHanded.
func (l *handedListener) Accept() (net.Conn, error) {
	conn := l.conn
	if conn == nil {
		return nil, errHanded
	}
	l.conn = nil
	return conn, nil
}

func (l *handedListener) Close() error   { return nil }
func (l *handedListener) Addr() net.Addr { return &net.TCPAddr{} }

// handedConn marks a connection that was handed over: its requests may be in absolute-form, as clients send them to a proxy.
type handedConn struct{ net.Conn }

// CloseWrite passes a half-close on.
func (c *handedConn) CloseWrite() error { return closeWrite(c.Conn) }

// kubeConn is what is known of a client's connection. Requests of an HTTP/1.1 connection come one after the other, so the exchange that is
// under way is found by it: see kubeExchange.
type kubeConn struct {
	handed   bool
	exchange *kubeExchange
}

type kubeConnKey struct{}

// exchangeOf gives the exchange to which ctx belongs.
func exchangeOf(ctx context.Context) *kubeExchange {
	return ctx.Value(kubeConnKey{}).(*kubeConn).exchange
}
