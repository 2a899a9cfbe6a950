"""Waiting until a socket can be read or written, as cheaply as the event loop allows.

There are two implementations. On asyncio's loops, uvloop among them, readiness is edge-triggered
(epoll(7)): one registration for each connection, in an epoll instance of our own whose descriptor
the event loop watches. A wait is a future that an edge completes; its deadline, which is hardly
ever reached, is a timer that is kept from wait to wait and checks, when it is due, whether it still
applies. Whoever was woken has to read or write until that would block, before it waits again.
Everywhere else, trio included, anyio's waits are used.

A wait of at most 60 seconds, its iteration of the event loop included, costs 23 µs by edges and
85 µs by anyio's waits, which register and remove the descriptor for each wait (asyncio; CPU for
each message that two sockets of one loop pass to and fro, less that of writing and reading it;
CPython 3.11, one core of a virtual server). On trio anyio's waits cost 2.5 µs more than trio's own.

Edges also report what arrives while nobody reads, and that the peer is gone (``watch``), on trio
too. A task that waits for that would take a tenth of the time of a whole exchange.

And they can have what arrives handled there and then, while the task that reads waits on
(``handle``): for a stream of tokens that saves an event-loop iteration and the resumption of all
the task's coroutines, a quarter of the function calls of a token.
"""

import asyncio
import math
import select
import socket
from collections.abc import Callable

import anyio
from anyio import ClosedResourceError

from .event_loop import current_backend, of_this_loop

__all__ = ("EdgePoller", "EdgeReadiness", "EdgeWaiter", "Readiness", "Waiter", "readiness_of")

_HAS_EPOLL = hasattr(select, "epoll")
_SOCKETS_PER_POLL = 256  # the event loop polls again at once if there are more
# There is something to read, if only the connection's end; the socket takes bytes or an error; the
# peer has ended its sending, or the connection is broken.
_READABLE = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR if _HAS_EPOLL else 0
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR if _HAS_EPOLL else 0
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR if _HAS_EPOLL else 0

_Hook = Callable[[], None]
_Handler = Callable[[], bool]


class Waiter:
    """Waits for one direction of a socket, by anyio. At most one task waits at a time.

    ``ready``: False if it is certain that there is nothing to read or write yet.
    ``reads_stop_short``: whether a read may return less than has arrived, because the peer has sent
    urgent data: a read stops where that begins (tcp(7)).
    """

    ready = True
    reads_stop_short = False

    def __init__(self, sock: socket.socket, *, to_write: bool) -> None:
        self._socket = sock
        self._to_write = to_write
        self._scope = anyio.CancelScope()

    async def wait(self, until: float) -> bool:
        """Wait until the socket may be ready. Return False if the deadline ``until``, on the event
        loop's clock, passes first. Raises ClosedResourceError once the socket is closed."""
        with anyio.CancelScope(deadline=until) as self._scope:
            if self._to_write:
                await anyio.wait_writable(self._socket)
            else:
                await anyio.wait_readable(self._socket)
        return not self._scope.cancelled_caught

    def set_deadline(self, until: float) -> None:
        """Change the deadline of a wait under way."""
        self._scope.deadline = until


