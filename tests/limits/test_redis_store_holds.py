"""What exchanges hold in Redis: given back whoever ends, corrected by the request that was alone,
and known to all processes."""

from decimal import Decimal

import anyio
import pytest
from redis import Redis
from redis_server import RedisServer, Store, redis_relay, store

from ape_cerebras.errors import LimitStoreUnavailable
from ape_cerebras.limits.token_buckets import Balance, Budget, Charge, Decision, Hold, TokenBucket
from ape_cerebras.net.socket_stream import SocketStream

DAY = 86_400.0
TOKENS = TokenBucket("quota:m:tokens:day", 1000, DAY)
REQUESTS = TokenBucket("quota:m:requests:day", 1000, DAY)
NOTHING, NO_DOLLARS = Decision(), Decimal(0)
BUDGET = Budget("anna", 7, Decimal(1))
HALF = Decimal("0.5")
HELD, HELD_DOLLARS = "{ape-cerebras}:held:quota:m", "{ape-cerebras}:held:anna:7"
SPENT = "{ape-cerebras}:spent:anna:7"

pytestmark = pytest.mark.anyio


def held() -> Hold:
    return Hold("quota:m")


def tokens(amount: float) -> list[Charge]:
    return [Charge(TOKENS, amount)]


async def left_in(made: Store, bucket: TokenBucket = TOKENS) -> float:
    """What a charge that cannot fit hears of. Nothing is held for it."""
    return (await made.limits.charge([Charge(bucket, 2000)], 0.0)).left


def expire(contents: Redis, holds: str) -> None:
    for entry in contents.zrange(holds, 0, -1):
        contents.zadd(holds, {str(entry): 1})


async def test_a_settled_hold_leaves_nothing(server: RedisServer, emptied: Redis) -> None:
    async with store(server.url) as made:
        hold = held()
        await made.limits.charge([Charge(TOKENS, 600), Charge(REQUESTS, 1)], 0.0, hold)
        [entry] = emptied.zrange(HELD, 0, -1)
        assert entry == f"{hold.id} tokens:day={int(0.6 * DAY * 1e6)} requests:day=86400000"
        assert 0 < emptied.ttl(HELD) <= 900
        await made.limits.adjust([Charge(TOKENS, -500), Charge(REQUESTS, 0)], 0.0, hold)
        assert emptied.exists(HELD) == 0
        assert await left_in(made) == pytest.approx(900, abs=1)
        # Told a second time, late or again: nothing happens.
        await made.limits.adjust([Charge(TOKENS, -500), Charge(REQUESTS, 0)], 0.0, hold)
        assert await left_in(made) == pytest.approx(900, abs=1)


