package fidelity

import "strings"

// requestExchanges vary the method, the target and the content of the request.
func requestExchanges() []exchange {
	form := "a=1&b=%20+%2B&c"
	parts := "--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"\xc3\xa4.bin\"\r\n\r\n" + octets + "\r\n--b--\r\n"
	expect := one("Expect", "100-continue")
	large := plain("413 Content Too Large", "too large", "Connection: close")
	all := []exchange{
		{name: "POST", method: "POST", content: "hello", fields: one("Content-Type", "text/plain")},
		{name: "POST of length 0", method: "POST", fields: one("Content-Length", "0")},
		{name: "POST without content", method: "POST"},
		{name: "POST in chunks", method: "POST", content: "in chunks", chunked: true, fields: one("Content-Type", "text/plain")},
		{name: "POST 1 MiB", method: "POST", content: mebibyte, fields: one("Content-Type", "application/octet-stream")},
		{name: "POST 1 MiB in chunks", method: "POST", content: mebibyte, chunked: true, fields: one("Content-Type", "application/octet-stream")},
		{name: "POST of every byte", method: "POST", content: octets, fields: one("Content-Type", "application/octet-stream")},
		{name: "POST of a form", method: "POST", content: form, fields: one("Content-Type", "application/x-www-form-urlencoded")},
		{name: "POST of parts", method: "POST", content: parts, fields: one("Content-Type", "multipart/form-data; boundary=b")},
		{name: "POST of gzip", method: "POST", content: "\x1f\x8b\x08\x00 not really", fields: []field{{"Content-Type", "x/y"}, {"Content-Encoding", "gzip"}}},
		{name: "POST with trailers", method: "POST", content: "sum me", chunked: true, trailer: one("X-Checksum", "abc"), fields: one("Content-Type", "x/y"), cannot: "curl"},
		{name: "POST with trailers several", method: "POST", content: "sum me", chunked: true, trailer: []field{{"X-A", "1"}, {"X-B", "2"}}, fields: one("Content-Type", "x/y"), cannot: "curl"},
		{name: "PUT", method: "PUT", content: "put", fields: one("Content-Type", "x/y")},
		{name: "PATCH", method: "PATCH", content: `[{"op":"remove"}]`, fields: one("Content-Type", "application/json-patch+json")},
		{name: "DELETE", method: "DELETE"},
		{name: "DELETE with content", method: "DELETE", content: "why", fields: one("Content-Type", "x/y")},
		{name: "GET with content", method: "GET", content: "{\"query\":1}", fields: one("Content-Type", "application/json")},
		{name: "GET of length 0", fields: one("Content-Length", "0"), cannot: "go"},
		{name: "OPTIONS", method: "OPTIONS", fields: []field{{"Origin", "https://a.example"}, {"Access-Control-Request-Method", "PUT"}}},
		{name: "OPTIONS of the server", method: "OPTIONS", target: "*"},
		{name: "PROPFIND", method: "PROPFIND", content: "<propfind/>", fields: []field{{"Content-Type", "text/xml"}, {"Depth", "1"}}},
		{name: "M-SEARCH", method: "M-SEARCH", fields: one("MAN", `"ssdp:discover"`)},
		{name: "REPORT", method: "REPORT", content: "<r/>", fields: one("Content-Type", "text/xml")},
		{name: "QUERY", method: "QUERY", content: "select", fields: one("Content-Type", "x/y")},
		{name: "a lower-case method", method: "get"},
		{name: "a lower-case method with content", method: "post", content: "small", fields: one("Content-Type", "x/y")},
		{name: "a method of odd characters", method: oddToken},
		{name: "Expect accepted", method: "POST", content: "now", fields: append(one("Content-Type", "x/y"), expect...)},
		{name: "Expect accepted, 1 MiB", method: "PUT", content: mebibyte, fields: append(one("Content-Type", "x/y"), expect...)},
		{name: "Expect accepted, in chunks", method: "PUT", content: "now", chunked: true, fields: append(one("Content-Type", "x/y"), expect...)},
		// curl asks again without Expect, for ever where the origin means it.
		{name: "Expect refused", method: "POST", cannot: "curl HTTP/2", content: strings.Repeat("never", 1000), fields: append(one("Content-Type", "x/y"), expect...), early: true, ends: true,
			answer: plain("417 Expectation Failed", "no", "Connection: close")},
		{name: "Expect refused by 401", method: "PUT", content: strings.Repeat("never", 1000), fields: append(one("Content-Type", "x/y"), expect...), early: true, ends: true,
			answer: plain("401 Unauthorized", "who?", "WWW-Authenticate: Bearer", "Connection: close")},
		{name: "an early 413", method: "POST", content: mebibyte, fields: append(one("Content-Type", "x/y"), field{"Expect", ""}), early: true, ends: true, answer: large},
		{name: "an early 413 in chunks", method: "POST", content: mebibyte, chunked: true, fields: append(one("Content-Type", "x/y"), field{"Expect", ""}), early: true, ends: true, answer: large},
		{name: "an early 200 of a small request", method: "POST", content: "hi", fields: one("Content-Type", "x/y"), early: true, ends: true, answer: plain("200 OK", "seen", "Connection: close")},
	}
	for _, target := range []string{
		"/a%2Fb%2fc", "/a;v=1/b;w=2", "//double//slash", "//other.example/x", "/x?", "/x?a=b?c/d", "/x?q=%2B&x=;y&z", "/x?a+b=c%20d&&=", "/a/../b/./c/",
		"/a!$&'()*+,;=:@b", `/a"b|c^d{e}`, "/caf\xc3\xa9", "/%7euser/%c3%A9", "/x?a=%zz&b=%", "/x?u=http://y//z", "/x?" + strings.Repeat("long=1&", 1200), "/..;/x%00y",
	} {
		name := target
		if len(name) > 40 {
			name = "a long query"
		}
		all = append(all, exchange{name: "target " + name, target: target})
	}
	return fineUnlessSaid(all)
}

