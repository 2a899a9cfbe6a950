"""A pool that is kept warm, over socket pairs, and the upstream that it is connected to."""

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import httpcore
import trio
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from end_to_end import KEY, Lines
from trio.testing import MockClock
from waiting import wait_all_tasks_blocked

from ape_cerebras.config.config import Config
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.upstream.connection import Connection
from ape_cerebras.upstream.pool import Lease, Pool
from ape_cerebras.upstream.warmup import Warmup

__all__ = ("Rig", "Upstream", "kept_warm", "leased", "on_mock_clock", "use")

REQUEST = "GET", httpcore.URL("http://upstream/"), ((b"host", b"upstream"),)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Upstream:
    """Responds over socket pairs, whose ends the kernel reports as those of any connection.

    ``requested_at``: when a connection was requested. One takes ``takes`` seconds to be made, is
    refused while ``refuses``, and closed when it has been idle for ``idles``.
    """

    def __init__(
        self, tasks: anyio.abc.TaskGroup, takes: float, refuses: bool, idles: float | None
    ) -> None:
        self._tasks = tasks
        self.takes, self.refuses, self.idles = takes, refuses, idles
        self.began_at = anyio.current_time()
        self.requested_at: list[float] = []
        self._open: set[SocketStream] = set()
        self._more = anyio.Event()

    async def connect(self, host: str, port: int) -> TimestampedStream:
        self.requested_at.append(anyio.current_time() - self.began_at)
        await anyio.sleep(self.takes)
        if self.refuses:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._tasks.start_soon(self._respond, SocketStream(theirs))
        self._more.set()
        return SocketStream(ours)

    async def until_made(self, count: int) -> None:
        """Wait until so many connections have been made and are in the pool."""
        while len(self.requested_at) < count:
            self._more = anyio.Event()
            await self._more.wait()
        await wait_all_tasks_blocked()

    def close_all(self) -> None:
        while self._open:
            self._open.pop().close()

    async def _respond(self, stream: SocketStream) -> None:
        self._open.add(stream)
        try:
            while True:
                with anyio.fail_after(self.idles):
                    await stream.receive()
                await stream.send(RESPONSE)
        except (EndOfStream, BrokenResourceError, ClosedResourceError, TimeoutError):
            pass
        finally:
            self._open.discard(stream)
            stream.close()


class Rig:
    """A pool that is kept warm."""

    def __init__(self, pool: Pool, upstream: Upstream, warmup: Warmup, lines: Lines) -> None:
        self.lines = lines
        self.pool = pool
        self.upstream = upstream
        self.warmup = warmup

    async def until(self, moment: float) -> None:
        """Wait until so many seconds after the start, and for the tasks due then."""
        await anyio.sleep_until(self.upstream.began_at + moment)
        await wait_all_tasks_blocked()

    async def fewest_idle(self, moment: float) -> int:
        """The fewest idle connections until then, sampled every 0.1 s."""
        fewest = self.pool.idle
        while anyio.current_time() - self.upstream.began_at < moment:
            await anyio.sleep(0.1)
            fewest = min(fewest, self.pool.idle)
        return fewest


@asynccontextmanager
async def kept_warm(
    *, takes: float = 0.0, refuses: bool = False, idles: float | None = None, **settings: str
) -> AsyncIterator[Rig]:
    config = Config.from_environment(
        {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": "http://upstream", **settings}
    )
    async with anyio.create_task_group() as tasks:
        upstream = Upstream(tasks, takes, refuses, idles)
        pool = Pool(config, upstream.connect, None)
        lines = Lines()
        warmup = Warmup(pool, Logs("debug", lines.write))
        tasks.start_soon(warmup.keep)
        try:
            yield Rig(pool, upstream, warmup, lines)
        finally:
            tasks.cancel_scope.cancel()
            pool.close()


def on_mock_clock(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test, clock=MockClock(autojump_threshold=0))


async def use(connection: Connection) -> None:
    await connection.request(*REQUEST)
    while await connection.next_chunk() is not None:
        pass


@asynccontextmanager
async def leased(pool: Pool) -> AsyncIterator[Lease]:
    lease = await pool.lease()
    try:
        yield lease
    finally:
        pool.give_back(lease.connection)
