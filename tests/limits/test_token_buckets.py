"""Token buckets: charges that fit, the wait for those that do not, and the bound over time."""

from decimal import Decimal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.limits.token_buckets import (
    Balance,
    Budget,
    Charge,
    Decision,
    Hold,
    LimitStore,
    TokenBucket,
    decide,
    fits_budget,
)

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


async def test_unused_tokens_are_refunded_and_excess_is_owed_to_the_empty_bucket() -> None:
    limits = LimitStore()
    await limits.charge([Charge(TOKENS, 30_000)], 0.0)
    await limits.adjust([Charge(TOKENS, -29_000)], 0.0)
    assert await limits.charge([Charge(TOKENS, 29_000)], 0.0) == Decision()
    await limits.adjust([Charge(TOKENS, 1_000)], 1.0)  # 500 were back
    assert (await limits.charge([Charge(TOKENS, 1_000)], 1.0)).wait == pytest.approx(2.0)


async def test_a_refund_never_exceeds_the_capacity() -> None:
    limits = LimitStore()
    await limits.charge([Charge(TOKENS, 30_000)], 0.0)
    await limits.adjust([Charge(TOKENS, -30_000)], 50.0)
    assert await limits.charge([Charge(TOKENS, 30_000)], 50.0) == Decision()
    assert (await limits.charge([Charge(TOKENS, 15_000)], 50.0)).wait == pytest.approx(30.0)


async def test_a_charge_above_capacity_waits_for_a_full_bucket_and_empties_it() -> None:
    limits = LimitStore()
    huge = [Charge(TOKENS, 60_000)]
    await limits.charge([Charge(TOKENS, 15_000)], 0.0)
    assert (await limits.charge(huge, 0.0)).wait == pytest.approx(30.0)
    assert await limits.charge(huge, 30.0) == Decision()
    assert (await limits.charge([Charge(TOKENS, 30_000)], 30.0)).wait == pytest.approx(60.0)


@pytest.mark.parametrize("amount", [30_001, 10**12])
async def test_a_bucket_owes_no_more_than_it_holds(amount: int) -> None:
    limits = LimitStore()
    for _ in range(3):
        await limits.adjust([Charge(TOKENS, amount)], 5.0)
    assert (await limits.charge([Charge(TOKENS, 30_000)], 5.0)).wait == pytest.approx(60.0)
    await limits.reconcile(TOKENS, -amount, -amount, 10.0)
    assert (await limits.charge([Charge(TOKENS, 30_000)], 10.0)).wait == pytest.approx(60.0)


def lasting(name: str = "tokens") -> TokenBucket:
    return TokenBucket(name, 1000, 86_400.0)


async def test_an_uncertain_bucket_lets_one_probe_through_while_nothing_else_is_held() -> None:
    limits, bucket = LimitStore(), lasting()
    charges = [Charge(bucket, 900)]
    first, second, third = Hold("m"), Hold("m"), Hold("m")
    assert await limits.charge(charges, 0.0, first) == Decision()
    assert (await limits.charge(charges, 0.0, second)).wait
    await limits.adjust([], 0.0, first, answered=True)
    assert (await limits.charge(charges, 0.0, second)).wait  # certain: that much was used
    await limits.adjust([Charge(bucket, 0)], 0.0, Hold("m"), answered=False)
    assert (await limits.charge(charges, 0.0)).wait  # without a hold nothing is a probe
    assert await limits.charge(charges, 0.0, second) == Decision()
    assert (await limits.charge(charges, 0.0, third)).wait
    assert await limits.charge(charges, 0.0, Hold("other model")) == Decision()
    await limits.adjust([], 0.0, second)
    assert await limits.charge(charges, 0.0, third) == Decision()
    await limits.reconcile(bucket, 10, 10, 0.0, third)
    await limits.adjust([], 0.0, third)
    assert (await limits.charge(charges, 0.0, second)).left == pytest.approx(10)


async def test_a_probe_needs_room_in_certain_buckets() -> None:
    limits, certain, uncertain = LimitStore(), lasting("requests"), lasting("tokens")
    both = [Charge(certain, 600), Charge(uncertain, 600)]
    assert await limits.charge(both, 0.0) == Decision()
    await limits.adjust([Charge(uncertain, 0)], 0.0, answered=False)
    assert (await limits.charge(both, 0.0, Hold())).wait
    await limits.adjust([Charge(certain, -600)], 0.0)
    assert await limits.charge(both, 0.0, Hold()) == Decision()


# Dollars


BUDGET = Budget("anna", 7, Decimal(1))


async def test_reservations_count_until_they_are_settled() -> None:
    limits, half, holds = LimitStore(), Decimal("0.5"), [Hold(), Hold(), Hold()]
    for hold in holds[:2]:
        assert (await limits.reserve_dollars(BUDGET, half, hold)).granted
    refused = await limits.reserve_dollars(BUDGET, half, holds[2])
    assert refused == Balance(False, Decimal(0), Decimal(1))
    await limits.settle_dollars(BUDGET, holds[0], Decimal("0.1"))
    refused = await limits.reserve_dollars(BUDGET, half, holds[2])
    assert refused == Balance(False, Decimal("0.1"), half)
    assert (await limits.reserve_dollars(BUDGET, Decimal("0.4"), holds[2])).granted
    for hold in holds[1:]:
        await limits.settle_dollars(BUDGET, hold, Decimal("0.45"))
    assert await limits.reserve_dollars(BUDGET, Decimal(0), Hold()) == Balance(
        False, Decimal(1), Decimal(0)
    )
    other_day, other_key = BUDGET._replace(day=8), BUDGET._replace(name="ben")
    for budget in (other_day, other_key):
        assert (await limits.reserve_dollars(budget, Decimal(1), Hold())).granted


@pytest.mark.parametrize(
    ("spent", "reserved", "amount", "fits"),
    [
        ("0", "0", "1", True),
        ("0", "0", "1.000000000000000001", False),
        ("0.5", "0.5", "0", True),
        ("0.5", "0.25", "0.25", True),
        ("0.5", "0.25", "0.26", False),
        ("1", "0", "0", False),
        ("0.999999999999999999", "0", "0", True),
    ],
)
def test_a_reservation_fits_what_is_left(
    spent: str, reserved: str, amount: str, fits: bool
) -> None:
    assert fits_budget(Decimal(1), Decimal(spent), Decimal(reserved), Decimal(amount)) == fits


def test_decide_is_a_function_of_values() -> None:
    assert decide([], [], 0.0) == Decision()
    assert decide([Charge(MINUTE, 1)], [0.0], 5.0) == Decision()
    assert decide([Charge(MINUTE, 1)], [65.0], 5.0) == Decision(10.0, MINUTE, 0.0)


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
