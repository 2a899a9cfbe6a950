"""Which of several workers accepts a connection: one with the fewest, as long as it lives."""

import errno
import math
import socket
from contextlib import ExitStack, closing
from random import Random
from unittest.mock import patch

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_stream import memory_pair
from sockets import client_of
from waiting import until

from ape_cerebras.downstream.listener import (
    Acceptor,
    Connections,
    Precedence,
    awaited_workers,
    open_listeners,
)
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.multiprocess import Scoreboard, WorkerSlot, WorkerState

MODULE = "ape_cerebras.downstream.listener"
TIMEOUT = 15.0  # seconds until a test that waits for something fails
PATIENCE = 0.05  # seconds, as the docs have it


def scoreboard_of(*connections: int) -> Scoreboard:
    """The scoreboard of workers that serve, with so many connections."""
    scoreboard = Scoreboard(len(connections))
    for number, count in enumerate(connections, 1):
        scoreboard.mark_up(number)
        scoreboard.set_connections(number, count)
    return scoreboard


def precedence_of(scoreboard: Scoreboard, number: int = 1) -> Precedence:
    return Precedence(WorkerSlot(number, scoreboard, ""))


def accept(scoreboard: Scoreboard, number: int) -> None:
    scoreboard.set_connections(number, scoreboard.connections(number) + 1)


# The decision


@pytest.mark.parametrize(
    ("own", "others", "awaited"),
    [
        (0, (0, 0), ()),
        (1, (1, 1), ()),
        (1, (0, 1), (2,)),
        (2, (1, 0), (2, 3)),
        (2, (3, 9), ()),
        (15, (14, 15), (2,)),
        (16, (15, 14), (3,)),
        (17, (16, 15), (3,)),
        (160, (150, 149), (3,)),
        (5, (), ()),
    ],
)
def test_the_next_connection_is_left_to_workers_with_fewer(
    own: int, others: tuple[int, ...], awaited: tuple[int, ...]
) -> None:
    states = {number: WorkerState(count, 0) for number, count in enumerate(others, 2)}
    assert tuple(awaited_workers(own, states, {})) == awaited


@pytest.mark.parametrize(
    ("silent", "awaited"),
    [
        ({}, (2,)),
        ({2: WorkerState(1, 7)}, ()),
        ({2: WorkerState(1, 6)}, (2,)),  # its loop has gone on since
        ({2: WorkerState(0, 7)}, (2,)),  # it has accepted one since
        ({3: WorkerState(1, 7)}, (2,)),
    ],
)
def test_a_silent_worker_is_left_nothing_until_it_gives_a_sign(
    silent: dict[int, WorkerState], awaited: tuple[int, ...]
) -> None:
    assert tuple(awaited_workers(3, {2: WorkerState(1, 7)}, silent)) == awaited


@settings(max_examples=50)
@given(st.integers(1, 5), st.integers(0, 40), st.integers(0, 2**32))
def test_however_workers_interleave_connections_are_spread_evenly(
    workers: int, connections: int, seed: int
) -> None:
    """Between a worker's look and its accept any others may look and accept."""
    scoreboard = scoreboard_of(*[0] * workers)
    precedences = {number: precedence_of(scoreboard, number) for number in range(1, workers + 1)}
    looked: set[int] = set()
    order, now = Random(seed), 0.0
    with patch(f"{MODULE}._PATIENCE", math.inf):
        while connections:
            number = order.choice(list(precedences))
            now += 0.001
            if number in looked:
                looked.remove(number)
                accept(scoreboard, number)
                connections -= 1
            elif precedences[number].is_ours(now):
                looked.add(number)
            counts = [scoreboard.connections(number) for number in precedences]
            assert max(counts) - min(counts) <= 1 + max(counts) // 16


def test_a_worker_waits_for_another_only_so_long() -> None:
    precedence = precedence_of(scoreboard_of(2, 1))
    assert not precedence.is_ours(10.0)
    assert not precedence.is_ours(10.0 + 0.99 * PATIENCE)
    assert precedence.is_ours(10.0 + PATIENCE)


def test_a_worker_that_hangs_costs_one_wait() -> None:
    scoreboard = scoreboard_of(2, 1)
    precedence = precedence_of(scoreboard)
    assert not precedence.is_ours(10.0)
    for each in range(5):
        assert precedence.is_ours(11.0 + each)
        accept(scoreboard, 1)
    scoreboard.tick(2)
    assert not precedence.is_ours(20.0)


def test_of_several_that_hang_each_is_waited_for_once() -> None:
    scoreboard = scoreboard_of(2, 1, 0, 2)
    precedence = precedence_of(scoreboard)
    assert not precedence.is_ours(10.0)
    assert precedence.is_ours(10.1)
    accept(scoreboard, 1)
    assert not precedence.is_ours(20.0)  # for the fourth, which has fewer now
    assert precedence.is_ours(20.1)


