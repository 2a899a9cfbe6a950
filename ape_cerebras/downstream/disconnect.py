"""Noticing that a client disconnects while its request is being served.

Only reading shows an end, so bytes that the client sends meanwhile are read ahead, up to a limit,
and kept for later. Where the stream reports arrivals, a hook does this as they come. A task that
waits for them takes a tenth of the time of a whole exchange, and is started only where it must be.

A FIN does not prove that the client has gone: it may only have closed its sending side. A closed
socket answers further data with a reset, so a harmless byte is sent and the reset watched for.
Where no probe can be sent, a FIN counts as a disconnect.
"""

from contextlib import suppress
from types import TracebackType
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from ..errors import ClientGone
from ..net.stream import TimestampedStream
from .request_reader import RequestReader

__all__ = ("DisconnectWatcher", "Watched")

_POLL_EVERY = 0.1  # seconds


class Watched(Protocol):
    """The parts of a client's connection that the watcher uses."""

    stream: TimestampedStream
    reader: RequestReader
    completed_at: float | None

    def send_probe(self) -> bool:
        """Send the client bytes without meaning, if there is room for them just now. Return False
        where there never is."""


class DisconnectWatcher:
    """An async context manager around work that is pointless once the client has gone.

    If the client disconnects, the block is cancelled and ClientGone raised. If the response is
    complete by then, the block ends without an error: SDKs close a stream's connection as soon as
    they have read the end marker. Errors of the block and cancellation from outside pass through.
    """

    def __init__(self, downstream: Watched) -> None:
        self._downstream = downstream
        self._scope = anyio.CancelScope()
        self._tasks: TaskGroup | None = None
        self._probed = False
        self._gone = False

    async def __aenter__(self) -> None:
        if self._downstream.stream.watch(self._check):
            self._scope.__enter__()
            if self._downstream.reader.ended:  # no arrival will tell
                self._check()
        else:
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._scope = self._tasks.cancel_scope
            self._tasks.start_soon(self._wait)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._tasks is None:
            self._downstream.stream.watch(None)
            cancelled = self._scope.__exit__(kind, failure, traceback)
        elif isinstance(failure, Exception):  # the task group would wrap it
            self._scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            cancelled = False
        else:
            if kind is None:
                self._scope.cancel()
            cancelled = await self._tasks.__aexit__(kind, failure, traceback)
        if self._gone and (cancelled or kind is None) and self._downstream.completed_at is None:
            raise ClientGone
        return bool(cancelled)

    def _check(self) -> None:
        with suppress(ClientGone):
            if not (self._downstream.reader.read_ahead_nowait() and self._is_gone()):
                return
        self._gone = True
        self._scope.cancel()

    async def _wait(self) -> None:
        with suppress(ClientGone):
            await self._downstream.reader.read_ahead()
            while not self._is_gone():  # noqa: ASYNC110 - the loop has no event for it
                await anyio.sleep(_POLL_EVERY)
        self._gone = True
        self._scope.cancel()

    def _is_gone(self) -> bool:
        """Whether the client, from which nothing more is read, is gone. Once it has ended its
        sending it is probed, once."""
        if self._downstream.reader.ended and not self._probed:
            self._probed = True
            if not self._downstream.send_probe():
                return True
        return self._downstream.stream.peer_is_gone()
