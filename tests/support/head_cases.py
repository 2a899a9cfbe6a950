"""Request heads by the numbers of the fault cases (A request line, B fields, C Host, D framing)."""

from ape_cerebras.errors import (
    BadRequest,
    BodyTooLarge,
    CodingUnknown,
    HeadersTooLarge,
    ProxyError,
    TargetTooLong,
    VersionUnsupported,
)

__all__ = ("ACCEPTED", "REFUSED", "REFUSED_AT_ONCE", "head")

Refusal = type[ProxyError]


def head(line: bytes = b"GET /health HTTP/1.1", *fields: bytes, host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, host, *fields, b"", b""])


def post(*fields: bytes) -> bytes:
    return head(b"POST /v1/chat/completions HTTP/1.1", *fields)


# Complete heads, and the error that refuses them.
REFUSED: dict[str, tuple[bytes, Refusal]] = {
    "A1 bare LF throughout": (b"GET /health HTTP/1.1\nHost: a\n\n", BadRequest),
    "A2 one bare LF": (b"GET /health HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", BadRequest),
    "A2 bare LF after CRLF": (b"GET /health HTTP/1.1\r\nHost: a\r\n\n\r\n\r\n", BadRequest),
    "A4 leading SP": (head(b" GET /health HTTP/1.1"), BadRequest),
    "A5 two SP": (head(b"GET  /health HTTP/1.1"), BadRequest),
    "A5 two SP before the version": (head(b"GET /health  HTTP/1.1"), BadRequest),
    "A5 HTAB": (head(b"GET\t/health HTTP/1.1"), BadRequest),
    "A6 trailing SP": (head(b"GET /health HTTP/1.1 "), BadRequest),
    "A7 HTTP/0.9": (head(b"GET /health"), BadRequest),
    **{
        f"A8 {version.decode()}": (head(b"GET /health " + version), VersionUnsupported)
        for version in (b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9", b"HTTP/0.9", b"HTTP/1.2")
    },
    "A8 HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\n", VersionUnsupported),
    **{
        f"A9 {version.decode()}": (head(b"GET /health " + version), BadRequest)
        for version in (
            *(b"http/1.1", b"HTTP/1.", b"HTTP/01.1", b"HTTP/1.10", b"HTTP /1.1", b"HTP/1.1"),
            *(b"HTTP/1", b"HTTP/1,1", b"HTTP/+1.1", b"HTTP/1.1;x"),
        )
    },
    "A10 TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BadRequest),
    "A15 target too long": (head(b"GET /" + b"a" * 8192 + b" HTTP/1.1"), TargetTooLong),
    **{
        f"A17 {byte:#04x} in the target": (head(b"GET /a%cb HTTP/1.1" % byte), BadRequest)
        for byte in (0, 1, 8, 9, 10, 11, 12, 13, 0x1F, 0x7F, 0x80, 0xFF)
    },
    "A18 SP in the target": (head(b"GET /a b HTTP/1.1"), BadRequest),
    "A19 fragment": (head(b"GET /health#frag HTTP/1.1"), BadRequest),
    "A19 fragment, absolute form": (head(b"GET http://a/#frag HTTP/1.1"), BadRequest),
    "A20 GET *": (head(b"GET * HTTP/1.1"), BadRequest),
    "A20 no slash": (head(b"GET health HTTP/1.1"), BadRequest),
    "A23 other host": (head(b"POST https://evil/v1/chat/completions HTTP/1.1"), BadRequest),
    "A23 user": (head(b"GET http://a@evil/health HTTP/1.1"), BadRequest),
    "A23 other user": (head(b"GET http://evil@a/health HTTP/1.1"), BadRequest),
    "A23 no host": (head(b"GET http:///health HTTP/1.1"), BadRequest),
    "A23 other scheme": (head(b"GET ftp://a/health HTTP/1.1"), BadRequest),
    "method with a separator": (head(b"G(T /health HTTP/1.1"), BadRequest),
    "endless method": (head(b"M" * 9000 + b" / HTTP/1.1"), TargetTooLong),
    "B1 SP before the colon": (head(b"GET / HTTP/1.1", b"X-Test : v"), BadRequest),
    "B1 Content-Length": (post(b"Content-Length : 5"), BadRequest),
    "B2 first line is folded": (head(b"GET / HTTP/1.1", host=b" Host: a"), BadRequest),
    "B2 HTAB": (head(b"GET / HTTP/1.1", host=b"\tHost: a"), BadRequest),
    "B3 folded": (head(b"GET / HTTP/1.1", b"X-Test: a\r\n  b"), BadRequest),
    "B3 folded coding": (post(b"Transfer-Encoding:\r\n chunked"), BadRequest),
    "B3 folded length": (post(b"Content-Length: 5\r\n\t5"), BadRequest),
    **{
        f"B4 B5 {bad!r}": (head(b"GET / HTTP/1.1", b"X: a%sb" % bad), BadRequest)
        for bad in (b"\0", b"\r", b"\r\r", b"\n", b"\x0b", b"\x0c", b"\x1b", b"\x7f")
    },
    "B5 CR CR LF": (head(b"GET / HTTP/1.1", b"X: a\r"), BadRequest),
    "B8 101 lines": (head(b"GET / HTTP/1.1", *[b"A: b"] * 100), HeadersTooLarge),
    "B9 60 KB": (head(b"GET / HTTP/1.1", b"A: " + b"b" * 60_000), HeadersTooLarge),
    "B11 two types": (post(b"Content-Type: a/b", b"content-type: a/b"), BadRequest),
    "B12 two keys": (post(b"Authorization: Bearer a", b"Authorization: Bearer b"), BadRequest),
    "two codings": (post(b"Content-Encoding: gzip", b"Content-Encoding: br"), BadRequest),
    "two Expect": (post(b"Expect: 100-continue", b"Expect: 100-continue"), BadRequest),
    "no name": (head(b"GET / HTTP/1.1", b": v"), BadRequest),
    "no colon": (head(b"GET / HTTP/1.1", b"X"), BadRequest),
    "name with a bad byte": (head(b"GET / HTTP/1.1", b"X\xe9: v"), BadRequest),
    "C1 no Host": (b"GET / HTTP/1.1\r\n\r\n", BadRequest),
    "C2 same Host twice": (head(b"GET / HTTP/1.1", b"host: a"), BadRequest),
    "C2 two Hosts": (head(b"GET / HTTP/1.1", b"Host: b"), BadRequest),
    "C2 in HTTP/1.0": (head(b"GET / HTTP/1.0", b"Host: b"), BadRequest),
    **{
        f"C3 {host!r}": (head(host=b"Host: " + host), BadRequest)
        for host in (
            *(b"a b", b"a/b", b"u@a", b"a,b", b"a:99999", b"a:65536", b"a:b", b"a:1:2", b"[::1"),
            *(
                b"..",
                b"a..b",
                b".a",
                b"a\x7f",
                b"",
                b":80",
                b"[]",
                b"[1.2.3.4]",
                b"[::g]",
                b"[::1]a",
            ),
            *(b"::1", b"a:-1", b"a?b", b"a#b", b"[::1]:x", b"\xc3\xa9", b"a:000080"),
        )
    },
    "D1 both": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked"), BadRequest),
    "D1 other order": (post(b"TRANSFER-ENCODING: Chunked", b"content-LENGTH: 5"), BadRequest),
    "D4 two lines": (post(*[b"Transfer-Encoding: chunked"] * 2), BadRequest),
    **{
        f"D5 {coding!r}": (post(b"Transfer-Encoding: " + coding), CodingUnknown)
        for coding in (b"gzip, chunked", b"identity", b"xchunked", b"x", b"gzip")
    },
    **{
        f"D4 D6 {coding!r}": (post(b"Transfer-Encoding: " + coding), BadRequest)
        for coding in (
            *(b"chunked, gzip", b"chunked, identity", b"", b",chunked", b"chunked;q=1"),
            *(
                b"chunked, chunked",
                b"chunked,",
                b'"chunked"',
                b"chunked\t, gzip",
                b"chunked chunked",
            ),
        )
    },
    "coding in HTTP/1.0": (
        head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked"),
        BadRequest,
    ),
    **{
        f"D8 D9 D10 {length!r}": (post(b"Content-Length: " + length), BadRequest)
        for length in (
            *(b"+5", b"-5", b"-0", b"0x5", b"5 5", b"1_0", b"5e0", b"5.0", "٥".encode(), b"\xb2"),
            *(b"", b"5,6", b"5, 5", b"5;", b"five"),
        )
    },
    "D9 two lengths": (post(b"Content-Length: 5", b"Content-Length: 10"), BadRequest),
    "D10 same twice": (post(b"Content-Length: 5", b"Content-Length: 5"), BadRequest),
    "D11 20 digits": (post(b"Content-Length: " + b"9" * 20), BodyTooLarge),
    "D11 40 digits": (post(b"Content-Length: " + b"9" * 40), BodyTooLarge),
    "D11 5,000 digits": (post(b"Content-Length: " + b"9" * 5000), BodyTooLarge),
    "D12": (post(b"Content-Length: %d" % (10 * 2**20 + 1)), BodyTooLarge),
}


