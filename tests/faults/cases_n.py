"""N limits: what clients that leave, an API that does not respond, and a Redis that fails may not
do to the others' quota and dollars."""

import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import anyio
from cases_e_f import QUICK
from end_to_end import Conversation, Running, running_proxy
from fault_bench import Case, Scene, post
from redis import Redis
from redis_server import RedisRelay, RedisServer, redis_relay, redis_server, store
from waiting import until

from ape_cerebras.limits.token_buckets import Budget, Charge, Hold, TokenBucket, day_of
from ape_cerebras.net.socket_stream import SocketStream

__all__ = ("CASES",)

NEEDS = "" if shutil.which("redis-server") else "redis-server"
PACED = {"QUOTA_PACING": "on", "MAX_QUEUE_SECONDS": "0", "MAX_COMPLETION_TOKENS_DEFAULT": "900"}
QUOTA = "".join(
    f"x-ratelimit-{what}-tokens-{window}: 20000\r\n"
    for what in ("limit", "remaining")
    for window in ("hour", "day")
)
RESPONSE = f"HTTP/1.1 200 OK\r\n{QUOTA}Content-Length: 2\r\n\r\n{{}}".encode()
# Estimated at 15,000 tokens, of which the API counts none where it does not respond.
LONG = post(b'{"model":"gpt-oss-120b","messages":[],"user":"%s"}' % (b"x" * 60_000))


async def no_response_to_long_ones(peer: Conversation) -> None:
    while True:
        if b"xxx" in await peer.request():
            await peer.until_disconnected()
        await peer.send(RESPONSE)


async def leave_before_the_head(scene: Scene) -> None:
    client = await scene.client()
    await client.send(LONG)
    await until(lambda: b"x" * 100 in scene.upstream.got)
    client.stream.close()


async def serves_at_once(scene: Scene) -> None:
    assert (await (await scene.client()).request(post())).status == 200


async def leaves_again_and_again(scene: Scene) -> None:
    await serves_at_once(scene)
    for number in range(5):
        scene.upstream.got.clear()
        await leave_before_the_head(scene)
        assert (await scene.logged(number + 2))[-1]["outcome"] == "client_disconnected"
    await serves_at_once(scene)


async def times_out_again_and_again(scene: Scene) -> None:
    await serves_at_once(scene)
    for _ in range(3):
        assert (await (await scene.client()).request(LONG)).status == 504
    await serves_at_once(scene)


# With a Redis


class Shared(NamedTuple):
    """A proxy that shares its limits in a Redis, which it reaches through a relay."""

    running: Running
    relay: RedisRelay
    server: RedisServer

    def contents(self) -> Redis:
        return Redis.from_url(self.server.url, decode_responses=True)

    async def request(self, key: str = "key-of-anna") -> int:
        client = await self.running.client()
        status = (await client.request(of(key))).status
        await until(lambda: not self.running.proxy._in_flight)
        return status

    def check_nothing_is_held(self) -> None:
        with self.contents() as contents:
            assert contents.keys("*held*") == []


def of(key: str) -> bytes:
    body = b'{"model":"gpt-oss-120b","messages":[],"max_tokens":9}'
    return post(body, b"Authorization: Bearer " + key.encode(), key=None)


@asynccontextmanager
async def sharing(scene: Scene, timeout: str = "5") -> AsyncIterator[Shared]:
    """Keys for anna, who has a dollar a day, and for ben, who has nearly nothing."""
    with TemporaryDirectory() as directory, redis_server(Path(directory)) as server:
        file = Path(directory) / "keys.toml"
        entry = '[[keys]]\nname = "{0}"\nkey = "key-of-{0}"\nusd_per_day = {1}\n'
        file.write_text(entry.format("anna", "1") + entry.format("ben", "0.00002"))
        settings = {
            **PACED,
            "RATE_LIMIT_PER_MINUTE": "1000",
            "APE_API_KEYS_FILE": str(file),
            "LIMITS_STORE_TIMEOUT": timeout,
        }
        async with (
            redis_relay(server) as relay,
            running_proxy(scene.upstream.port, **settings, LIMITS_STORE=relay.url) as running,
        ):
            yield Shared(running, relay, server)


