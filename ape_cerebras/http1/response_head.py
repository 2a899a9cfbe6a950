"""The strict check of the heads that upstream answers with, on their raw bytes, sans I/O.

As strict as ``head`` is with requests, and for the same reason: h11 takes folded lines, bare LF,
control bytes, any number of lines, chunks in an HTTP/1.0 answer, Content-Length beside
Transfer-Encoding. An API behind a good edge sends none of these, so who does is something else, or
has been made to quote what somebody else wrote; and where the answer ends, the next one begins.
"""

import math
import re

from ..errors import InvalidResponse
from .bodies import BodyReader, SizedReader, reader_for
from .body import ChunkedReader
from .grammar import FIELD_LINE, HEAD_END, NEVER_RIGHT
from .messages import Headers
from .responses import BODILESS

__all__ = ("ResponseHead",)

_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
# The API and its edge send about 30 lines and 2 KiB. Envoy takes 100 lines and 60 KiB.
_BYTES_AT_MOST = 64 * 1024
_LINES_AT_MOST = 200
_INTERIM_AT_MOST = 20
_TRAILERS_AT_MOST = 16 * 1024  # bytes
_FOR_H11 = frozenset((b"connection", b"content-length", b"transfer-encoding"))
_NO_BODY = b"content-length: 0"


class ResponseHead:
    """What arrives in answer to one request, up to the end of the response's head."""

    def __init__(self) -> None:
        self._part = bytearray()
        self._checked = 0  # bytes of it
        self._interim = 0  # responses passed over
        self.status = 0
        """0 until the head is complete."""
        self.headers: Headers = ()
        """With lower-case names."""
        self.for_h11 = b""
        """A head too, of an answer that ends the connection where this one does; with a body only
        where that has no other end."""

    @property
    def complete(self) -> bool:
        return self.status != 0

    def body_reader(self) -> BodyReader | None:
        """What reads the body behind the head; None where the body's end is the connection's."""
        if self.status in BODILESS:
            return SizedReader(0)
        return reader_for(self.headers, _in_chunks)

    def feed(self, data: bytes) -> int:
        """How many bytes at the end of ``data`` come behind the head.

        Raises InvalidResponse as soon as no bytes to come could mend what has arrived.
        """
        self._part += data
        while (end := self._part.find(HEAD_END, max(0, self._checked - 3))) >= 0:
            self._check_size(end + len(HEAD_END))
            head = bytes(self._part[:end])
            del self._part[: end + len(HEAD_END)]
            self._checked = 0
            if self._read(head):
                return len(self._part)
            self._interim += 1
            if self._interim > _INTERIM_AT_MOST:
                raise InvalidResponse
        self._check_part()
        return 0

    def _check_part(self) -> None:
        self._check_size(len(self._part))
        if NEVER_RIGHT.search(self._part, max(0, self._checked - 1)):
            raise InvalidResponse
        if not _BEGINNING.startswith(self._part[: len(_BEGINNING)]):
            raise InvalidResponse
        self._checked = len(self._part)

    def _check_size(self, size: int) -> None:
        if size > _BYTES_AT_MOST:
            raise InvalidResponse

    def _read(self, head: bytes) -> bool:
        """Check and read a whole head; whether it is the response's, and not an interim one's."""
        if NEVER_RIGHT.search(head):
            raise InvalidResponse
        first, *lines = head.split(b"\r\n")
        match = _STATUS_LINE.fullmatch(first)
        if match is None or len(lines) > _LINES_AT_MOST:
            raise InvalidResponse
        headers = tuple(map(_field, lines))
        status = int(match[2])
        if status == 101:  # nobody asked for another protocol
            raise InvalidResponse
        _check_framing(headers, is_http_11=match[1] == b"1")
        if status >= 200:
            told = [
                line if name == b"connection" else _NO_BODY
                for line, (name, _) in zip(lines, headers, strict=True)
                if name in _FOR_H11
            ]
            self.for_h11 = b"\r\n".join((first, *told, b"", b""))
            self.headers, self.status = headers, status
        return self.complete


def _in_chunks() -> ChunkedReader:
    return ChunkedReader(math.inf, _TRAILERS_AT_MOST, math.inf)


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = FIELD_LINE.fullmatch(line)
    if match is None:
        raise InvalidResponse
    return match[1].lower(), match[2].rstrip(b" \t")


def _check_framing(headers: Headers, *, is_http_11: bool) -> None:
    """Where the body ends must be beyond doubt (RFC 9112 sections 6.1 to 6.3)."""
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if len(lengths) + len(codings) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise InvalidResponse
    if codings and (codings[0].lower() != b"chunked" or not is_http_11):
        raise InvalidResponse
