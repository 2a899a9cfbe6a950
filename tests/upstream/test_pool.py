"""The pool: who is used next, what is not used again, and that no slot is ever lost."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import httpcore
import pytest
from end_to_end import KEY
from memory_stream import MemoryStream, memory_pair
from waiting import wait_all_tasks_blocked

from ape_cerebras.config.config import Config
from ape_cerebras.errors import ConnectFailed, ConnectTimeout, Overloaded
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.upstream.pool import Lease, Pool, PooledConnection
from ape_cerebras.upstream.warmup import Warmup

pytestmark = pytest.mark.anyio

REQUEST = "GET", httpcore.URL("http://upstream/"), ((b"host", b"upstream"),)
RESPONSE = b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\nok"


class Peers:
    """An upstream in memory that responds to every request at once; ``peers`` are its ends."""

    def __init__(self, tasks: anyio.abc.TaskGroup) -> None:
        self._tasks = tasks
        self.peers: list[MemoryStream] = []
        self.headers = b""

    async def connect(self, host: str, port: int) -> TimestampedStream:
        await anyio.lowlevel.checkpoint()  # it can be cancelled here, too
        ours, theirs = memory_pair()
        self.peers.append(theirs)
        self._tasks.start_soon(self._respond, theirs)
        return ours

    async def _respond(self, peer: MemoryStream) -> None:
        try:
            while True:
                await peer.receive()
                await anyio.lowlevel.checkpoint()
                await peer.send(RESPONSE % self.headers)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass

    @property
    def open(self) -> int:
        return sum(not peer.peer_is_gone() for peer in self.peers)


def config(**settings: str) -> Config:
    return Config.from_environment(
        {"CEREBRAS_API_KEY": KEY, "CEREBRAS_BASE_URL": "http://upstream", **settings}
    )


@asynccontextmanager
async def pool_of(**settings: str) -> AsyncIterator[tuple[Pool, Peers]]:
    async with anyio.create_task_group() as tasks:
        peers = Peers(tasks)
        pool = Pool(config(**settings), peers.connect, None)
        yield pool, peers
        tasks.cancel_scope.cancel()


async def use(connection: PooledConnection) -> bytes:
    await connection.request(*REQUEST)
    body = b""
    while (chunk := await connection.next_chunk()) is not None:
        body += chunk
    return body


@asynccontextmanager
async def leased(pool: Pool) -> AsyncIterator[PooledConnection]:
    connection = (await pool.lease()).connection
    try:
        yield connection
    finally:
        pool.give_back(connection)


async def test_the_one_used_last_is_used_next() -> None:
    async with pool_of() as (pool, peers):
        async with leased(pool) as first, leased(pool) as second:
            await use(first)
            await use(second)
        assert (pool.active, pool.idle) == (0, 2)  # second went back first, first after it
        async with leased(pool) as third:
            assert third is first
        assert len(peers.peers) == 2


async def test_a_response_left_early_closes_its_connection() -> None:
    async with pool_of() as (pool, peers):
        async with leased(pool) as connection:
            await connection.request(*REQUEST)
        assert (pool.active, pool.idle, peers.open) == (0, 0, 0)


async def test_no_more_are_kept_than_may_be() -> None:
    async with pool_of(KEEP_ALIVE_CONNECTIONS="1") as (pool, peers):
        async with leased(pool) as first, leased(pool) as second:
            await use(first)
            await use(second)
        assert (pool.idle, peers.open) == (1, 1)


async def test_those_too_old_or_closed_by_the_other_side_are_closed() -> None:
    async with pool_of(UPSTREAM_KEEP_ALIVE_TIMEOUT="60") as (pool, peers):
        for spoil in (_close, _leave_idle, _age):
            async with leased(pool) as old:
                await use(old)
            spoil(peers.peers[-1], old)
            async with leased(pool) as new:
                assert new is not old
                assert await use(new) == b"ok"
        assert peers.open == 1


def _close(peer: MemoryStream, connection: PooledConnection) -> None:
    peer.close()


def _leave_idle(peer: MemoryStream, connection: PooledConnection) -> None:
    connection.idle_since -= 61


def _age(peer: MemoryStream, connection: PooledConnection) -> None:
    connection.end_at -= 600


@pytest.mark.parametrize(
    ("announced", "idle", "used_again"),
    [
        (b"timeout=5", 3.9, True),
        (b"timeout=5", 4.1, False),
        (b"max=100, Timeout = 5", 4.1, False),
        (b"timeout=5, max=100", 3.9, True),
        (b"timeout=1", 0.0, False),
        (b"timeout=0", 0.0, False),
        (b"max=100", 59.0, True),
        (b"x-timeout=5", 59.0, True),
        (b"timeout=100", 61.0, False),  # beyond our own
    ],
)
async def test_the_time_that_upstream_announces_is_kept_less_a_second(
    announced: bytes, idle: float, used_again: bool
) -> None:
    async with pool_of(UPSTREAM_KEEP_ALIVE_TIMEOUT="60") as (pool, peers):
        peers.headers = b"Keep-Alive: %b\r\n" % announced
        async with leased(pool) as first:
            await use(first)
        first.idle_since -= idle
        async with leased(pool) as second:
            assert (second is first) == used_again
            assert await use(second) == b"ok"


async def test_one_too_old_is_not_kept_when_it_is_given_back() -> None:
    async with pool_of(UPSTREAM_MAX_CONNECTION_AGE="100") as (pool, _):
        now = anyio.current_time()
        async with leased(pool) as connection:
            await use(connection)
            assert now + 90 <= connection.end_at <= anyio.current_time() + 100
            connection.end_at = now
        assert (pool.idle, pool.active) == (0, 0)


async def test_who_waits_first_is_served_first() -> None:
    served: list[int] = []
    async with pool_of(CONNECTION_POOL_SIZE="1") as (pool, _):

        async def wait(number: int) -> None:
            async with leased(pool):
                served.append(number)

        async with anyio.create_task_group() as tasks, leased(pool):
            for number in range(5):
                tasks.start_soon(wait, number)
                await wait_all_tasks_blocked()
        assert served == [0, 1, 2, 3, 4]


async def test_a_wait_has_an_end() -> None:
    async with pool_of(CONNECTION_POOL_SIZE="1", UPSTREAM_CONNECT_TIMEOUT="0.01") as (pool, _):
        while not pool.idle:  # on a busy machine it may take longer to connect than it may
            with suppress(ConnectTimeout):
                async with leased(pool) as connection:
                    assert await use(connection) == b"ok"
        async with leased(pool):
            with pytest.raises(Overloaded):
                async with leased(pool):
                    pass
        async with leased(pool) as connection:
            assert await use(connection) == b"ok"


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ConnectionRefusedError, ConnectFailed), (OSError, ConnectFailed), (None, ConnectTimeout)],
)
async def test_connecting_fails(error: type[OSError] | None, expected: type[Exception]) -> None:
    async def connect(host: str, port: int) -> TimestampedStream:
        if error is None:
            await anyio.sleep_forever()
        raise (error or OSError)("csk-something-secret")

    pool = Pool(config(UPSTREAM_CONNECT_TIMEOUT="0.01"), connect, None)
    with pytest.raises(expected) as caught:
        async with leased(pool):
            pass
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert (pool.active, pool.idle) == (0, 0)


async def test_warm_connections_are_ready_before_the_first_request_and_replaced() -> None:
    async with pool_of(WARM_CONNECTIONS="2") as (pool, peers):
        warmup = Warmup(pool, Logs("error", print))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warmup.keep)
            await wait_all_tasks_blocked()
            assert (pool.idle, peers.open) == (2, 2)
            for peer in peers.peers:
                peer.close()
            warmup.hint()
            await wait_all_tasks_blocked()
            assert (pool.idle, peers.open) == (2, 2)
            assert len(peers.peers) == 4
            tasks.cancel_scope.cancel()
        async with leased(pool) as connection:
            assert await use(connection) == b"ok"


async def test_warming_leaves_room_for_requests() -> None:
    async with pool_of(WARM_CONNECTIONS="5", CONNECTION_POOL_SIZE="2") as (pool, peers):
        warmup = Warmup(pool, Logs("error", print))
        async with anyio.create_task_group() as tasks, leased(pool):
            tasks.start_soon(warmup.keep)
            await wait_all_tasks_blocked()
            assert (pool.active, pool.idle) == (1, 1)
            tasks.cancel_scope.cancel()
        assert len(peers.peers) == 2


async def churn(pool: Pool, random_: random.Random, callers: int, times: int) -> None:
    async def call() -> None:
        for _ in range(times):
            with anyio.move_on_after(random_.uniform(0, 0.006)):
                async with leased(pool) as connection:
                    await use(connection)

    async with anyio.create_task_group() as tasks:
        for _ in range(callers):
            tasks.start_soon(call)


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_is_lost_however_requests_are_cancelled(seed: int) -> None:
    """Contention and cancellation at every await there is; afterwards all slots are there."""
    async with pool_of(CONNECTION_POOL_SIZE="10") as (pool, peers):
        await churn(pool, random.Random(seed), callers=20, times=40)
        assert pool.active == 0
        assert pool.idle == peers.open <= 10
        with anyio.fail_after(5):
            await _hold_all(pool, 10)


async def _hold_all(pool: Pool, size: int) -> None:
    everybody_has_one = anyio.Event()
    holding = 0

    async def hold() -> None:
        nonlocal holding
        async with leased(pool) as connection:
            assert await use(connection) == b"ok"
            holding += 1
            if holding == size:
                everybody_has_one.set()
            await everybody_has_one.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(size):
            tasks.start_soon(hold)


async def test_a_lease_reports_what_connection_it_got() -> None:
    async with pool_of(WARM_CONNECTIONS="1") as (pool, _):
        lease = await pool.lease()
        assert lease.use == "new"
        assert lease.waited is None
        assert lease.connect is not None
        assert lease.tls is None  # it is plain HTTP
        await use(lease.connection)
        pool.give_back(lease.connection)
        assert await pool.lease() == Lease(lease.connection, "reused")
    async with pool_of(WARM_CONNECTIONS="1") as (pool, _):
        warmup = Warmup(pool, Logs("error", print))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warmup.keep)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        for expected in ("warm", "reused"):
            lease = await pool.lease()
            assert lease.use == expected
            await use(lease.connection)
            pool.give_back(lease.connection)
