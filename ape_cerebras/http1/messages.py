"""The vocabulary of HTTP/1.1 messages that both directions share: a request's head, header fields,
reason phrases, the date, and the pieces of grammar that the strict checks are made of.
"""

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

__all__ = (
    "BODILESS",
    "FORBIDDEN",
    "HEAD_END",
    "PHRASES",
    "TEXT",
    "TOKEN",
    "Headers",
    "Request",
    "connection_options",
    "http_date",
    "parse_fields",
)

Headers = tuple[tuple[bytes, bytes], ...]

BODILESS = (204, 304)
"""Statuses whose responses have no body, whatever their heads say (RFC 9112 section 6.3)."""
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}

HEAD_END = b"\r\n\r\n"
TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""A token (RFC 9110 section 5.6.2), as a part of patterns."""
FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
"""Bytes that no head may hold, to be used with ``search``: control bytes, a CR without LF, an LF
without CR. A CR at the end of a part is allowed, because its LF may still arrive."""
TEXT = bytes((9, *range(0x20, 0x7F), *range(0x80, 0x100)))
"""All bytes that may stand in a line. Of a head without them just the ends of its lines are left,
two bytes each: so one ``translate`` finds the control bytes and the bare CR and LF."""
# A name, and a value of visible ASCII, SP, HTAB and obs-text (RFC 9110 section 5.5). A folded line
# (RFC 9112 section 5.2) does not match.
_FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*)")


@dataclass(slots=True)
class Request:
    """A request's head. ``headers`` have lower-case names and stand in the order they came.

    ``path`` is the target without its query. ``header(name)`` returns the last value of a field by
    its lower-case name, or None; it is a method of a dict, since every exchange looks up ten.
    """

    method: str
    target: bytes
    http_version: bytes
    headers: Headers
    path: bytes = field(init=False, repr=False)
    header: Callable[[bytes], bytes | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.path = self.target.partition(b"?")[0]
        self.header = dict(self.headers).get


def parse_fields(lines: Iterable[bytes]) -> Headers | None:
    """Parse the field lines of a head, or of a body's trailers; names in lower case. None where one
    of them is malformed."""
    fields = []
    for line in lines:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            return None
        fields.append((match[1].lower(), match[2].rstrip(b" \t")))
    return tuple(fields)


def connection_options(headers: Headers) -> set[bytes]:
    """The options in the Connection fields (RFC 9110 section 7.6.1), in lower case: ``close``,
    ``keep-alive``, and the fields that the sender declares hop-by-hop."""
    return {
        option.strip().lower()
        for name, value in headers
        if name == b"connection"
        for option in value.split(b",")
    }


def http_date() -> bytes:
    """The current time as the value of a Date field (RFC 9110 section 6.6.1)."""
    return _format_date(int(time.time()))


@lru_cache(maxsize=1)
def _format_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
