"""Arrivals noted at a glance: each once, and none of what is no longer awaited."""

import socket
from collections.abc import Iterator

import pytest

from ape_cerebras.net.lookout import ArrivalPeeker, arrival_peeker

pytestmark = pytest.mark.anyio

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_each_arrival_is_noted_once(pair: Pair) -> None:
    ours, theirs = pair
    peeker, notes = ArrivalPeeker(), []
    peeker.watch(theirs.fileno(), lambda: notes.append(len(notes)))
    peeker.poll()
    assert notes == []
    for number in range(3):
        ours.send(b"a")
        peeker.poll()
        peeker.poll()
        assert notes == list(range(number + 1))


def test_what_is_forgotten_is_not_noted(pair: Pair) -> None:
    ours, theirs = pair
    peeker = ArrivalPeeker()
    for _ in range(2):
        peeker.watch(theirs.fileno(), pytest.fail)
        peeker.forget(theirs.fileno())
        peeker.forget(theirs.fileno())
        ours.send(b"a")
        peeker.poll()


def test_a_descriptor_used_again_is_another_socket() -> None:
    peeker, notes = ArrivalPeeker(), []
    for number in range(3):
        ours, theirs = socket.socketpair()
        peeker.watch(theirs.fileno(), lambda number=number: notes.append(number))  # type: ignore[misc]
        ours.send(b"a")
        peeker.poll()
        peeker.forget(theirs.fileno())
        ours.close()
        theirs.close()
    assert notes == [0, 1, 2]


async def test_a_run_has_one() -> None:
    assert arrival_peeker() is arrival_peeker()
