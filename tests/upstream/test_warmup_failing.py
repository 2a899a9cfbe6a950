"""Connections that cannot be kept warm: when it is tried again; on a clock that only moves when
everybody waits."""

import pytest
from waiting import wait_all_tasks_blocked
from warm_pool import kept_warm, leased, on_mock_clock, use

from ape_cerebras.errors import ConnectFailed

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
            await wait_all_tasks_blocked()
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


def test_a_failure_is_logged_once_and_so_is_its_end() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True, WARM_CONNECTIONS="3") as rig:
            await rig.until(20)
            [line] = rig.lines.all()
            assert (line["level"], line["message"]) == ("warning", "Upstream cannot be reached")
            assert (line["cause"], rig.pool.failure) == ("ECONNREFUSED", ("ECONNREFUSED", None))
            rig.upstream.refuses = False
            await rig.until(40)
            [_, line] = rig.lines.all()
            assert (line["level"], line["message"]) == ("info", "Upstream can be reached again")
            assert (line["after_seconds"], rig.pool.failure) == (31.0, None)
            rig.upstream.refuses = True
            await rig.until(200)
        assert len(rig.lines.all()) == 3

    on_mock_clock(test)


def test_a_request_that_connects_ends_the_failure() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True) as rig:
            await rig.until(10)
            rig.upstream.refuses = False
            async with leased(rig.pool) as lease:
                await use(lease.connection)
            await rig.until(16)
        assert [line["message"] for line in rig.lines.all()] == [
            *("Upstream cannot be reached", "Upstream can be reached again"),
        ]
        assert rig.upstream.requested_at == [*PAUSES[:4], 10]

    on_mock_clock(test)


def test_where_none_is_kept_only_the_pool_notes_a_failure() -> None:
    async def test() -> None:
        async with kept_warm(refuses=True, WARM_CONNECTIONS="0") as rig:
            assert rig.pool.failure is None
            with pytest.raises(ConnectFailed):
                await rig.pool.lease()
            await rig.until(20)
            assert rig.pool.failure == ("ECONNREFUSED", None)
            assert rig.lines.all() == []

    on_mock_clock(test)
