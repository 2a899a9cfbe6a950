"""h11's rules on how a response to a client is framed, and whether its connection goes on after it.

``http1/request_head`` has checked a head before h11 sees it, and ``http1/body`` reads bodies. So
h11 gets only the lines of a request that the rules depend on (version, ``Connection: close``,
``Expect``), and a response without its other fields and without its body. Such pairs are few, and
the table keeps the rules of each. Without the table h11 took a fifth of the CPU of a plain request
(32 connections, CPython 3.11, one core of a virtual server).
"""

from functools import lru_cache
from typing import NamedTuple

import h11

from ..errors import BadRequest
from .messages import PHRASES

__all__ = (
    "UNREADABLE",
    "RequestRules",
    "ResponseRules",
    "request_rules",
    "response_rules",
)

_ENTRIES = 64  # each no longer than a head may be
_CLOSE = (b"connection", b"close")
_EMPTY = (b"content-length", b"0")


class RequestRules(NamedTuple):
    """The part of a request that decides on its response's framing: the lines that h11 got, method
    and version, and whether the client holds its body back until it gets ``100 Continue``."""

    lines: bytes
    method: bytes
    http_version: bytes
    awaits_100_continue: bool


class ResponseRules(NamedTuple):
    """How to frame a response. ``head``: the status line and the fields that h11 added. ``end``:
    the bytes behind a chunked body; empty for any other. ``keeps_alive``: whether the connection
    goes on after it."""

    head: bytes
    end: bytes
    keeps_alive: bool


UNREADABLE = RequestRules(b"", b"", b"", False)
"""Of a request whose head could not be read."""


@lru_cache(maxsize=_ENTRIES)
def request_rules(lines: bytes) -> RequestRules:
    """Ask h11 about a request. ``lines`` is a head of the lines that matter. Raises BadRequest."""
    http = h11.Connection(h11.SERVER)
    request = _receive(http, lines)
    awaits = http.they_are_waiting_for_100_continue
    return RequestRules(lines, request.method, request.http_version, awaits)


def _receive(http: h11.Connection, lines: bytes) -> h11.Request:
    http.receive_data(lines)
    try:
        request = http.next_event()
    except h11.RemoteProtocolError as error:
        # h11 raises it from within itself; its frames would live until the next collection.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        request = None
    if not isinstance(request, h11.Request):
        raise BadRequest("The request head is malformed.", keeps=False)
    return request


@lru_cache(maxsize=_ENTRIES)
def response_rules(
    request: RequestRules, status: int, *, sized: bool, closing: bool
) -> ResponseRules:
    """Ask h11 about a response to ``request``. ``sized``: whether the caller adds a Content-Length.
    ``closing``: whether we want the connection to end with it."""
    http = h11.Connection(h11.SERVER)
    if request.lines:
        _receive(http, request.lines)
        http.next_event()  # the end of the message
    # To h11 a body of known length is an empty one; the caller writes the true length.
    fields = [*((_EMPTY,) if sized else ()), *((_CLOSE,) if closing else ())]
    reason = PHRASES.get(status, b"")
    head = http.send(h11.Response(status_code=status, headers=fields, reason=reason)) or b""
    end = http.send(h11.EndOfMessage()) or b""
    return ResponseRules(head.replace(b"%b: %b\r\n" % _EMPTY, b""), end, http.our_state is h11.DONE)
