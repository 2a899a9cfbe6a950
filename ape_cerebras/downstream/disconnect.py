"""Noticing that a client disconnects while its request is being served.

Only reading shows an end, so bytes that the client sends meanwhile are read ahead, up to a limit,
and kept for later. Where the stream reports arrivals, a hook does this as they come. A task that
waits for them takes a tenth of the time of a whole exchange, and is started only where it must be.

A FIN does not prove that the client has gone: it may only have closed its sending side. A closed
socket answers further data with a reset, so a harmless byte is sent and the reset watched for.
Where no probe can be sent, a FIN counts as a disconnect.
"""

import math
from contextlib import suppress
from types import TracebackType
from typing import Protocol

import anyio
from anyio.abc import TaskGroup

from ..errors import ClientGone, ExchangeTimeout
from ..net.stream import TimestampedStream
from .request_reader import RequestReader

__all__ = ("DisconnectWatcher", "ExchangeScope", "Watched")

_POLL_EVERY = 0.1  # seconds


class Watched(Protocol):
    """The parts of a client's connection that the watcher uses."""

    stream: TimestampedStream
    reader: RequestReader
    completed_at: float | None

    def send_probe(self) -> bool:
        """Send the client bytes without meaning, if there is room for them just now. Return False
        where there never is."""


class ExchangeScope:
    """A context manager around an exchange, which ends it where it takes more than ``seconds``
    (None: never), or where its client disconnects while that is watched: with ExchangeTimeout or
    ClientGone. If the response is complete by then, the block ends without an error: SDKs close a
    stream's connection as soon as they have read the end marker. Errors of the block and
    cancellation from outside pass through.

    There is one cancel scope for both, because each takes a hundredth of the instructions of a
    plain exchange.
    """

    def __init__(self, downstream: Watched, seconds: float | None) -> None:
        self._downstream = downstream
        deadline = math.inf if seconds is None else downstream.stream.now() + seconds
        self._scope = anyio.CancelScope(deadline=deadline)
        self._gone = False

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        ends = self._scope.__exit__(kind, failure, traceback)
        if self._scope.cancelled_caught and self._downstream.completed_at is None:
            raise ClientGone if self._gone else ExchangeTimeout
        return bool(ends)

    @property
    def is_pointless(self) -> bool:
        """Whether the client has gone, and its response is not complete."""
        return self._gone and self._downstream.completed_at is None

    def end_as_gone(self) -> None:
        """End the exchange, because its client has gone."""
        self._gone = True
        self._scope.cancel()


class DisconnectWatcher:
    """An async context manager around work that is pointless once the client has gone: if the
    client disconnects, the exchange ends by its ``scope``."""

    def __init__(self, downstream: Watched, scope: ExchangeScope) -> None:
        self._downstream = downstream
        self._scope = scope
        self._tasks: TaskGroup | None = None
        self._probed = False

    async def __aenter__(self) -> None:
        if self._downstream.stream.watch(self._check):
            if self._downstream.reader.ended:  # no arrival will tell
                self._check()
        else:
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
            self._tasks.start_soon(self._wait)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        tasks = self._tasks
        if tasks is None:
            self._downstream.stream.watch(None)
        elif kind is None or isinstance(failure, Exception):  # the task group would wrap it
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)
        else:
            await tasks.__aexit__(kind, failure, traceback)
        if kind is None and self._scope.is_pointless:  # the block ended before it was cancelled
            raise ClientGone
        return False

    def _check(self) -> None:
        with suppress(ClientGone):
            if not (self._downstream.reader.read_ahead_nowait() and self._is_gone()):
                return
        self._scope.end_as_gone()

    async def _wait(self) -> None:
        with suppress(ClientGone):
            await self._downstream.reader.read_ahead()
            while not self._is_gone():  # noqa: ASYNC110 - the loop has no event for it
                await anyio.sleep(_POLL_EVERY)
        self._scope.end_as_gone()

    def _is_gone(self) -> bool:
        """Whether the client, from which nothing more is read, is gone. Once it has ended its
        sending it is probed, once."""
        if self._downstream.reader.ended and not self._probed:
            self._probed = True
            if not self._downstream.send_probe():
                return True
        return self._downstream.stream.peer_is_gone()
