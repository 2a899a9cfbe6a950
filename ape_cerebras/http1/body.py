"""Message bodies read strictly, sans I/O: chunked (RFC 9112 section 7.1), or of a known length.

h11 reads chunked bodies too, but accepts input that two parsers can read differently: blanks behind
a size, malformed extensions, a bare CR or NUL in them; and it sets no limit on extensions, which
can outweigh the data a thousand times. Here each of these is rejected as soon as it shows.
Extensions and trailers are checked and dropped.

A response's body is read so. A read brings many chunks at once: h11 returns them one by one and
takes 12 µs for each, and 10 to 17 for a body in a single piece; here they come in one piece, at
2 µs a chunk of 200 bytes (CPython 3.11, one core of a server). A request's body passes here before
h11 reads it, and the errors speak of requests; the reader of a response translates them.

A compressed body passes as it is. Whoever has to look into it gets a copy from ``ContentDecoder``.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

from ..errors import BadRequest, BodyTooLarge, HeadersTooLarge
from .messages import BODILESS, FORBIDDEN, TOKEN, Headers, parse_fields

__all__ = (
    "BodyReader",
    "ChunkedReader",
    "ContentDecoder",
    "SizedReader",
    "decoder_for",
    "idle_timeout_in",
    "keeps_alive",
    "response_reader",
)

_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
# "Bad whitespace" around ";" and "=" is for old senders' sake only, and none of them sends
# extensions, so none is accepted.
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*\r\n"
)
_BEGINNING_OF_SIZE_LINE = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:[;\r].*)?)?", re.DOTALL)
_WHOLE_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[;\r]")
_PLAIN_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
# Sizes, extensions and line ends of a request may weigh as much as its data, and so many bytes
# more: plenty for a body in small pieces, and a limit for one that is mostly extensions
# (CVE-2023-39326 in Go).
_FRAMING_BESIDE_DATA = 16 * 1024
_MAX_LINE = 16 * 1024
_MAX_CHUNKS = 1000  # at once: a read can hold ten thousand, which would hold the event loop
_MAX_RESPONSE_TRAILERS = 16 * 1024
_ANNOUNCED_TIMEOUT = re.compile(
    rb"(?:^|[,;])[ \t]*timeout[ \t]*=[ \t]*\"?([0-9]{1,9})", re.IGNORECASE
)
_CLOSE = re.compile(rb"(?:^|,)[ \t]*close[ \t]*(?:,|$)", re.IGNORECASE)
_MALFORMED = "The request's framing is malformed."
# A decoder becomes blind where a body is much larger decoded. Streams of tokens, each with the same
# members around it, are 30 to 100 times as large; a bomb is a thousand times (gzip) and more.
_MOST_EXPANDED = 256
_EXPANDED_ANYWAY = 1024 * 1024  # bytes
_MOST_AT_ONCE = 4 * 1024 * 1024  # bytes; they are decoded in 15 ms
_GZIP, _ZLIB, _RAW = 31, zlib.MAX_WBITS, -zlib.MAX_WBITS  # window bits, as zlib takes them
_MOSTLY_FRAMING = "The request body is more framing than body."


class SizedReader:
    """Reads a body of ``size`` bytes.

    Of every reader: ``ended`` is whether the body is complete; ``paused`` whether the last ``take``
    left data that it could have taken, so as not to hold the event loop.
    """

    paused = False

    def __init__(self, size: int) -> None:
        self._missing = size
        self.ended = not size

    def take_only_chunk(self, arrived: bytes) -> bytes:
        """Return the data of ``arrived`` if it is a chunk and nothing else, between two chunks.
        Otherwise return nothing, and take nothing: then it is for ``take``."""
        return b""

    def take(self, arrived: bytearray) -> bytes:
        """Remove bytes of the body from ``arrived``; return the data in them. Once the body has
        ended, the bytes left there are not its own."""
        data = bytes(arrived[: self._missing])
        del arrived[: len(data)]
        self._missing -= len(data)
        self.ended = not self._missing
        return data


_Step = Callable[["ChunkedReader", bytearray, int, bytearray], int]


class ChunkedReader:
    """Reads a chunked body. ``take`` raises BadRequest, BodyTooLarge and HeadersTooLarge.

    All limits are bytes. ``framing_beside_data``: by how much the framing may outweigh the data.
    """

    def __init__(
        self,
        max_body: float,
        max_trailers: int,
        framing_beside_data: float = _FRAMING_BESIDE_DATA,
    ) -> None:
        self._max_body = max_body
        self._max_trailers = max_trailers
        self._framing_beside_data = framing_beside_data
        self._declared = self._framing = self._trailers = 0  # bytes so far
        self._left = 0  # bytes of the current chunk
        self._chunks_left = 0  # before a pause
        self._read: _Step = ChunkedReader._read_size  # unbound: a bound method would be a cycle
        self.ended = self.paused = False

    def take_only_chunk(self, arrived: bytes) -> bytes:
        """See ``SizedReader``. Most reads of a stream at its pace bring one chunk, whose size line
        is as all servers write it: without zeros in front, extensions, and capitals."""
        end = arrived.find(b"\r\n")
        size = len(arrived) - end - 4
        if size <= 0 or self._read is not ChunkedReader._read_size:
            return b""
        if arrived[:end] != b"%x" % size or not arrived.endswith(b"\r\n"):
            return b""
        self._count(size, end + 4)
        return arrived[end + 2 : -2]

    def take(self, arrived: bytearray) -> bytes:
        """See ``SizedReader``; of very many chunks only the first are read before a pause."""
        data = bytearray()
        at, end = -1, 0
        self._chunks_left = _MAX_CHUNKS
        while end > at and not self.ended and self._chunks_left > 0:
            at = end
            if self._read is ChunkedReader._read_size:
                at = self._take_whole_chunks(arrived, at, data)
            if at < len(arrived):
                end = self._read(self, arrived, at, data)
        at = max(at, end)
        self.paused = self._chunks_left <= 0
        del arrived[:at]
        return bytes(data)

    def _take_whole_chunks(self, arrived: bytearray, at: int, data: bytearray) -> int:
        """Read the bulk of a body from position ``at`` on: chunks that have arrived whole and have
        no extensions. Return the position behind the last of them."""
        first, framing, left = at, 0, self._chunks_left
        while left > 0 and (line := _PLAIN_SIZE_LINE.match(arrived, at)):
            left -= 1
            begin = line.end()
            end = begin + int(line[1], 16)
            if end == begin or not arrived.startswith(b"\r\n", end):
                break
            data += arrived[begin:end]
            framing += begin - at + 2
            at = end + 2
        self._chunks_left = left
        self._count(at - first - framing, framing)
        return at

    def _count(self, declared: int, framing: int) -> None:
        self._declared += declared
        if self._declared > self._max_body:
            raise BodyTooLarge
        self._framing += framing
        if self._framing > self._declared + self._framing_beside_data:
            raise BadRequest(_MOSTLY_FRAMING, keeps=False)

    # Each step reads one element from position ``at`` on and returns the position behind it; the
    # same position if the element has not arrived whole.

    def _read_size(self, arrived: bytearray, at: int, data: bytearray) -> int:
        line = _SIZE_LINE.match(arrived, at)
        if line is None:
            self._check_part_of_line(arrived[at:])
            return at
        self._chunks_left -= 1
        size = int(line[1], 16)
        length = line.end() - at
        if length - 1 > _MAX_LINE:  # as long as where the last byte has not arrived
            raise BadRequest(_MOSTLY_FRAMING, keeps=False)
        self._count(size, length + 2)  # the line, and the CRLF behind the data
        self._left = size
        self._read = ChunkedReader._read_data if size else ChunkedReader._read_trailer
        return line.end()

    def _check_part_of_line(self, part: bytearray) -> None:
        """Reject an incomplete size line if no further bytes could mend it."""
        if b"\r\n" in part or FORBIDDEN.search(part) or not _BEGINNING_OF_SIZE_LINE.fullmatch(part):
            raise BadRequest(_MALFORMED, keeps=False)
        size = _WHOLE_SIZE.match(part)
        declared = self._declared + (int(size[1], 16) if size else 0)
        framing = self._framing + len(part)
        if len(part) > _MAX_LINE or (size and framing > declared + self._framing_beside_data):
            raise BadRequest(_MOSTLY_FRAMING, keeps=False)

    def _read_data(self, arrived: bytearray, at: int, data: bytearray) -> int:
        end = min(at + self._left, len(arrived))
        data += arrived[at:end]
        self._left -= end - at
        if not self._left:
            self._read = ChunkedReader._read_end_of_data
        return end

    def _read_end_of_data(self, arrived: bytearray, at: int, data: bytearray) -> int:
        """Exactly CRLF: any other bytes here, unchecked, smuggle a request (CVE-2025-43859)."""
        end = arrived[at : at + 2]
        if not b"\r\n".startswith(end):
            raise BadRequest(_MALFORMED, keeps=False)
        if len(end) < 2:
            return at
        self._read = ChunkedReader._read_size
        return at + 2

    def _read_trailer(self, arrived: bytearray, at: int, data: bytearray) -> int:
        end = arrived.find(b"\r\n", at)
        line = bytes(arrived[at:] if end < 0 else arrived[at:end])
        if self._trailers + len(line) + 2 > self._max_trailers:
            raise HeadersTooLarge
        if end < 0:
            if FORBIDDEN.search(line):
                raise BadRequest(_MALFORMED, keeps=False)
            return at
        self._trailers += len(line) + 2
        if not line:
            self.ended = True
        elif parse_fields((line,)) is None:
            raise BadRequest(_MALFORMED, keeps=False)
        return end + 2


BodyReader = SizedReader | ChunkedReader


def response_reader(status: int, values: Mapping[bytes, bytes]) -> BodyReader | None:
    """The reader of the body behind a checked head, which names one length or one coding at most
    (RFC 9112 section 6.3); None where the connection's end is the body's. ``values``: those of the
    head's fields, by lower-case name."""
    if status in BODILESS:
        return SizedReader(0)
    length = values.get(b"content-length")
    if length is not None:
        return SizedReader(int(length))
    if b"transfer-encoding" in values:
        return ChunkedReader(math.inf, _MAX_RESPONSE_TRAILERS, math.inf)
    return None


