"""Connections kept warm: so many idle ones to upstream, TCP and TLS done, ahead of the requests.

* One that grows old is replaced before it is let go, so that there is no moment without.
* One that upstream closes is replaced at once; the kernel tells of it.
* One that is in use is replaced when it has been for a second. Most answers are whole by then and
  their connection is back; making another meanwhile would only take time from first tokens.
* After a failure (no connection, or one that is closed as soon as it is there) comes a pause, twice
  as long each time, and then one attempt at a time. Who is about to send a request may say so, and
  cut the pause short; never below that after a first failure.

Nothing here is logged or counted: a request that finds no connection will say what is wrong.
"""

import math

import anyio

from ..config.config import Config
from ..errors import ProxyError
from .pool import Pool

__all__ = ("Warmup",)

_AT_ONCE = 10  # connections made side by side
_BACK_WITHIN = 1.0  # seconds that one in use is waited for
_LOOK_EVERY = 5.0  # seconds, where nothing happens
_FIRST_PAUSE = 1.0  # seconds
_LONGEST_PAUSE = 30.0  # seconds
_IN_A_ROW = 5.0  # seconds from the end of a pause in which the next failure makes a longer one
_SHORT_LIVED = 2.0  # seconds; no server closes a sound idle connection sooner


class Warmup:
    """Keeps ``warm_connections`` idle connections in a pool."""

    def __init__(self, config: Config, pool: Pool) -> None:
        self._pool = pool
        self._count = config.warm_connections
        limit = config.upstream_keep_alive_timeout
        # In what is left then another can be made, if it can be made at all.
        self._fresh_for = limit - min(config.upstream_connect_timeout, limit / 4)
        self._changed = anyio.Event()
        self._tried_at = self._retry_at = -math.inf
        self._pause = 0.0

    def hint(self) -> None:
        """Somebody is about to send a request: have what is missing made now."""
        self._retry_at = min(self._retry_at, self._tried_at + _FIRST_PAUSE)
        self._changed.set()

    async def keep(self) -> None:
        """Runs until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._notice_those_closed)
            tasks.start_soon(self._notice_those_in_use)
            while True:
                self._changed = anyio.Event()
                await self._pool.look_over(self._count)
                await self._make_missing()
                with anyio.CancelScope(deadline=self._next_look_at()):
                    await self._changed.wait()

    async def _notice_those_closed(self) -> None:
        while True:
            for connection in await self._pool.next_lost():
                age = anyio.current_time() - connection.idle_since
                if age < _SHORT_LIVED and not connection.used:
                    self._back_off()
            self._changed.set()

    async def _notice_those_in_use(self) -> None:
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
        self._tried_at = now
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(self._make_one)

    def _missing(self) -> int:
        """How many to make; one that has to be replaced is missing already."""
        return min(self._count - len(self._fresh()), self._pool.room)

    def _fresh(self) -> tuple[float, ...]:
        return self._pool.idle_later_than(anyio.current_time() - self._fresh_for)

    async def _make_one(self) -> None:
        try:
            await self._pool.add_idle()
        except ProxyError:
            self._back_off()

    def _back_off(self) -> None:
        now = anyio.current_time()
        if now < self._retry_at:  # others of the same attempt have failed as well
            return
        in_a_row = self._tried_at < self._retry_at + _IN_A_ROW
        self._pause = min(2 * self._pause, _LONGEST_PAUSE) if in_a_row else _FIRST_PAUSE
        self._retry_at = now + self._pause

    def _next_look_at(self) -> float:
        now = anyio.current_time()
        if self._missing() > 0:
            return max(now, self._retry_at)
        fresh = self._fresh()
        if not self._count or len(fresh) < self._count:
            return now + _LOOK_EVERY
        return min(now + _LOOK_EVERY, fresh[-self._count] + self._fresh_for)
