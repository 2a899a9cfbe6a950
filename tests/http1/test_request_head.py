"""Request heads: the refusals of fault cases A to D, and agreement with h11 on all that passes."""

from contextlib import suppress

import pytest
from head_cases import ACCEPTED, REFUSED, REFUSED_AT_ONCE, head
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import assert_h11_reads_the_same, assert_requests_end_alike, in_lower_case

from ape_cerebras.errors import HeadersTooLarge, ProxyError, TargetTooLong
from ape_cerebras.http1.messages import HEAD_END
from ape_cerebras.http1.request_head import HeadLimits, check_part, parse_head

LIMITS = HeadLimits(header_bytes=16_384, headers=100, target_bytes=8192, body_bytes=10 * 2**20)
SMALL = HeadLimits(header_bytes=300, headers=8, target_bytes=40, body_bytes=1000)


def check(raw: bytes, limits: HeadLimits = LIMITS) -> bytes:
    """As ``Downstream`` does it with a head that arrives in one piece."""
    if HEAD_END not in raw:
        check_part(raw, 0, limits)
    return parse_head(raw, limits)[0].target


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
        parse_head(raw, LIMITS)

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
            parse_head(raw, LIMITS)
            accepted.append(True)
        except HeadersTooLarge:
            accepted.append(False)
    assert accepted == [size <= 16_384] * 3


@pytest.mark.parametrize("size", [16_384, 16_385])
def test_the_whole_check_has_the_same_limit_by_itself(size: int) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (size - 16) + HEAD_END
    assert len(raw.partition(b"\r\n")[2]) == size
    if size == 16_384:
        assert parse_head(raw, LIMITS)[0].target == b"/"
    else:
        with pytest.raises(HeadersTooLarge):
            parse_head(raw, LIMITS)


@pytest.mark.parametrize("length", [8191, 8192, 8193])
@pytest.mark.parametrize("method", [b"G", b"OPTIONS", b"M" * 53, b"M" * 54])
def test_the_request_line_has_one_limit_however_it_arrives(length: int, method: bytes) -> None:
    raw = head(method + b" /" + b"a" * (length - 1) + b" HTTP/1.1")

    def is_accepted(step: int) -> bool:
        try:
            for begin in range(0, len(raw), step):
                check_part(raw[: begin + step], begin, LIMITS)
            parse_head(raw, LIMITS)
        except TargetTooLong:
            return False
        return True

    fits = length <= 8192 and len(method) + length + 10 <= 8192 + 64
    assert [is_accepted(step) for step in (1, 100, 100_000)] == [fits] * 3
    if not fits:
        with pytest.raises(TargetTooLong):
            parse_head(raw, LIMITS)


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
def test_what_passes_reads_alike_everywhere_and_is_refused_at_no_cut(
    raw: bytes, cuts: list[int]
) -> None:
    try:
        request, for_h11 = parse_head(raw, SMALL)
    except ProxyError:
        return
    path = request.target
    assert path.startswith(b"/") or path == b"*" or raw.startswith(b"CONNECT ")
    assert b"#" not in path
    event = assert_h11_reads_the_same(raw)
    assert request.method.encode() == event.method
    assert request.http_version == event.http_version
    assert in_lower_case(request.headers) == list(event.headers)
    assert_requests_end_alike(raw, request, for_h11)
    checked = 0
    for end in (*sorted(min(cut, len(raw)) for cut in cuts), len(raw)):
        check_part(raw[:end], checked, SMALL)
        checked = end


@settings(max_examples=300)
@given(st.binary(max_size=150))
def test_no_bytes_make_the_check_fail_in_another_way(raw: bytes) -> None:
    for whole in (raw + HEAD_END, head(b"GET / HTTP/1.1", raw), head(raw)):
        with suppress(ProxyError):
            check(whole)


def test_the_largest_head_may_come_byte_by_byte() -> None:
    raw = head(b"GET /" + b"a" * 8191 + b" HTTP/1.1", *[b"X: " + b"v" * 155] * 99)
    for end in range(1, len(raw) + 1):
        check_part(raw[:end], end - 1, LIMITS)
    parse_head(raw, LIMITS)
