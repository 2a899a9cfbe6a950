"""Inside somebody else's program: their streams, their task groups, their cancellation."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
import trustme
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream
from end_to_end import KEY, TOKEN, Lines, chat, running_upstream
from upstream_scripts import one_token_and_no_more, responds

from ape_cerebras import Config, Proxy, serve

pytestmark = pytest.mark.anyio


def config(port: int) -> Config:
    return Config.from_environment(
        {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": f"http://127.0.0.1:{port}", "PORT": "0"}
    )


@asynccontextmanager
async def hosted(proxy: Proxy) -> AsyncIterator[ByteStream]:
    """A client of a host that accepts with anyio and gives ``proxy`` anyio's own streams."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.handle)
        port = listener.extra(SocketAttribute.local_port)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            yield client
        tasks.cancel_scope.cancel()


async def read_until(stream: ByteStream, wanted: bytes) -> bytes:
    read = b""
    with anyio.fail_after(5):
        while wanted not in read:
            read += await stream.receive()
    return read


async def test_any_anyio_stream_can_be_handled() -> None:
    lines = Lines()
    async with running_upstream(responds) as upstream:
        proxy = Proxy(config(upstream.port), lines.write)
        async with hosted(proxy) as client:
            for _ in range(2):
                await client.send(chat())
                assert (await read_until(client, b"{}")).startswith(b"HTTP/1.1 200 OK")
            await lines.exchange(2)
        proxy.close()
    assert [line["outcome"] for line in lines.exchanges()] == ["completed"] * 2


async def test_a_disconnect_is_noticed_on_a_foreign_stream_too() -> None:
    lines = Lines()
    async with running_upstream(one_token_and_no_more) as upstream:
        proxy = Proxy(config(upstream.port), lines.write)
        async with hosted(proxy) as client:
            await client.send(chat())
            await read_until(client, TOKEN)
            await client.aclose()
            with anyio.fail_after(1):
                await upstream.disconnected.wait()
            assert (await lines.exchange())["outcome"] == "client_disconnected"


async def test_a_cancelled_host_leaves_nothing_behind() -> None:
    lines = Lines()
    async with running_upstream(one_token_and_no_more) as upstream:
        proxy = Proxy(config(upstream.port), lines.write)
        with anyio.CancelScope() as scope:
            async with hosted(proxy) as client:
                await client.send(chat())
                await read_until(client, TOKEN)
                scope.cancel()
                await anyio.sleep_forever()
        with anyio.fail_after(1):
            await upstream.disconnected.wait()
    assert [line["outcome"] for line in lines.exchanges()] == ["shut_down"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_cancelled_by_asyncio_itself_loses_no_slot() -> None:
    lines = Lines()
    async with running_upstream(one_token_and_no_more) as upstream:
        settings = {"CEREBRAS_API_KEY": KEY, "CONNECTION_POOL_SIZE": "1"}
        url = f"http://127.0.0.1:{upstream.port}"
        proxy = Proxy(Config.from_environment({**settings, "CEREBRAS_BASE_URL": url}), lines.write)
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        for _ in range(3):
            client = await anyio.connect_tcp("127.0.0.1", port)
            accepted = asyncio.get_running_loop().create_future()

            async def keep(
                stream: ByteStream, found: asyncio.Future[ByteStream] = accepted
            ) -> None:
                found.set_result(stream)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, keep)
                stream = await accepted
                tasks.cancel_scope.cancel()
            handling = asyncio.ensure_future(proxy.handle(stream))
            await client.send(chat())
            await read_until(client, TOKEN)
            handling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handling
            await client.aclose()
        await listener.aclose()
    assert [line["outcome"] for line in lines.exchanges()] == ["shut_down"] * 3


async def test_two_proxies_in_one_program_share_nothing() -> None:
    lines = Lines(), Lines()
    async with running_upstream(responds) as upstream, anyio.create_task_group() as tasks:
        found: list[Proxy] = []
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        for each in lines:

            async def run(*, task_status: anyio.abc.TaskStatus[Proxy], each: Lines = each) -> None:
                await serve(config(upstream.port), write_line=each.write, task_status=task_status)

            found.append(await tasks.start(run))
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        async with await anyio.connect_tcp("127.0.0.1", found[0].addresses[0][1]) as client:
            await client.send(chat())
            await read_until(client, b"{}")
            await lines[0].exchange()
        assert lines[1].exchanges() == []
        for proxy in found:
            proxy.begin_drain()


async def test_a_tls_stream_of_the_host_may_break_in_any_way() -> None:
    lines = Lines()
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    proxy = Proxy(config(1), lines.write)

    async def handle(stream: ByteStream) -> None:
        await proxy.handle(await TLSStream.wrap(stream, ssl_context=theirs, server_side=True))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        port = listener.extra(SocketAttribute.local_port)
        for begun in (b"", chat()[:-5]):
            async with await anyio.connect_tcp("127.0.0.1", port) as raw:
                client = await TLSStream.wrap(raw, ssl_context=ours, hostname="localhost")
                if begun:
                    await client.send(begun)
                await raw.send(b"\x17\x03\x03\x00\x20" + b"no record of ours: its seal is wrong")
                with anyio.fail_after(5), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    while await raw.receive():
                        pass
        tasks.cancel_scope.cancel()
    assert [line["outcome"] for line in lines.exchanges()] == ["client_disconnected"]
    assert not [line for line in lines.all() if line["level"] == "error"]