class ReadWaiter(Waiter):
    """Waits to read, by anyio; while arrivals are handled (``by_edges``), by edges."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, to_write=False)
        self.by_edges = False
        self._has_come = False  # an edge, while nobody waited
        self._edge: anyio.Event | None = None
        self._failure: Exception | None = None

    async def wait(self, until: float) -> bool:
        if not self.by_edges:
            return await super().wait(until)
        if self._has_come:
            self._has_come = False
            return True
        self._edge = anyio.Event()
        try:
            with anyio.CancelScope(deadline=until) as self._scope:
                await self._edge.wait()
            if self._failure is not None:
                raise self._failure
        finally:
            self._edge = self._failure = None
        return not self._scope.cancelled_caught

    def handle(self, handler: _Handler | None) -> None:
        """See ``EdgeWaiter.handle``; without a handler wake whoever waits."""
        if self._edge is None or self._edge.is_set():
            self._has_come = True
            return
        goes_on = False
        try:
            goes_on = handler is not None and handler()
        except Exception as error:
            self._failure = error
        if not goes_on:
            self._edge.set()


class Readiness:
    """The readiness of a socket: ``reading`` and ``writing``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.reading: Waiter
        self.reading = self._read_waiter = ReadWaiter(sock)
        self.writing = Waiter(sock, to_write=True)
        self._poller: EdgePoller | None = None
        self._handler: _Handler | None = None
        self._hook: _Hook | None = None
        self._end_hook: _Hook | None = None

    def handle(self, handler: _Handler | None) -> bool:
        """See ``TimestampedStream.handle_arrivals``."""
        if _HAS_EPOLL and handler is not self._handler:
            self._handler = handler
            watches = self._watch_edges(select.EPOLLIN if handler or self._hook else 0)
            self._read_waiter.by_edges = watches and handler is not None
            if handler is None:  # no edge will end the wait that is under way
                self._read_waiter.handle(None)
        return self._read_waiter.by_edges

    def watch(self, hook: _Hook | None, *, end_only: bool) -> bool:
        """See ``TimestampedStream.watch``."""
        if not _HAS_EPOLL:
            return False
        if self._poller is None and not self._watch_edges(0 if end_only else select.EPOLLIN):
            return False
        if end_only:
            self._end_hook = hook
        else:
            self._hook = hook
        return True

    def _watch_edges(self, bits: int) -> bool:
        """Be notified of edges: those of ``bits``, and the connection's end. Return whether that is
        possible."""
        try:
            if self._poller is not None:
                self._poller.change(self._socket, bits)
            else:
                poller = of_this_loop(EdgePoller)
                poller.watch(self._socket, self, bits)
                self._poller = poller
        except OSError:  # no descriptor is left for an epoll instance, or no memory
            return False
        return True

    def notify(self, bits: int) -> None:
        """Take in an edge."""
        if bits & _READABLE and self._handler is not None:
            self._read_waiter.handle(None if bits & _ENDED else self._handler)
        self._call_hooks(bits)

    def _call_hooks(self, bits: int) -> None:
        if bits & _READABLE and self._hook is not None:
            self._hook()
        if bits & _ENDED and self._end_hook is not None:
            self._end_hook()

    def close(self) -> None:
        """Wake whoever waits. To be called before the socket is closed."""
        self._handler = self._hook = self._end_hook = None
        if self._poller is not None:
            self._poller.forget(self._socket)
        self._read_waiter.handle(None)
        anyio.notify_closing(self._socket)


class EdgeWaiter(Waiter):
    """Waits for one direction of a socket, by edges.

    ``future``: the wait under way. ``ended``: whether reading can block no more, since the peer has
    ended its sending.
    """

    def __init__(self) -> None:
        self.ready = self.ended = False
        self.future: asyncio.Future[bool] | None = None
        self._loop = asyncio.get_running_loop()  # CPython 3.11 calls getpid each time
        self._failure: Exception | None = None
        self._until = math.inf
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf  # while there is none; uvloop's timers do not know

    async def wait(self, until: float) -> bool:
        if self.ready:
            self.ready = self.ended
            return True
        self.future = self._loop.create_future()
        self.set_deadline(until)
        try:
            in_time = await self.future
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.ready = True  # an edge may have come, and nobody has read
            raise
        finally:
            self.future = self._failure = None
        return in_time

    def handle(self, handler: _Handler) -> None:
        """Have ``handler`` do, at once, what whoever waits would do. That one is woken only where
        it returns False, or fails: then the wait fails likewise."""
        future = self.future
        self.ready = self.ended
        goes_on = False
        try:
            goes_on = handler()
        except Exception as error:
            self._failure = error
        if not goes_on:
            self.ready = True
            if future is not None and not future.done():
                future.set_result(True)

    def set_deadline(self, until: float) -> None:
        self._until = until
        if self.future is not None and until < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = until
            self._timer = self._loop.call_at(until, self._check_deadline)

    def _check_deadline(self) -> None:
        """End the wait that is under way now, which may be a later one, if it is time for that."""
        self._timer, self._timer_at = None, math.inf
        if self.future is None or self.future.done() or self._until == math.inf:
            return
        if self._loop.time() < self._until:
            self.set_deadline(self._until)
        else:
            self.future.set_result(False)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.future is not None and not self.future.done():
            self.future.set_exception(ClosedResourceError())