func fineUnlessSaid(all []exchange) []exchange {
	for i := range all {
		if all[i].answer == "" {
			all[i].answer = fine
		}
	}
	return all
}

// fieldExchanges vary the fields of requests and answers, and the content coding.
func fieldExchanges() []exchange {
	odd := []field{
		{"X-Empty", ""}, {"X-Twice", "1"}, {"X-Twice", "2"}, {"X-Twice", "1"}, {"X-Obs", "caf\xe9 \xff\x80"}, {"X-Tab", "a\tb  c"},
		{"X-List", `a, "b, c";q=0.5,,d`}, {oddToken, "odd name"}, {"x_lower", "lower"}, {"X-URL", "https://u:p@h/?a#b"}, {"X-Colon", ":a: b:"},
	}
	text := "compressed, so not a letter of it may change"
	return fineUnlessSaid([]exchange{
		{name: "odd fields of a request", fields: odd},
		{name: "odd fields of an answer", answer: plain("200 OK", "odd", lines(odd)...)},
		{name: "a long value in a request", fields: one("X-Long", strings.Repeat("0123456789", 3000))},
		{name: "a long value in an answer", answer: plain("200 OK", "x", "X-Long: "+strings.Repeat("0123456789", 1200))},
		{name: "many fields in a request", fields: manyFields(100)},
		{name: "many fields in an answer", answer: plain("200 OK", "x", lines(manyFields(80))...)},
		{name: "no User-Agent", fields: one("User-Agent", "")},
		{name: "Pragma", fields: one("Pragma", "no-cache")},
		{name: "Pragma in an answer", answer: plain("200 OK", "x", "Pragma: no-cache")},
		{name: "Cookie", fields: one("Cookie", "a=1; b=2")},
		{name: "Cookies", fields: []field{{"Cookie", "a=1"}, {"Cookie", "b=\"2\""}}},
		{name: "Set-Cookie", answer: plain("200 OK", "x", "Set-Cookie: a=1; Path=/; HttpOnly")},
		{name: "Set-Cookie several", answer: plain("200 OK", "x", "Set-Cookie: a=1; Expires=Thu, 01 Jan 2026 00:00:00 GMT", "Set-Cookie: b=2; Secure", "Set-Cookie: c=")},
		{name: "Alt-Svc", answer: plain("200 OK", "x", `Alt-Svc: h3=":443"; ma=86400`)},
		{name: "the client's own Authorization", fields: one("Authorization", "Basic dTpw")},
		{name: "the client's own X-Api-Key", fields: one("X-Api-Key", "mine")},
		{name: "a field named by Connection", cannot: "HTTP/2", fields: []field{{"Connection", "X-Hop"}, {"X-Hop", "1"}, {"X-End", "2"}}},
		{name: "a field named by Connection in an answer", cannot: "HTTP/2", answer: plain("200 OK", "x", "Connection: X-Hop", "X-Hop: 1", "X-End: 2")},
		{name: "TE without trailers", cannot: "HTTP/2", fields: one("TE", "gzip;q=0.5")},
		{name: "Upgrade to h2c", cannot: "HTTP/2", fields: []field{{"Connection", "Upgrade, HTTP2-Settings"}, {"Upgrade", "h2c"}, {"HTTP2-Settings", "AAMAAABkAAQAAP__"}}},
		{name: "Proxy-Connection", cannot: "HTTP/2", fields: one("Proxy-Connection", "keep-alive")},
		{name: "fields of proxies before", fields: []field{{"Via", "1.1 a"}, {"Forwarded", "for=1.2.3.4"}, {"X-Forwarded-For", "1.2.3.4, 5.6.7.8"}, {"Max-Forwards", "10"}}},
		{name: "fields of proxies behind", answer: plain("200 OK", "x", "Via: 1.1 b", "Age: 7", "X-Cache: HIT", `Warning: 110 a "stale"`, "Server: x/1 (y)")},
		{name: "fields of browsers", fields: []field{{"Referer", "https://a/?b"}, {"Sec-Fetch-Mode", "cors"}, {"Origin", "null"}, {"DNT", "1"}, {"Accept", "text/html;q=0.9, */*"}, {"Accept-Language", "de, en;q=0.5"}}},
		{name: "fields of security", answer: plain("200 OK", "x", "Strict-Transport-Security: max-age=1", "Content-Security-Policy: default-src 'self'; report-uri /x", "Access-Control-Allow-Origin: *", "Vary: Origin, Accept")},
		{name: "a file name in UTF-8", answer: plain("200 OK", "x", "Content-Disposition: attachment; filename=\"\xc3\xa4.txt\"; filename*=UTF-8''%c3%a4.txt")},
		{name: "no Content-Type", answer: plain("200 OK", "<html>guess me")},
		{name: "gzip", fields: one("Accept-Encoding", "gzip"), answer: plain("200 OK", gzipped(text), "Content-Encoding: gzip", "Content-Type: text/plain")},
		{name: "gzip in chunks", fields: one("Accept-Encoding", "gzip"), answer: chunks("200 OK", list(gzipped(text)), nil, "Content-Encoding: gzip")},
		{name: "br", fields: one("Accept-Encoding", "br, gzip"), answer: plain("200 OK", "\x0b\x02\x80hello\x03", "Content-Encoding: br")},
		{name: "zstd", fields: one("Accept-Encoding", "zstd"), answer: plain("200 OK", "\x28\xb5\x2f\xfd\x04\x00\x29\x00\x00hello\xe6\x9c\xd2\xa1", "Content-Encoding: zstd")},
		{name: "a content coding that is none", answer: plain("200 OK", "no gzip at all", "Content-Encoding: gzip")},
		{name: "two content codings", answer: plain("200 OK", "as it is", "Content-Encoding: gzip, br", "ETag: W/\"1\"")},
		{name: "obs-fold in an answer", cannot: "node", answer: head("200 OK", "X-Fold: a\r\n  b", "Content-Length: 1") + "x"},
	})
}
