"""The simulator enforces the account's limits: over sockets, and exactly on a mock clock."""

import anyio
import pytest
from memory_stream import memory_pair
from running_simulator import KEY, STREAM, chat, on_mock_clock, rig

from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.quota import AccountLimits
from ape_cerebras.simulator.server import Simulator

PLAIN = {"max_completion_tokens": 491}  # with its prompt's 9 tokens 500 are reserved


# Over sockets


@pytest.mark.anyio
async def test_chat_requests_count_towards_the_quota_and_model_lists_do_not() -> None:
    limits = AccountLimits(requests_per_day=3, reservations="kept")
    async with rig(limits) as running:
        responses = [await running.request(chat(fields)) for fields in (None, STREAM, PLAIN)]
        refused = await running.request(chat())
        models = await running.get("/v1/models", KEY)
    assert [response.status for response in responses] == [200] * 3
    reported = [response.headers["x-ratelimit-remaining-requests-day"] for response in responses]
    assert reported == ["2", "1", "0"]
    assert refused.status == 429
    assert refused.json()["code"] == "request_quota_exceeded"
    assert refused.headers["retry-after"] == "28800"
    assert refused.headers["x-ratelimit-remaining-requests-day"] == "0"
    assert models.status == 200


@pytest.mark.anyio
async def test_an_invalid_request_is_not_charged() -> None:
    async with rig(AccountLimits(requests_per_day=1)) as running:
        wrong = await running.request(chat({"store": True}))
        first = await running.request(chat())
    assert (wrong.status, first.status) == (400, 200)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "left"),
    [("", 86_400 - 73), ("cut", 86_400 - 73), ("503", 86_400), ("close", 86_400)],
)
async def test_only_used_tokens_stay_charged(fault: str, left: int) -> None:
    async with rig(AccountLimits(tokens_per_day=86_400)) as running:
        client = await running.client()
        await client.send(chat({**PLAIN, **STREAM}, f"X-Simulate: fault={fault}"))
        await client.until_closed() if fault in ("cut", "close") else await client.response()
        await running.simulator.until(lambda simulator: simulator.in_flight == 0)
        models = await running.get("/v1/models", KEY)
    reported = int(models.headers["x-ratelimit-remaining-tokens-day"])
    assert left <= reported <= min(left + 10, 86_400)  # one a second is refilled


# On a clock


async def status_and_time(simulator: Simulator, after: float) -> tuple[bytes, float]:
    """Send a request ``after`` so many seconds; return the status, and when the head arrived."""
    await anyio.sleep(after)
    client, server = memory_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(simulator.handle, server)
        await client.send(chat(PLAIN))
        head = await client.receive()
        at = anyio.current_time()
        client.close()
    return head.split(b" ")[1], round(at, 6)


async def play(simulator: Simulator, *moments: float) -> list[tuple[int, float]]:
    """Send requests at these times; return the status of each, and when it arrived."""
    began_at = anyio.current_time()
    seen: dict[float, tuple[int, float]] = {}

    async def one(moment: float) -> None:
        status, at = await status_and_time(simulator, moment)
        seen[moment] = int(status), round(at - began_at, 6)

    async with anyio.create_task_group() as tasks:
        for moment in moments:
            tasks.start_soon(one, moment)
    return [seen[moment] for moment in moments]


@on_mock_clock
async def test_tokens_refill_over_time() -> None:
    limits = AccountLimits(tokens_per_minute=1000, reservations="kept")
    simulator = Simulator(Simulation(ttft=1.0, rate=0.0), limits=limits)
    responses = await play(simulator, 0.0, 0.5, 29.9, 30.0, 59.9, 60.0, 60.4)
    assert responses == [
        (200, 1.0),
        (200, 1.5),
        (429, 29.9),
        (200, 31.0),
        (429, 59.9),
        (200, 61.0),
        (429, 60.4),
    ]


@on_mock_clock
async def test_a_reservation_is_settled_when_the_response_ends() -> None:
    limits = AccountLimits(tokens_per_minute=600)
    simulator = Simulator(Simulation(ttft=5.0, rate=0.0, tokens=41), limits=limits)
    # At 4.9 s there are 100 tokens and 49 more; at 5 s the 450 unused ones are refunded.
    assert await play(simulator, 0.0, 4.9, 5.001) == [(200, 5.0), (429, 4.9), (200, 10.001)]


@on_mock_clock
async def test_a_finished_response_makes_room_in_the_queue() -> None:
    simulator = Simulator(Simulation(ttft=2.0, rate=0.0), limits=AccountLimits(queue_length=2))
    responses = await play(simulator, 0.0, 1.0, 1.5, 2.001, 2.5)
    assert responses == [(200, 2.0), (200, 3.0), (429, 1.5), (200, 4.001), (429, 2.5)]


@on_mock_clock
async def test_a_disconnect_makes_room_in_the_queue_at_once() -> None:
    simulator = Simulator(Simulation(ttft=100.0), limits=AccountLimits(queue_length=1))
    client, server = memory_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(simulator.handle, server)
        await client.send(chat())
        await simulator.until(lambda simulator: simulator.in_flight == 1)
        client.close()
        await simulator.until(lambda simulator: simulator.in_flight == 0)
    assert [status for status, _ in await play(simulator, 0.0)] == [200]