class EdgeReadiness(Readiness):
    """The readiness of a socket, by edges."""

    reading: EdgeWaiter
    writing: EdgeWaiter

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.reading, self.writing = EdgeWaiter(), EdgeWaiter()
        self._hook = self._end_hook = None
        self._handler: _Handler | None = None
        self._poller = of_this_loop(EdgePoller)
        self._poller.watch(sock, self, select.EPOLLIN | select.EPOLLOUT | select.EPOLLPRI)

    def handle(self, handler: _Handler | None) -> bool:
        self._handler = handler
        return True

    def notify(self, bits: int) -> None:
        future = self.reading.future
        if bits & select.EPOLLPRI:
            self.reading.reads_stop_short = True
        if bits & _READABLE:
            if future is None or future.done() or self._hook is not None:
                self.reading.ready = True
            elif self._handler is None or bits & _ENDED:
                future.set_result(True)
            else:
                self.reading.handle(self._handler)
        future = self.writing.future  # where there is none, the next write tries first anyway
        if future is not None and bits & _WRITABLE and not future.done():
            future.set_result(True)
        if bits & _ENDED:
            self.reading.ready = self.reading.ended = True
        if self._hook is not None or bits & _ENDED:
            self._call_hooks(bits)

    def close(self) -> None:
        self._hook = self._end_hook = self._handler = None
        if self._poller is not None:
            self._poller.forget(self._socket)
        self.reading.ready = self.reading.ended = True
        self.reading.close()
        self.writing.close()


class EdgePoller:
    """The sockets of one event loop whose edges somebody wants, in an epoll instance that the loop
    watches. The loop holds it, and it does not hold the loop: they end together."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Readiness] = {}
        if current_backend() == "trio":
            import trio

            trio.lowlevel.spawn_system_task(self._poll_on_trio)
        else:
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self.poll)

    def watch(self, sock: socket.socket, readiness: Readiness, bits: int) -> None:
        """Notify ``readiness`` of edges: those of ``bits``, and the connection's end."""
        self._epoll.register(sock, bits | select.EPOLLRDHUP | select.EPOLLET)
        self._watched[sock.fileno()] = readiness

    def change(self, sock: socket.socket, bits: int) -> None:
        """Notify of other edges of a socket that is watched."""
        self._epoll.modify(sock, bits | select.EPOLLRDHUP | select.EPOLLET)

    def forget(self, sock: socket.socket) -> None:
        """To be called before the socket is closed; a second call does nothing."""
        if self._watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    def poll(self) -> None:
        for descriptor, bits in self._epoll.poll(0, _SOCKETS_PER_POLL):
            readiness = self._watched.get(descriptor)
            if readiness is not None:  # else a hook has closed it since
                readiness.notify(bits)

    async def _poll_on_trio(self) -> None:
        while True:
            await anyio.wait_readable(self._epoll.fileno())
            self.poll()


def readiness_of(sock: socket.socket) -> Readiness:
    """The readiness of a connected, non-blocking socket of the running event loop."""
    edges = _HAS_EPOLL and current_backend() != "trio"
    return EdgeReadiness(sock) if edges else Readiness(sock)
