"""Keeping idle connections to the API ready, TCP and TLS done, ahead of the requests.

* A connection that grows old is replaced before the pool closes it, so that there is no gap.
* One that upstream closes is replaced at once; the kernel reports it.
* One that is in use is replaced after a second. Most responses have ended by then, and making
  another meanwhile would only delay first tokens.
* A failure (no connection, or one closed as soon as it is there) is followed by a pause, twice as
  long each time, and then by one attempt at a time. ``hint`` cuts the pause short, but never below
  that after a first failure.

Two things are logged: that the latest attempt to connect has failed, with the reason, and that one
has succeeded again. Without connections to keep, nothing is: the requests' lines report it.
"""

import math

import anyio

from ..errors import ProxyError
from ..telemetry.logs import Logs
from .pool import Pool

__all__ = ("Warmup",)

_AT_ONCE = 10  # connections made side by side
_BACK_WITHIN = 1.0  # seconds to wait for one in use
_CHECK_EVERY = 5.0  # seconds, where nothing happens
_FIRST_PAUSE = 1.0  # seconds
_LONGEST_PAUSE = 30.0  # seconds
_IN_A_ROW = 5.0  # seconds from the end of a pause in which the next failure makes a longer one
_SHORT_LIVED = 2.0  # seconds; no server closes a sound idle connection sooner


class Warmup:
    """Keeps ``warm_connections`` idle connections in a pool."""

    def __init__(self, pool: Pool, logs: Logs) -> None:
        self._pool = pool
        self._logs = logs
        self._count = pool.warm_connections
        # What is left then is long enough to make another, if that succeeds at all.
        limit = pool.keep_alive_timeout
        self._fresh_for = limit - min(pool.connect_timeout, limit / 4)
        self._changed = anyio.Event()
        self._attempted_at = self._retry_at = -math.inf
        self._pause = 0.0
        self._failing_since: float | None = None  # as logged

    def hint(self) -> None:
        """A request is about to be sent: make missing connections now."""
        self._retry_at = min(self._retry_at, self._attempted_at + _FIRST_PAUSE)
        self._changed.set()

    async def keep(self) -> None:
        """Runs until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_lost)
            tasks.start_soon(self._watch_low)
            while True:
                self._changed = anyio.Event()
                await self._pool.close_old(self._count)
                await self._make_missing()
                self._log_change()
                with anyio.CancelScope(deadline=self._next_check_at()):
                    await self._changed.wait()

    async def _watch_lost(self) -> None:
        while True:
            for connection in await self._pool.next_lost():
                age = anyio.current_time() - connection.idle_since
                if age < _SHORT_LIVED and not connection.used:
                    self._back_off()
            self._changed.set()

    async def _watch_low(self) -> None:
        while True:
            await self._pool.until_low()
            await anyio.sleep(_BACK_WITHIN)
            self._changed.set()

    async def _make_missing(self) -> None:
        now = anyio.current_time()
        one_by_one = now < self._retry_at + _IN_A_ROW
        count = min(self._missing(), 1 if one_by_one else _AT_ONCE)
        if count <= 0 or now < self._retry_at:
            return
        self._attempted_at = now
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(self._make_one)

    def _missing(self) -> int:
        """How many to make; a connection that has to be replaced is missing already."""
        return min(self._count - len(self._fresh()), self._pool.room)

    def _fresh(self) -> tuple[float, ...]:
        return self._pool.idle_later_than(anyio.current_time() - self._fresh_for)

    async def _make_one(self) -> None:
        try:
            await self._pool.add_idle()
        except ProxyError:
            self._back_off()

    def _log_change(self) -> None:
        """Requests make connections too, and fail to."""
        failure, now = self._pool.failure, anyio.current_time()
        if failure is not None and self._failing_since is None and self._count:
            self._failing_since = now
            fields = {"upstream_address": failure.address} if failure.address else {}
            message = "Upstream cannot be reached"
            self._logs.event("warning", message, cause=failure.cause, **fields)
        elif failure is None and self._failing_since is not None:
            seconds = round(now - self._failing_since, 3)
            self._logs.event("info", "Upstream can be reached again", after_seconds=seconds)
            self._failing_since = None

    def _back_off(self) -> None:
        now = anyio.current_time()
        if now < self._retry_at:  # others of the same attempt have failed as well
            return
        in_a_row = self._attempted_at < self._retry_at + _IN_A_ROW
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if in_a_row else _FIRST_PAUSE
        self._retry_at = now + self._pause

    def _next_check_at(self) -> float:
        now = anyio.current_time()
        if self._missing() > 0:
            return max(now, self._retry_at)
        fresh = self._fresh()
        if not self._count or len(fresh) < self._count:
            return now + _CHECK_EVERY
        return min(now + _CHECK_EVERY, fresh[-self._count] + self._fresh_for)
