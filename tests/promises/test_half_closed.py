"""Clients that end their sending, and the byte by which the proxy finds out whether they are still
there. A relay in front of the proxy half-closes, because most clients never do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import anyio
import anyio.to_thread
import pytest
from end_to_end import (
    TOKEN,
    Conversation,
    Script,
    events,
    running_proxy,
    running_upstream,
    serve_each,
)
from http_clients import CLIENTS, PROGRAMS
from programs import tool

from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import connect_tcp

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

WHOLE = events(TOKEN, b"[DONE]")
INSIDE = b'data: {"choices":[{"del'  # behind it no error event fits


class HalfClosing:
    """Relays a connection to the proxy, ends its sending once the response has ``begun``, and
    mirrors how it ends. ``probed``: the ``probe`` has come behind that."""

    def __init__(self, proxy_port: int, begun: bytes, probe: bytes) -> None:
        self._proxy_port = proxy_port
        self._begun, self._probe = begun, probe
        self.probed = anyio.Event()
        self.port = 0

    async def converse(self, client: SocketStream) -> None:
        proxy = await connect_tcp("127.0.0.1", self._proxy_port)
        assert isinstance(proxy, SocketStream)
        request, response = b"", b""
        while not request.endswith(b"]}"):
            request += await client.receive()
        await proxy.send(request)
        half_closed = False
        try:
            while True:
                if self._begun in response and not half_closed:
                    half_closed = True
                    await proxy.send_eof()
                data = await proxy.receive()
                response += data
                await client.send(data)
                if response.endswith(self._begun + self._probe):
                    self.probed.set()
        except anyio.EndOfStream:
            client.close()
        except anyio.BrokenResourceError:
            client.reset()
        finally:
            proxy.close()
            client.close()


@asynccontextmanager
async def half_closing(
    script: Script, begun: bytes, probe: bytes, probed: list[anyio.Event]
) -> AsyncIterator[str]:
    """The address of a proxy for which each client ends its sending."""
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port) as running,
        anyio.create_task_group() as tasks,
    ):
        relay = HalfClosing(running.port, begun, probe)
        probed.append(relay.probed)
        port = await tasks.start(partial(serve_each, relay.converse))
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
        tasks.cancel_scope.cancel()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """The name of one whose program is installed."""
    if request.param in PROGRAMS:
        tool(*PROGRAMS[request.param])
    return str(request.param)


async def read(client: str, url: str) -> bytes | None:
    """The response's body; None where the client reports an error."""
    with suppress(Exception):
        return await anyio.to_thread.run_sync(CLIENTS[client], url)
    return None


@pytest.mark.parametrize("complete", [True, False])
async def test_a_probe_before_the_head(client: str, complete: bool) -> None:
    probed: list[anyio.Event] = []

    async def script(peer: Conversation) -> None:
        await peer.request()
        await probed[0].wait()
        if complete:
            await peer.respond(WHOLE)

    async with half_closing(script, b"", b"H", probed) as url:
        body = await read(client, url)
    assert body == (WHOLE if complete else None)


@pytest.mark.parametrize("end", ["complete", "cut", "cut inside an event"])
async def test_a_probe_inside_a_stream(client: str, end: str) -> None:
    begun = events(TOKEN) + (INSIDE if end == "cut inside an event" else b"")
    probed: list[anyio.Event] = []

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(begun)
        await probed[0].wait()
        if end == "complete":
            await peer.chunk(WHOLE.removeprefix(begun))
            await peer.end()

    async with half_closing(script, begun, b"\r\n0", probed) as url:
        body = await read(client, url)
    assert body == (WHOLE if end == "complete" else None)
