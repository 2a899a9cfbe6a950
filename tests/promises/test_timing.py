"""Exact times, on a clock that only moves when everybody waits: what is 20 s reads 20.0."""

import anyio
import pytest
from end_to_end import chat, events
from memory_stream import MemoryStream
from mock_clock import (
    FINISH,
    SLOW_STREAM_TIMES,
    STREAMED,
    TOKEN,
    Script,
    chunk,
    closing_stream,
    head,
    on_mock_clock,
    rig,
    slow_stream,
    times_of,
)


def test_every_time_of_a_stream() -> None:
    async def test() -> None:
        async with rig(slow_stream) as running:
            await running.client.send(STREAMED)
            line = await running.line()
        assert times_of(line) == {**SLOW_STREAM_TIMES, "client_blocked_seconds": 0.0}
        assert (line["stamp"], line["connection"]) == ("read", "new")
        assert line["tokens_per_second"] == 0.625
        assert line["ttft_source"] == "measured"

    on_mock_clock(test)


def test_a_ttft_and_all_its_parts() -> None:
    """One connection for two clients that send requests at once: the second waits 30 s for it. Both
    times it takes 5 s to connect, for the response forbids to use the connection again."""

    async def test() -> None:
        async with rig(
            closing_stream, 5, CONNECTION_POOL_SIZE="1", UPSTREAM_CONNECT_TIMEOUT="100"
        ) as running:
            second = running.another_client()
            await running.client.send(STREAMED)
            await anyio.sleep(1)
            await second.send(STREAMED)
            lines = [await running.lines.exchange(number, timeout=1e6) for number in (1, 2)]
        parts = ("wait", "connect", "queue", "prompt", "network", "proxy_own")
        found = [[line.get(f"{part}_seconds") for part in parts] for line in lines]
        assert found == [[None, 5.0, 1.5, 2.5, 16.0, 0.0], [34.0, 5.0, 1.5, 2.5, 16.0, 0.0]]
        assert [line["ttft_seconds"] for line in lines] == [25.0, 59.0]
        assert [line["proxy_ttft_seconds"] for line in lines] == [5.0, 39.0]

    on_mock_clock(test)


def test_a_wait_to_be_admitted_is_a_part_of_ttft_and_no_work_of_the_proxys() -> None:
    """One slot for two: the second waits for 28 s, and then for nothing but its connection."""

    async def test() -> None:
        async with rig(
            closing_stream, 4, MAX_CONCURRENT_REQUESTS="1", MAX_QUEUE_SECONDS="100"
        ) as running:
            second = running.another_client()
            await running.client.send(STREAMED)
            await anyio.sleep(6)
            await second.send(STREAMED)
            lines = [await running.lines.exchange(number, timeout=1e6) for number in (1, 2)]
        parts = ("wait", "connect", "queue", "prompt", "network", "proxy_own", "overhead")
        found = [[line.get(f"{part}_seconds") for part in parts] for line in lines]
        assert found == [
            [None, 4.0, 1.5, 2.5, 16.0, 0.0, 0.0],
            [28.0, 4.0, 1.5, 2.5, 16.0, 0.0, 0.0],
        ]
        assert [line["ttft_seconds"] for line in lines] == [24.0, 52.0]
        assert [line["proxy_ttft_seconds"] for line in lines] == [4.0, 32.0]

    on_mock_clock(test)


def test_the_clock_starts_when_the_request_is_complete() -> None:
    async def test() -> None:
        async with rig(slow_stream) as running:
            request = chat()
            await running.client.send(request[:-10])
            await anyio.sleep(7)
            await running.client.send(request[-10:])
            line = await running.line()
        assert (line["ttft_seconds"], line["total_time_seconds"]) == (20.0, 30.0)

    on_mock_clock(test)


def test_an_event_in_pieces_has_arrived_with_its_last_byte() -> None:
    async def script(stream: MemoryStream) -> None:
        await head(stream)
        whole = events(TOKEN)
        await chunk(stream, whole[:-1])
        await anyio.sleep(4)
        await chunk(stream, whole[-1:] + events(FINISH, b"[DONE]"))
        await stream.send(b"0\r\n\r\n")

    async def test() -> None:
        async with rig(script) as running:
            await running.client.send(chat())
            assert (await running.line())["ttft_seconds"] == 4.0

    on_mock_clock(test)


