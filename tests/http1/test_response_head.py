"""Upstream's response heads: which the guard and h11 behind it reject, how soon, and which pass."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_responses_end_alike, response_of_h11
from parser_checks import check_response_head

from ape_cerebras.errors import InvalidResponse
from ape_cerebras.http1.body import keeps_alive
from ape_cerebras.http1.response_head import ResponseGuard

OK = b"HTTP/1.1 200 OK\r\n"


def with_fields(*lines: bytes, first: bytes = OK) -> bytes:
    return first + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


# Complete heads.
REFUSED = {
    **{
        f"K7 {line!r}": line + b"\r\n\r\n"
        for line in (
            *(b"\0\1garbage", b"SSH-2.0-OpenSSH_9.2", b"HTTP/2 200", b"HTTP/2.0 200 OK"),
            *(b"ICY 200 OK", b"HTTP/1.1 200\tOK", b"HTTP/1.1  200 OK", b" HTTP/1.1 200 OK"),
            *(b"HTTP/1.1 20", b"HTTP/1.1 2000", b"HTTP/1.1 +20", b"HTTP/1.1", b"", b"\r\nX: y"),
            *(b"HTTP/1.1 000", b"HTTP/1.1 099", b"HTTP/1.1 600", b"HTTP/1.1 999 Odd"),
        )
    },
    "K8 large": with_fields(b"X: " + b"y" * 200_000),
    "K8 many": with_fields(*[b"X: y"] * 10_000),
    "K8 201": with_fields(*[b"X: y"] * 201),
    "K8 folded": with_fields(b"X: a", b" b"),
    "K8 NUL": with_fields(b"X: a\0b"),
    "K9 bare CR": with_fields(b"X: a\rSet-Cookie: b"),
    "K9 bare LF": with_fields(b"X: a\nSet-Cookie: b"),
    "bare LF throughout": b"HTTP/1.1 200 OK\nX: y\n\n\r\n\r\n",
    "no colon": with_fields(b"X"),
    "SP before the colon": with_fields(b"Content-Length : 5"),
    "K10": with_fields(b"Upgrade: x", first=b"HTTP/1.1 101 Switching Protocols\r\n"),
    "K15": with_fields(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "K16 two lengths": with_fields(b"Content-Length: 2", b"content-length: 3"),
    "K16 same length twice": with_fields(b"Content-Length: 2", b"content-length: 2"),
    "K16 coding": with_fields(b"Transfer-Encoding: gzip, chunked"),
    "K16 two codings": with_fields(*[b"Transfer-Encoding: chunked"] * 2),
    "K16 HTTP/1.0": with_fields(b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK\r\n"),
    **{
        f"length {length!r}": with_fields(b"Content-Length: " + length)
        for length in (b"", b"+5", b"-1", b"5, 5", b"0x5", b"5 5", b"9" * 20, b"\xb2")
    },
    "interim without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 2000,
    "a bad head behind an interim one": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 999 Odd\r\n\r\n",
    "a folded interim head": with_fields(b"X: a", b" b", first=b"HTTP/1.1 103 Early Hints\r\n"),
}

# Parts that nothing to come could mend.
REFUSED_AT_ONCE = {
    "K7": b"S",
    "K7 HTTP/2": b"HTTP/2",
    "K8": OK + b"X: " + b"y" * 70_000,
    "K8 NUL": OK + b"X: \0",
    "K9": OK + b"X: a\rS",
    "bare LF": b"HTTP/1.1 200 OK\n",
}

ACCEPTED = {
    "plain": with_fields(b"Content-Type: a/b", b"Content-Length: 2"),
    "chunked": with_fields(b"Transfer-Encoding:\tChunked "),
    "to the end of the connection": with_fields(first=b"HTTP/1.0 200 OK\r\n"),
    "no reason": with_fields(first=b"HTTP/1.1 200 \r\n"),
    "nor a space": with_fields(first=b"HTTP/1.1 404\r\n"),
    "obs-text": with_fields(b"X: \xe9", first=b"HTTP/1.1 500 \xe9\r\n"),
    "no value": with_fields(b"X:", b"X:  "),
    "200 lines": with_fields(*[b"X: y"] * 200),
    "64 KiB": with_fields(b"X: " + b"y" * (64 * 1024 - len(OK) - 7)),
    "behind interim ones": with_fields(b"Link: a", first=b"HTTP/1.1 103 Early Hints\r\n")
    + b"HTTP/1.1 100 Continue\r\n\r\n" * 19
    + with_fields(b"Content-Length: 0"),
}


def feed(raw: bytes, step: int) -> bool:
    """Pass a head through the guard and then to h11, as they stand in front of and in httpcore.
    Return whether it is complete with its last piece, and not before."""
    guard, arrived, end = ResponseGuard(), bytearray(), 0
    for begin in range(0, len(raw), step):
        assert not end
        arrived += raw[begin : begin + step]
        end = guard.end_of_head(arrived)
    if end and response_of_h11(raw) is None:
        raise InvalidResponse
    return end == len(raw)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("step", [1, 1000, 10**6])
def test_refused_however_it_arrives(case: str, step: int) -> None:
    with pytest.raises(InvalidResponse):
        feed(REFUSED[case], step)


@pytest.mark.parametrize("case", REFUSED_AT_ONCE)
@pytest.mark.parametrize("step", [1, 10**6])
def test_refused_while_it_is_still_arriving(case: str, step: int) -> None:
    with pytest.raises(InvalidResponse):
        feed(REFUSED_AT_ONCE[case], step)


@pytest.mark.parametrize("case", ACCEPTED)
@pytest.mark.parametrize("step", [1, 1000, 10**6])
def test_accepted_however_it_arrives(case: str, step: int) -> None:
    assert feed(ACCEPTED[case], step)
    assert_responses_end_alike(ACCEPTED[case])


def test_bytes_behind_the_head_are_not_checked() -> None:
    head = with_fields(b"Content-Length: 9")
    assert ResponseGuard().end_of_head(bytearray(head + b"\0\n\r\r\n\r\n..")) == len(head)


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\nX: y\r\n\r", b"HTTP/1.1 103 E\r\n\r\n"])
def test_a_head_that_is_not_complete_has_no_end(raw: bytes) -> None:
    assert ResponseGuard().end_of_head(bytearray(raw)) == 0


@pytest.mark.parametrize(
    ("version", "connection", "goes_on"),
    [
        (b"HTTP/1.1", b"", True),
        (b"HTTP/1.1", b"keep-alive", True),
        (b"HTTP/1.1", b"x, Close ", False),
        (b"HTTP/1.1", b"closed", True),
        (b"HTTP/1.0", b"", False),
        (b"HTTP/1.0", b"keep-alive", False),
    ],
)
def test_whether_a_connection_goes_on(version: bytes, connection: bytes, goes_on: bool) -> None:
    assert keeps_alive(version, ((b"connection", connection),)) == goes_on


line = st.sampled_from(
    [b"X: y", b"Content-Length: 5", b"Transfer-Encoding: chunked", b" X", b"X : y", b"X: \0"]
) | st.binary(max_size=12)
first = st.sampled_from([OK, b"HTTP/1.0 204 No\r\n", b"HTTP/1.1 600 A\r\n", b"HTTP/1.1 100 A\r\n"])
heads = st.lists(
    st.builds(lambda first, lines: with_fields(*lines, first=first), first, st.lists(line)),
    min_size=1,
    max_size=3,
).map(b"".join)


@settings(max_examples=800)
@given(heads, st.integers(1, 50))
def test_whatever_passes_is_what_h11_reads_and_ends_where_h11_ends_it(
    raw: bytes, step: int
) -> None:
    check_response_head(step, raw)
