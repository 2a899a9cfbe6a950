"""Every failure on the way upstream, at every stage of a response, for 200 clients at once of which
a third disconnect at random. Nothing is lost: no slot, connection, descriptor or task, and no
exchange from the accounts."""

import gc
import os
import random
from contextlib import ExitStack

import anyio
import pytest
import trustme
from crowd import Crowd, outcomes_in
from end_to_end import KEY, Running, chat, running_proxy
from failing_upstream import Plan, as_requested
from fault_player import files_open, tasks_alive, until_nothing_is_left
from upstream_paths import Ways, opened_ways, strange_names
from waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.chaos]

RUNS = int(os.environ.get("CHAOS_RUNS", "1"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
CLIENTS = 200
REQUESTS = 3  # of each
POOL_SIZE = 150  # so that there is a queue for them
SETTINGS = {
    "CEREBRAS_BASE_URL": "https://localhost",
    "CONNECTION_POOL_SIZE": str(POOL_SIZE),
    "UPSTREAM_CONNECT_TIMEOUT": "2",
    "UPSTREAM_FIRST_BYTE_TIMEOUT": "1",
    "UPSTREAM_IDLE_TIMEOUT": "1",
    "WARM_CONNECTIONS": "3",
}
# Which endings there are depends on what comes first, and that on how busy the machine is; these
# depend on nothing but the dice.
SEEN = {"client_disconnected", "upstream_connect_failed", "upstream_connect_timeout"}


@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
async def test_chaos(seed: int, authority: trustme.CA, bundle: str) -> None:
    settings = {**SETTINGS, "SSL_CERT_FILE": bundle}
    async with opened_ways(as_requested, authority) as opened:
        ways = Ways(opened.addresses, random.Random(seed))
        async with running_proxy(0, ways.connect, **settings) as running:
            # What an event loop has once for all proxies is not to come later.
            assert (await (await running.client()).request(chat(Plan(True).body()))).complete
        await until(lambda: not opened.connections)
        gc.collect()  # nor are descriptors that went with an earlier loop to go later
        tasks, files = tasks_alive(), files_open()
        with strange_names():
            async with running_proxy(0, ways.connect, **settings) as running:
                ways.trouble = 0.3
                crowd = Crowd(running.client, f"chaos-{seed}")
                async with anyio.create_task_group() as group:
                    for number in range(CLIENTS):
                        group.start_soon(crowd.visit, random.Random(f"{seed} {number}"), REQUESTS)
                assert set(ways.taken) == set(opened.addresses)
                await assert_settled(running, crowd)
                ways.trouble = 0.0
                await assert_every_turn_is_there(running)
        await until_nothing_is_left(tasks, files)


async def assert_settled(running: Running, crowd: Crowd) -> None:
    proxy = running.proxy
    await until(lambda: not proxy._connections and not proxy._upstream.pool.active)
    assert await running.metric("cerebras_proxy_requests_in_flight") == 1  # the scrape
    text = (await (await running.client()).get("/metrics")).body.decode()
    for line in running.lines.exchanges():
        if line.get("route") != "/metrics":
            crowd.accounts.logged(line)
    counted = outcomes_in(text)
    assert crowd.accounts.settle(counted) == []
    assert not crowd.accounts.others
    assert set(counted) >= SEEN
    written = b"".join(running.lines.raw)
    assert b"failed inside" not in written
    assert KEY.encode() not in written


async def assert_every_turn_is_there(running: Running) -> None:
    """All of them can be taken at the same time."""
    pool = running.proxy._upstream.pool
    with ExitStack() as stack:
        for _ in range(POOL_SIZE):
            stack.callback(pool.give_back, (await pool.lease()).connection)
        assert pool.active == POOL_SIZE
    pool.close()
