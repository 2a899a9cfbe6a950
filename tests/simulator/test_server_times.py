"""The simulator on a mock clock: an event that is due at 3 s is sent at 3.0."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
from memory_stream import MemoryStream, memory_pair
from running_simulator import STREAM, chat, on_mock_clock

from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.server import Simulator


@asynccontextmanager
async def simulated(
    capacity: float = float("inf"), **options: Any
) -> AsyncIterator[tuple[Simulator, MemoryStream]]:
    """A simulator, and the client end of a connection to it."""
    client, server = memory_pair(capacity)
    simulator = Simulator(Simulation(**options))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(simulator.handle, server)
        yield simulator, client
        client.close()
        await simulator.until(lambda simulator: simulator.in_flight == 0)
        tasks.cancel_scope.cancel()


async def writes(
    client: MemoryStream, request: bytes, *, wait: float = 0.0
) -> list[tuple[float, bytes]]:
    """The response write by write, with the seconds since the request. Reading begins after
    ``wait`` seconds."""
    began_at = anyio.current_time()
    await client.send(request)
    await anyio.sleep(wait)
    seen: list[tuple[float, bytes]] = []
    while not (seen and seen[-1][1].endswith(b"0\r\n\r\n")):
        data = await client.receive()
        seen.append((round(anyio.current_time() - began_at, 6), data))
    return seen


PACED = {"ttft": 1.0, "rate": 10.0, "tokens": 20, "tokens_per_chunk": 5, "queue_time": 0.25}


@on_mock_clock
async def test_every_token_of_a_stream_is_sent_when_due() -> None:
    async with simulated(**PACED) as (simulator, client):
        seen = await writes(client, chat(STREAM))
        [truth] = simulator.truth
    assert [at for at, _ in seen] == [1.0, 1.6, 2.1, 2.6, 3.0]
    first, *middle, last = [data for _, data in seen]
    assert first.startswith(b"HTTP/1.1 200 ")
    assert first.count(b"data: ") == 2  # the role, and a token
    assert [data.count(b"data: ") for data in middle] == [1, 1, 1]
    assert last.count(b"data: ") == 3  # tokens, the finish, the end mark
    reported = orjson.loads(last.split(b"data: ")[2].partition(b"\n")[0])["time_info"]
    assert (reported["queue_time"], reported["prompt_time"]) == (0.25, 0.75)
    assert (reported["completion_time"], reported["total_time"]) == (2.0, 3.0)
    assert (truth.ttfb_seconds, truth.ttft_seconds, truth.last_token_seconds) == (1.0, 1.0, 3.0)
    assert truth.uncertain_seconds == 0.0
    assert truth.events_written == 8


@on_mock_clock
async def test_a_plain_reply_is_sent_when_its_last_token_is_due() -> None:
    async with simulated(**PACED) as (simulator, client):
        [(at, data)] = await writes(client, chat())
        [truth] = simulator.truth
    assert at == 3.0
    assert b'"completion_time":2.0' in data
    assert truth.last_token_seconds == 3.0


@on_mock_clock
async def test_without_a_rate_all_tokens_are_sent_at_once() -> None:
    async with simulated(ttft=1.0, rate=0.0, tokens=500) as (_, client):
        [(at, data)] = await writes(client, chat(STREAM))
    assert at == 1.0
    assert b'"completion_time":0.0' in data


@on_mock_clock
async def test_a_request_can_override_the_times() -> None:
    async with simulated(**PACED) as (_, client):
        seen = await writes(client, chat(STREAM, "X-Simulate: ttft=7, tokens=1"))
        again = await writes(client, chat(STREAM, "X-Simulate: ttft=2, tokens=1"))
    assert [at for at, _ in seen] == [7.0]
    assert [at for at, _ in again] == [2.0]


@on_mock_clock
async def test_a_slow_client_does_not_delay_later_tokens() -> None:
    async with simulated(capacity=1, **PACED) as (_, client):
        seen = await writes(client, chat(STREAM), wait=2.7)
    # Two writes had been made, of which one waited. The events due meanwhile are one write more.
    assert [(at, data.count(b"data: ")) for at, data in seen] == [
        (2.7, 2),
        (2.7, 1),
        (2.7, 2),
        (3.0, 3),
    ]


@on_mock_clock
async def test_a_slow_head() -> None:
    async with simulated(fault="slow_head", byte_time=2.0) as (_, client):
        await client.send(chat())
        began_at = anyio.current_time()
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await client.receive()
            assert anyio.current_time() - began_at == 2.0 * (len(head) - 1)
        assert await client.receive() == b"{}"
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")


@on_mock_clock
async def test_a_stall_ends_when_the_client_disconnects() -> None:
    async with simulated(**PACED, fault="stall", at=3) as (simulator, client):
        await client.send(chat(STREAM))
        read = await client.receive() + await client.receive()
        assert read.count(b"data: ") == 3
        with anyio.move_on_after(1000) as timeout:
            await client.receive()
        assert timeout.cancelled_caught
        assert simulator.in_flight == 1
        disconnected_at = anyio.current_time()
        client.close()
        await simulator.until(lambda simulator: simulator.in_flight == 0)
        assert anyio.current_time() == disconnected_at
    assert simulator.cancelled == 1
    assert simulator.truth[0].client_disconnected
    assert simulator.truth[0].events_written == 3


@on_mock_clock
async def test_silence_ends_when_the_client_disconnects() -> None:
    async with simulated(fault="silence") as (simulator, client):
        await client.send(chat())
        with anyio.move_on_after(1000) as timeout:
            await client.receive()
        assert timeout.cancelled_caught
    assert simulator.cancelled == 1
    assert simulator.truth[0].status == 0


@on_mock_clock
async def test_a_disconnect_before_the_first_token_is_noticed() -> None:
    async with simulated(ttft=100.0) as (simulator, client):
        began_at = anyio.current_time()
        await client.send(chat(STREAM))
        await simulator.until(lambda simulator: simulator.in_flight == 1)
        client.close()
        await simulator.until(lambda simulator: simulator.in_flight == 0)
        assert anyio.current_time() == began_at
    assert simulator.cancelled == 1
    assert simulator.truth[0].log_fields() == {
        "status_code": 0,
        "id": simulator.truth[0].id,
        "events_written": 0,
        "left": True,
    }


@on_mock_clock
async def test_head_and_role_can_be_sent_before_the_first_token() -> None:
    async with simulated(**PACED, head_lead=0.75) as (simulator, client):
        seen = await writes(client, chat(STREAM))
        [truth] = simulator.truth
    assert [at for at, _ in seen] == [0.25, 1.0, 1.6, 2.1, 2.6, 3.0]
    assert b'"role"' in seen[0][1]
    assert b'"content"' not in seen[0][1]
    assert (truth.ttfb_seconds, truth.ttft_seconds) == (0.25, 1.0)
