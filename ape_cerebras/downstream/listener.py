"""The listening sockets and the accept loop, which nothing but cancellation ends."""

import errno
import itertools
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import anyio

from ..config.config import Config
from ..net.socket_stream import SocketStream
from ..net.timestamps import enable_timestamps, loop_clock
from ..telemetry.logs import Logs
from ..telemetry.place import Ports
from ..version import VERSION

__all__ = (
    "CannotListen",
    "accept_connections",
    "accept_waiting",
    "addresses_of",
    "announce",
    "open_listeners",
    "open_ports",
    "open_ports_now",
)

_BACKLOG = 2048
# One a turn of the loop would leave the last of a crowd waiting while the first are served over and
# over: with 256 at once the last one's first answer took 3.4 s, where it takes 1.0 s now.
_AT_A_TIME = 64
# Bytes that a slow client may leave with the kernel before it blocks its exchange. The kernel's own
# choice begins at 16 KiB and can grow to 4 MiB: too little for a stream to go on being read while
# its client is slow, and too much for a client that reads nothing.
_SEND_BUFFER = 256 * 1024
_UNKNOWN = float("-inf")
_PAUSE = 0.1  # seconds, as trio.serve_listeners waits when the process is out of descriptors

# Out of something for now (accept(2)): wait, and go on with what there is.
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# No listening socket (any more): a defect here, and trying again would never end.
_NOT_LISTENING = frozenset((errno.EBADF, errno.EINVAL, errno.ENOTSOCK))
# "localhost" names an IPv6 address too on machines without IPv6.
_NO_SUCH_ADDRESS_HERE = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


class CannotListen(OSError):
    """``filename`` is the address, in the words of the settings."""


class _Address(NamedTuple):
    family: int
    address: tuple[Any, ...]


async def open_ports(host: str, port: int, scrapers_port: int | None) -> Ports:
    """``open_ports_now`` in a thread, as looking a host up can take its time."""
    return await anyio.to_thread.run_sync(open_ports_now, host, port, scrapers_port)


def open_ports_now(host: str, port: int, scrapers_port: int | None) -> Ports:
    """The sockets for both ports, or for the one that there is. Raises CannotListen."""
    clients = _open_listeners(host, port)
    if scrapers_port is None:
        return Ports(clients)
    try:
        return Ports(clients, _open_listeners(host, scrapers_port))
    except CannotListen:
        Ports(clients).close()
        raise


async def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listening, non-blocking sockets on every address that ``host`` means and this machine has.

    With port 0 all get the one port that the first was given. Raises CannotListen, also where the
    machine has none of the addresses.
    """
    return await anyio.to_thread.run_sync(_open_listeners, host, port)


def _open_listeners(host: str, port: int) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return _open_listeners_on(_Address(family, address) for family, *_, address in found)
    except OSError as error:
        raise CannotListen(error.errno, error.strerror, f"{host}:{port}") from None


def _open_listeners_on(addresses: Iterable[_Address]) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys(addresses):
            if address[1] == 0 and listeners:
                address = (address[0], listeners[0].getsockname()[1], *address[2:])
            listener = _open_listener_if_here(family, address)
            if listener is not None:
                listeners.append(listener)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    if not listeners:
        raise OSError(errno.EADDRNOTAVAIL, "This machine has none of the host's addresses")
    return listeners


def _open_listener_if_here(family: int, address: tuple[object, ...]) -> socket.socket | None:
    try:
        return _open_listener(family, address)
    except OSError as error:
        if error.errno in _NO_SUCH_ADDRESS_HERE:
            return None
        raise


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
    """Log the addresses that are listened on, and whether clients need a key."""
    if not config.ape_api_key and config.ape_api_keys_file is None:
        logs.event("warning", "APE_API_KEY is not set: every client is served")
    for address in addresses_of(ports.clients):
        logs.event("info", "Listening", address=_url(*address), **more, version=VERSION)
    for address in addresses_of(ports.scrapers):
        logs.event("info", "Listening for scrapers", address=_url(*address))


def addresses_of(listeners: Iterable[socket.socket]) -> tuple[tuple[str, int], ...]:
    """Host and port of each listening socket."""
    return tuple(listener.getsockname()[:2] for listener in listeners)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def accept_connections(
    listener: socket.socket,
    handle: Callable[[SocketStream], None],
    wait_for_room: Callable[[], Awaitable[None]],
    complain: Callable[[str], None],
) -> None:
    """Give every connection to ``handle``, for as long as ``listener`` is open.

    ``wait_for_room`` returns once another connection may be taken; until then it waits in the
    backlog. ``complain`` is told, in our words, when the system has nothing left to accept with.
    Raises OSError where ``listener`` does not listen.
    """
    clock = loop_clock()
    empty_at = _UNKNOWN
    for number in itertools.count(1):
        if number % _AT_A_TIME == 0:
            await anyio.lowlevel.checkpoint()
        await wait_for_room()
        looked_at = clock()
        try:
            stream = _stream_over(listener.accept()[0], empty_at)
        except BlockingIOError:
            empty_at = looked_at
            await anyio.wait_readable(listener)
        except OSError as error:
            if error.errno in _NOT_LISTENING:
                raise
            if error.errno in _OUT_OF_RESOURCES:
                complain("Cannot accept connections: out of file descriptors or memory")
                await anyio.sleep(_PAUSE)
            # Else the connection broke before it was taken.
        else:
            handle(stream)


def accept_waiting(listener: socket.socket, handle: Callable[[SocketStream], None]) -> None:
    """Give ``handle`` the connections in the backlog, which closing the listener would reset."""
    with suppress(OSError):
        while True:
            handle(_stream_over(listener.accept()[0], _UNKNOWN))


def _stream_over(sock: socket.socket, empty_at: float) -> SocketStream:
    """``empty_at``: when the backlog was empty, so that nothing had come yet."""
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return SocketStream(sock, silent_until=empty_at)
    except BaseException:
        sock.close()
        raise