def keeps_alive(http_version: bytes, headers: Headers) -> bool:
    """Whether the connection goes on behind a response whose body has an end of its own (RFC 9112
    section 9.3), by h11's rule: not in HTTP/1.0. Names are in lower case.

    httpcore knows that only where it has read the body, too, and cannot be asked.
    """
    for name, value in headers:
        if name == b"connection" and _CLOSE.search(value):
            return False
    return http_version == b"HTTP/1.1"


def idle_timeout_in(headers: Headers) -> float:
    """The seconds for which the server keeps an idle connection, where it announces them in
    ``Keep-Alive: timeout=N`` (RFC 2068 section 19.7.1.1; Node's servers send it); else infinity."""
    for name, value in headers:
        if name == b"keep-alive" and (found := _ANNOUNCED_TIMEOUT.search(value)):
            return float(found[1])
    return math.inf


# Content codings (RFC 9110 section 8.4.1)


class ContentDecoder:
    """Decodes a copy of a compressed body, piece by piece, for those who look into it.

    ``latest``: what the latest piece decoded to. ``blind``: whether the rest cannot be decoded,
    because the coding is not known here, or the bytes are not of it, or expand like a bomb.
    ``decode`` never raises.
    """

    def __init__(self, coding: bytes) -> None:
        self._open = _OPENERS.get(coding)
        self._decoder: Any = None  # of the member under way; a body may have several
        self._start = b""
        self._allowed = _EXPANDED_ANYWAY  # bytes that may still be decoded
        self.latest = b""
        self.blind = self._open is None

    def decode(self, piece: bytes) -> bytes:
        """Return what the next piece of the body decodes to, and nothing once it is blind."""
        self.latest = b""
        if self.blind:
            return b""
        self._allowed += _MOST_EXPANDED * len(piece)
        most = min(self._allowed, _MOST_AT_ONCE)
        try:
            self.latest = self._decode(piece, most)
        except Exception:  # of libraries that need not be here, and have no error in common
            self.blind = True
        self._allowed -= len(self.latest)
        self.blind = self.blind or len(self.latest) >= most
        return self.latest

    def _decode(self, piece: bytes, most: int) -> bytes:
        decoded = bytearray()
        while piece and len(decoded) < most:
            if self._decoder is None:
                self._start += piece
                if len(self._start) < 2:  # too few to tell the kinds of deflate apart
                    break
                piece, self._start = self._start, b""
                self._decoder = self._open(piece) if self._open else None
            decoded += self._decoder.decompress(piece, most - len(decoded))
            piece = b""
            if self._decoder.eof:
                piece, self._decoder = self._decoder.unused_data, None
        return bytes(decoded)


