"""Noticing that a client leaves while its request is being answered.

Only reading shows an end, so what the client sends meanwhile is read ahead, a little of it, and
kept for its turn. Where a stream tells of arrivals, that is done at the moment they come; a task
that waits for them takes a tenth of the time of a whole exchange, and is made only where it must.

An end may be no leaving: shutting one direction and closing look alike, a FIN. Only something sent
can tell, for a closed socket answers it with a reset. So bytes are sent that mean nothing, and what
becomes of them is watched. Where that can't be, a FIN is taken for leaving.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio import WouldBlock

from .errors import ClientGone, ProxyError
from .inbound import Inbound
from .network import StampedStream

__all__ = ("HangUp",)

_T = TypeVar("_T")

_READ_AHEAD_AT_MOST = 64 * 1024  # bytes of later requests, while one is being answered
_LOOK_EVERY = 0.1  # seconds


def _no_probe() -> bool:
    return False


class HangUp:
    """Watches one client."""

    def __init__(self, stream: StampedStream, inbound: Inbound) -> None:
        self._stream = stream
        self._inbound = inbound
        self._probe = _no_probe
        self._probed = False
        self._scope = anyio.CancelScope()

    async def while_connected(
        self, work: Callable[[], Awaitable[_T]], probe: Callable[[], bool]
    ) -> _T:
        """What ``work`` returns; cancel it, and raise ClientGone, if the client leaves before its
        end. ``probe`` sends it something that means nothing, if there is room for that just now;
        False where there never is."""
        self._probe, self._probed = probe, False
        try:
            if not self._stream.watch(self._look):
                return await self._beside_a_task(work)
            return await self._watching(work)
        finally:
            self._probe = _no_probe  # whoever probes has this, which would be a cycle

    async def _watching(self, work: Callable[[], Awaitable[_T]]) -> _T:
        with anyio.CancelScope() as self._scope:
            try:
                self._look()  # at what came before
                return await work()
            finally:
                self._stream.watch(None)
        raise ClientGone

    def _look(self) -> None:
        if self._has_left():
            self._scope.cancel()

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

    async def _beside_a_task(self, work: Callable[[], Awaitable[_T]]) -> _T:
        failure: ProxyError = ClientGone()
        results: list[_T] = []

        async def watch() -> None:
            await self._until_left()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                results.append(await work())
            except ProxyError as error:  # not through the task group, which would wrap it
                failure = error
            tasks.cancel_scope.cancel()
        if not results:
            raise failure
        return results[0]

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
