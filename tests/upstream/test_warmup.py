"""Connections kept warm: how many, made when, replaced when; on a clock that only moves when
everybody waits, so that a minute takes no time and 55 s are 55.0."""

import anyio
import pytest
from end_to_end import KEY
from memory_stream import MemoryStream, memory_pair
from waiting import wait_all_tasks_blocked
from warm_pool import kept_warm, leased, on_mock_clock, use

from ape_cerebras.config.config import Config
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.upstream.pool import Pool
from ape_cerebras.upstream.warmup import Warmup

# Ahead of the requests


def test_they_are_made_side_by_side_at_the_start() -> None:
    async def test() -> None:
        async with kept_warm(takes=0.1, WARM_CONNECTIONS="10") as rig:
            await rig.until(0.05)
            assert (len(rig.upstream.requested_at), rig.pool.idle) == (10, 0)
            await rig.until(0.1)
            assert (len(rig.upstream.requested_at), rig.pool.idle) == (10, 10)

    on_mock_clock(test)


def test_many_are_made_in_rounds() -> None:
    async def test() -> None:
        async with kept_warm(takes=0.1, WARM_CONNECTIONS="25") as rig:
            await rig.until(0.35)
            assert rig.pool.idle == 25
        made = rig.upstream.requested_at
        assert made == pytest.approx([0.0] * 10 + [0.1] * 10 + [0.2] * 5)

    on_mock_clock(test)


def test_all_requests_of_a_burst_find_warm_ones() -> None:
    async def test() -> None:
        uses: list[str] = []

        async def use_one() -> None:
            async with leased(rig.pool) as lease:
                uses.append(lease.use)
                await use(lease.connection)

        async with kept_warm(WARM_CONNECTIONS="10") as rig:
            await rig.until(70)  # a quiet minute, and the connections have been replaced in it
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(use_one)
        assert uses == ["warm"] * 10

    on_mock_clock(test)


def test_one_that_is_in_use_is_replaced_after_a_second() -> None:
    async def test() -> None:
        async with kept_warm(WARM_CONNECTIONS="1") as rig:
            await rig.until(10)
            async with leased(rig.pool) as lease:
                await rig.until(10.9)
                assert rig.upstream.requested_at == [0]
                await rig.until(11)
                assert rig.upstream.requested_at == [0, 11]
                await rig.until(30)
                await use(lease.connection)
            assert rig.pool.idle == 2
            await rig.until(50)
        assert rig.upstream.requested_at == [0, 11]

    on_mock_clock(test)


def test_one_that_is_back_sooner_is_not_replaced() -> None:
    async def test() -> None:
        async with kept_warm(WARM_CONNECTIONS="1") as rig:
            for moment in range(10, 20):
                await rig.until(moment)
                async with leased(rig.pool) as lease:
                    await rig.until(moment + 0.9)
                    await use(lease.connection)
        assert rig.upstream.requested_at == [0]

    on_mock_clock(test)


def test_none_are_kept_warm_where_none_are_configured() -> None:
    async def test() -> None:
        async with kept_warm(WARM_CONNECTIONS="0") as rig:
            rig.warmup.hint()
            await rig.until(20)
            assert rig.upstream.requested_at == []
            async with leased(rig.pool) as lease:
                await use(lease.connection)
            await rig.until(79)
            assert rig.pool.idle == 1
            await rig.until(85)
            assert rig.pool.idle == 0

    on_mock_clock(test)


def test_more_are_kept_warm_than_are_kept_otherwise() -> None:
    async def test() -> None:
        async with kept_warm(WARM_CONNECTIONS="3", KEEP_ALIVE_CONNECTIONS="1") as rig:
            await rig.until(1)
            async with leased(rig.pool) as one, leased(rig.pool) as two, leased(rig.pool) as three:
                for lease in (one, two, three):
                    await use(lease.connection)
            await rig.until(10)
            assert rig.pool.idle == 3
        assert rig.upstream.requested_at == [0, 0, 0]

    on_mock_clock(test)


# Replaced


