"""Connections that cannot be kept warm: when it is tried again; on a clock that only moves when
everybody waits."""

import anyio
import pytest
from warm_pool import kept_warm, on_mock_clock

PAUSES = [0, 1, 3, 7, 15, 31, 61, 91, 121]


def test_the_pauses_after_failures_grow() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True) as rig:
            await rig.until(130)
        assert rig.upstream.requested_at == PAUSES

    on_mock_clock(test)


def test_where_many_fail_one_at_a_time_is_attempted_until_one_succeeds() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True, WARM_CONNECTIONS="5") as rig:
            await rig.until(20)
            assert rig.upstream.requested_at == [0] * 5 + PAUSES[1:5]
            rig.upstream.refuses = False
            await rig.until(31)
            assert rig.pool.idle == 5
        assert rig.upstream.requested_at == [0] * 5 + PAUSES[1:5] + [31] * 5

    on_mock_clock(test)


def test_connections_closed_as_soon_as_they_are_made_are_failures_too() -> None:
    async def test() -> None:
        async with kept_warm(idles=0.25, WARM_CONNECTIONS="2") as rig:
            await rig.until(130)
            made = [round(moment, 3) for moment in rig.upstream.requested_at]
        # Each pause counts from the moment at which the first of them was closed.
        attempts = [0, 1.25, 3.5, 7.75, 16, 32.25, 62.5, 92.75, 123]
        assert made == [moment for moment in attempts for _ in range(2)]

    on_mock_clock(test)


def test_after_a_good_while_the_pauses_begin_anew() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True) as rig:
            await rig.until(20)
            rig.upstream.refuses = False
            await rig.until(80)
            assert rig.pool.idle == 1  # made at 31, and to be replaced at 86
            rig.upstream.refuses = True
            await rig.until(90)
        assert rig.upstream.requested_at[-4:] == [31, 86, 87, 89]

    on_mock_clock(test)


def test_a_request_about_to_be_sent_cuts_the_pause_short() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True) as rig:
            await rig.until(20)
            rig.upstream.refuses = False
            rig.warmup.hint()
            await anyio.wait_all_tasks_blocked()
            assert rig.pool.idle == 1
        assert rig.upstream.requested_at == [*PAUSES[:5], 20]

    on_mock_clock(test)


def test_however_many_requests_come_there_is_one_attempt_a_second() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True, WARM_CONNECTIONS="1") as rig:
            for number in range(1000):
                await rig.until(number / 100)
                rig.warmup.hint()
        assert rig.upstream.requested_at == pytest.approx(list(range(10)), abs=0.02)

    on_mock_clock(test)