# Parts of heads that no further bytes could make valid.
REFUSED_AT_ONCE: dict[str, tuple[bytes, Refusal]] = {
    "A1": (b"GET /health HTTP/1.1\n", BadRequest),
    "A3 one empty line more": (b"\r\n", BadRequest),
    "A2": (b"GET /health HTTP/1.1\r\nHost: a\nX", BadRequest),
    "A4": (b" GET /health HTTP/1.1\r\n", BadRequest),
    "A7": (b"GET /health\r\n", BadRequest),
    "A8": (b"GET /health HTTP/2.0\r\n", VersionUnsupported),
    "A9": (b"GET /health HTTP/1.10\r\n", BadRequest),
    "A10 first byte": (b"\x16", BadRequest),
    "A15 unended": (b"GET /" + b"a" * 8300, TargetTooLong),
    "A15 ended": (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n", TargetTooLong),
    "A17": (b"GET /\0", BadRequest),
    "A18": (b"GET /a b HTTP/1.1\r\n", BadRequest),
    "B4": (b"GET / HTTP/1.1\r\nX: \0", BadRequest),
    "B5": (b"GET / HTTP/1.1\r\nX: a\rb", BadRequest),
    "B10 unended": (b"GET / HTTP/1.1\r\nX: " + b"a" * 16_384, HeadersTooLarge),
}


# Heads, and the path that they request.
ACCEPTED: dict[str, tuple[bytes, bytes]] = {
    "plain": (head(), b"/health"),
    "A11 unknown method": (head(b"FOO /health HTTP/1.1"), b"/health"),
    "A11 lower case": (head(b"get /health HTTP/1.1"), b"/health"),
    "A14 CONNECT": (head(b"CONNECT a:443 HTTP/1.1"), b"a:443"),
    "A16 longest target": (head(b"GET /" + b"a" * 8191 + b" HTTP/1.1"), b"/" + b"a" * 8191),
    "A21 OPTIONS *": (head(b"OPTIONS * HTTP/1.1"), b"*"),
    "A22 absolute form": (head(b"GET http://a/health HTTP/1.1"), b"/health"),
    "A22 any case": (head(b"GET HTTP://A/Health?x=1 HTTP/1.1"), b"/Health?x=1"),
    "A22 no path": (head(b"GET http://a HTTP/1.1"), b"/"),
    "A22 query and no path": (head(b"GET http://a?x=http://b/ HTTP/1.1"), b"/?x=http://b/"),
    "A22 a URL in the query": (head(b"GET /?x=http://evil/ HTTP/1.1"), b"/?x=http://evil/"),
    "A24 path is taken as it is": (head(b"GET //v1/../%2e HTTP/1.1"), b"//v1/../%2e"),
    "A25 escapes are not undone": (head(b"GET /%00%0d%0aX:%ff%1 HTTP/1.1"), b"/%00%0d%0aX:%ff%1"),
    "B6 obs-text": (head(b"GET / HTTP/1.1", b"X: \x80\xff"), b"/"),
    "B7 empty": (head(b"GET / HTTP/1.1", b"X-Empty:", b"X:\tv\t", b"Y:  \t "), b"/"),
    "B8 100 lines": (head(b"GET / HTTP/1.1", *[b"A: b"] * 99), b"/"),
    **{
        f"C4 {host!r}": (head(host=b"Host: " + host), b"/health")
        for host in (
            *(
                b"[::1]:8080",
                b"A.Example.",
                b"127.0.0.1",
                b"a:",
                b"a_b-c:65535",
                b"[::ffff:1.2.3.4]",
            ),
            *(b"\ta\t", b"xn--bcher-kva.example:00080"),
        )
    },
    "C5": (b"GET / HTTP/1.0\r\n\r\n", b"/"),
    "C5 with Host": (head(b"GET / HTTP/1.0"), b"/"),
    "D7 HTAB": (post(b"Transfer-Encoding:\tchunked"), b"/v1/chat/completions"),
    "D7 case and SP": (post(b"Transfer-Encoding: Chunked "), b"/v1/chat/completions"),
    "D13": (post(b"Content-Length: %d" % (10 * 2**20)), b"/v1/chat/completions"),
    "leading zeros": (post(b"Content-Length: 0000000000000000005"), b"/v1/chat/completions"),
}
