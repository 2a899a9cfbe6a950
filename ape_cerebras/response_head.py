"""The strict check of the heads that upstream answers with, on their raw bytes, sans I/O.

As strict as ``head`` is with requests, and for the same reason: h11 takes folded lines, bare LF,
control bytes, any number of lines, chunks in an HTTP/1.0 answer, Content-Length beside
Transfer-Encoding. An API behind a good edge sends none of these, so who does is something else, or
has been made to quote what somebody else wrote; and where the answer ends, the next one begins.
"""

import re

from .errors import InvalidAnswer
from .grammar import FIELD_LINE, HEAD_END, NEVER_RIGHT

__all__ = ("ResponseHead",)

_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_LENGTH = re.compile(rb"[0-9]{1,19}")
# The API and its edge send about 30 lines and 2 KiB. Envoy takes 100 lines and 60 KiB.
_BYTES_AT_MOST = 64 * 1024
_LINES_AT_MOST = 200
_INTERIM_AT_MOST = 20
_FRAMING = (b"content-length", b"transfer-encoding")


class ResponseHead:
    """What arrives in answer to one request, up to the end of the response's head."""

    def __init__(self) -> None:
        self._part = bytearray()
        self._checked = 0  # bytes of it
        self._interim = 0  # responses passed over
        self.complete = False

    def feed(self, data: bytes) -> int:
        """How many bytes at the end of ``data`` come behind the head.

        Raises InvalidAnswer as soon as no bytes to come could mend what has arrived.
        """
        self._part += data
        while (end := self._part.find(HEAD_END, max(0, self._checked - 3))) >= 0:
            self._check_size(end + len(HEAD_END))
            head = bytes(self._part[:end])
            del self._part[: end + len(HEAD_END)]
            self._checked = 0
            if _is_final(head):
                self.complete = True
                return len(self._part)
            self._interim += 1
            if self._interim > _INTERIM_AT_MOST:
                raise InvalidAnswer
        self._check_part()
        return 0

    def _check_part(self) -> None:
        self._check_size(len(self._part))
        if NEVER_RIGHT.search(self._part, max(0, self._checked - 1)):
            raise InvalidAnswer
        if not _BEGINNING.startswith(self._part[: len(_BEGINNING)]):
            raise InvalidAnswer
        self._checked = len(self._part)

    def _check_size(self, size: int) -> None:
        if size > _BYTES_AT_MOST:
            raise InvalidAnswer


def _is_final(head: bytes) -> bool:
    """Check a whole head; whether it is the response's, and not that of an interim one."""
    if NEVER_RIGHT.search(head):
        raise InvalidAnswer
    first, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    if match is None or len(lines) > _LINES_AT_MOST:
        raise InvalidAnswer
    framing = _framing_of(lines)
    if match[2].startswith(b"1"):
        if match[2] == b"101":  # nobody asked for another protocol
            raise InvalidAnswer
        return False
    _check_framing(framing, is_http_11=match[1] == b"1")
    return True


def _framing_of(lines: list[bytes]) -> dict[bytes, bytes]:
    """The fields that say where the body ends, by lower-case name."""
    framing: dict[bytes, bytes] = {}
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise InvalidAnswer
        name = match[1].lower()
        if name in _FRAMING:
            if name in framing:
                raise InvalidAnswer
            framing[name] = match[2].rstrip(b" \t")
    return framing


def _check_framing(framing: dict[bytes, bytes], *, is_http_11: bool) -> None:
    """Where the body ends must be beyond doubt (RFC 9112 sections 6.1 to 6.3)."""
    length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if length is not None and (coding is not None or not _LENGTH.fullmatch(length)):
        raise InvalidAnswer
    if coding is not None and (coding.lower() != b"chunked" or not is_http_11):
        raise InvalidAnswer
