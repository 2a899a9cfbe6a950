"""Listening sockets, accepting from them, and the count of connections that are open."""

import errno
import select
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import anyio

from ..config.config import Config
from ..net.event_loop import loop_clock
from ..net.socket_stream import SocketStream
from ..net.stream import TimestampedStream
from ..net.timestamps import enable_timestamps
from ..telemetry.logs import Logs
from ..telemetry.multiprocess import WorkerSlot, WorkerState
from ..version import VERSION
from .connection import Downstream

__all__ = (
    "Acceptor",
    "CannotListen",
    "Connections",
    "Ports",
    "Precedence",
    "addresses_of",
    "announce",
    "awaited_workers",
    "open_listeners",
    "open_ports",
)

_BACKLOG = 2048
# Connections accepted in one event-loop iteration. With one, the last of a crowd waits while the
# first are served over and over: of 256 at once, the last had its first response after 3.4 s, where
# it has it after 1.0 s now.
_BATCH = 64
# Bytes that the kernel buffers for a slow client before the client blocks its exchange. The
# kernel's own choice begins at 16 KiB and can grow to 4 MiB: too little to go on reading a stream
# while its client is slow, and too much for a client that reads nothing.
_SEND_BUFFER = 256 * 1024
_FULL = "All client connections are in use: MAX_CONNECTIONS is reached"
_UNKNOWN = float("-inf")
_PAUSE = 0.1  # seconds, as trio.serve_listeners waits when the process is out of descriptors
_CANNOT_ACCEPT = "Cannot accept connections: out of file descriptors or memory"
_LOG_EVERY = 1.0  # seconds
_SHOWN_VALUE = 256  # characters of a setting, in the log
_LOG_FULL_EVERY = 60.0  # seconds
# Seconds after which an idle connection may make room for another: the first request of one that
# has just been opened may be on its way.
_IDLE_ENOUGH = 1.0
# Seconds that a connection waits for a worker with fewer of them, at most. On cores that others
# wanted, four clients were two and two over two workers in 90 of 100 trials with 10 ms, 95 with 20.
_PATIENCE = 0.05
_LOOK_EVERY = 0.001  # seconds, while a connection is left to other workers
# Of so many connections a worker may have one more than it should. A crowd would be accepted one by
# one by each in turn, and the last of it wait while the first are served.
_TOLERANCE = 16

# Out of a resource for now (accept(2)): wait, and go on with those there are.
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# No listening socket (any more): a defect of ours, and trying again would never end.
_NOT_LISTENING = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK))
# "localhost" names an IPv6 address too on machines without IPv6.
_NO_SUCH_ADDRESS_HERE = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


class CannotListen(OSError):
    """``filename`` is the address, in the words of the settings."""


class Ports(NamedTuple):
    """The listening sockets of a service: for its clients, and for scrapers, if they have their own
    port."""

    clients: Sequence[socket.socket] = ()
    scrapers: Sequence[socket.socket] = ()

    def close(self) -> None:
        for listener in (*self.clients, *self.scrapers):
            listener.close()


