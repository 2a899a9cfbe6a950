"""Noticing that a client leaves while its request is being answered.

Only reading shows an end, so what the client sends meanwhile is read ahead, a little of it, and
kept for its turn. Where a stream tells of arrivals, that is done at the moment they come; a task
that waits for them takes a tenth of the time of a whole exchange, and is made only where it must.

An end may be no leaving: shutting one direction and closing look alike, a FIN. Only something sent
can tell, for a closed socket answers it with a reset. So bytes are sent that mean nothing, and what
becomes of them is watched. Where that can't be, a FIN is taken for leaving.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType

import anyio
from anyio import WouldBlock

from ..errors import ClientGone, ProxyError
from ..net.socket_stream import TimestampedStream
from .request_reader import Inbound

__all__ = ("HangUp",)

_READ_AHEAD_AT_MOST = 64 * 1024  # bytes of later requests, while one is being answered
_LOOK_EVERY = 0.1  # seconds


def _no_probe() -> bool:
    return False


class HangUp:
    """Watches one client, as an async context manager around what is to end if it leaves.

    ``scope``: what is cancelled then; whoever set it says what that means.
    ``has_left``: whether it has been, for that; until somebody takes it back.
    """

    def __init__(self, stream: TimestampedStream, inbound: Inbound) -> None:
        self._stream = stream
        self._inbound = inbound
        self._probe = _no_probe
        self._probed = False
        self._task: AbstractAsyncContextManager[None] | None = None
        self.scope = anyio.CancelScope()
        self.has_left = False

    def watching(self, probe: Callable[[], bool]) -> "HangUp":
        """``probe`` sends the client something that means nothing, if there is room for that just
        now; False where there never is."""
        self._probe, self._probed = probe, False
        return self

    async def __aenter__(self) -> None:
        if self._stream.watch(self._look):
            self._look()  # at what came before
        else:
            self._task = self._beside_a_task()
            await self._task.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        course: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        try:
            if task is None:
                self._stream.watch(None)
            else:
                await task.__aexit__(kind, failure, course)
        finally:
            self._probe = _no_probe  # whoever probes has this, which would be a cycle

    def _look(self) -> None:
        if self._has_left():
            self._leave()

    def _leave(self) -> None:
        self.has_left = True
        self.scope.cancel()

    def _has_left(self) -> bool:
        inbound = self._inbound
        try:
            while not inbound.ended and len(inbound.bytes) < _READ_AHEAD_AT_MOST:
                inbound.read_nowait()
        except WouldBlock:
            return False
        except ClientGone:
            return True
        return self._was_leaving() or self._stream.peer_is_gone()

    def _was_leaving(self) -> bool:
        """Whether the client has ended its sending and cannot be asked if it is still there. If it
        can, it is asked, once."""
        if not self._inbound.ended or self._probed:
            return False
        self._probed = True
        return not self._probe()

    @asynccontextmanager
    async def _beside_a_task(self) -> AsyncIterator[None]:
        failures: list[ProxyError] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            try:
                yield
            except ProxyError as failure:  # not through the task group, which would wrap it
                failures.append(failure)
            tasks.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _watch(self) -> None:
        await self._until_left()
        self._leave()

    async def _until_left(self) -> None:
        inbound = self._inbound
        try:
            while not inbound.ended and len(inbound.bytes) < _READ_AHEAD_AT_MOST:
                await inbound.read()
        except ClientGone:
            return
        if self._was_leaving():
            return
        while not self._stream.peer_is_gone():  # noqa: ASYNC110 - the loop has no event for it
            await anyio.sleep(_LOOK_EVERY)
