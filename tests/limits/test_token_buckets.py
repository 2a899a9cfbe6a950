"""Token buckets: charges that fit, the wait for those that do not, and the bound over time."""

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_cerebras.limits.token_buckets import Charge, Decision, LimitStore, TokenBucket, decide

MINUTE = TokenBucket("requests", 6, 60.0)
TOKENS = TokenBucket("tokens", 30_000, 60.0)

pytestmark = pytest.mark.anyio


async def test_a_full_bucket_allows_a_burst_and_refills_continuously() -> None:
    limits = LimitStore()
    one = [Charge(MINUTE, 1)]
    for _ in range(6):
        assert await limits.charge(one, 100.0) == Decision()
    assert await limits.charge(one, 100.0) == Decision(10.0, MINUTE, 0.0)
    assert (await limits.charge(one, 104.0)).wait == pytest.approx(6.0)
    assert (await limits.charge(one, 104.0)).left == pytest.approx(0.4)
    assert await limits.charge(one, 110.0) == Decision()
    assert (await limits.charge(one, 110.0)).wait == pytest.approx(10.0)
    for _ in range(6):
        assert await limits.charge(one, 1000.0) == Decision()  # it holds no more than it holds
    assert (await limits.charge(one, 1000.0)).wait == pytest.approx(10.0)


async def test_of_several_charges_all_are_taken_or_none() -> None:
    limits = LimitStore()
    both = [Charge(MINUTE, 1), Charge(TOKENS, 20_000)]
    assert await limits.charge(both, 0.0) == Decision()
    too_soon = await limits.charge(both, 0.0)
    assert (too_soon.wait, too_soon.lacking, round(too_soon.left)) == (20.0, TOKENS, 10_000)
    for _ in range(5):
        assert await limits.charge([Charge(MINUTE, 1)], 0.0) == Decision()
    worse = await limits.charge(both, 0.0)
    assert (worse.wait, worse.lacking) == (20.0, TOKENS)
    assert (await limits.charge(both, 15.0)).wait == pytest.approx(5.0)


async def test_unused_tokens_are_refunded_and_excess_is_owed() -> None:
    limits = LimitStore()
    await limits.charge([Charge(TOKENS, 30_000)], 0.0)
    await limits.adjust([Charge(TOKENS, -29_000)], 0.0)
    assert await limits.charge([Charge(TOKENS, 29_000)], 0.0) == Decision()
    await limits.adjust([Charge(TOKENS, 1_000)], 0.0)
    assert (await limits.charge([Charge(TOKENS, 1_000)], 0.0)).wait == pytest.approx(4.0)


async def test_a_refund_never_exceeds_the_capacity() -> None:
    limits = LimitStore()
    await limits.charge([Charge(TOKENS, 30_000)], 0.0)
    await limits.adjust([Charge(TOKENS, -30_000)], 50.0)
    assert await limits.charge([Charge(TOKENS, 30_000)], 50.0) == Decision()
    assert (await limits.charge([Charge(TOKENS, 15_000)], 50.0)).wait == pytest.approx(30.0)


async def test_a_charge_above_capacity_waits_for_a_full_bucket_and_owes_the_rest() -> None:
    limits = LimitStore()
    huge = [Charge(TOKENS, 60_000)]
    await limits.charge([Charge(TOKENS, 15_000)], 0.0)
    assert (await limits.charge(huge, 0.0)).wait == pytest.approx(30.0)
    assert await limits.charge(huge, 30.0) == Decision()
    assert (await limits.charge([Charge(TOKENS, 1)], 30.0)).wait == pytest.approx(60.0, abs=0.01)


def test_decide_is_a_function_of_values() -> None:
    assert decide([], [], 0.0) == Decision()
    assert decide([Charge(MINUTE, 1)], [0.0], 5.0) == Decision()
    assert decide([Charge(MINUTE, 1)], [65.0], 5.0) == Decision(10.0, MINUTE, 0.0)


@settings(deadline=None)
@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10)), min_size=1, max_size=80),
)
def test_no_interval_admits_more_than_capacity_and_refill(
    capacity: int, charges: list[tuple[float, int]]
) -> None:
    bucket, limits, now = TokenBucket("b", capacity, 60.0), LimitStore(), 0.0
    taken: list[tuple[float, int]] = []

    async def play() -> None:
        nonlocal now
        for step, amount in charges:
            now += step
            amount = min(amount, capacity)
            decision = await limits.charge([Charge(bucket, amount)], now)
            if decision.wait:
                now += decision.wait  # no sooner, and no later
                assert not (await limits.charge([Charge(bucket, amount)], now)).wait
            taken.append((now, amount))

    anyio.run(play)
    for number, (began, _) in enumerate(taken):
        total = 0
        for at, amount in taken[number:]:
            total += amount
            assert total <= capacity + (at - began) * capacity / 60.0 + 0.001
