"""A body in chunks (RFC 9112 section 7.1), read strictly, sans I/O.

h11 reads such bodies as well, but takes what two parsers can read differently: blanks behind a
size, extensions that are none, a bare CR or NUL in them; and it knows no end of extensions, which
can outweigh the body a thousand times. Here each of these is refused as soon as it shows.

Nothing but the data is given on: extensions and trailers are checked and dropped.

What is raised speaks of requests; who reads an answer says it in other words. A read brings many
chunks of an answer at once: h11 gives them one by one, and takes 12 µs for each; here they come in
one piece, and a chunk takes 2 µs (200 bytes each, CPython 3.11, one core of a server).
"""

import re
from collections.abc import Callable

from ..errors import BadRequest, BodyTooLarge, HeadersTooLarge
from .grammar import FIELD_LINE, NEVER_RIGHT, TOKEN

__all__ = ("ChunkedReader",)

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
# Blanks around ";" and "=" are "bad whitespace", for old senders' sake only: none of them sends
# extensions, so there is none here.
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*\r\n"
)
_BEGINNING_OF_SIZE_LINE = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:[;\r].*)?)?", re.DOTALL)
_WHOLE_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[;\r]")
_WHOLE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
# Sizes, extensions and line ends of a request may weigh as much as the data, and so many bytes
# more: plenty for a body in small pieces, and an end to one that is mostly extensions
# (CVE-2023-39326 in Go).
_FRAMING_BESIDE_DATA = 16 * 1024
_LINE_AT_MOST = 16 * 1024
_AT_ONCE = 1000  # chunks: a read can hold ten thousand, which would hold the event loop


_Step = Callable[["ChunkedReader", bytearray, int, bytearray], int]


class ChunkedReader:
    """Reads one body. ``take`` raises BadRequest, BodyTooLarge and HeadersTooLarge.

    All sizes are bytes. ``framing_beside_data``: by how much the framing may outweigh the data.
    """

    def __init__(
        self,
        body_at_most: float,
        trailers_at_most: int,
        framing_beside_data: float = _FRAMING_BESIDE_DATA,
    ) -> None:
        self._body_at_most = body_at_most
        self._trailers_at_most = trailers_at_most
        self._framing_beside_data = framing_beside_data
        self._declared = self._framing = self._trailers = 0  # bytes so far
        self._left = 0  # of the chunk under way
        self._more = 0  # chunks that may be read before a pause
        self._read: _Step = ChunkedReader._read_size  # not bound: that would be a cycle
        self.ended = False
        self.paused = False
        """Whether the last ``take`` left something to be taken from what has arrived."""

    def take(self, arrived: bytearray) -> bytes:
        """The data that there is in ``arrived``, or in the first of very many chunks; what has been
        read is taken off it. Once the body has ``ended`` what is left there is the next request's.
        """
        data = bytearray()
        at, end = -1, 0
        self._more = _AT_ONCE
        while end > at and not self.ended and self._more > 0:
            at = self._take_whole_chunks(arrived, end, data)
            if at < len(arrived):
                end = self._read(self, arrived, at, data)
        at = max(at, end)
        self.paused = self._more <= 0
        del arrived[:at]
        return bytes(data)

    def _take_whole_chunks(self, arrived: bytearray, at: int, data: bytearray) -> int:
        """Read what is most of a body, from position ``at`` on: chunks that are all there and have
        no extensions. The position behind the last of them."""
        if self._read is not ChunkedReader._read_size:
            return at
        first, framing, more = at, 0, self._more
        while more > 0 and (line := _WHOLE_LINE.match(arrived, at)):
            more -= 1
            begin = line.end()
            end = begin + int(line[1], 16)
            if end == begin or arrived[end : end + 2] != b"\r\n":
                break
            data += arrived[begin:end]
            framing += begin - at + 2
            at = end + 2
        self._more = more
        self._count(at - first - framing, framing)
        return at

    def _count(self, declared: int, framing: int) -> None:
        self._declared += declared
        if self._declared > self._body_at_most:
            raise BodyTooLarge
        self._framing += framing
        if self._framing > self._declared + self._framing_beside_data:
            raise _mostly_framing()

    # Each reads one element from position ``at`` on, and gives the position behind it; the same one
    # where the element has not arrived yet.

    def _read_size(self, arrived: bytearray, at: int, data: bytearray) -> int:
        line = _SIZE_LINE.match(arrived, at)
        if line is None:
            self._check_part_of_line(arrived[at:])
            return at
        self._more -= 1
        size = int(line[1], 16)
        length = line.end() - at
        _check_length(length - 1)  # as where the last byte is yet to come
        self._count(size, length + 2)  # the line, and the data's end
        self._left = size
        self._read = ChunkedReader._read_data if size else ChunkedReader._read_trailer
        return line.end()

    def _check_part_of_line(self, part: bytearray) -> None:
        """Refuse what no bytes to come could make a size line of."""
        if b"\r\n" in part or NEVER_RIGHT.search(part):
            raise _malformed()
        if not _BEGINNING_OF_SIZE_LINE.fullmatch(part):
            raise _malformed()
        _check_length(len(part))
        if size := _WHOLE_SIZE.match(part):
            declared = self._declared + int(size[1], 16)
            if self._framing + len(part) > declared + self._framing_beside_data:
                raise _mostly_framing()

    def _read_data(self, arrived: bytearray, at: int, data: bytearray) -> int:
        end = min(at + self._left, len(arrived))
        data += arrived[at:end]
        self._left -= end - at
        if not self._left:
            self._read = ChunkedReader._read_end_of_data
        return end

    def _read_end_of_data(self, arrived: bytearray, at: int, data: bytearray) -> int:
        """Exactly CRLF: bytes in its place that go unchecked are a way to smuggle
        (CVE-2025-43859)."""
        end = arrived[at : at + 2]
        if not b"\r\n".startswith(end):
            raise _malformed()
        if len(end) < 2:
            return at
        self._read = ChunkedReader._read_size
        return at + 2

    def _read_trailer(self, arrived: bytearray, at: int, data: bytearray) -> int:
        end = arrived.find(b"\r\n", at)
        line = arrived[at:] if end < 0 else arrived[at:end]
        if self._trailers + len(line) + 2 > self._trailers_at_most:
            raise HeadersTooLarge
        if end < 0:
            if NEVER_RIGHT.search(line):
                raise _malformed()
            return at
        self._trailers += len(line) + 2
        if not line:
            self.ended = True
        elif not FIELD_LINE.fullmatch(line):
            raise _malformed()
        return end + 2


def _check_length(length: int) -> None:
    if length > _LINE_AT_MOST:
        raise _mostly_framing()


def _mostly_framing() -> BadRequest:
    return BadRequest("The request body is more framing than body.", keeps=False)


def _malformed() -> BadRequest:
    return BadRequest("The request's framing is malformed.", keeps=False)