def test_one_that_grows_old_is_replaced_before_it_is_closed() -> None:
    """Ours ends at 62 s: there is another at 57, and never none."""

    async def test() -> None:
        async with kept_warm(takes=0.5, UPSTREAM_KEEP_ALIVE_TIMEOUT="62") as rig:
            await rig.until(0.5)
            assert await rig.fewest_idle(600) == 1
            assert rig.pool.idle <= 2
        made = [round(moment, 3) for moment in rig.upstream.requested_at]
        assert made == [0, *(57.5 * number for number in range(1, 11))]

    on_mock_clock(test)


def test_upstream_that_closes_later_than_we_do_never_closes_one() -> None:
    async def test() -> None:
        async with kept_warm(idles=58, WARM_CONNECTIONS="3") as rig:
            await rig.until(0)
            assert await rig.fewest_idle(600) == 3

    on_mock_clock(test)


@pytest.mark.parametrize("seconds", [3, 10, 50])
def test_one_that_upstream_closes_is_replaced_at_that_moment(seconds: int) -> None:
    async def test() -> None:
        async with kept_warm(idles=seconds) as rig:
            await rig.until(200)
            assert rig.pool.idle == 1
        times = 200 // seconds + 1
        assert rig.upstream.requested_at == pytest.approx([seconds * each for each in range(times)])

    on_mock_clock(test)


def test_one_that_upstream_closes_after_its_use_is_replaced_at_that_moment() -> None:
    """Unlike one that is closed as soon as it is made, this is no failure."""

    async def test() -> None:
        async with kept_warm() as rig:
            for moment in (10, 10.5, 11):
                await rig.until(moment)
                async with leased(rig.pool) as lease:
                    await use(lease.connection)
                rig.upstream.close_all()
                await wait_all_tasks_blocked()
        assert rig.upstream.requested_at == [0, 10, 10.5, 11]

    on_mock_clock(test)


def test_the_one_that_is_used_does_not_let_the_others_die() -> None:
    """The last one used is the next; those below it grow old, and are replaced in time."""

    async def test() -> None:
        async with kept_warm(WARM_CONNECTIONS="3") as rig:
            await rig.until(0)
            uses: list[str] = []
            for moment in range(10, 300, 10):
                await rig.until(moment)
                async with leased(rig.pool) as lease:
                    uses.append(lease.use)
                    await use(lease.connection)
                assert await rig.fewest_idle(moment + 9.9) >= 3
        assert "new" not in uses

    on_mock_clock(test)


def test_where_the_kernel_reports_nothing_a_check_every_few_seconds_does() -> None:
    """Of streams that are no sockets, and on other systems."""

    async def test() -> None:
        peers: list[MemoryStream] = []

        async def connect(host: str, port: int) -> TimestampedStream:
            ours, theirs = memory_pair()
            peers.append(theirs)
            return ours

        config = Config.from_environment(
            {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": "http://a", "WARM_CONNECTIONS": "2"}
        )
        pool = Pool(config, connect, None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Warmup(pool, Logs("error", print)).keep)
            await anyio.sleep(7)
            peers[0].close()
            await anyio.sleep(2.9)
            assert (pool.idle, len(peers)) == (2, 2)
            await anyio.sleep(0.2)
            assert (pool.idle, len(peers)) == (2, 3)
            tasks.cancel_scope.cancel()

    on_mock_clock(test)


# On both event loops, by their own clocks


@pytest.mark.anyio
async def test_those_that_upstream_closes_are_replaced() -> None:
    async with kept_warm(WARM_CONNECTIONS="2") as rig:
        await rig.upstream.until_made(2)
        async with leased(rig.pool) as one, leased(rig.pool) as other:
            await use(one.connection)
            await use(other.connection)
        assert rig.pool.idle == 2
        rig.upstream.close_all()
        with anyio.fail_after(3):
            await rig.upstream.until_made(4)
        assert rig.pool.idle == 2


@pytest.mark.anyio
async def test_one_that_upstream_closes_while_it_is_in_use_is_not_used_again() -> None:
    async with kept_warm(WARM_CONNECTIONS="1") as rig:
        await rig.upstream.until_made(1)
        async with leased(rig.pool) as lease:
            await use(lease.connection)
            rig.upstream.close_all()
            with anyio.fail_after(3):
                await rig.upstream.until_made(2)
        assert rig.pool.idle == 1
        async with leased(rig.pool) as next_one:
            assert next_one.connection is not lease.connection
            assert next_one.use == "warm"
