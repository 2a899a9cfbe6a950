"""Whatever ends exchanges, at random and many at once: the tokens in the lines are those in the
counters and those that keys are charged for, and nothing stays reserved."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest
from crowd import Crowd
from end_to_end import Conversation, Running, running_proxy, running_upstream
from failing_upstream import as_requested
from redis import Redis
from redis_server import redis_server
from waiting import until

from ape_cerebras.limits.token_buckets import Budget, Hold, day_of

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

NAMES = ("alice", "bob")
CLIENTS = 12  # of each
REQUESTS = 3  # of each of them
SETTINGS = {
    "MAX_CONCURRENT_REQUESTS": "16",
    "QUOTA_PACING": "on",
    "UPSTREAM_FIRST_BYTE_TIMEOUT": "0.3",
    "UPSTREAM_IDLE_TIMEOUT": "0.3",
    "REQUEST_TIMEOUT": "1.5",
    "LIMITS_STORE_TIMEOUT": "5",
}


@contextmanager
def store_in(kind: str, directory: Path) -> Iterator[dict[str, str]]:
    """The settings for limits in memory, or in a Redis."""
    with redis_server(directory) if kind == "redis" else nullcontext() as server:
        yield {} if server is None else {"LIMITS_STORE": server.url}


def keys_file(directory: Path) -> str:
    file = directory / "keys.toml"
    entry = '[[keys]]\nname = "{0}"\nkey = "key-of-{0}"\nusd_per_day = 1\n'
    file.write_text("".join(map(entry.format, NAMES)))
    return str(file)


@pytest.mark.parametrize("mode", ["passthrough", "exact"])
@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_every_end_is_in_all_accounts(kind: str, mode: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "TTFT_MODE": mode, "APE_API_KEYS_FILE": keys_file(tmp_path)}
    received: Counter[bytes] = Counter()

    async def upstream_script(peer: Conversation) -> None:
        request = peer.request

        async def counting() -> bytes:
            whole = await request()
            received[whole] += 1
            return whole

        peer.request = counting  # type: ignore[method-assign]
        await as_requested(peer)

    with store_in(kind, tmp_path) as store:
        async with (
            running_upstream(upstream_script) as upstream,
            running_proxy(upstream.port, **settings, **store) as running,
        ):
            await let_a_crowd_in(running, f"{kind} {mode}")
            await until(lambda: not running.proxy._in_flight)
            lines = [line for line in running.lines.exchanges() if line["route"] != "/metrics"]
            counted = [line for line in lines if "total_tokens" in line]
            refused = [line for line in lines if line.get("upstream_status", 0) >= 400]
            assert {line["usage_source"] for line in counted} == {"upstream", "estimated"}
            # A request that a closed idle connection lost is sent once more, and charged once.
            sent = sum(line.get("tries", 1) for line in (*counted, *refused))
            assert received.total() <= sent
            assert not [line for line in refused if line in counted]
            await check_counters(running, counted)
            await check_keys(running, counted)
            check_reservations(running, store.get("LIMITS_STORE"))


async def let_a_crowd_in(running: Running, seed: str) -> None:
    async with anyio.create_task_group() as tasks:
        for name in NAMES:
            crowd = Crowd(
                running.client, name, (b"Authorization: Bearer key-of-%b" % name.encode(),)
            )
            for number in range(CLIENTS):
                dice = random.Random(f"{seed} {name} {number}")
                tasks.start_soon(crowd.visit, dice, REQUESTS)


async def check_counters(running: Running, lines: list[dict[str, Any]]) -> None:
    for kind in ("prompt", "completion"):
        series = f'cerebras_proxy_tokens_total{{model="gpt-oss-120b",type="{kind}"}}'
        assert await running.sample(series) == sum(line[f"{kind}_tokens"] for line in lines)
    estimated = sum(line["usage_source"] == "estimated" for line in lines)
    assert await running.metric("cerebras_proxy_usage_estimated_total") == estimated
    cost = float(sum(line["cost_usd"] for line in lines))
    assert await running.metric("cerebras_proxy_cost_usd_total") == pytest.approx(cost)


async def check_keys(running: Running, lines: list[dict[str, Any]]) -> None:
    """What each key is charged: by its counters, and by the account of its budget, in which nothing
    is reserved any more."""
    day, _ = day_of(time.time())
    for name in NAMES:
        own = [line for line in lines if line["client"] == name]
        for kind in ("prompt", "completion"):
            series = f'cerebras_proxy_client_tokens_total{{client="{name}",type="{kind}"}}'
            assert await running.sample(series) == sum(line[f"{kind}_tokens"] for line in own)
        budget = Budget(name, day, Decimal(1))
        balance = await running.proxy._limits.reserve_dollars(budget, Decimal(0), Hold())
        assert balance.spent == sum(Decimal(str(line["cost_usd"])) for line in own) > 0
        assert balance.reserved == 0


def check_reservations(running: Running, url: str | None) -> None:
    admission = running.proxy._admission
    assert admission.waiting == 0
    assert admission._pacing is not None
    for model in admission._pacing._models.values():
        assert not model.admitted
        assert not model.in_flight
    assert not any(running.proxy._limits._holds.values())
    if url is not None:
        with Redis.from_url(url, decode_responses=True) as contents:
            assert contents.keys("*held*") == []
