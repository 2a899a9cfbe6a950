"""Large request bodies, compressed for the way upstream where the settings ask for that.

On a slow uplink a long prompt is on its way for longer than it takes to compress it. Level 1 of
gzip makes a third of a prompt of 1 MB (prose and code) in 15 ms, level 6 a quarter in 38 ms (zlib
1.2.13, one core of a server): that is worth its time only on uplinks of less than 20 Mbit/s.

zlib lets go of the interpreter while it works, so a thread does it and the event loop goes on. The
threads have a limit of their own, lest other work for threads (names to be looked up) has to wait.
A client that leaves meanwhile is let go when the thread is done: nothing is left behind.
"""

import os
import zlib

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from anyio.to_thread import run_sync

from ..config.config import Config
from ..http1.messages import Headers

__all__ = ("Compression",)

_LEVEL = 1
_GZIP = (b"content-encoding", b"gzip")
_AS_GZIP = 16 + zlib.MAX_WBITS


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _LEVEL, _AS_GZIP)


class Compression:
    """To be made inside a running event loop."""

    def __init__(self, config: Config) -> None:
        self._min_bytes = config.upstream_gzip_min_bytes
        self._threads = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def pack(self, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        """The headers and body of a request, the body compressed if it is large enough to be and
        gets smaller by it. It must not be compressed already."""
        if self._min_bytes is None or len(body) < self._min_bytes:
            return headers, body
        packed = await run_sync(_gzip, body, limiter=self._threads)
        await checkpoint_if_cancelled()  # a client may have left, which ends no thread
        if len(packed) >= len(body):
            return headers, body
        return (*(field for field in headers if field[0] != b"content-encoding"), _GZIP), packed