def slow_reply(body: bytes) -> Script:
    """All of it at 20 s."""

    async def script(stream: MemoryStream) -> None:
        await anyio.sleep(20)
        await stream.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )

    return script


def test_a_plain_replys_ttft_is_derived_and_never_its_total() -> None:
    body = b'{"model":"gpt-oss-120b",' + FINISH.partition(b'"gpt-oss-120b",')[2]

    async def test() -> None:
        async with rig(slow_reply(body)) as running:
            await running.client.send(chat())
            line = await running.line()
        assert line["ttft_source"] == "derived"
        assert line["ttft_seconds"] == line["upstream_ttft_seconds"] == 12.0
        assert line["network_seconds"] == 8.0
        assert line["total_time_seconds"] == 20.0
        assert line["speed_source"] == "derived"
        assert line["tpot_seconds"] == 2.0

    on_mock_clock(test)


@pytest.mark.parametrize(
    "body", [b'{"usage":{"prompt_tokens":1}}', b'{"time_info":{"completion_time":99}}', b"nonsense"]
)
def test_where_nothing_can_be_derived_there_is_no_ttft(body: bytes) -> None:
    async def test() -> None:
        async with rig(slow_reply(body)) as running:
            await running.client.send(chat())
            line = await running.line()
        assert line["ttft_source"] is None
        assert not [name for name in line if "ttft_seconds" in name]

    on_mock_clock(test)


def test_a_client_that_reads_slowly_is_the_only_one_to_look_slow() -> None:
    async def script(stream: MemoryStream) -> None:
        await head(stream)
        await anyio.sleep(3)
        await chunk(stream, events(TOKEN))
        await anyio.sleep(1)
        await chunk(stream, events(*[TOKEN] * 2000))
        await chunk(stream, events(FINISH, b"[DONE]"))
        await stream.send(b"0\r\n\r\n")

    async def test() -> None:
        async with rig(script) as running:
            await running.client.send(STREAMED)
            read = b""
            while not read.endswith(b"\r\n0\r\n\r\n"):
                await anyio.sleep(1)
                read += await running.client.receive(8 * 1024)
            line = await running.line()
        assert line["upstream_ttft_seconds"] == 3.0
        assert line["generation_seconds"] == 1.0
        assert line["client_blocked_seconds"] == 9.0

    on_mock_clock(test)


@pytest.mark.parametrize(
    ("settings", "sent", "seconds", "response"),
    [
        ({"CLIENT_HEAD_TIMEOUT": "10"}, b"", 10, b""),
        ({"KEEP_ALIVE_TIMEOUT": "75"}, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", 75, b""),
        ({"CLIENT_HEAD_TIMEOUT": "10"}, b"GET /health HTTP/1.1\r\n", 10, b"HTTP/1.1 408 "),
        ({"CLIENT_BODY_TIMEOUT": "30"}, chat()[:-5], 30, b"HTTP/1.1 408 "),
        ({"UPSTREAM_FIRST_BYTE_TIMEOUT": "60"}, chat(), 60, b"HTTP/1.1 504 "),
    ],
)
def test_deadlines_are_exact(
    settings: dict[str, str], sent: bytes, seconds: int, response: bytes
) -> None:
    async def silence(stream: MemoryStream) -> None:
        await anyio.sleep_forever()

    async def test() -> None:
        async with rig(silence, **settings) as running:
            began_at = anyio.current_time()
            if sent:
                await running.client.send(sent)
            if response:
                assert (await running.client.receive()).startswith(response)
            else:
                if sent:
                    assert (await running.client.receive()).startswith(b"HTTP/1.1 200 ")
                with pytest.raises(anyio.EndOfStream):
                    await running.client.receive()
            assert anyio.current_time() - began_at == pytest.approx(seconds)

    on_mock_clock(test)
