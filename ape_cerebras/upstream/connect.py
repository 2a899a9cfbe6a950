"""Connecting to the API: name to address, TCP, a proxy on the way, TLS.

A connection attempt that fails or is cancelled, at whatever moment, closes its socket there and
then; nothing is awaited for that.

Names are looked up in threads that nobody waits for (``net.event_loop.ThreadCall``), because no
deadline ends a ``getaddrinfo`` that hangs. Attempts that need the same name share a lookup, so that
a crowd of requests in front of a resolver that hangs is not a crowd of threads.
"""

import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import certifi
import h11
from anyio import BrokenResourceError, EndOfStream
from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from ..config.config import Config, ConfigError
from ..config.values import EgressProxy
from ..net.event_loop import ThreadCall, loop_clock, of_this_loop
from ..net.socket_stream import SocketStream
from ..net.stream import READ_BYTES, TimestampedStream
from ..telemetry.outcomes import CAUSES

__all__ = (
    "RECEIVE_BUFFER",
    "AttemptFailed",
    "Connect",
    "EgressRefused",
    "cause_of",
    "connect_for",
    "connect_tcp",
    "find_addresses",
    "lookup_is_under_way",
    "ssl_context_for",
    "start_tls",
)

Connect = Callable[[str, int], Awaitable[TimestampedStream]]
"""Host and port to a connected stream, whose ``close`` awaits nothing; raises OSError."""

RECEIVE_BUFFER = 256 * 1024
"""Bytes that the kernel takes, and timestamps, while a slow client keeps us from reading. Fixed,
because the kernel enlarges a buffer of its own choice only for those who read."""
_NEXT_ADDRESS_AFTER = 0.25  # seconds; RFC 8305 section 5, "Connection Attempt Delay"
_SHARED_FOR = 1.0  # seconds in which others join a lookup; a new one may be answered at once then
_LOOKUPS_AT_ONCE = 20  # of a name; from there on the newest is joined

_Address = tuple[int, tuple[object, ...]]
"""Family and address of a socket."""
_Found = list[_Address] | tuple[type[OSError], int]
"""What a lookup found, or the kind and the number of its error: several may wait for it, and each
raises one of its own."""


class _Lookups:
    """The name lookups of one event loop that are under way."""

    def __init__(self) -> None:
        self._clock = loop_clock()
        self._running: list[tuple[str, int, ThreadCall[_Found]]] = []

    @property
    def is_running(self) -> bool:
        return any(not call.ended for _, _, call in self._running)

    async def find(self, host: str, port: int) -> list[_Address]:
        """The addresses of a host, in the resolver's order. Raises OSError."""
        found = await self._join(host, port).result()
        if isinstance(found, tuple):
            kind, number = found
            raise kind(number, "lookup")
        return found

    def _join(self, host: str, port: int) -> ThreadCall[_Found]:
        self._running = [each for each in self._running if not each[2].ended]
        same = [each[2] for each in self._running if each[:2] == (host, port)]
        youngest = max((each.began_at for each in same), default=float("-inf"))
        if youngest + _SHARED_FOR < self._clock() and len(same) < _LOOKUPS_AT_ONCE:
            same.append(ThreadCall(partial(_look_up, host, port)))
            self._running.append((host, port, same[-1]))
        return same[-1]


def lookup_is_under_way() -> bool:
    """Whether somebody waits for the look-up of a name, which is why he is not connected yet."""
    return of_this_loop(_Lookups).is_running


def _look_up(host: str, port: int, flags: int = 0) -> _Found:
    try:  # bytes, because `str` goes through a codec of Python's that takes 284 KB
        found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        return type(error), error.errno or socket.EAI_FAIL
    return [(family, address) for family, *_, address in found]


class AttemptFailed(OSError):
    """No address accepts: the error of the last one tried, and that address."""

    def __init__(self, number: int | None, address: tuple[object, ...]) -> None:
        super().__init__(number, "connect")
        self.address = _as_text(*address[:2])


class EgressRefused(OSError):
    """The proxy on the way to the API did not connect: ``status`` is its response's, 0 where it
    gave none that is HTTP."""

    def __init__(self, status: int, address: str) -> None:
        super().__init__("the proxy on the way refused")
        self.status = status
        self.address = address


def _as_text(host: object, port: object) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


_EGRESS_CAUSES = {0: "proxy_invalid", 407: "proxy_auth", 502: "proxy_unreachable"}
_EGRESS_CAUSES |= dict.fromkeys((500, 503, 504), "proxy_unreachable")
_SAME_CAUSE = {
    "EACCES": "EPERM",
    "EAGAIN": "EMFILE",  # no thread for the look-up
    "ENFILE": "EMFILE",
    "ENOBUFS": "EMFILE",
    "ENOMEM": "EMFILE",
    "EADDRINUSE": "EADDRNOTAVAIL",
    "EPIPE": "ECONNRESET",
}
_LOOKUP_CAUSES = {
    socket.EAI_NONAME: "EAI_NONAME",
    socket.EAI_NODATA: "EAI_NONAME",
    socket.EAI_AGAIN: "EAI_AGAIN",
    socket.EAI_FAIL: "EAI_FAIL",
}
# OpenSSL's X509_V_ERR_… (openssl/x509_vfy.h), as ssl.SSLCertVerificationError has them.
_VERIFY_CAUSES = {
    9: "not_yet_valid",
    10: "expired",
    18: "self_signed",
    19: "self_signed",
    20: "unknown_issuer",
    21: "unknown_issuer",
    62: "hostname_mismatch",
    64: "hostname_mismatch",  # an IP address
}


