"""Exact times of plain replies that come as streams, on the clock of ``mock_clock``."""

import anyio
from end_to_end import chat, events
from memory_stream import MemoryStream
from mock_clock import (
    CAPACITY,
    FINISH,
    SLOW_STREAM_TIMES,
    THOUGHT,
    TOKEN,
    chunk,
    head,
    on_mock_clock,
    rig,
    slow_stream,
    times_of,
)


def test_every_time_of_a_plain_reply_that_comes_as_a_stream() -> None:
    async def test() -> None:
        async with rig(slow_stream, TTFT_MODE="exact") as running:
            await running.client.send(chat())
            line = await running.line()
        assert times_of(line) == SLOW_STREAM_TIMES
        assert line["tokens_per_second"] == 0.625
        assert (line["stream"], line["ttft_source"]) == (False, "measured")

    on_mock_clock(test)


def test_what_it_takes_to_pass_such_a_reply_on_counts_for_its_first_token() -> None:
    large = events(TOKEN.replace(b'"a"', b'"%s"' % (b"a" * CAPACITY)), FINISH, b"[DONE]")

    async def script(stream: MemoryStream) -> None:
        await head(stream)
        await chunk(stream, large)
        await stream.send(b"0\r\n\r\n")
        request = b""
        while not request.endswith(b"]}"):
            request += await stream.receive()
        await head(stream)
        await anyio.sleep(3)
        await chunk(stream, events(THOUGHT))
        await anyio.sleep(1)
        await chunk(stream, events(TOKEN))
        await anyio.sleep(1)
        await chunk(stream, events(FINISH, b"[DONE]"))
        await stream.send(b"0\r\n\r\n")

    async def test() -> None:
        async with rig(script, TTFT_MODE="exact") as running:
            await running.client.send(chat())
            await running.line()
            await running.client.send(
                chat()
            )  # with the first response unread, and no room for more
            await anyio.sleep(12)
            read = b""
            while read.count(FINISH[-20:]) < 2:
                read += await running.client.receive()
            line = await running.lines.exchange(2, timeout=1e6)
        assert (line["upstream_ttft_seconds"], line["proxy_ttft_seconds"]) == (3.0, 7.0)
        assert (line["ttft_seconds"], line["ttfo_seconds"]) == (10.0, 11.0)
        assert (line["generation_seconds"], line["total_time_seconds"]) == (1.0, 12.0)

    on_mock_clock(test)


def test_not_a_byte_goes_out_before_the_end() -> None:
    async def test() -> None:
        async with rig(slow_stream, TTFT_MODE="exact") as running:
            await running.client.send(chat())
            began_at = anyio.current_time()
            assert (await running.client.receive()).startswith(b"HTTP/1.1 200 OK\r\n")
            assert anyio.current_time() - began_at == 30.0

    on_mock_clock(test)


def test_the_end_marker_is_the_end_whatever_comes_after_it() -> None:
    async def script(stream: MemoryStream) -> None:
        await head(stream)
        await anyio.sleep(3)
        await chunk(stream, events(TOKEN))
        await anyio.sleep(1)
        await chunk(stream, events(FINISH, b"[DONE]"))
        await anyio.sleep(0.02)
        await chunk(stream, b": still here\n\n")
        await anyio.sleep_forever()

    async def test() -> None:
        async with rig(script, TTFT_MODE="exact") as running:
            await running.client.send(chat())
            line = await running.line()
        assert (line["upstream_ttft_seconds"], line["proxy_ttft_seconds"]) == (3.0, 0.0)
        assert line["total_time_seconds"] == 4.0

    on_mock_clock(test)
