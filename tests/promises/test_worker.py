"""A proxy in a worker's slot, inside the test: what it writes to the scoreboard and reads from
it."""

from functools import partial
from pathlib import Path

import anyio
import orjson
import pytest
from end_to_end import Lines
from memory_stream import MemoryStream, memory_pair
from mock_clock import on_mock_clock
from scraped_metrics import config_with
from waiting import TIMEOUT, until, wait_all_tasks_blocked

from ape_cerebras import Proxy, serve
from ape_cerebras.downstream.listener import Ports, open_listeners
from ape_cerebras.telemetry.multiprocess import Scoreboard, WorkerSlot

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def worker(scoreboard: Scoreboard, directory: Path, lines: Lines) -> Proxy:
    """The first of two that serve."""
    scoreboard.mark_up(1)
    scoreboard.mark_up(2)
    return Proxy(
        config_with(LOG_LEVEL="debug"), lines.write, slot=WorkerSlot(1, scoreboard, str(directory))
    )


@pytest.mark.anyio
async def test_the_first_that_is_up_waits_for_the_others(tmp_path: Path) -> None:
    scoreboard, lines, served = Scoreboard(2), Lines(), anyio.Event()
    [listener] = open_listeners("127.0.0.1", 0)
    slot = WorkerSlot(1, scoreboard, str(tmp_path))
    serving = partial(serve, slot=slot, ports=Ports([listener]), write_line=lines.write)

    async def run() -> None:
        await tasks.start(serving, config_with())
        served.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await until(lambda: scoreboard.up > 0)
        with anyio.fail_after(TIMEOUT):
            await wait_all_tasks_blocked()
            assert not served.is_set()
            scoreboard.mark_up(2)
            await served.wait()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_no_connection_is_left_to_a_worker_that_drains(tmp_path: Path) -> None:
    scoreboard, lines = Scoreboard(2), Lines()
    scoreboard.mark_up(2)
    [listener] = open_listeners("127.0.0.1", 0)
    slot = WorkerSlot(1, scoreboard, str(tmp_path))
    serving = partial(serve, slot=slot, ports=Ports([listener]), write_line=lines.write)
    async with anyio.create_task_group() as tasks:
        proxy: Proxy = await tasks.start(serving, config_with())
        assert set(scoreboard.others(2)) == {1}
        client, server = memory_pair()
        tasks.start_soon(proxy.handle, server)
        await client.send(HEALTH[:10])
        await wait_all_tasks_blocked()
        proxy.begin_drain()
        await until(lambda: not scoreboard.others(2))
        assert (scoreboard.connections(1), scoreboard.up) == (1, 2)
        client.close()


def test_its_event_loop_gives_signs_of_life_often(tmp_path: Path) -> None:
    """Others wait for it again as soon as it goes on; once a second would do for systemd."""

    async def test() -> None:
        scoreboard = Scoreboard(2)
        proxy = worker(scoreboard, tmp_path, Lines())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy.run_in_background)
            await anyio.sleep(0.5)
            assert scoreboard.others(2)[1].ticks >= 4
            tasks.cancel_scope.cancel()

    on_mock_clock(test)


def test_the_scoreboard_knows_the_connections(tmp_path: Path) -> None:
    async def health(client: MemoryStream) -> object:
        await client.send(HEALTH)
        return orjson.loads((await client.receive()).partition(b"\r\n\r\n")[2])["workers"]

    async def test() -> None:
        scoreboard, lines = Scoreboard(2), Lines()
        proxy = worker(scoreboard, tmp_path, lines)
        async with anyio.create_task_group() as tasks:
            client, server = memory_pair()
            assert scoreboard.connections(1) == 0
            tasks.start_soon(proxy.handle, server)
            assert await health(client) == {"up": 2, "configured": 2}
            scoreboard.mark_down(2)
            assert await health(client) == {"up": 1, "configured": 2}
            assert scoreboard.connections(1) == 1
            client.close()
        assert scoreboard.connections(1) == 0
        assert {line["worker"] for line in lines.all()} == {1}

    on_mock_clock(test)
