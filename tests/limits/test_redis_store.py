"""Limits in Redis: decided as in one process, shared by all stores, and the fallback during an
outage. Its clock cannot be set, so buckets here refill too slowly for a test to matter."""

import random
from contextlib import closing, suppress
from pathlib import Path

import anyio
import pytest
from end_to_end import serve_each
from redis import Redis
from redis_server import RedisServer, Store, redis_server, store

from ape_cerebras.errors import LimitStoreUnavailable
from ape_cerebras.limits.redis_store import RedisLimitStore
from ape_cerebras.limits.token_buckets import Charge, Decision, Hold, LimitStore, TokenBucket
from ape_cerebras.net.socket_stream import SocketStream

DAY = 86_400.0
REQUESTS = TokenBucket("requests", 6, DAY)
TOKENS = TokenBucket("tokens:anna", 1000, DAY)
NOTHING = Decision()
SLACK = 60  # seconds; of a test on a loaded machine

pytestmark = pytest.mark.anyio


async def test_all_stores_share_one_bucket(server: RedisServer, emptied: Redis) -> None:
    async with store(server.url) as one, store(server.url) as other:
        for number in range(6):
            each = (one, other)[number % 2]
            assert await each.limits.charge([Charge(REQUESTS, 1)], 0.0) == NOTHING
        decisions = [await each.limits.charge([Charge(REQUESTS, 1)], 0.0) for each in (one, other)]
    for wait, lacking, left in decisions:
        assert DAY / 6 - SLACK < wait <= DAY / 6
        assert lacking is REQUESTS
        assert left == pytest.approx(0, abs=0.01)
    assert one.logged == other.logged == []


