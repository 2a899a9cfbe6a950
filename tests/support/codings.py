"""Bodies compressed as servers do it, and what they have in common with bombs."""

import gzip
import zlib
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ("CODINGS", "bomb", "compressed", "in_raw_deflate")


def _brotli(data: bytes) -> bytes:
    library: Any = pytest.importorskip("brotli")
    compressed: bytes = library.compress(data, quality=5)
    return compressed


def _zstd(data: bytes) -> bytes:
    library: Any = pytest.importorskip("backports.zstd")
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


def compressed(coding: str, data: bytes) -> tuple[bytes, bytes]:
    """The value of Content-Encoding, and the compressed bytes. Skips where a library is missing."""
    name, compress = _BY_NAME[coding]
    return name, compress(data)


def bomb(coding: str, size: int, end: bytes = b"") -> tuple[bytes, bytes]:
    """The same of so many blanks and an ``end``."""
    return compressed(coding, b" " * size + end)