def _open_deflate(start: bytes) -> Any:
    """Return a decoder of the zlib format, which the coding is by its definition, or of the bare
    format, which some servers send."""
    is_zlib = start[0] & 0x0F == 8 and int.from_bytes(start[:2], "big") % 31 == 0
    return zlib.decompressobj(_ZLIB if is_zlib else _RAW)


class _Brotli:
    """Brotli's decoder with the methods of zlib's; it has but one member. Needs brotli 1.2, whose
    output can be limited."""

    eof, unused_data = False, b""

    def __init__(self) -> None:
        self._decoder = _library("brotli").Decompressor()

    def decompress(self, piece: bytes, most: int) -> bytes:
        decoded: bytes = self._decoder.process(piece, output_buffer_limit=most)
        return decoded


def _open_zstd(_: bytes) -> Any:
    return _library("compression.zstd", "backports.zstd").ZstdDecompressor()


@lru_cache(maxsize=2)
def _library(*names: str) -> Any:
    """Return the first of these modules that is installed. Raises ImportError."""
    for name in names[:-1]:
        try:
            return import_module(name)
        except ImportError:
            continue
    return import_module(names[-1])


_OPENERS: dict[bytes, Callable[[bytes], Any]] = {
    b"gzip": lambda _: zlib.decompressobj(_GZIP),
    b"x-gzip": lambda _: zlib.decompressobj(_GZIP),
    b"deflate": _open_deflate,
    b"br": lambda _: _Brotli(),
    b"zstd": _open_zstd,
}


def decoder_for(headers: Headers) -> ContentDecoder | None:
    """Return a decoder of the body behind a head; None where it is not compressed. That of several
    codings, one over the other, is blind."""
    values = [value for name, value in headers if name == b"content-encoding"]
    if not values:
        return None
    codings = [coding.strip(b" \t").lower() for coding in b",".join(values).split(b",")]
    applied = [coding for coding in codings if coding not in (b"", b"identity")]
    return ContentDecoder(b",".join(applied)) if applied else None
