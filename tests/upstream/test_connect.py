"""Connecting to the API by itself: which address is taken, and that no socket is left open."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from end_to_end import free_port

from ape_cerebras.downstream.listener import open_listeners
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import connect_tcp

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


async def connect_tcp_and_close(port: int) -> None:
    (await connect_tcp("127.0.0.1", port)).close()
