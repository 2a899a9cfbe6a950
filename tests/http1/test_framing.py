"""h11's rules of framing: kept once for each kind of request and response."""

import pytest

from ape_cerebras.errors import BadRequest
from ape_cerebras.http1.framing import UNREADABLE, request_rules, response_rules

ASKS = b"POST / HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("lines", [b"GET / HTTP/1.1\r\n\r\n", b"\0\r\n\r\n", b"GET / HTTP/1.1\r\n"])
def test_a_head_that_h11_rejects_is_refused(lines: bytes, again: bool) -> None:
    with pytest.raises(BadRequest) as refusal:
        request_rules(lines)
    assert not refusal.value.keeps


def test_which_requests_await_100_continue() -> None:
    assert request_rules(ASKS + b"Expect: 100-continue\r\n\r\n").awaits_100_continue
    assert not request_rules(ASKS + b"\r\n").awaits_100_continue
    assert not request_rules(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").awaits_100_continue


@pytest.mark.parametrize(
    ("lines", "sized", "closing", "head", "end", "goes_on"),
    [
        (ASKS + b"\r\n", True, False, b"", b"", True),
        (ASKS + b"\r\n", False, False, b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", True),
        (ASKS + b"\r\n", True, True, b"connection: close\r\n", b"", False),
        (ASKS + b"Connection: close\r\n\r\n", True, False, b"Connection: close\r\n", b"", False),
        (b"GET / HTTP/1.0\r\n\r\n", False, False, b"Connection: close\r\n", b"", False),
    ],
)
def test_where_the_body_ends_and_whether_the_connection_goes_on(
    lines: bytes, sized: bool, closing: bool, head: bytes, end: bytes, goes_on: bool
) -> None:
    for _ in range(2):
        rules = response_rules(request_rules(lines), 200, sized=sized, closing=closing)
        assert rules == (b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", end, goes_on)


def test_an_unreadable_head_gets_a_response_that_closes() -> None:
    rules = response_rules(UNREADABLE, 400, sized=True, closing=True)
    assert rules == (b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n", b"", False)
