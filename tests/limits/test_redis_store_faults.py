"""What Redis says is not taken on faith: damaged entries, other replies, replicas, no memory, and
connections that are gone, drip, or come and go."""

from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from redis import Redis
from redis_server import RedisRelay, RedisServer, Store, redis_relay, redis_server, store
from waiting import until

from ape_cerebras.limits.token_buckets import Balance, Budget, Charge, Decision, Hold, TokenBucket
from ape_cerebras.net.socket_stream import SocketStream

DAY = 86_400.0
REQUESTS = TokenBucket("requests:anna", 6, DAY)
TOKENS = TokenBucket("quota:m:tokens:day", 1000, DAY)
NOTHING, NO_DOLLARS = Decision(), Decimal(0)
BUDGET = Budget("anna", 7, Decimal(1))
HALF = Decimal("0.5")
PREFIX = "{ape-cerebras}:"

pytestmark = pytest.mark.anyio


# Damaged entries

TEXTS = {
    "empty": "",
    "words": "nonsense",
    "bytes": b"\xff\x00\x80",
    "one number": "17",
    "a float": "1e15 1e15",
    "negative": "-5 -5",
    "more": "1 2 3 4",
    "far from full": f"{10**16} 0",
    "huge": f"{'9' * 80} 0",
    "not a number": "nan nan",
    "JSON": '{"full_at": 5}',
}


def write_list(contents: Redis, key: str) -> None:
    contents.rpush(key, "a", "b")


def write_hash(contents: Redis, key: str) -> None:
    contents.hset(key, "another process", "nonsense")


def write_set(contents: Redis, key: str) -> None:
    contents.zadd(key, {"what is this": 9e15, "id x=1": 1, "": 9e17})


OTHER_TYPES = [write_list, write_hash, write_set]


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_damaged_bucket_is_replaced_and_the_others_stay_exact(
    text: str | bytes, server: RedisServer, emptied: Redis
) -> None:
    other = REQUESTS._replace(name="requests")
    both = [Charge(REQUESTS, 1), Charge(other, 1)]
    async with store(server.url) as made:
        for _ in range(6):
            assert await made.limits.charge([Charge(other, 1)], 0.0) == NOTHING
        emptied.set(PREFIX + REQUESTS.name, text)
        for _ in range(2):
            assert (await made.limits.charge(both, 0.0)).lacking is other
        for _ in range(6):
            assert await made.limits.charge([Charge(REQUESTS, 1)], 0.0) == NOTHING
        assert (await made.limits.charge([Charge(REQUESTS, 1)], 0.0)).lacking is REQUESTS
        assert (made.logged, made.damaged) == ([], [REQUESTS.name])


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("write", OTHER_TYPES)
async def test_entries_of_another_type_are_replaced(
    write: object, server: RedisServer, emptied: Redis
) -> None:
    assert callable(write)
    async with store(server.url) as made:
        for name in (TOKENS.name, "held:quota:m", "held:anna:7", "spent:anna:7"):
            write(emptied, PREFIX + name)
        hold, dollars = Hold("quota:m"), Hold()
        assert await made.limits.charge([Charge(TOKENS, 900)], 0.0, hold) == NOTHING
        assert (await made.limits.charge([Charge(TOKENS, 200)], 0.0, Hold("quota:m"))).wait
        await made.limits.reconcile(TOKENS, 300, 300, 0.0, hold)
        await made.limits.adjust([Charge(TOKENS, 0)], 0.0, hold)
        assert await made.limits.charge([Charge(TOKENS, 290)], 0.0) == NOTHING
        assert await made.limits.reserve_dollars(BUDGET, HALF, dollars) == Balance(
            True, NO_DOLLARS, NO_DOLLARS
        )
        await made.limits.settle_dollars(BUDGET, dollars, Decimal(1))
        assert not (await made.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())).granted
        assert made.logged == []
        assert {TOKENS.name, "spent:anna:7"} <= {*made.damaged}
        assert len(made.damaged) == len({*made.damaged})
    for holds in emptied.keys("*held*"):
        assert emptied.zcard(holds) == 0


async def test_a_damaged_number_of_a_process_costs_the_others_nothing(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as one, store(server.url) as other:
        for made in (one, other):
            await made.limits.settle_dollars(BUDGET, Hold(), Decimal("0.4"))
        for process in emptied.hkeys(PREFIX + "spent:anna:7"):
            emptied.hset(PREFIX + "spent:anna:7", process, "-3.5")
        # Each knows its own, and puts it back.
        await one.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())
        balance = await other.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())
        assert balance.spent == Decimal("0.8")
        assert one.damaged == ["spent:anna:7"]