async def test_of_several_charges_all_are_taken_or_none(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made:
        limits = made.limits
        both = [Charge(REQUESTS, 1), Charge(TOKENS, 700)]
        assert await limits.charge(both, 0.0) == NOTHING
        lacking = await limits.charge(both, 0.0)
        assert lacking.lacking is TOKENS
        assert lacking.left == pytest.approx(300, abs=1)
        assert lacking.wait == pytest.approx(0.4 * DAY, abs=SLACK)
        for _ in range(5):
            assert await limits.charge([Charge(REQUESTS, 1)], 0.0) == NOTHING
        assert await limits.charge([Charge(TOKENS, 300)], 0.0) == NOTHING


async def test_unused_tokens_are_refunded_and_nothing_is_owed_beyond_an_empty_bucket(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made:
        limits = made.limits
        await limits.charge([Charge(TOKENS, 1000)], 0.0)
        await limits.adjust([Charge(TOKENS, -600)], 0.0)
        assert await limits.charge([Charge(TOKENS, 600)], 0.0) == NOTHING
        await limits.adjust([Charge(TOKENS, 100_000)], 0.0)
        owed = await limits.charge([Charge(TOKENS, 100)], 0.0)
        assert owed.wait == pytest.approx(0.1 * DAY, abs=SLACK)
        await limits.adjust([Charge(TOKENS, -5000)], 0.0)
        assert await limits.charge([Charge(TOKENS, 1000)], 0.0) == NOTHING
        assert (await limits.charge([Charge(TOKENS, 100)], 0.0)).lacking is TOKENS


async def test_decisions_equal_those_of_a_local_store(server: RedisServer, emptied: Redis) -> None:
    dice, local = random.Random(7), LimitStore()
    async with store(server.url) as made:
        for _ in range(300):
            charges = [
                Charge(bucket, dice.choice((1, 2, 5, 900, 2000)))
                for bucket in dice.sample((REQUESTS, TOKENS), dice.randint(1, 2))
            ]
            if dice.random() < 0.4:
                back = [Charge(bucket, -amount) for bucket, amount in charges]
                await made.limits.adjust(back, 0.0)
                await local.adjust(back, 0.0)
            shared, own = await made.limits.charge(charges, 0.0), await local.charge(charges, 0.0)
            assert (shared.lacking is None) == (own.lacking is None)
            assert shared.wait == pytest.approx(own.wait, abs=SLACK)
            if shared.lacking == own.lacking:  # else both are empty
                assert shared.left == pytest.approx(own.left, abs=1)


async def test_concurrent_charges_never_exceed_the_bucket(
    server: RedisServer, emptied: Redis
) -> None:
    decisions: list[Decision] = []
    bucket = TokenBucket("requests", 100, DAY)

    async def charge(limits: RedisLimitStore) -> None:
        decisions.extend([await limits.charge([Charge(bucket, 1)], 0.0) for _ in range(25)])

    async def charge_from_everywhere(*several: Store) -> None:
        async with anyio.create_task_group() as tasks:
            for each in several * 4:
                tasks.start_soon(charge, each.limits)

    async with store(server.url) as one, store(server.url) as other:
        await charge_from_everywhere(one, other)
    assert decisions.count(NOTHING) == 100
    assert len(decisions) == 200


async def test_a_bucket_is_one_key_that_expires_when_full(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made:
        await made.limits.charge([Charge(TOKENS, 500)], 0.0)
        assert emptied.keys() == ["{ape-cerebras}:tokens:anna"]
        assert DAY / 2 - SLACK < emptied.ttl("{ape-cerebras}:tokens:anna") <= DAY / 2
        await made.limits.adjust([Charge(TOKENS, -500)], 0.0)
        assert emptied.keys() == []
        await made.limits.charge([], 0.0)
        assert emptied.keys() == []


async def test_a_clock_set_back_does_not_lock_a_bucket(server: RedisServer, emptied: Redis) -> None:
    key = "{ape-cerebras}:requests"
    async with store(server.url) as made:
        await made.limits.charge([Charge(REQUESTS, 4)], 0.0)
        an_hour = 3_600_000_000
        later = [int(number) + an_hour for number in str(emptied.get(key)).split()]
        emptied.set(key, "{} {}".format(*later))
        assert await made.limits.charge([Charge(REQUESTS, 2)], 0.0) == NOTHING
        lacking = await made.limits.charge([Charge(REQUESTS, 1)], 0.0)
    assert lacking.wait == pytest.approx(DAY / 6, abs=SLACK)


async def test_flushed_scripts_are_loaded_again(server: RedisServer, emptied: Redis) -> None:
    async with store(server.url) as made:
        assert await made.limits.charge([Charge(REQUESTS, 6)], 0.0) == NOTHING
        emptied.script_flush()
        assert (await made.limits.charge([Charge(REQUESTS, 6)], 0.0)).lacking is REQUESTS
    assert made.logged == []


# While Redis does not respond


async def test_during_an_outage_the_fallback_decides(tmp_path: Path) -> None:
    one, three = [Charge(REQUESTS, 1)], [Charge(REQUESTS, 3)]
    with redis_server(tmp_path) as server:
        async with store(server.url, closed=False) as made:
            assert await made.charge([Charge(REQUESTS, 5)], 0.0) == NOTHING
            server.kill()
            # The fallback knows the remaining tokens.
            assert (await made.charge(three, 10.0)).left == pytest.approx(1, abs=0.01)
            await made.limits.adjust([Charge(REQUESTS, -2)], 10.5)
            assert await made.charge(three, 12.0) == NOTHING
            server.start()
            assert (await made.charge(one, 12.9)).left == pytest.approx(0, abs=0.01)
            assert await made.charge(one, 13.1) == NOTHING  # Redis had been skipped for a second
            assert (await made.charge(one, 13.1)).left == pytest.approx(0, abs=0.01)
        assert made.logged == [False, True]


async def test_during_an_outage_a_closed_store_admits_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with store(server.url) as made:
            server.kill()
            for now in (0.0, 0.5, 2.0):
                with pytest.raises(LimitStoreUnavailable):
                    await made.charge([Charge(REQUESTS, 1)], now)
                await made.limits.adjust([Charge(REQUESTS, -1)], now)
            assert await made.charge([], 2.0) == NOTHING
        assert made.logged == [False]


async def test_an_unresponsive_server_is_tried_once_a_second() -> None:
    connections = 0

    async def never_respond(stream: SocketStream) -> None:
        nonlocal connections
        connections += 1
        with closing(stream), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await stream.receive()

    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve_each, never_respond)
        async with store(f"redis://127.0.0.1:{port}", 0.05, closed=False) as made:
            for _ in range(20):
                await made.charge([Charge(REQUESTS, 1)], 7.0)
            assert connections == 1
            async with anyio.create_task_group() as many:
                for _ in range(20):
                    many.start_soon(made.charge, [Charge(REQUESTS, 1)], 8.5)
            assert connections == 2
        tasks.cancel_scope.cancel()
    assert made.logged == [False]


async def test_adjustments_are_made_despite_cancellation_and_charges_are_given_back(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made:
        await made.limits.charge([Charge(TOKENS, 1000)], 0.0)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await made.limits.adjust([Charge(TOKENS, -1000)], 0.0)
        assert emptied.keys() == []
        for hold in (None, Hold("tokens")):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await made.limits.charge([Charge(TOKENS, 1000)], 0.0, hold)
                pytest.fail("a cancelled request goes no further")
            assert emptied.keys() == []
    assert made.logged == []