def open_ports(host: str, port: int, scrapers_port: int | None) -> Ports:
    """Open the sockets of both ports, or of the one that there is. Looking up a host may block.
    Raises CannotListen."""
    clients = open_listeners(host, port)
    if scrapers_port is None:
        return Ports(clients)
    try:
        return Ports(clients, open_listeners(host, scrapers_port))
    except CannotListen:
        Ports(clients).close()
        raise


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Open listening, non-blocking sockets on every address of ``host`` that this machine has.
    With port 0 all get the one port that the first was given. Looking up a host may block.

    Raises CannotListen, also where the machine has none of the addresses.
    """
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(  # bytes: see `_look_up` of `upstream/connect`
            host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            if port == 0 and listeners:
                address = (address[0], listeners[0].getsockname()[1], *address[2:])
            try:
                listeners.append(_open_listener(family, address))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS_HERE:
                    raise
        if not listeners:
            raise OSError(errno.EADDRNOTAVAIL, "This machine has none of the host's addresses")
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise CannotListen(error.errno, error.strerror, f"{host}:{port}") from None
    return listeners


def _open_listener(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" means both families where it stands alone, as nginx's ipv6only=off does.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        # Connections inherit both.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        enable_timestamps(sock)  # what comes before a connection is accepted gets one too
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def announce(logs: Logs, config: Config, ports: Ports, **more: Any) -> None:
    """Log the addresses that are listened on, whether clients need a key, and all settings, so that
    a log says by itself what it is the log of. Secrets are hidden, and long values are cut."""
    if config.open_warning:
        logs.event("warning", config.open_warning)
    for address in addresses_of(ports.clients):
        logs.event("info", "Listening", address=_url(*address), **more, version=VERSION)
    for address in addresses_of(ports.scrapers):
        logs.event("info", "Listening for scrapers", address=_url(*address))
    settings = {name: text[:_SHOWN_VALUE] for name, text in config.visible().items()}
    logs.event("info", "Settings", version=VERSION, settings=settings)


def addresses_of(listeners: Iterable[socket.socket]) -> tuple[tuple[str, int], ...]:
    """Host and port of each listening socket."""
    return tuple(listener.getsockname()[:2] for listener in listeners)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Connections:
    """The open connections of one entrance, at most ``limit``.

    A connection is added when it is accepted, and gets its ``Downstream`` when its task begins: so
    the accept loop knows how many there are without waiting for tasks. ``slot`` is a worker's,
    which reports its number of connections to the others. ``full``: connections that had to wait
    for room, or for another's end; one warning a minute says so in the log.
    """

    def __init__(self, limit: int, slot: WorkerSlot | None, logs: Logs | None = None) -> None:
        self.full = 0
        self._logs = logs
        self._log_full_at = _UNKNOWN
        self._limit = limit
        self._clock = loop_clock()
        self._slot = slot
        self._open: dict[TimestampedStream, Downstream | None] = {}
        self._closed_one = anyio.Event()

    def __iter__(self) -> Iterator[Downstream]:
        return iter([each for each in self._open.values() if each is not None])

    def __len__(self) -> int:
        return len(self._open)

    def add(self, stream: TimestampedStream, downstream: Downstream | None = None) -> None:
        self._open[stream] = downstream
        self._report()

    def discard(self, stream: TimestampedStream) -> None:
        self._open.pop(stream, None)
        self._report()
        self._closed_one.set()

    def _report(self) -> None:
        if self._slot is not None:
            self._slot.scoreboard.set_connections(self._slot.number, len(self._open))

    async def wait_for_room(self) -> None:
        """Wait until another connection may be accepted.

        Where there is no room, the connection closes that has been idle longest, as nginx does it
        (``ngx_drain_connections``): clients that keep connections and say nothing shut nobody out.
        """
        if len(self._open) >= self._limit:
            self._note_full()
        while len(self._open) >= self._limit:
            with anyio.move_on_after(self._make_room()):
                await self.wait_for_fewer_than(self._limit)

    def _note_full(self) -> None:
        self.full += 1
        now = self._clock()
        if self._logs is not None and now >= self._log_full_at:
            self._log_full_at = now + _LOG_FULL_EVERY
            self._logs.event("warning", _FULL, limit=self._limit, waited=self.full)

    def _make_room(self) -> float:
        """Have the longest idle connection close. Return the seconds until that is worth another
        look."""
        idle = [(each.idle_since, each) for each in self if each.idle_since is not None]
        if not idle:
            return _IDLE_ENOUGH
        since, oldest = min(idle, key=lambda pair: pair[0])
        missing = since + _IDLE_ENOUGH - self._clock()
        if missing > 0:
            return missing
        oldest.make_room()
        return _IDLE_ENOUGH

    async def wait_for_fewer_than(self, count: int) -> None:
        while len(self._open) >= count:
            if self._closed_one.is_set():
                self._closed_one = anyio.Event()
            await self._closed_one.wait()


def awaited_workers(
    own: int, others: Mapping[int, WorkerState], silent: Mapping[int, WorkerState]
) -> dict[int, WorkerState]:
    """The workers to which one with ``own`` connections leaves the next: those that have fewer, but
    not the ``silent`` ones that are still in the state in which they let one wait."""
    enough = own - own // _TOLERANCE
    return {
        number: state
        for number, state in others.items()
        if state.connections < enough and silent.get(number) != state
    }


class Precedence:
    """Whether this worker or another accepts the connection that waits: one with the fewest.

    A worker leaves it to those that have fewer, unless they let it wait for ``_PATIENCE``. A count
    is raised with the accept, before anything else of that worker runs, and those of others can
    meanwhile only have risen: so, but for connections that end, no worker gets ahead by more than
    one (one in ``_TOLERANCE``), in whatever order they run. Just after an accept those with as many
    go first, too: they may have fewer, and not know yet that clients have gone. Where four clients
    had just gone, the next four were two and two in 99 of 100 trials, and without that in 95.

    Of a worker that let one wait nothing is expected until it accepts or ends a connection, or its
    event loop goes on (``ticks``): one that hangs costs one wait, not one for each connection.
    """

    def __init__(self, slot: WorkerSlot) -> None:
        self._slot = slot
        self._awaited: dict[int, WorkerState] = {}
        self._silent: dict[int, WorkerState] = {}
        self._until = _UNKNOWN
        self._ours_at = _UNKNOWN

    def is_ours(self, now: float) -> bool:
        """Whether this worker should accept the connection that waits at ``now``."""
        number, scoreboard = self._slot.number, self._slot.scoreboard
        own, others = scoreboard.connections(number), scoreboard.others(number)
        own += now < self._ours_at + _LOOK_EVERY  # just after an accept
        before, self._awaited = self._awaited, awaited_workers(own, others, self._silent)
        if not self._awaited:
            self._ours_at = now
            return True
        if not before or _has_accepted(before, self._awaited):
            self._until = now + _PATIENCE
        if now < self._until:
            return False
        self._silent |= self._awaited
        self.forget()
        return True

    def forget(self) -> None:
        """Nothing waits any more: the next connection is another."""
        self._awaited = {}


def _has_accepted(before: Mapping[int, WorkerState], after: Mapping[int, WorkerState]) -> bool:
    return any(
        number in before and state.connections > before[number].connections
        for number, state in after.items()
    )


class Acceptor:
    """Accepts connections from one listening socket, and adds them to ``connections``; without
    these it accepts any number. ``slot`` is that of one of several workers that share the socket.
    """

    def __init__(
        self,
        listener: socket.socket,
        logs: Logs,
        connections: Connections | None = None,
        slot: WorkerSlot | None = None,
    ) -> None:
        self._listener = listener
        self._connections = connections
        self._slot = slot
        self._precedence = None if slot is None else Precedence(slot)
        self._logs = logs
        self._log_again_at = _UNKNOWN
        self._clock = loop_clock()
        self._empty_at = _UNKNOWN  # when the backlog was empty
        self._attempts = 0

    async def accept(self) -> SocketStream:
        """Wait for the next connection, and until there is room for it: meanwhile it waits in the
        backlog. Raises OSError where the socket does not listen."""
        while True:
            self._attempts += 1
            if self._attempts % _BATCH == 0:
                await anyio.lowlevel.checkpoint()
            if self._connections is not None:
                await self._connections.wait_for_room()
            now = self._clock()
            if self._precedence is not None and not self._precedence.is_ours(now):
                await self._leave_to_others(self._precedence, now)
                continue
            try:
                return self._accept_now(self._empty_at)
            except BlockingIOError:
                self._empty_at = now
                await anyio.wait_readable(self._listener)
            except OSError as error:
                if error.errno in _NOT_LISTENING:
                    raise
                if error.errno in _OUT_OF_RESOURCES:
                    await self._pause(now)
                # Else the connection broke before it was accepted.

    async def _leave_to_others(self, precedence: Precedence, now: float) -> None:
        """Wait for a moment, or where no connection waits (any more) until one does."""
        if _is_readable(self._listener):
            await anyio.sleep(_LOOK_EVERY)
            return
        precedence.forget()
        self._empty_at = now
        await anyio.wait_readable(self._listener)

    async def _pause(self, now: float) -> None:
        """Wait for resources, while no other worker waits for this one."""
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_EVERY
            self._logs.event("error", _CANNOT_ACCEPT)
        if self._slot is not None:
            self._slot.scoreboard.set_accepting(self._slot.number, False)
        await anyio.sleep(_PAUSE)
        if self._slot is not None:
            self._slot.scoreboard.set_accepting(self._slot.number, True)

    def accept_waiting(self) -> Iterator[SocketStream]:
        """Accept the connections in the backlog, which closing the listener would reset."""
        with suppress(OSError):
            while True:
                yield self._accept_now(_UNKNOWN)

    def _accept_now(self, empty_at: float) -> SocketStream:
        """``empty_at``: when the backlog was empty, so that nothing had arrived on it yet."""
        sock, address = self._listener.accept()
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stream = SocketStream(sock, silent_until=empty_at)
            stream.peer = address[0].removeprefix("::ffff:")  # IPv4 at a socket of both families
        except BaseException:
            sock.close()
            raise
        if self._connections is not None:
            self._connections.add(stream)
        return stream


def _is_readable(listener: socket.socket) -> bool:
    """Whether a connection waits, without accepting it."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))
