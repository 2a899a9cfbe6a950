"""What the floors share: a server over asyncio's streams, and the end of a chunked body.

    python floor.py PORT UPSTREAM_PORT

A floor is the least that a relay on these libraries does: no logs, metrics, keys, limits, deadlines
or timestamps, and nothing is looked at. Each client's connection has one to upstream.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

__all__ = ("READ_BYTES", "ChunkedEnd", "Streams", "run", "wrote")

READ_BYTES = 64 * 1024
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Relay = Callable[[Streams, Streams], Awaitable[None]]


async def wrote(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write, and wait while the other side does not read."""
    writer.write(data)
    await writer.drain()


class ChunkedEnd:
    """Finds the end of a chunked body without taking it apart (RFC 9112 section 7.1)."""

    def __init__(self) -> None:
        self._skip = 0  # bytes of a chunk that are still to come, its line end included
        self._line = b""  # the beginning of a line that a read has cut
        self._in_trailer = False

    def is_in(self, data: bytes) -> bool:
        """Whether the body ends in ``data``, the next that was read."""
        at = self._skip
        while at < len(data):
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                at = len(data)
                break
            line, self._line = self._line + data[at:end], b""
            at = end + 1
            if self._in_trailer:
                if not line.strip():
                    return True
            elif size := int(line.partition(b";")[0], 16):
                at += size + 2
            else:
                self._in_trailer = True
        self._skip = at - len(data)
        return False


async def _serve(port: int, upstream_port: int, relay: Relay) -> None:
    tasks: set[asyncio.Task[None] | None] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(task := asyncio.current_task())
        upstream = await asyncio.open_connection("127.0.0.1", upstream_port)
        try:
            await relay((reader, writer), upstream)
        except (ConnectionError, EOFError, asyncio.CancelledError):
            pass  # the client sees its response cut
        finally:
            tasks.discard(task)
            writer.close()
            upstream[1].close()

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await asyncio.start_server(handle, "127.0.0.1", port, backlog=4096):
        await stop.wait()
        for task in tasks:
            if task is not None:
                task.cancel()


def run(relay: Relay) -> None:
    """Serve with ``relay`` until SIGTERM; the ports are the command's arguments."""
    port, upstream_port = map(int, sys.argv[1:])
    asyncio.run(_serve(port, upstream_port, relay))
