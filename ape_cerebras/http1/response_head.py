"""The strict guard on upstream's response heads: checks on their raw bytes, sans I/O.

h11, inside httpcore, parses the head. The guard sees its raw bytes first and only rejects: folded
lines, bare CR and LF, control bytes, any number of lines, other versions of HTTP, chunks in an
HTTP/1.0 response, Content-Length beside Transfer-Encoding. h11 accepts all of these. An API behind
a good edge sends none of them. Whatever sends one is something else, or quotes what somebody else
wrote; and where a response seems to end, the next one seems to begin.

Field names, and whatever else h11 checks as strictly, are left to it.
"""

import re

from ..errors import InvalidResponse
from .messages import FORBIDDEN, HEAD_END, TEXT

__all__ = ("ResponseGuard",)

_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r]*)?\r")
# A folded line; a field that says where the body ends, and its value.
_NOTABLE = re.compile(
    rb"\r\n(?:([ \t])|(content-length|transfer-encoding):([^\r]*))", re.IGNORECASE
)
_LENGTH = re.compile(rb"[0-9]{1,19}")
# The API and its edge send about 30 lines and 2 KiB. Envoy accepts 100 lines and 60 KiB.
_MAX_BYTES = 64 * 1024
_MAX_LINES = 200
_MAX_INTERIM = 20


class ResponseGuard:
    """Checks what arrives in response to one request, up to the end of the response's head.

    ``status``: of the latest head that has arrived whole; 0 before the first.
    """

    def __init__(self) -> None:
        self.status = 0
        self._begin = self._checked = 0  # of the current head; how far it has been searched
        self._interim = 0  # interim responses so far

    def end_of_head(self, arrived: bytearray) -> int:
        """The position behind the head in all that has ``arrived``, interim responses included; 0
        while some of it is missing.

        Raises InvalidResponse as soon as no further bytes could mend the head.
        """
        while (end := arrived.find(HEAD_END, max(self._begin, self._checked - 3))) >= 0:
            self._check(bytes(arrived[self._begin : end + 2]))
            self._begin = self._checked = end + len(HEAD_END)
            if self.status >= 200:
                return self._begin
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise InvalidResponse("malformed_head")
        self._check_part(arrived)
        return 0

    def _check_part(self, arrived: bytearray) -> None:
        """Reject the beginning of a head if no further bytes could mend it."""
        begin = arrived[self._begin : self._begin + len(_BEGINNING)]
        if not _BEGINNING.startswith(begin) or len(arrived) - self._begin > _MAX_BYTES:
            raise InvalidResponse("malformed_head")
        if FORBIDDEN.search(arrived, max(self._begin, self._checked - 1)):
            raise InvalidResponse("malformed_head")
        self._checked = len(arrived)

    def _check(self, lines: bytes) -> None:
        """Check the lines of a head, each with its CRLF."""
        match = _STATUS_LINE.match(lines)
        count = lines.count(b"\r\n")
        if (
            match is None
            or len(lines) + 2 > _MAX_BYTES
            or count > _MAX_LINES + 1  # the status line
            or len(lines.translate(None, TEXT)) != 2 * count
            or not _is_clear(_NOTABLE.findall(lines), is_http_11=match[1] == b"1")
        ):
            raise InvalidResponse("malformed_head")
        self.status = int(match[2])
        if self.status == 101:  # nobody asked for another protocol
            raise InvalidResponse("malformed_head")


def _is_clear(notable: list[tuple[bytes, bytes, bytes]], *, is_http_11: bool) -> bool:
    """Whether no line is folded, and the body's end is beyond doubt (RFC 9112 sections 5.2, 6.1 to
    6.3)."""
    if not notable:
        return True
    folded, name, value = notable[0]
    if folded or len(notable) > 1:
        return False
    value = value.strip(b" \t")
    if name[0] in b"cC":
        return _LENGTH.fullmatch(value) is not None
    return is_http_11 and value.lower() == b"chunked"
