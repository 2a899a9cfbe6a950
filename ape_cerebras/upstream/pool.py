"""The connections upstream: how many there may be, which one is used next, when one ends.

Idle connections form a stack. The one used last is used next: it is the likeliest to be alive, and
those at the bottom grow old and are let go. Only the one that is taken gets checked, so that the
cost of a request does not grow with the connections held. (httpcore's own pool polls all of them
twice for each request, and loses slots for ever when requests are cancelled under contention.)

A connection goes back only if its response ended where HTTP says and nothing came after it; a
response left early, or with bytes behind it, would be the beginning of the next one's answer. Nor
does it where it is too old, as the name of the API may mean another address by now; those that were
made together end a little apart.

Nothing is awaited when a connection is given back or closed, so no cancellation can lose a slot.

Who keeps connections ready ahead of the requests is ``warmth``.
"""

import random
import ssl
from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import anyio
import certifi
import httpcore
from anyio import BrokenResourceError, EndOfStream

from ..config.config import Config
from ..errors import ConnectFailed, ConnectTimeout, Overloaded, TlsFailed
from ..net.timestamps import loop_clock
from .connect import Connect, UpstreamStream
from .connection import Connection

__all__ = ("Lease", "Pool", "ssl_context_for")

_IDLE_SINCE = attrgetter("idle_since")
_SPREAD = 0.1  # of the age at which connections end


def ssl_context_for(config: Config) -> ssl.SSLContext | None:
    """Verification is always on; None where the upstream is plain HTTP. Raises OSError where the
    CA bundle is none."""
    if config.cerebras_base_url.scheme != "https":
        return None
    context = ssl.create_default_context(cafile=config.ssl_cert_file or certifi.where())
    context.set_alpn_protocols(["http/1.1"])
    return context


@dataclass(slots=True)
class Lease:
    """A connection for one exchange, to be used as a context manager; and what it took to get it.

    ``use`` is "warm" where it was made ahead and had not been used, "reused", or "new".
    ``waited``: seconds for a turn, None where it came at once. ``connect`` and ``tls``: seconds
    that making a new one took; None where there was nothing to make.
    """

    connection: Connection
    use: str
    give_back: Callable[[Connection], None]
    waited: float | None
    connect: float | None = None
    tls: float | None = None

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back(self.connection)


