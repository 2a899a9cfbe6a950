"""Connecting to the API by itself: which address is taken, and that no socket is left open."""

import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from end_to_end import Conversation, free_port, running_upstream
from waiting import until, wait_all_tasks_blocked

from ape_cerebras.config.values import EgressProxy
from ape_cerebras.downstream.listener import open_listeners
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream import connect
from ape_cerebras.upstream.connect import EgressRefused, connect_for, connect_tcp

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]


@asynccontextmanager
async def listening(host: str = "127.0.0.1") -> AsyncIterator[int]:
    listeners = open_listeners(host, 0)
    yield listeners[0].getsockname()[1]
    for listener in listeners:
        listener.close()


async def test_a_name_becomes_the_address_that_accepts() -> None:
    """``localhost`` is ::1 and 127.0.0.1 nearly everywhere, and only one of them listens."""
    async with listening("127.0.0.1") as port:
        stream = await connect_tcp("localhost", port)
        assert isinstance(stream, SocketStream)
        sock: socket.socket = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        assert sock.getpeername()[:2] == ("127.0.0.1", port)
        stream.close()


async def test_nobody_there_is_an_oserror() -> None:
    for host, port in (("127.0.0.1", free_port()), ("no-such-host.invalid", 80)):
        with pytest.raises(OSError):  # noqa: PT011 - of any kind
            await connect_tcp(host, port)


async def test_a_cancelled_attempt_keeps_no_socket() -> None:
    """Unclosed sockets are warnings, and warnings are errors here."""
    async with listening() as port:
        for iterations in range(8):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(connect_tcp_and_close, port)
                    for _ in range(iterations):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()


async def connect_tcp_and_close(port: int, host: str = "127.0.0.1") -> None:
    (await connect_tcp(host, port)).close()


# Looking up names


class Resolver:
    """In place of ``getaddrinfo``: a lookup of ``slow.test`` hangs until ``answer`` is set. With
    ``fails``, no name of ``test`` is found. Other threads of the tests look their own names up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._look_up: Callable[..., Any] = socket.getaddrinfo
        self.asked: list[str] = []
        self.fails = False
        self.answer = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, name: bytes | str, port: int, *more: Any, **options: Any) -> Any:
        host = name.decode() if isinstance(name, bytes) else name
        if options.get("flags", 0) & socket.AI_NUMERICHOST or not host.endswith(".test"):
            return self._look_up(name, port, *more, **options)
        self.asked.append(host)
        if host == "slow.test":
            self.answer.wait(10)
        if self.fails:
            raise socket.gaierror(socket.EAI_AGAIN, "no resolver")
        return self._look_up("127.0.0.1", port, **options)


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    resolver = Resolver(monkeypatch)
    yield resolver
    resolver.answer.set()


async def test_an_address_asks_no_resolver(resolver: Resolver) -> None:
    async with listening() as port:
        await connect_tcp_and_close(port)
    assert resolver.asked == []


async def test_a_crowd_shares_a_lookup(resolver: Resolver) -> None:
    async with listening() as port, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(connect_tcp_and_close, port, "slow.test")
        await wait_all_tasks_blocked()
        resolver.answer.set()
    assert resolver.asked == ["slow.test"]


async def test_those_who_share_a_failing_lookup_get_an_error_each(resolver: Resolver) -> None:
    resolver.fails = True
    caught: list[OSError] = []

    async def fails() -> None:
        with pytest.raises(socket.gaierror) as error:
            await connect_tcp("slow.test", 1)
        caught.append(error.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fails)
        tasks.start_soon(fails)
        await wait_all_tasks_blocked()
        resolver.answer.set()
    assert resolver.asked == ["slow.test"]
    assert caught[0] is not caught[1]
    assert {error.errno for error in caught} == {socket.EAI_AGAIN}


async def test_a_lookup_that_hangs_holds_neither_a_deadline_nor_the_next(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_SHARED_FOR", 0.0)
    async with listening() as port:
        for _ in range(connect._LOOKUPS_AT_ONCE + 5):
            with anyio.move_on_after(0.001) as scope:
                await connect_tcp("slow.test", port)
            assert scope.cancelled_caught
        assert len(resolver.asked) == connect._LOOKUPS_AT_ONCE
        await connect_tcp_and_close(port, "other.test")


@pytest.mark.parametrize("host", ["a..test", "a" * 64 + ".test", "." * 300])
async def test_a_name_that_cannot_be_is_not_found(host: str) -> None:
    with pytest.raises(socket.gaierror):
        await connect_tcp(host, 1)


async def test_no_thread_for_a_lookup_is_an_oserror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - of that number
        await connect_tcp("some.test", 1)
    assert caught.value.errno == errno.EAGAIN


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@asynccontextmanager
async def egress(reply: bytes | None) -> AsyncIterator[tuple[EgressProxy, list[bytes]]]:
    """A proxy that replies so to CONNECT: nothing, and does not close, where it is None."""

    async def script(peer: Conversation) -> None:
        requests.append(await peer.request())
        if reply is None:
            await peer.until_disconnected()
        else:
            await peer.send(reply)

    requests: list[bytes] = []
    async with running_upstream(script) as upstream:
        yield EgressProxy("127.0.0.1", upstream.port, b"Basic x"), requests


async def test_a_proxy_on_the_way_is_asked_for_the_host_by_name() -> None:
    async with egress(b"HTTP/1.1 200 Connection established\r\n\r\n") as (proxy, requests):
        for host, authority in (("api.example", b"api.example:443"), ("::1", b"[::1]:443")):
            stream = await connect_for(proxy)(host, 443)
            head, *fields = requests.pop().removesuffix(b"\r\n\r\n").split(b"\r\n")
            assert head == b"CONNECT %b HTTP/1.1" % authority
            assert {field.lower() for field in fields} == {
                b"host: " + authority,
                b"proxy-authorization: basic x",
            }
            stream.close()


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", 403),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", 407),
        (b"HTTP/1.0 502 Bad Gateway\r\n\r\n", 502),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n", 301),
        (b"HTTP/1.1 200 OK\r\n\r\nEARLY", 200),  # behind which TLS would begin
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 0),
        (b"HTTP/1.1 200 OK\r\n", 0),
        (b"", 0),
    ],
)
async def test_what_is_no_connection_through_a_proxy(reply: bytes, status: int) -> None:
    async with egress(reply) as (proxy, _):
        with pytest.raises(EgressRefused) as caught:
            await connect_for(proxy)("api.example", 443)
    assert caught.value.status == status


async def connect_through(proxy: EgressProxy) -> None:
    (await connect_for(proxy)("api.example", 443)).close()


async def test_a_silent_proxy_is_left_when_the_time_is_over() -> None:
    """Unclosed sockets are warnings, and warnings are errors here."""
    async with egress(None) as (proxy, requests):
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connect_through, proxy)
                await until(lambda: bool(requests))
                scope.cancel()
        assert scope.cancelled_caught
