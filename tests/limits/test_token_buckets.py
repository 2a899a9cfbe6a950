"""Buckets: what can be taken, when the rest can, and that no more ever is."""

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_cerebras.limits.token_buckets import Bucket, Charge, LocalLimits, Verdict, decide

MINUTE = Bucket("requests", 6, 60.0)
TOKENS = Bucket("tokens", 30_000, 60.0)

pytestmark = pytest.mark.anyio


async def test_a_full_bucket_can_be_spent_at_once_and_refills_all_the_time() -> None:
    limits = LocalLimits()
    one = [Charge(MINUTE, 1)]
    for _ in range(6):
        assert await limits.take(one, 100.0) == Verdict()
    assert await limits.take(one, 100.0) == Verdict(10.0, MINUTE, 0.0)
    assert (await limits.take(one, 104.0)).wait == pytest.approx(6.0)
    assert (await limits.take(one, 104.0)).left == pytest.approx(0.4)
    assert await limits.take(one, 110.0) == Verdict()
    assert (await limits.take(one, 110.0)).wait == pytest.approx(10.0)
    for _ in range(6):
        assert await limits.take(one, 1000.0) == Verdict()  # it holds no more than it holds
    assert (await limits.take(one, 1000.0)).wait == pytest.approx(10.0)


async def test_of_several_charges_all_are_taken_or_none() -> None:
    limits = LocalLimits()
    both = [Charge(MINUTE, 1), Charge(TOKENS, 20_000)]
    assert await limits.take(both, 0.0) == Verdict()
    too_soon = await limits.take(both, 0.0)
    assert (too_soon.wait, too_soon.lacking, round(too_soon.left)) == (20.0, TOKENS, 10_000)
    for _ in range(5):
        assert await limits.take([Charge(MINUTE, 1)], 0.0) == Verdict()
    worse = await limits.take(both, 0.0)
    assert (worse.wait, worse.lacking) == (20.0, TOKENS)
    assert (await limits.take(both, 15.0)).wait == pytest.approx(5.0)


async def test_what_was_not_used_is_given_back_and_what_was_beyond_is_owed() -> None:
    limits = LocalLimits()
    await limits.take([Charge(TOKENS, 30_000)], 0.0)
    await limits.settle([Charge(TOKENS, -29_000)], 0.0)
    assert await limits.take([Charge(TOKENS, 29_000)], 0.0) == Verdict()
    await limits.settle([Charge(TOKENS, 1_000)], 0.0)
    assert (await limits.take([Charge(TOKENS, 1_000)], 0.0)).wait == pytest.approx(4.0)


async def test_giving_back_never_makes_more_than_a_full_bucket() -> None:
    limits = LocalLimits()
    await limits.take([Charge(TOKENS, 30_000)], 0.0)
    await limits.settle([Charge(TOKENS, -30_000)], 50.0)
    assert await limits.take([Charge(TOKENS, 30_000)], 50.0) == Verdict()
    assert (await limits.take([Charge(TOKENS, 15_000)], 50.0)).wait == pytest.approx(30.0)


async def test_more_than_a_bucket_holds_waits_until_it_is_full_and_is_owed() -> None:
    limits = LocalLimits()
    huge = [Charge(TOKENS, 60_000)]
    await limits.take([Charge(TOKENS, 15_000)], 0.0)
    assert (await limits.take(huge, 0.0)).wait == pytest.approx(30.0)
    assert await limits.take(huge, 30.0) == Verdict()
    assert (await limits.take([Charge(TOKENS, 1)], 30.0)).wait == pytest.approx(60.0, abs=0.01)


def test_a_decision_needs_nothing_but_values() -> None:
    assert decide([], [], 0.0) == Verdict()
    assert decide([Charge(MINUTE, 1)], [0.0], 5.0) == Verdict()
    assert decide([Charge(MINUTE, 1)], [65.0], 5.0) == Verdict(10.0, MINUTE, 0.0)


@settings(deadline=None)
@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10)), min_size=1, max_size=80),
)
def test_in_no_time_more_is_taken_than_a_bucket_and_its_refill(
    capacity: int, asked: list[tuple[float, int]]
) -> None:
    bucket, limits, now = Bucket("b", capacity, 60.0), LocalLimits(), 0.0
    taken: list[tuple[float, int]] = []

    async def play() -> None:
        nonlocal now
        for step, amount in asked:
            now += step
            amount = min(amount, capacity)
            verdict = await limits.take([Charge(bucket, amount)], now)
            if verdict.wait:
                now += verdict.wait  # no sooner, and no later
                assert not (await limits.take([Charge(bucket, amount)], now)).wait
            taken.append((now, amount))

    anyio.run(play)
    for number, (began, _) in enumerate(taken):
        total = 0
        for at, amount in taken[number:]:
            total += amount
            assert total <= capacity + (at - began) * capacity / 60.0 + 0.001