def test_the_wait_begins_anew_when_the_other_accepts() -> None:
    scoreboard = scoreboard_of(4, 1)
    precedence = precedence_of(scoreboard)
    assert not precedence.is_ours(10.0)
    accept(scoreboard, 2)
    assert not precedence.is_ours(10.0 + PATIENCE)
    assert not precedence.is_ours(10.0 + 1.99 * PATIENCE)
    assert precedence.is_ours(10.0 + 2.01 * PATIENCE)


def test_connections_that_end_elsewhere_do_not_prolong_the_wait() -> None:
    scoreboard = scoreboard_of(9, 5)
    precedence = precedence_of(scoreboard)
    for each in range(5):
        scoreboard.set_connections(2, 5 - each)
        assert not precedence.is_ours(10.0 + PATIENCE * each / 5)
    assert precedence.is_ours(10.0 + PATIENCE)


def test_the_next_connection_has_a_wait_of_its_own() -> None:
    precedence = precedence_of(scoreboard_of(2, 1))
    assert not precedence.is_ours(10.0)
    precedence.forget()
    assert not precedence.is_ours(20.0)
    assert not precedence.is_ours(20.0 + 0.99 * PATIENCE)


def test_just_after_an_accept_workers_with_as_many_go_first() -> None:
    scoreboard = scoreboard_of(1, 2)
    precedence = precedence_of(scoreboard)
    assert precedence.is_ours(10.0)
    accept(scoreboard, 1)
    assert not precedence.is_ours(10.0005)
    assert precedence.is_ours(10.0015)


def test_one_worker_that_serves_waits_for_nobody() -> None:
    scoreboard = scoreboard_of(5, 0, 0)
    scoreboard.mark_down(2)
    scoreboard.set_accepting(3, False)
    assert precedence_of(scoreboard).is_ours(10.0)


# Over real sockets: several workers in one event loop


class Worker:
    def __init__(self, number: int, scoreboard: Scoreboard, listener: socket.socket) -> None:
        slot = WorkerSlot(number, scoreboard, "")
        self.errors: list[bytes] = []
        self.connections = Connections(1000, slot)
        logs = Logs("error", self.errors.append)
        self._listener = listener.dup()  # as a fork has it
        self._acceptor = Acceptor(self._listener, logs, self.connections, slot)

    async def accept(self) -> None:
        with closing(self._listener), ExitStack() as stack:
            while True:
                stack.callback((await self._acceptor.accept()).close)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without end, so that nothing depends on how fast this machine is."""
    monkeypatch.setattr(f"{MODULE}._PATIENCE", 1000.0)


@pytest.mark.anyio
@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize(("workers", "clients"), [(2, 4), (4, 8), (3, 9)])
async def test_few_clients_are_spread_evenly(workers: int, clients: int) -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    scoreboard = scoreboard_of(*[0] * workers)
    ours = [Worker(number, scoreboard, listener) for number in range(1, workers + 1)]
    with closing(listener), ExitStack() as opened:
        async with anyio.create_task_group() as tasks:
            for worker in ours:
                tasks.start_soon(worker.accept)
            for _ in range(clients):
                opened.enter_context(closing(client_of(listener)))
            await until(lambda: sum(len(worker.connections) for worker in ours) == clients, TIMEOUT)
            assert {len(worker.connections) for worker in ours} == {clients // workers}
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_connections_left_to_a_worker_that_does_not_run_are_accepted() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    worker = Worker(1, scoreboard_of(0, 0), listener)
    with closing(listener), ExitStack() as opened:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.accept)
            for _ in range(8):
                opened.enter_context(closing(client_of(listener)))
            await until(lambda: len(worker.connections) == 8, TIMEOUT)
            tasks.cancel_scope.cancel()


class Exhausted(socket.socket):
    """A listener of a process that has been out of descriptors once."""

    is_out = True

    def dup(self) -> "Exhausted":
        return self

    def accept(self) -> tuple[socket.socket, object]:
        if self.is_out:
            self.is_out = False
            raise OSError(errno.EMFILE, "out of descriptors")
        return super().accept()


@pytest.mark.anyio
async def test_others_do_not_wait_for_a_worker_that_is_out_of_descriptors() -> None:
    scoreboard = scoreboard_of(0, 0)
    (listener,) = open_listeners("127.0.0.1", 0)
    with closing(Exhausted(fileno=listener.detach())) as exhausted:
        exhausted.setblocking(False)
        worker = Worker(1, scoreboard, exhausted)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.accept)
            await until(lambda: not scoreboard.others(2), TIMEOUT)
            assert len(worker.errors) == 1
            await until(lambda: bool(scoreboard.others(2)), TIMEOUT)  # it tries again after a pause
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_connection_counts_at_once_and_no_more_when_it_ends() -> None:
    scoreboard = scoreboard_of(0, 0)
    connections = Connections(10, WorkerSlot(1, scoreboard, ""))
    _, stream = memory_pair()
    connections.add(stream)
    assert scoreboard.others(2) == {1: WorkerState(1, 0)}
    connections.discard(stream)
    assert scoreboard.others(2) == {1: WorkerState(0, 0)}