async def test_what_a_process_that_died_held_is_given_back(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as dead, store(server.url) as made:
        await dead.limits.charge(tokens(300), 0.0, held())
        await dead.limits.charge(tokens(300), 0.0, held())
        assert (await made.limits.charge(tokens(500), 0.0, held())).left == pytest.approx(
            400, abs=1
        )
        expire(emptied, HELD)
        assert await made.limits.charge(tokens(900), 0.0, held()) == NOTHING
        assert emptied.zcard(HELD) == 1


async def test_what_expires_is_given_back_once_also_where_the_next_does_not_fit(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made:
        await made.limits.charge(tokens(500), 0.0)
        await made.limits.charge(tokens(200), 0.0, held())
        expire(emptied, HELD)
        live = held()
        await made.limits.charge(tokens(100), 0.0, live)
        for _ in range(2):
            assert (await made.limits.charge(tokens(900), 0.0, held())).left == pytest.approx(
                400, abs=1
            )
        # Of a clock that has been set back since.
        emptied.zadd(HELD, {str(live.entry): 9e15})
        assert await made.limits.charge(tokens(400), 0.0, held()) == NOTHING
        assert emptied.zcard(HELD) == 1


async def test_a_request_alone_corrects_a_bucket_both_ways(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made, store(server.url) as other:
        await other.limits.charge(tokens(900), 0.0)  # nobody will give that back
        alone = held()
        await made.limits.charge(tokens(50), 0.0, alone)
        await made.limits.reconcile(TOKENS, 700, 700, 0.0, alone)
        await made.limits.adjust(tokens(0), 0.0, alone)
        assert await left_in(other) == pytest.approx(700, abs=1)
        # Two at a time: what is reported is what there is at most.
        one, two = held(), held()
        await made.limits.charge(tokens(50), 0.0, one)
        await other.limits.charge(tokens(50), 0.0, two)
        for each, hold in ((made, one), (other, two)):
            await each.limits.reconcile(TOKENS, 900, 900, 0.0, hold)
            assert await left_in(each) == pytest.approx(600, abs=1)
        await made.limits.reconcile(TOKENS, 500, 500, 0.0, one)
        assert await left_in(other) == pytest.approx(500, abs=1)


async def test_a_probe_goes_through_for_all_processes(server: RedisServer, emptied: Redis) -> None:
    async with store(server.url) as gone, store(server.url) as made, store(server.url) as other:
        lost, probe = held(), held()
        await gone.limits.charge(tokens(1000), 0.0, lost)
        assert (await made.limits.charge(tokens(400), 0.0, held())).wait
        await gone.limits.adjust(tokens(0), 0.0, lost, answered=False)
        assert (await made.limits.charge(tokens(400), 0.0)).wait  # one without a hold is none
        assert await made.limits.charge(tokens(400), 0.0, probe) == NOTHING
        assert (await other.limits.charge(tokens(400), 0.0, held())).wait
        await made.limits.reconcile(TOKENS, 950, 950, 0.0, probe)
        assert await other.limits.charge(tokens(400), 0.0, held()) == NOTHING
        await made.limits.adjust(tokens(0), 0.0, probe)
        assert (await other.limits.charge(tokens(900), 0.0, held())).wait  # certain again


async def test_a_probe_without_a_report_leaves_the_bucket_uncertain(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as made:
        for _ in range(3):
            hold = held()
            assert await made.limits.charge(tokens(1000), 0.0, hold) == NOTHING
            await made.limits.adjust(tokens(0), 0.0, hold, answered=False)
        assert (await made.limits.charge(tokens(1000), 0.0)).wait == pytest.approx(DAY, abs=60)


# Dollars


async def test_reservations_of_all_processes_count(server: RedisServer, emptied: Redis) -> None:
    async with store(server.url) as one, store(server.url) as other:
        holds = [Hold(), Hold(), Hold()]
        for made, hold, expected in (
            (one, holds[0], Balance(True, NO_DOLLARS, NO_DOLLARS)),
            (other, holds[1], Balance(True, NO_DOLLARS, HALF)),
            (one, holds[2], Balance(False, NO_DOLLARS, Decimal(1))),
        ):
            assert await made.limits.reserve_dollars(BUDGET, HALF, hold) == expected
        await other.limits.settle_dollars(BUDGET, holds[1], Decimal("0.25"))
        refused = await one.limits.reserve_dollars(BUDGET, HALF, holds[2])
        assert refused == Balance(False, Decimal("0.25"), HALF)
        await one.limits.settle_dollars(BUDGET, holds[0], Decimal("0.75"))
        for each in (one, other):
            nothing = await each.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())
            assert nothing == Balance(False, Decimal(1), NO_DOLLARS)
        assert emptied.exists(HELD_DOLLARS) == 0
        assert DAY < int(emptied.ttl(SPENT)) <= 8 * DAY


async def test_as_many_at_once_are_granted_as_fit(server: RedisServer, emptied: Redis) -> None:
    amount, granted = Decimal("0.01"), 0
    async with store(server.url) as one, store(server.url) as other:

        async def reserve(made: Store) -> None:
            nonlocal granted
            for _ in range(20):
                balance = await made.limits.reserve_dollars(BUDGET, amount, Hold())
                granted += balance.granted

        async with anyio.create_task_group() as tasks:
            for made in (one, other) * 4:
                tasks.start_soon(reserve, made)
    assert granted == 100


async def test_a_request_that_asked_before_another_was_settled_knows_what_that_cost(
    server: RedisServer, emptied: Redis
) -> None:
    async with redis_relay(server) as relay, store(relay.url) as made:
        await made.limits.reserve_dollars(BUDGET, HALF, first := Hold())
        late = made.limits._dollar_command("reserve", BUDGET, ["anna"], "", NO_DOLLARS, HALF, HALF)
        await made.limits.settle_dollars(BUDGET, first, HALF)
        reply = await made.limits._call(late, 1)
        assert reply is not None
        assert not reply.result


async def test_dollars_are_added_up_exactly(server: RedisServer, emptied: Redis) -> None:
    cent, budget = Decimal("0.010000000001"), Budget("anna", 7, Decimal(5))
    async with store(server.url) as one, store(server.url) as other:
        async with anyio.create_task_group() as tasks:
            for each in (one, other) * 30:
                tasks.start_soon(each.limits.settle_dollars, budget, Hold(), cent)
        for each in (one, other):
            balance = await each.limits.reserve_dollars(budget, NO_DOLLARS, Hold())
            assert balance == Balance(True, 60 * cent, NO_DOLLARS)
        for another in (budget._replace(day=8), budget._replace(name="ben")):
            balance = await one.limits.reserve_dollars(another, NO_DOLLARS, Hold())
            assert balance.spent == 0
    assert emptied.keys() == [SPENT]


async def test_a_dead_process_holds_dollars_until_they_expire(
    server: RedisServer, emptied: Redis
) -> None:
    async with store(server.url) as dead, store(server.url) as made:
        hold = Hold()
        assert (await dead.limits.reserve_dollars(BUDGET, HALF, hold)).granted
        assert not (await made.limits.reserve_dollars(BUDGET, Decimal("0.6"), Hold())).granted
        expire(emptied, HELD_DOLLARS)
        assert (await made.limits.reserve_dollars(BUDGET, Decimal("0.6"), Hold())).granted
        # It was only slow: what it has spent counts all the same.
        await dead.limits.settle_dollars(BUDGET, hold, HALF)
        balance = await made.limits.reserve_dollars(BUDGET, NO_DOLLARS, Hold())
        assert (balance.spent, balance.reserved) == (HALF, Decimal("0.6"))


async def test_a_client_that_leaves_while_redis_is_asked_holds_nothing(
    server: RedisServer, emptied: Redis
) -> None:
    async with redis_relay(server) as relay, store(relay.url) as made:
        asked, may_reply = anyio.Event(), anyio.Event()

        async def late(client: SocketStream, data: bytes) -> None:
            asked.set()
            await may_reply.wait()
            await client.send(data)

        async def leave(scope: anyio.CancelScope) -> None:
            await asked.wait()
            scope.cancel()
            may_reply.set()

        await made.limits.settle_dollars(BUDGET, Hold(), HALF)  # the script is loaded
        for number in range(2):
            asked, may_reply = anyio.Event(), anyio.Event()
            relay.spoil = late
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(leave, scope)
                    if number:
                        await made.limits.reserve_dollars(BUDGET, HALF, Hold())
                    else:
                        await made.limits.charge(tokens(900), 0.0, held())
                    pytest.fail("a cancelled request goes no further")
            relay.spoil = None
            assert emptied.keys() == [SPENT]
        assert made.logged == []


async def test_what_redis_took_without_a_reply_is_given_back_when_it_responds_again(
    server: RedisServer, emptied: Redis
) -> None:
    async with redis_relay(server) as relay, store(relay.url, closed=True) as made:

        async def lose(client: SocketStream, data: bytes) -> None:
            client.close()

        await made.limits.settle_dollars(BUDGET, Hold(), Decimal("0.1"))
        for number in range(2):
            relay.spoil = lose
            reserving = made.limits.reserve_dollars(BUDGET, HALF, Hold())
            charging = made.limits.charge(tokens(900), 0.0, held())
            asked, other = (reserving, charging) if number else (charging, reserving)
            other.close()
            with pytest.raises(LimitStoreUnavailable):
                await asked
            assert emptied.zcard(HELD_DOLLARS if number else HELD) == 1
            relay.spoil = None
            made.now += 100
            await made.limits.settle_dollars(BUDGET, Hold(), Decimal("0.1"))
            assert emptied.keys() == [SPENT]
    assert made.logged == [False, True] * 2
