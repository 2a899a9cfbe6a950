"""Connections to the API: how many there may be, which one is used next, when one ends.

Idle connections form a stack: the one used last is used next, because it is the likeliest to be
alive, and those at the bottom grow old and are closed. The pool checks only the one that it takes,
so that a request costs the same however many are held. (httpcore's own pool polls all of them twice
for each request, and loses slots for ever when requests are cancelled under contention.)

A connection goes back only if its response ended where HTTP says and nothing came after it: what
came would be taken for the next response. Nor does one go back that is too old, because the API's
name may mean another address by now; connections made together end a little apart. Where upstream
announces how long it keeps an idle connection, none is used again in the last second of that: it
would be closed while the request is on its way.

Nothing is awaited when a connection is given back or closed, so no cancellation can lose a slot.
"""

import math
import random
import ssl
from bisect import bisect_right, insort
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import anyio
from anyio import BrokenResourceError, EndOfStream

from ..config.config import Config
from ..errors import ConnectFailed, ConnectTimeout, Overloaded, TlsFailed, UpstreamFailed
from ..net.event_loop import loop_clock
from ..net.stream import TimestampedStream
from .connect import Connect, cause_of, lookup_is_under_way, start_tls
from .connection import Connection, UpstreamStream

__all__ = ("ConnectFailure", "Lease", "Pool", "PooledConnection")

_IDLE_SINCE = attrgetter("idle_since")
_SPREAD = 0.1  # of the age at which connections end
_MARGIN = 1.0  # seconds before the end of an announced timeout; undici's, too


class PooledConnection(Connection):
    """A connection, and the pool's account of it.

    ``idle_since`` and ``end_at`` (when it will be too old) are readings of the loop's clock.
    ``used``: whether a request has been sent over it. ``closed_by_upstream``, as far as that is
    known; ``watched``: whether it becomes known at once.
    """

    idle_since = 0.0
    end_at = math.inf
    used = False
    closed_by_upstream = False
    watched = False


class Lease(NamedTuple):
    """A connection for one exchange, which ``Pool.give_back`` takes; and what it took to get it.

    ``use``: "warm" if it was made ahead and never used, "reused", or "new". Seconds: ``waited`` for
    a connection to come free, ``connect`` and ``tls`` to make a new one; None if there was no need.
    """

    connection: PooledConnection
    use: str
    waited: float | None = None
    connect: float | None = None
    tls: float | None = None


class ConnectFailure(NamedTuple):
    """Why no connection could be made, as the line of a request reports it."""

    cause: str | None
    address: str | None


