"""Request heads: the refusals of fault cases A to D, and agreement of the guard and h11 together
with a strict parser on all that passes."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from head_cases import ACCEPTED, REFUSED, REFUSED_AT_ONCE, head
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import assert_h11_reads_the_same, in_lower_case, read_head
from strict_parser import strictly_parsed

from ape_cerebras.errors import HeadersTooLarge, ProxyError, TargetTooLong
from ape_cerebras.http1.messages import HEAD_END, Request
from ape_cerebras.http1.request_head import HeadLimits, check_head, check_part

LIMITS = HeadLimits(header_bytes=16_384, headers=100, target_bytes=8192, body_bytes=10 * 2**20)
SMALL = HeadLimits(header_bytes=300, headers=8, target_bytes=40, body_bytes=1000)


def check(raw: bytes, limits: HeadLimits = LIMITS) -> bytes:
    """As ``Downstream`` does it with a head that arrives in one piece."""
    if HEAD_END not in raw:
        check_part(raw, 0, limits)
    return read_head(raw, limits).target


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    raw, refusal = REFUSED[case]
    with pytest.raises(refusal) as caught:
        check(raw)
    assert type(caught.value) is refusal
    assert not caught.value.keeps
    assert str(caught.value) in ("", caught.value.message)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_the_same_byte_by_byte(case: str) -> None:
    raw, refusal = REFUSED[case]

    def by_byte() -> None:
        for end in range(1, len(raw) + 1):
            check_part(raw[:end], end - 1, LIMITS)
        read_head(raw, LIMITS)

    with pytest.raises(ProxyError) as caught:
        by_byte()
    assert type(caught.value) is refusal


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
@pytest.mark.parametrize("seen", [0, 1, -1])
def test_refused_while_it_is_still_arriving(case: str, seen: int) -> None:
    part, refusal = REFUSED_AT_ONCE[case]
    with pytest.raises(refusal):
        check_part(part, max(0, min(len(part) - 1, seen % len(part))), LIMITS)


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_whole_and_byte_by_byte_and_by_h11(case: str) -> None:
    raw, target = ACCEPTED[case]
    for end in range(1, len(raw) + 1):
        check_part(raw[:end], end - 1, LIMITS)
    assert check(raw) == target
    assert_h11_reads_the_same(raw)


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385])
def test_b10_the_header_block_has_an_exact_limit(size: int) -> None:
    line = b"GET / HTTP/1.1\r\n"
    around = len(b"Host: a\r\nX: \r\n\r\n")
    raw = line + b"Host: a\r\nX: " + b"x" * (size - around) + HEAD_END
    accepted = []
    for step in (len(raw), -(-len(raw) // 20), 1):
        try:
            for begin in range(0, len(raw), step):
                check_part(raw[: begin + step], begin, LIMITS)
            check_head(raw, LIMITS)
            accepted.append(True)
        except HeadersTooLarge:
            accepted.append(False)
    assert accepted == [size <= 16_384] * 3


@pytest.mark.parametrize("size", [16_384, 16_385])
def test_the_whole_check_has_the_same_limit_by_itself(size: int) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (size - 16) + HEAD_END
    assert len(raw.partition(b"\r\n")[2]) == size
    if size == 16_384:
        assert read_head(raw, LIMITS).target == b"/"
    else:
        with pytest.raises(HeadersTooLarge):
            check_head(raw, LIMITS)


@pytest.mark.parametrize("length", [8191, 8192, 8193])
@pytest.mark.parametrize("method", [b"G", b"OPTIONS", b"M" * 53, b"M" * 54])
def test_the_request_line_has_one_limit_however_it_arrives(length: int, method: bytes) -> None:
    raw = head(method + b" /" + b"a" * (length - 1) + b" HTTP/1.1")

    def is_accepted(step: int) -> bool:
        try:
            for begin in range(0, len(raw), step):
                check_part(raw[: begin + step], begin, LIMITS)
            check_head(raw, LIMITS)
        except TargetTooLong:
            return False
        return True

    fits = length <= 8192 and len(method) + length + 10 <= 8192 + 64
    assert [is_accepted(step) for step in (1, 100, 100_000)] == [fits] * 3
    if not fits:
        with pytest.raises(TargetTooLong):
            check_head(raw, LIMITS)


# Agreement with h11

token = st.sampled_from([b"GET", b"POST", b"X", b"M" * 70, b"a!#$%&'*+-.^_`|~9"])
targets = (b"/", b"*", b"/a?b=c#d", b"http://a/x", b"http://a?q", b"a:1", b"/" + b"x" * 39)
visible = st.lists(st.integers(0x21, 0x7E), max_size=45).map(bytes)
target = st.sampled_from(targets) | visible.map(lambda path: b"/" + path)
version = st.sampled_from([b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 "])
name = st.sampled_from(
    [b"Content-Length", b"Transfer-Encoding", b"Host", b"Connection", b"Expect", b"X-A", b"X ", b""]
) | st.binary(max_size=5)
values = (b"chunked", b"Chunked", b"5", b"05", b"1001", b"a", b"[::1]:80", b"close", b"a, b")
value = st.sampled_from(values) | st.binary(max_size=20)
space = st.sampled_from([b"", b" ", b"\t ", b"\r\n "])
field = st.builds(lambda n, s, v, e: n + b":" + s + v + e, name, space, value, space)
heads = st.builds(
    lambda m, t, v, h, f: b"\r\n".join([b" ".join([m, t, v]), *h, *f, b"", b""]),
    token,
    target,
    version,
    st.sampled_from([[b"Host: a"]] * 4 + [[], [b"Host: b:8"]]),
    st.lists(field, max_size=4),
)


@settings(max_examples=1500)
@given(heads, st.lists(st.integers(0, 400), max_size=6))
@example(b"M" * 53 + b" /" + b"x" * 39 + b" HTTP/1.1\r\nHost: a\r\n\r\n", [103, 104])
@example(b"GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n", [])
@example(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", [])
def test_guard_and_h11_accept_what_a_strict_parser_does_and_read_it_alike(
    raw: bytes, cuts: list[int]
) -> None:
    strict, accepted = (_read_or_refused(read, raw) for read in (strictly_parsed, read_head))
    assert accepted == strict
    if strict is None:
        return
    path = strict.target
    assert path.startswith(b"/") or path == b"*" or raw.startswith(b"CONNECT ")
    assert b"#" not in path
    event = assert_h11_reads_the_same(raw)
    assert strict.method.encode() == event.method
    assert strict.http_version == event.http_version
    assert in_lower_case(strict.headers) == list(event.headers)
    checked = 0
    for end in (*sorted(min(cut, len(raw)) for cut in cuts), len(raw)):
        check_part(raw[:end], checked, SMALL)
        checked = end


def _read_or_refused(read: Callable[[bytes, HeadLimits], Request], raw: bytes) -> Request | None:
    """The request, with codings in lower case as h11 gives them; None for a refusal."""
    try:
        request = read(raw, SMALL)
    except ProxyError:
        return None
    return replace(request, headers=tuple(in_lower_case(request.headers)))


@settings(max_examples=300)
@given(st.binary(max_size=150))
def test_no_bytes_make_the_check_fail_in_another_way(raw: bytes) -> None:
    for whole in (raw + HEAD_END, head(b"GET / HTTP/1.1", raw), head(raw)):
        with suppress(ProxyError):
            check(whole)


AMBIGUOUS = {
    "spaces": b"X:" + b" \t" * 8000 + b"\0",
    "words": b"X: " + b"a " * 8000 + b"\0",
    "a name without an end": b"a" * 16_000,
    "codings": b"Transfer-Encoding: " + b"a , " * 4000 + b"(",
    "a length": b"Content-Length: " + b"1, " * 5000,
    "a host": b"X: a\r\nHost: " + b"a." * 8000 + b"!",
    "an address": b"X: a\r\nHost: [" + b"::" * 8000 + b"]",
    "folds": b"X: a" + b"\r\n " * 5000,
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_no_pattern_backtracks_over_a_large_head(case: str) -> None:
    line = AMBIGUOUS[case]
    raw = head(b"GET / HTTP/1.1", line, host=b"X: a" if b"Host" in line else b"Host: a")
    for part in (raw, raw.replace(b"\0", b"")):
        with suppress(ProxyError):
            read_head(part, LIMITS)  # exponential time would never end
        check_part(part.rstrip(b"\r\n").replace(b"\0", b""), 0, LIMITS)


def test_the_largest_head_may_come_byte_by_byte() -> None:
    raw = head(b"GET /" + b"a" * 8191 + b" HTTP/1.1", *[b"X: " + b"v" * 155] * 99)
    for end in range(1, len(raw) + 1):
        check_part(raw[:end], end - 1, LIMITS)
    check_head(raw, LIMITS)