async def test_a_redis_that_lost_its_data_is_told_again(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as one, store(server.url) as other:
        await one.limits.settle_dollars(BUDGET, Hold(), Decimal("0.7"))
        await other.limits.settle_dollars(BUDGET, Hold(), Decimal("0.3"))
        assert not (await other.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())).granted
        emptied.flushall()
        assert not (await other.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())).granted
        assert (await one.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())).spent == 1


# Replies


async def reserve(made: Store) -> Balance:
    return await made.limits.reserve_dollars(BUDGET, Decimal("0.1"), Hold())


REPLIES = {
    "nothing": b"$-1\r\n",
    "OK": b"+OK\r\n",
    "a number": b":7\r\n",
    "text": b"$3\r\nfoo\r\n",
    "an empty list": b"*0\r\n",
    "too many": b"*5\r\n:0\r\n:0\r\n*0\r\n*0\r\n:1\r\n",
    "no values": b"*4\r\n:0\r\n:0\r\n*0\r\n*0\r\n",
    "a text for a number": b"*4\r\n:0\r\n$1\r\nx\r\n*1\r\n:0\r\n*0\r\n",
    "a place that is none": b"*4\r\n:9\r\n:0\r\n*1\r\n:0\r\n*0\r\n",
    "nested": b"*4\r\n:0\r\n:0\r\n*1\r\n*1\r\n:0\r\n*0\r\n",
    "other damaged entries": b"*4\r\n:0\r\n:0\r\n*1\r\n:0\r\n*1\r\n:1\r\n",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "an unknown error": b"-WHAT is this\r\n",
}


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
async def test_a_reply_of_another_shape_is_an_outage(
    reply: bytes, server: RedisServer, emptied: Redis
) -> None:
    async def answer(client: SocketStream, data: bytes) -> None:
        await client.send(reply)

    async with redis_relay(server) as relay, store(relay.url, 1.0, closed=False) as made:
        await made.charge([Charge(REQUESTS, 4)], 0.0)
        relay.spoil = answer
        assert await made.charge([Charge(REQUESTS, 2)], 0.0) == NOTHING
        assert (await made.charge([Charge(REQUESTS, 2)], 0.5)).lacking is REQUESTS  # known here
        made.now = 1.5
        assert (await reserve(made)).granted
        relay.spoil = None
        made.now = 3.0
        assert (await reserve(made)).granted
        assert made.logged == [False, True]
        [reason] = {line["reason"] for line in made.lines if "reason" in line}
        assert reason in ("reply", "error", "connection", "timeout")


async def test_a_replica_is_an_outage_until_there_is_a_master(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url, closed=False) as made:
        await made.charge([Charge(REQUESTS, 4)], 0.0)
        emptied.replicaof("127.0.0.1", "1")
        try:
            for now in (0.1, 0.5, 1.5):
                assert (await made.charge([Charge(REQUESTS, 4)], now)).lacking is REQUESTS
        finally:
            emptied.replicaof("NO", "ONE")
        assert await made.charge([Charge(REQUESTS, 2)], 3.0) == NOTHING
        assert made.logged == [False, True]
        assert made.lines[0]["reason"] == "read-only replica"


async def test_a_redis_without_memory_is_an_outage(server: RedisServer, emptied: Redis) -> None:
    async with store(server.url, closed=False) as made:
        await made.charge([Charge(REQUESTS, 4)], 0.0)
        assert (await reserve(made)).granted
        emptied.config_set("maxmemory", "1")
        try:
            for now in (0.1, 0.5, 1.5, 2.6):
                assert (await made.charge([Charge(REQUESTS, 4)], now)).lacking is REQUESTS
                assert (await reserve(made)).granted
        finally:
            emptied.config_set("maxmemory", "0")
        assert await made.charge([Charge(REQUESTS, 1)], 4.0) == NOTHING
        assert made.logged == [False, True]
        assert made.lines[0]["reason"] == "out of memory"


async def test_a_wrong_password_is_an_outage_with_its_reason(server: RedisServer) -> None:
    url = server.url.replace("password-of", "another")
    async with store(url, closed=False) as made:
        assert await made.charge([Charge(REQUESTS, 1)], 0.0) == NOTHING
        assert made.lines[0]["reason"] == "refused"


# Connections


async def test_a_connection_that_drips_holds_no_thread(server: RedisServer, emptied: Redis) -> None:
    async def drip(client: SocketStream, data: bytes) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await client.send(b"*4\r\n$1000000\r\n")
            while True:
                await client.send(b"x")
                await anyio.sleep(0.01)

    async with redis_relay(server) as relay, store(relay.url, 0.1, closed=False) as made:
        await made.charge([Charge(REQUESTS, 1)], 0.0)
        relay.spoil = drip
        for now in (1.0, 3.0, 5.0):
            assert await made.charge([Charge(REQUESTS, 1)], now) == NOTHING
            await until(lambda: not relay.open)
        await until(lambda: not made.limits._threads.borrowed_tokens)
        assert made.logged == [False]
        assert made.lines[0]["reason"] == "timeout"