def cause_of(error: BaseException) -> str:
    """The word of ``CAUSES`` for a failure to connect, its kind and numbers alone: nothing of its
    text, which is foreign."""
    if isinstance(error, EgressRefused):
        return _EGRESS_CAUSES.get(error.status, "proxy_refused")
    if isinstance(error, ssl.SSLCertVerificationError):
        return _VERIFY_CAUSES.get(error.verify_code, "CERTIFICATE_VERIFY_FAILED")
    if isinstance(error, ssl.SSLError):
        if error.reason == "WRONG_VERSION_NUMBER":
            return "WRONG_VERSION_NUMBER"
        return "tls_alert" if "ALERT" in (error.reason or "") else "tls_other"
    if isinstance(error, BrokenResourceError | EndOfStream):
        return "tls_closed"
    if isinstance(error, socket.gaierror):
        return _LOOKUP_CAUSES.get(error.errno or 0, "EAI_OTHER")
    name = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    name = _SAME_CAUSE.get(name, name)
    return name if name in CAUSES else "E_OTHER"


def connect_for(proxy: EgressProxy | None) -> Connect:
    """How to connect where ``proxy`` is on the way to the API, or none."""
    return connect_tcp if proxy is None else partial(_connect_through, proxy)


async def _connect_through(proxy: EgressProxy, host: str, port: int) -> TimestampedStream:
    """Have a proxy connect (RFC 9110 section 9.3.6). It looks the host's name up. Raises OSError,
    EgressRefused among them."""
    raw = await connect_tcp(proxy.host, proxy.port)
    try:
        http = h11.Connection(h11.CLIENT)
        authority = _as_text(host, port)
        headers = [("host", authority)]
        if proxy.authorization:
            headers.append(("proxy-authorization", proxy.authorization.decode()))
        request = h11.Request(method="CONNECT", target=authority, headers=headers)
        await raw.send((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
        while not isinstance(response := http.next_event(), h11.Response):
            if response is h11.NEED_DATA:
                http.receive_data(await raw.receive(READ_BYTES))
        if response.status_code >= 300 or http.trailing_data[0]:
            raise EgressRefused(response.status_code, _as_text(proxy.host, proxy.port))
    except (EndOfStream, BrokenResourceError, h11.RemoteProtocolError):
        raw.close()
        raise EgressRefused(0, _as_text(proxy.host, proxy.port)) from None
    except BaseException:
        raw.close()
        raise
    return raw


async def find_addresses(host: str, port: int) -> list[_Address]:
    """The addresses of a host, in the resolver's order. Raises OSError."""
    found = _look_up(host, port, socket.AI_NUMERICHOST)  # which asks no resolver
    return await of_this_loop(_Lookups).find(host, port) if isinstance(found, tuple) else found


async def connect_tcp(host: str, port: int) -> TimestampedStream:
    """Connect to the host's addresses side by side, as RFC 8305 describes; the first wins.

    Raises OSError (socket.gaierror among them) where none accepts.
    """
    found = await find_addresses(host, port)
    winner: list[socket.socket] = []
    failures: list[OSError] = []

    async def attempt(family: int, address: tuple[object, ...], failed: anyio.Event) -> None:
        try:
            sock = await _connect_socket(family, address)
        except OSError as error:
            failures.append(AttemptFailed(error.errno, address))
            failed.set()
        else:
            # Two may win in one iteration of the event loop; only the first is kept.
            winner.append(sock) if not winner else sock.close()
            racers.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as racers:
            for family, address in found:
                failed = anyio.Event()
                racers.start_soon(attempt, family, address, failed)
                with anyio.move_on_after(_NEXT_ADDRESS_AFTER):
                    await failed.wait()
    except BaseException:
        for sock in winner:
            sock.close()
        raise
    if not winner:
        raise failures[-1] if failures else OSError("no address")
    stream = SocketStream(winner[0])
    stream.peer = _as_text(*winner[0].getpeername()[:2])
    return stream


async def _connect_socket(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        try:
            sock.connect(address)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "connect") from None
    except BaseException:
        sock.close()
        raise
    return sock


def ssl_context_for(config: Config) -> ssl.SSLContext | None:
    """A context that verifies the API's certificate; None for plain HTTP. It trusts certifi's CAs
    where the settings name none.

    Raises ConfigError where a bundle has changed since the settings were read.
    """
    if config.cerebras_base_url.scheme != "https":
        return None
    file, directory = config.ssl_cert_file, config.ssl_cert_dir
    if file is None and directory is None:
        file = certifi.where()
    try:
        context = ssl.create_default_context(cafile=file, capath=directory)
    except OSError:  # ssl.SSLError is one
        raise ConfigError(["SSL_CERT_FILE names a file that OpenSSL cannot read"]) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


async def start_tls(
    raw: TimestampedStream, ssl_context: ssl.SSLContext | None, host: str
) -> ByteStream:
    """TLS over ``raw`` after its handshake; ``raw`` itself without a context.

    ``raw`` is closed if that fails or is cancelled. Raises ssl.SSLError, BrokenResourceError and
    EndOfStream.
    """
    if ssl_context is None:
        return raw
    try:
        # Standard compatible: a stream cut without close_notify is an error, not an end (RFC 9112
        # section 9.8), so that a truncated response does not look complete.
        return await TLSStream.wrap(
            raw, ssl_context=ssl_context, hostname=host, standard_compatible=True
        )
    except BaseException:
        raw.close()
        raise
