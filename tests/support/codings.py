"""Bodies compressed as servers do it, and what they have in common with bombs."""

import gzip
import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

__all__ = ("CODINGS", "bomb", "compressed", "in_raw_deflate")


def _brotli(data: bytes) -> bytes:
    library: Any = pytest.importorskip("brotli")
    compressed: bytes = library.compress(data, quality=5)
    return compressed


def _zstd(data: bytes) -> bytes:
    # From 3.14 the standard library has it, and its backport is not installed.
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    library: Any = pytest.importorskip(name)
    compressed: bytes = library.compress(data)
    return compressed


def in_raw_deflate(data: bytes) -> bytes:
    """Without zlib's header, which some servers leave out."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


_BY_NAME: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "x-gzip": (b"X-GZip", gzip.compress),
    "two members": (b"gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "deflate": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", in_raw_deflate),
    "br": (b"br", _brotli),
    "zstd": (b"zstd", _zstd),
    "beside identity": (b"identity, gzip", gzip.compress),
}
CODINGS = tuple(_BY_NAME)

_MIB = 1024 * 1024


def _raw_blanks(size: int, end: bytes) -> bytes:
    """A MiB of blanks is compressed once, and repeated: 100 of them take a fifth of the CPU, their
    checksum included, in a stream that is 2 % longer."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    # A full flush ends at a whole byte, and what follows refers to nothing before it.
    block = compressor.compress(b" " * _MIB) + compressor.flush(zlib.Z_FULL_FLUSH)
    last = compressor.compress(b" " * (size % _MIB) + end) + compressor.flush()
    return block * (size // _MIB) + last


def _checksum(add: Callable[[bytes, int], int], found: int, size: int, end: bytes) -> int:
    """Added up block by block: all the blanks at once would be so much memory that the system takes
    longer to give it than the sum does."""
    block = b" " * _MIB
    for _ in range(size // _MIB):
        found = add(block, found)
    return add(b" " * (size % _MIB) + end, found)


def _gzip_blanks(size: int, end: bytes) -> bytes:
    footer = struct.pack("<LL", _checksum(zlib.crc32, 0, size, end), size + len(end))
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + _raw_blanks(size, end) + footer


def _zlib_blanks(size: int, end: bytes) -> bytes:
    checksum = _checksum(zlib.adler32, 1, size, end)
    return b"\x78\x9c" + _raw_blanks(size, end) + checksum.to_bytes(4, "big")


def _two_members_of_blanks(size: int, end: bytes) -> bytes:
    return gzip.compress(b" " * 9) + _gzip_blanks(size - 9, end)


_BLANKS: dict[str, Callable[[int, bytes], bytes]] = {
    "gzip": _gzip_blanks,
    "x-gzip": _gzip_blanks,
    "two members": _two_members_of_blanks,
    "deflate": _zlib_blanks,
    "raw deflate": _raw_blanks,
    "beside identity": _gzip_blanks,
}


def compressed(coding: str, data: bytes) -> tuple[bytes, bytes]:
    """The value of Content-Encoding, and the compressed bytes. Skips where a library is missing."""
    name, compress = _BY_NAME[coding]
    return name, compress(data)


@cache
def bomb(coding: str, size: int, end: bytes = b"") -> tuple[bytes, bytes]:
    """The same of so many blanks and an ``end``."""
    if size < _MIB or coding not in _BLANKS:
        return compressed(coding, b" " * size + end)
    return _BY_NAME[coding][0], _BLANKS[coding](size, end)