async def leaves_while_redis_is_asked(scene: Scene) -> None:
    """At each of the questions that a request has for it: dollars, requests, quota."""
    async with sharing(scene) as it:
        assert await it.request() == 200
        for question in range(3):
            asked, gone = anyio.Event(), anyio.Event()
            before = it.relay.calls

            async def late(
                client: SocketStream,
                data: bytes,
                last: int = before + question + 1,
                asked: anyio.Event = asked,
                gone: anyio.Event = gone,
            ) -> None:
                if it.relay.calls >= last:
                    asked.set()
                    await gone.wait()
                await client.send(data)

            it.relay.spoil = late
            client = await it.running.client()
            await client.send(of("key-of-anna"))
            await asked.wait()
            client.stream.close()
            for _ in range(100):  # the end of the stream is there, and the proxy sees it
                await anyio.lowlevel.checkpoint()
            gone.set()
            await until(lambda: not it.running.proxy._in_flight)
            it.relay.spoil = None
            assert it.running.lines.exchanges()[-1]["outcome"] == "client_disconnected"
            it.check_nothing_is_held()
            assert await it.request() == 200


async def a_proxy_dies(scene: Scene) -> None:
    """What it held of dollars and quota is given back when that expires."""
    async with sharing(scene) as it, store(it.server.url) as dead:
        assert await it.request() == 200
        budget = Budget("anna", day_of(time.time())[0], Decimal(1))
        await dead.limits.reserve_dollars(budget, Decimal("0.99999"), Hold())
        bucket = TokenBucket("quota:gpt-oss-120b:tokens:day", 20_000, 86_400.0)
        await dead.limits.charge([Charge(bucket, 20_000)], 0.0, Hold("quota:gpt-oss-120b"))
        for name, status in (("anna", 429), ("ben", 503)):
            assert await it.request(f"key-of-{name}") == status
        with it.contents() as contents:
            for holds in contents.keys("*held*"):
                for entry in contents.zrange(holds, 0, -1):
                    contents.zadd(holds, {str(entry): 1})
        for name in ("anna", "ben"):
            assert await it.request(f"key-of-{name}") == 200
        it.check_nothing_is_held()


async def damaged_entries(scene: Scene) -> None:
    async with sharing(scene) as it:
        assert await it.request() == 200
        with it.contents() as contents:
            for key in contents.keys("*"):
                for spoil in (contents.lpush, contents.set):
                    contents.delete(key)
                    spoil(key, "nonsense")
                    assert await it.request() == 200
        assert not [line for line in it.running.lines.all() if line["level"] == "error"]
        it.check_nothing_is_held()


async def redis_goes_and_comes_back(scene: Scene) -> None:
    """Who had spent his day stays refused, and what is spent meanwhile counts afterwards."""
    async with sharing(scene, "1") as it:
        with anyio.fail_after(10):
            while await it.request("key-of-ben") == 200:
                pass
        it.server.kill()
        for _ in range(3):
            assert await it.request() == 200
            assert await it.request("key-of-ben") == 429
        it.server.start()
        with anyio.fail_after(10):
            while "Limit store responds again" not in str(it.running.lines.all()):
                assert await it.request() == 200
        assert await it.request("key-of-ben") == 429
        it.check_nothing_is_held()
        lines = it.running.lines.exchanges()
        cost = sum((Decimal(str(line.get("cost_usd", 0))) for line in lines), Decimal(0))
        with it.contents() as contents:
            spent = [int(each) for key in contents.keys("*spent*") for each in contents.hvals(key)]
        assert sum(spent) == cost.scaleb(12)


def with_redis(id: str, play: Callable[[Scene], Awaitable[None]]) -> Case:
    """A case with a proxy of its own."""
    script = no_response_to_long_ones
    return Case(id, play=play, up=None, lines=0, upstream=script, needs=NEEDS)


CASES: list[Case] = [
    Case(
        "N1",
        play=leaves_again_and_again,
        up=7,
        lines=7,
        upstream=no_response_to_long_ones,
        settings=PACED,
    ),
    Case(
        "N2",
        play=times_out_again_and_again,
        up=5,
        lines=5,
        upstream=no_response_to_long_ones,
        settings={**PACED, **QUICK},
    ),
    with_redis("N3", leaves_while_redis_is_asked),
    with_redis("N4", a_proxy_dies),
    with_redis("N5", damaged_entries),
    with_redis("N6", redis_goes_and_comes_back),
]