async def connect_many(made: Store, relay: RedisRelay) -> None:
    """Have several connections open."""
    async with anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(made.charge, [Charge(TOKENS, 1)], 0.0)
    assert relay.open > 1


async def test_connections_to_a_peer_that_is_gone_fail_once_not_one_by_one(
    server: RedisServer, emptied: Redis
) -> None:
    async with redis_relay(server) as relay, store(relay.url, closed=False) as made:
        await connect_many(made, relay)

        async def lose(client: SocketStream, data: bytes) -> None:
            pass

        relay.spoil, patient = lose, made.limits._timeout
        made.limits._timeout = 0.3
        await made.charge([Charge(REQUESTS, 1)], 100.0)
        assert made.logged == [False]
        await until(lambda: not relay.open)
        relay.spoil, made.limits._timeout = None, patient
        await made.charge([Charge(REQUESTS, 1)], 101.5)
        assert made.logged == [False, True]


async def test_many_that_fail_at_once_are_one_outage(server: RedisServer, emptied: Redis) -> None:
    async with redis_relay(server) as relay, store(relay.url, closed=False) as made:
        await connect_many(made, relay)
        dropped = 0

        async def lose_some(client: SocketStream, data: bytes) -> None:
            nonlocal dropped
            dropped += 1
            if dropped % 3:
                await client.send(data)
            else:
                client.close()

        relay.spoil = lose_some
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(made.charge, [Charge(TOKENS, 1)], 100.0)
        assert made.logged == [False]


async def test_outages_that_follow_one_another_get_longer(
    server: RedisServer, emptied: Redis
) -> None:
    async def lose(client: SocketStream, data: bytes) -> None:
        client.close()

    one = [Charge(TOKENS, 1)]
    async with redis_relay(server) as relay, store(relay.url, closed=False) as made:
        now = 100.0
        await made.charge(one, now)
        pauses: list[float] = []
        for _ in range(7):
            relay.spoil = lose
            await made.charge(one, now)
            assert made.logged[-1] is False
            relay.spoil, began_at = None, now
            while not made.logged[-1]:
                now += 0.5
                await made.charge(one, now)
            pauses.append(now - began_at)
        assert pauses == [1, 2, 4, 8, 16, 30, 30]
        now += 61
        relay.spoil = lose
        await made.charge(one, now)
        relay.spoil = None
        await made.charge(one, now + 1.0)
        assert made.logged[-1]


# What an outage does not forget


async def test_an_outage_forgets_no_dollars(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        async with (
            store(server.url, closed=False) as one,
            store(server.url, closed=False) as other,
        ):
            in_flight = Hold()
            await one.limits.reserve_dollars(BUDGET, HALF, in_flight)
            await one.limits.settle_dollars(BUDGET, Hold(), Decimal("0.25"))
            ben = BUDGET._replace(name="ben")
            await one.limits.settle_dollars(ben, Hold(), Decimal(1))
            # Another key's request shows the other process what all have spent.
            carol = BUDGET._replace(name="carol")
            await other.limits.reserve_dollars(carol, HALF, Hold(), ("anna", "ben", "carol"))
            server.kill()
            for made in (one, other):
                assert not (await made.limits.reserve_dollars(ben, NO_DOLLARS, Hold())).granted
            assert (await other.limits.reserve_dollars(BUDGET, HALF, Hold())).spent == Decimal(
                "0.25"
            )
            await one.limits.settle_dollars(BUDGET, in_flight, Decimal("0.125"))
            for made in (one, other):
                await made.limits.settle_dollars(BUDGET, Hold(), Decimal("0.25"))
            server.start()
            # A request of another key is enough.
            one.now = other.now = 2.0
            for made in (one, other):
                await made.limits.reserve_dollars(carol, NO_DOLLARS, Hold())
                assert made.logged == [False, True]
        async with store(server.url) as fresh:
            balance = await fresh.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())
            assert balance == Balance(True, Decimal("0.875"), NO_DOLLARS)


async def test_holds_that_ended_during_an_outage_are_settled_after_it(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server, Redis.from_url(server.url) as contents:
        async with store(server.url, closed=False) as made:
            holds = [Hold("quota:m") for _ in range(120)]
            for hold in holds:
                await made.charge([Charge(TOKENS, 5)], 0.0, hold)
            server.kill()
            for hold in holds:
                await made.limits.adjust([Charge(TOKENS, -4)], 0.0, hold)
            server.start()
            made.now = 5.0
            for _ in range(3):  # not all of them with one request
                await made.limits.charge([Charge(REQUESTS, 1)], 0.0)
            assert contents.exists(PREFIX + "held:quota:m") == 0
            left = (await made.limits.charge([Charge(TOKENS, 1000)], 0.0)).left
            assert left == pytest.approx(880, abs=1)
