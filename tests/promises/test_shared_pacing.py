"""Proxies that name the same LIMITS_STORE pace one account together."""

from pathlib import Path

import anyio
import orjson
import pytest
from end_to_end import Response, Running, chat, running_proxy
from redis_server import redis_server
from running_simulator import rig

from ape_cerebras.simulator.quota import AccountLimits

pytestmark = pytest.mark.anyio

REQUEST = {
    "model": "gemma-4-31b",
    "messages": [{"role": "user", "content": "hi"}],
    "max_completion_tokens": 400,
}


async def request(running: Running, responses: list[Response]) -> None:
    client = await running.client()
    responses.append(await client.request(chat(orjson.dumps(REQUEST))))


async def test_what_one_has_reserved_another_does_not_reserve_again(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        settings = {
            "QUOTA_PACING": "true",
            "LIMITS_STORE": server.url,
            "LIMITS_STORE_TIMEOUT": "10",
        }
        async with (
            rig(AccountLimits(tokens_per_hour=900), ttft=0.3) as upstream,
            running_proxy(upstream.port, **settings) as one,
            running_proxy(upstream.port, **settings) as other,
        ):
            responses: list[Response] = []
            for running in (one, other):  # each hears of the quota
                await request(running, responses)
            async with anyio.create_task_group() as tasks:  # more at once than is left
                tasks.start_soon(request, one, responses)
                tasks.start_soon(request, other, responses)
            statuses = [truth.status for truth in upstream.simulator.truth]
    assert [response.status for response in responses] == [200] * 4
    assert statuses == [200] * 4


async def test_without_a_queue_the_time_to_ask_redis_refuses_nobody(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        settings = {
            "QUOTA_PACING": "true",
            "MAX_QUEUE_SECONDS": "0",
            "LIMITS_STORE": server.url,
            "LIMITS_STORE_TIMEOUT": "10",
        }
        async with (
            rig(AccountLimits(tokens_per_hour=1_000_000)) as upstream,
            running_proxy(upstream.port, **settings) as one,
        ):
            responses: list[Response] = []
            await request(one, responses)  # it hears of the quota
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(request, one, responses)
    assert [response.status for response in responses] == [200] * 21
