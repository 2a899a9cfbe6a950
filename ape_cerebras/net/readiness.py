"""Waiting until a socket can be read or written, as cheaply as the event loop allows.

On asyncio a wait is a future that an edge settles (``edges``); and its end, which hardly ever
comes, is a timer that is kept from wait to wait and looks, when it is due, whether it is still
meant. trio's own wait is cheap enough. Elsewhere it is anyio's.

A wait of 60 seconds at most, its turn of the loop included, costs 23 µs on asyncio, and 85 µs by
anyio: CPU for each message that two sockets of one loop pass to and fro, less that of writing and
reading it (CPython 3.11, one core of a virtual server).

Somebody else than the reader may want to know of what arrives while nobody reads: see ``watch``.
"""

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Protocol

import anyio
import sniffio
import trio
from anyio import ClosedResourceError

from .edges import ENDED, READABLE, WRITABLE, EdgePoller, edge_poller

__all__ = ("Readiness", "readiness_of")

Hook = Callable[[], None]


class Readiness(Protocol):
    """One socket's. At most one task may wait to read, and one to write.

    Both return whether the socket is ready, or may be; not if it is ``until`` before, on the event
    loop's clock. Both raise ClosedResourceError once it is closed.
    """

    @property
    def untold(self) -> bool:
        """Whether nothing has been heard of the socket since the last wait to read, where what
        comes is always told."""

    async def readable(self, until: float) -> bool: ...

    async def writable(self, until: float) -> bool: ...

    def set_deadline(self, until: float) -> None:
        """Have a wait to read that is under way end then."""

    def watch(self, hook: Hook | None) -> bool:
        """Have ``hook``, which must not raise, called at whatever arrives, the connection's end
        too; not once it is None. False where that cannot be done."""

    def watch_end(self, hook: Hook) -> bool:
        """Have ``hook``, which must not raise, called at the connection's end, whether it is read
        from or not; instead of ``watch``, and at no cost before. False where that cannot be
        done."""

    def close(self) -> None:
        """To be called before the socket is closed."""


class _Waiting:
    """One direction of a socket on asyncio: what the last edge said, who waits for the next, and
    until when."""

    __slots__ = ("_due_at", "_timer", "_timer_at", "future", "ready")

    def __init__(self) -> None:
        self.ready = False
        self.future: asyncio.Future[bool] | None = None
        self._due_at = math.inf
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf  # while there is none; uvloop's do not tell

    async def wait(self, until: float) -> bool:
        if self.ready:
            self.ready = False
            return True
        self.future = asyncio.get_running_loop().create_future()
        self.end_at(until)
        try:
            return await self.future
        except BaseException:
            self.ready = True  # it may have been told, and nobody has looked
            raise
        finally:
            self.future = None

    def end_at(self, moment: float) -> None:
        self._due_at = moment
        if moment < self._timer_at:
            self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._due_at
        self._timer = asyncio.get_running_loop().call_at(self._due_at, self._look)

    def _look(self) -> None:
        """Whether it is time for the wait that is under way now, which may be another one."""
        self._timer, self._timer_at = None, math.inf
        if self.future is None or self.future.done() or self._due_at == math.inf:
            return
        if asyncio.get_running_loop().time() < self._due_at:
            self._start_timer()
        else:
            self.future.set_result(False)

    def wake(self) -> None:
        if self.future is None or self.future.done():
            self.ready = True
        else:
            self.future.set_result(True)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.future is not None and not self.future.done():
            self.future.set_exception(ClosedResourceError())


class _AsyncioReadiness:
    def __init__(self, source: EdgePoller, descriptor: int) -> None:
        self._edges = source
        self._descriptor = descriptor
        self._wants_writable = False
        self._has_ended = False
        self._reading = _Waiting()
        self._writing = _Waiting()
        self.readable = self._reading.wait
        self._hook: Hook | None = None
        self._end_hook: Hook | None = None
        source.watch(descriptor, self._told)

    def _told(self, bits: int) -> None:
        if bits & READABLE:
            if self._hook is not None:
                self._reading.ready = True
                self._hook()
            else:
                self._reading.wake()
        if bits & WRITABLE:
            self._writing.wake()
        if bits & ENDED:
            self._has_ended = True
            if self._end_hook is not None:
                self._end_hook()

    @property
    def untold(self) -> bool:
        return not (self._reading.ready or self._has_ended)

    async def writable(self, until: float) -> bool:
        if not self._wants_writable:
            self._wants_writable = True
            self._edges.watch_writing_too(self._descriptor)
        return await self._writing.wait(until)

    def set_deadline(self, until: float) -> None:
        if self._reading.future is not None:
            self._reading.end_at(until)

    def watch(self, hook: Hook | None) -> bool:
        self._hook = hook
        return True

    def watch_end(self, hook: Hook) -> bool:
        self._end_hook = hook
        return True

    def close(self) -> None:
        self._edges.forget(self._descriptor)
        self._has_ended = True
        self._hook = self._end_hook = None
        self._reading.close()
        self._writing.close()


class _TrioReadiness:
    def __init__(self, source: EdgePoller, sock: socket.socket) -> None:
        self._edges = source
        self._socket = sock
        self.untold = False
        self._scope: trio.CancelScope | None = None
        self._hook: Hook | None = None
        self._watched = False

    async def readable(self, until: float) -> bool:
        with trio.CancelScope(deadline=until) as self._scope:
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                raise ClosedResourceError from None
        return not self._scope.cancelled_caught

    async def writable(self, until: float) -> bool:
        with trio.CancelScope(deadline=until) as scope:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                raise ClosedResourceError from None
        return not scope.cancelled_caught

    def set_deadline(self, until: float) -> None:
        if self._scope is not None:
            self._scope.deadline = until

    def watch(self, hook: Hook | None) -> bool:
        self._hook = hook
        if not self._watched:
            self._watched = True
            self._edges.watch(self._socket.fileno(), self._told)
        return True

    def watch_end(self, hook: Hook) -> bool:
        self._hook = hook
        self._watched = True
        self._edges.watch_end(self._socket.fileno(), self._told)
        return True

    def _told(self, bits: int) -> None:
        if self._hook is not None:
            self._hook()

    def close(self) -> None:
        self._hook = None
        if self._watched:
            self._edges.forget(self._socket.fileno())
        trio.lowlevel.notify_closing(self._socket)


class _AnyioReadiness:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.untold = False
        self._scope: anyio.CancelScope | None = None

    async def readable(self, until: float) -> bool:
        with anyio.CancelScope(deadline=until) as self._scope:
            await anyio.wait_readable(self._socket)
        return not self._scope.cancelled_caught

    async def writable(self, until: float) -> bool:
        with anyio.CancelScope(deadline=until) as scope:
            await anyio.wait_writable(self._socket)
        return not scope.cancelled_caught

    def set_deadline(self, until: float) -> None:
        if self._scope is not None:
            self._scope.deadline = until

    def watch(self, hook: Hook | None) -> bool:
        return False

    def watch_end(self, hook: Hook) -> bool:
        return False

    def close(self) -> None:
        anyio.notify_closing(self._socket)


def readiness_of(sock: socket.socket) -> Readiness:
    """The readiness of a connected, non-blocking socket of the running event loop."""
    source = edge_poller()
    if source is None:
        return _AnyioReadiness(sock)
    if sniffio.current_async_library() == "trio":
        return _TrioReadiness(source, sock)
    return _AsyncioReadiness(source, sock.fileno())
