package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// proxyEnvironment reads the upstream proxies that the operator set for this process: HTTPS_PROXY, HTTP_PROXY and
// NO_PROXY, the lower-case names where the upper-case ones are empty, as httpproxy.FromEnvironment does.
func proxyEnvironment(getenv func(string) string) *httpproxy.Config {
	either := func(name string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return getenv(strings.ToLower(name))
	}
	return &httpproxy.Config{HTTPProxy: either("HTTP_PROXY"), HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}
}

// checkUpstreamProxies refuses a value that is no proxy, which httpproxy would leave out without a word, and one that
// is this daemon itself: each request would then come back to it.
func checkUpstreamProxies(ctx context.Context, env *httpproxy.Config, c *config, n *networks) error {
	for _, v := range []struct{ name, value string }{{"HTTPS_PROXY", env.HTTPSProxy}, {"HTTP_PROXY", env.HTTPProxy}} {
		if v.value == "" {
			continue
		}
		host, port, err := proxyAddress(v.value)
		if err != nil {
			return &hintError{fmt.Errorf("use upstream proxy in %s: %w", v.name, err), "set it to http://HOST:PORT, or unset it"}
		}
		own := slices.Contains([]uint16{c.httpPort, c.kubePort, c.talosPort}, port)
		if own && isThisHost(ctx, host, c, n) {
			return &hintError{fmt.Errorf("use upstream proxy in %s: %q is muxproxy itself", v.name, net.JoinHostPort(host, strconv.Itoa(int(port)))),
				"run env -u HTTPS_PROXY -u https_proxy -u HTTP_PROXY -u http_proxy muxproxy run"}
		}
	}
	return nil
}

// proxyAddress takes a proxy variable apart: "http://proxy.corp.example:3128" gives its host and 3128; a value without a scheme is an http one. The value may hold a password, so
// no error shows it.
func proxyAddress(value string) (host string, port uint16, err error) {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" {
		return "", 0, errors.New("its value is not the URL of a proxy")
	}
	defaults := map[string]uint16{"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
	port, ok := defaults[u.Scheme]
	if !ok {
		return "", 0, fmt.Errorf("no proxies of scheme %q", u.Scheme)
	}
	if u.Port() != "" {
		p, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return "", 0, errors.New("its port is out of range")
		}
		port = uint16(p)
	}
	return strings.ToLower(u.Hostname()), port, nil
}

// isThisHost tells whether a proxy's host is where this daemon listens. It is only asked of proxies on one of our ports,
// so a name is looked up for those alone; one that does not resolve is left for the requests to fail on.
func isThisHost(ctx context.Context, host string, c *config, n *networks) bool {
	if host == "localhost" || host == c.dockerHost {
		return true
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return n.isOwn(a.Unmap()) || a.IsUnspecified()
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	addrs, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return n.isOwn(a.Unmap()) })
}