class Pool:
    """At most ``connection_pool_size`` connections, with a fair wait for one."""

    def __init__(
        self, config: Config, connect: Connect, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._config = config
        self._clock = loop_clock()
        self._connect_raw = connect
        self._ssl_context = ssl_context
        where = config.cerebras_base_url
        self._origin = httpcore.Origin(where.scheme.encode(), where.host.encode(), where.port)
        self._slots = anyio.Semaphore(config.connection_pool_size, fast_acquire=True)
        self._idle: list[Connection] = []  # by the moment from which on they are
        self._idle_at_most = max(config.keep_alive_connections, config.warm_connections)
        self._lost: list[Connection] | None = None  # if somebody waits to be told
        self._loss = anyio.Event()
        self._low = anyio.Event()
        self.active = 0
        """Connections in use."""

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def lease(self) -> Lease:
        """A connection for one exchange.

        Raises Overloaded, ConnectFailed, ConnectTimeout, TlsFailed.
        """
        waited = await self._acquire_slot()
        self.active += 1
        try:
            lease = await self._lease_idle(waited) or await self._lease_new(waited)
        except BaseException:
            self._release()
            raise
        lease.connection.used = True
        if len(self._idle) < self._config.warm_connections:
            self._low.set()
        return lease

    def _release(self) -> None:
        self.active -= 1
        self._slots.release()

    async def _acquire_slot(self) -> float | None:
        """Wait for a turn; the seconds that took, None if there was nothing to wait for."""
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            began_at = self._clock()
            with anyio.move_on_after(self._config.upstream_connect_timeout) as scope:
                await self._slots.acquire()
            if scope.cancelled_caught:
                raise Overloaded from None
            return self._clock() - began_at
        return None

    async def _lease_idle(self, waited: float | None) -> Lease | None:
        connection = await self._take_idle()
        if connection is None:
            return None
        use = "reused" if connection.used else "warm"
        return Lease(connection, use, self._give_back, waited)

    async def _lease_new(self, waited: float | None) -> Lease:
        connection, connect, tls = await self._connect()
        return Lease(connection, "new", self._give_back, waited, connect, tls)

    async def _take_idle(self) -> Connection | None:
        """The last one used that is still fit for use."""
        while self._idle:
            connection = self._idle.pop()
            if await self._is_fit(connection):
                return connection
        return None

    async def _is_fit(self, connection: Connection) -> bool:
        """Check a connection that is in nobody's hands; close it if it is not fit."""
        fit = False
        try:
            now = self._clock()
            idle_for = now - connection.idle_since
            if idle_for < self._config.upstream_keep_alive_timeout and now < connection.end_at:
                fit = await connection.transport.is_quiet()
        finally:
            if not fit:
                connection.transport.close()
        return fit

    def _give_back(self, connection: Connection) -> None:
        self._release()
        fit = connection.reusable and self._clock() < connection.end_at
        if fit and len(self._idle) < self._idle_at_most:
            self._put_idle(connection)
        else:
            connection.transport.close()

    def _put_idle(self, connection: Connection) -> None:
        connection.transport.raw.peek_arrivals(False)
        connection.idle_since = self._clock()
        self._idle.append(connection)

    async def _connect(self) -> tuple[Connection, float, float | None]:
        """A new connection, and the seconds that TCP (the name's look-up included) and TLS took."""
        host, port = self._config.cerebras_base_url[1:3]
        began_at = self._clock()
        try:
            with anyio.fail_after(self._config.upstream_connect_timeout):
                raw = await self._connect_raw(host, port)
                connected_at = self._clock()
                if not self._config.kernel_stamps:
                    raw.use_read_times()
                stream = await UpstreamStream.start(raw, self._ssl_context, host)
        except TimeoutError:
            raise ConnectTimeout from None
        except (ssl.SSLError, BrokenResourceError, EndOfStream):
            raise TlsFailed from None
        except OSError:
            raise ConnectFailed from None
        tls = None if self._ssl_context is None else self._clock() - connected_at
        connection = Connection(self._origin, stream)
        spread = random.uniform(1 - _SPREAD, 1)  # noqa: S311 - nobody gains by guessing it
        connection.end_at = connected_at + spread * self._config.upstream_max_connection_age
        connection.watched = raw.watch_end(partial(self._note_end, connection))
        return connection, connected_at - began_at, tls

    # Idle connections

    @property
    def room(self) -> int:
        """How many more idle connections there may be."""
        return min(self._config.connection_pool_size - self.active, self._idle_at_most) - self.idle

    def idle_later_than(self, moment: float) -> tuple[float, ...]:
        """Of the connections that are idle since later than that, since when; rising."""
        start = bisect_right(self._idle, moment, key=_IDLE_SINCE)
        return tuple(connection.idle_since for connection in self._idle[start:])

    async def add_idle(self) -> None:
        """Make a connection ahead, if there is still room for it then. Raises ConnectFailed,
        ConnectTimeout, TlsFailed."""
        connection, _, _ = await self._connect()
        if self.room > 0:
            self._put_idle(connection)
        else:
            connection.transport.close()

    async def until_low(self) -> None:
        """Return when somebody has taken a connection, and fewer than ``warm_connections`` are
        left idle."""
        self._low = anyio.Event()
        await self._low.wait()

    async def next_lost(self) -> list[Connection]:
        """Wait for upstream to close idle connections; those, which have been let go."""
        lost: list[Connection] = []
        self._lost, self._loss = lost, anyio.Event()
        try:
            await self._loss.wait()
        finally:
            self._lost = None
        return lost

    def _note_end(self, connection: Connection) -> None:
        connection.closed_by_upstream = True
        if connection in self._idle:
            self._idle.remove(connection)
            connection.transport.close()
            if self._lost is not None:
                self._lost.append(connection)
                self._loss.set()

    async def look_over(self, count: int) -> None:
        """Let go of idle connections that are too old; and of those, among the ``count`` to be used
        next, that upstream has closed, where that did not become known at once."""
        too_old = self._clock() - self._config.upstream_keep_alive_timeout
        while self._idle and self._idle[0].idle_since <= too_old:
            self._idle.pop(0).transport.close()
        for connection in self._idle[::-1][:count]:
            # Out of the stack for only as long as the look takes, which may be waited for.
            if not connection.watched and connection in self._idle:
                self._idle.remove(connection)
                if await self._is_fit(connection):
                    insort(self._idle, connection, key=_IDLE_SINCE)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().transport.close()