class Pool:
    """At most ``connection_pool_size`` connections, with a fair wait for one."""

    def __init__(
        self, config: Config, connect: Connect, ssl_context: ssl.SSLContext | None
    ) -> None:
        self._config = config
        self.warm_connections = config.warm_connections
        self.connect_timeout = config.upstream_connect_timeout
        self.keep_alive_timeout = config.upstream_keep_alive_timeout
        self._clock = loop_clock()
        self._connect_raw = connect
        self._ssl_context = ssl_context
        self._slots = anyio.Semaphore(config.connection_pool_size, fast_acquire=True)
        self._idle: list[PooledConnection] = []  # by ``idle_since``, rising
        self._idle_at_most = max(config.keep_alive_connections, config.warm_connections)
        self._lost: list[PooledConnection] | None = None  # None until somebody waits for them
        self._loss = anyio.Event()
        self._low = anyio.Event()
        self.active = 0  # connections in use
        self.failure: ConnectFailure | None = None  # of the latest attempt to connect

    @property
    def idle(self) -> int:
        return len(self._idle)

    async def lease(self, *, new: bool = False) -> Lease:
        """A connection for one exchange; with ``new`` none of the idle ones.

        Raises Overloaded, ConnectFailed, ConnectTimeout, TlsFailed.
        """
        waited = await self._acquire_slot()
        self.active += 1
        lease = None
        try:
            while self._idle and lease is None and not new:
                connection = self._idle.pop()
                if await self._is_fit(connection):
                    lease = Lease(connection, "reused" if connection.used else "warm", waited)
            lease = lease or await self._connect(waited)
        except BaseException:
            self.active -= 1
            self._slots.release()
            raise
        lease.connection.used = True
        if len(self._idle) < self.warm_connections:
            self._low.set()
        return lease

    async def _acquire_slot(self) -> float | None:
        """Wait for a connection to come free; the seconds, None if that was at once."""
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            began_at = self._clock()
            with anyio.move_on_after(self.connect_timeout) as scope:
                await self._slots.acquire()
            if scope.cancelled_caught:
                raise Overloaded from None
            return round(self._clock() - began_at, 6)
        return None

    async def _is_fit(self, connection: PooledConnection) -> bool:
        """Check a connection that nobody else holds; close it if it is not fit.

        Fit is one that is up, not too old, and on which nothing has arrived: a stray byte would be
        taken for the next response.
        """
        fit = False
        try:
            now = self._clock()
            idle_for = now - connection.idle_since
            limit = min(self.keep_alive_timeout, connection.idle_timeout - _MARGIN)
            if idle_for < limit and now < connection.end_at:
                fit = await connection.stream.receive_now() is None
        finally:
            if not fit:
                connection.close()
        return fit

    def give_back(self, connection: PooledConnection) -> None:
        """End a lease."""
        self.active -= 1
        self._slots.release()
        now = self._clock()
        fit = connection.reusable and not connection.closed_by_upstream
        fit = fit and connection.idle_timeout > _MARGIN
        if fit and now < connection.end_at and len(self._idle) < self._idle_at_most:
            connection.idle_since = now
            self._idle.append(connection)
        else:
            connection.close()

    async def _connect(self, waited: float | None = None) -> Lease:
        """A new connection, or note why there is none."""
        try:
            lease = await self._make(waited)
        except UpstreamFailed as error:
            self.failure = ConnectFailure(error.cause, error.address)
            raise
        self.failure = None
        return lease

    async def _make(self, waited: float | None) -> Lease:
        """A new connection. The time for TCP includes the look-up of the name."""
        host, port = self._config.cerebras_base_url[1:3]
        began_at = self._clock()
        raw: TimestampedStream | None = None
        try:
            with anyio.fail_after(self.connect_timeout):
                raw = await self._connect_raw(host, port)
                connected_at = self._clock()
                raw.kernel_timestamps = self._config.kernel_stamps
                stream = await start_tls(raw, self._ssl_context, host)
        except TimeoutError:
            if raw is not None:
                raise ConnectTimeout("tls_timeout", raw.peer) from None
            raise ConnectTimeout(
                "lookup_timeout" if lookup_is_under_way() else "tcp_timeout"
            ) from None
        except (ssl.SSLError, BrokenResourceError, EndOfStream) as error:
            raise TlsFailed(cause_of(error), None if raw is None else raw.peer) from None
        except OSError as error:
            raise ConnectFailed(cause_of(error), getattr(error, "address", None)) from None
        tls = None if stream is raw else round(self._clock() - connected_at, 6)
        connection = PooledConnection(UpstreamStream(raw, stream))
        spread = random.uniform(1 - _SPREAD, 1)  # noqa: S311 - nobody gains by guessing it
        connection.end_at = connected_at + spread * self._config.upstream_max_connection_age
        connection.watched = raw.watch(partial(self._note_end, connection), end_only=True)
        return Lease(connection, "new", waited, round(connected_at - began_at, 6), tls)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    # For ``Warmup``

    @property
    def room(self) -> int:
        """How many more idle connections there may be."""
        return min(self._config.connection_pool_size - self.active, self._idle_at_most) - self.idle

    def idle_later_than(self, moment: float) -> tuple[float, ...]:
        """The ``idle_since`` of the connections that became idle after ``moment``; rising."""
        start = bisect_right(self._idle, moment, key=_IDLE_SINCE)
        return tuple(connection.idle_since for connection in self._idle[start:])

    async def add_idle(self) -> None:
        """Make a connection ahead; keep it if there is still room for it then. Raises
        ConnectFailed, ConnectTimeout, TlsFailed."""
        connection = (await self._connect()).connection
        if self.room > 0:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.close()

    async def until_low(self) -> None:
        """Return when a lease has left fewer than ``warm_connections`` idle."""
        self._low = anyio.Event()
        await self._low.wait()

    async def next_lost(self) -> list[PooledConnection]:
        """Wait for upstream to close idle connections; return those, which have been dropped."""
        self._loss = anyio.Event()
        if not self._lost:
            self._lost = []
            await self._loss.wait()
        lost, self._lost = self._lost, []
        return lost

    def _note_end(self, connection: PooledConnection) -> None:
        connection.closed_by_upstream = True
        if connection in self._idle:
            self._idle.remove(connection)
            connection.close()
            if self._lost is not None:
                self._lost.append(connection)
                self._loss.set()

    async def close_old(self, count: int) -> None:
        """Close idle connections that are too old; and of the ``count`` to be used next those that
        upstream has closed, where the kernel does not report that."""
        too_old = self._clock() - self.keep_alive_timeout
        while self._idle and self._idle[0].idle_since <= too_old:
            self._idle.pop(0).close()
        for connection in self._idle[::-1][:count]:
            # Out of the stack only while it is checked, which may take a moment.
            if not connection.watched and connection in self._idle:
                self._idle.remove(connection)
                if await self._is_fit(connection):
                    insort(self._idle, connection, key=_IDLE_SINCE)
