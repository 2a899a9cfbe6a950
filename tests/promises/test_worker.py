"""A proxy in a worker's place, inside the test: what it tells the board and does by it."""

from functools import partial
from pathlib import Path

import anyio
import orjson
import pytest
from end_to_end import Lines
from memory import MemoryStream, memory_pair
from mock_clock import on_mock_clock
from scraping import settled

from ape_cerebras import Proxy, serve
from ape_cerebras.downstream.listener import open_listeners
from ape_cerebras.telemetry.place import Board, Place, Ports

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


def worker(board: Board, directory: Path, lines: Lines) -> Proxy:
    """The first of two that serve."""
    board.set_up(1)
    board.set_up(2)
    return Proxy(settled(), lines.write, place=Place(1, board, Ports(), str(directory)))


def test_who_is_ahead_lets_others_go_first(tmp_path: Path) -> None:
    async def test() -> None:
        board = Board(2)
        proxy = worker(board, tmp_path, Lines())
        for ours, theirs, waits in ((0, 0, 0), (1, 0, 0.001), (1, 1, 0), (3, 2, 0.001), (2, 3, 0)):
            board.set_open(1, ours)
            board.set_open(2, theirs)
            before = anyio.current_time()
            await proxy.for_clients.connections.wait_for_room()
            assert anyio.current_time() - before == pytest.approx(waits)

    on_mock_clock(test)


@pytest.mark.anyio
async def test_the_first_that_is_up_waits_for_the_others(tmp_path: Path) -> None:
    board, lines, served = Board(2), Lines(), anyio.Event()
    [listener] = open_listeners("127.0.0.1", 0)
    place = Place(1, board, Ports([listener]), str(tmp_path))

    async def run() -> None:
        await tasks.start(partial(serve, place=place, write_line=lines.write), settled())
        served.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        with anyio.fail_after(5):
            while not board.up:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            assert not served.is_set()
            board.set_up(2)
            await served.wait()
        tasks.cancel_scope.cancel()


def test_the_board_knows_the_connections(tmp_path: Path) -> None:
    async def health(client: MemoryStream) -> object:
        await client.send(HEALTH)
        return orjson.loads((await client.receive()).partition(b"\r\n\r\n")[2])["workers"]

    async def test() -> None:
        board, lines = Board(2), Lines()
        proxy = worker(board, tmp_path, lines)
        async with anyio.create_task_group() as tasks:
            client, server = memory_pair()
            assert not board.is_ahead(1)
            tasks.start_soon(proxy.handle, server)
            assert await health(client) == {"up": 2, "configured": 2}
            board.set_down(2)
            assert await health(client) == {"up": 1, "configured": 2}
            board.set_up(2)
            assert board.is_ahead(1)
            client.close()
        assert not board.is_ahead(1)
        assert {line["worker"] for line in lines.all()} == {1}

    on_mock_clock(test)
