"""Arrivals noted at a glance: each once, and none of what is no longer awaited."""

import socket
from collections.abc import Iterator

import pytest

from ape_cerebras.net.lookout import Lookout
from ape_cerebras.net.lookout import lookout as lookout_of_this_run

pytestmark = pytest.mark.anyio

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_each_arrival_is_noted_once(pair: Pair) -> None:
    ours, theirs = pair
    lookout, notes = Lookout(), []
    lookout.watch(theirs.fileno(), lambda: notes.append(len(notes)))
    lookout.look()
    assert notes == []
    for number in range(3):
        ours.send(b"a")
        lookout.look()
        lookout.look()
        assert notes == list(range(number + 1))


def test_what_is_forgotten_is_not_noted(pair: Pair) -> None:
    ours, theirs = pair
    lookout = Lookout()
    for _ in range(2):
        lookout.watch(theirs.fileno(), pytest.fail)
        lookout.forget(theirs.fileno())
        lookout.forget(theirs.fileno())
        ours.send(b"a")
        lookout.look()


def test_a_descriptor_used_again_is_another_socket() -> None:
    lookout, notes = Lookout(), []
    for number in range(3):
        ours, theirs = socket.socketpair()
        lookout.watch(theirs.fileno(), lambda number=number: notes.append(number))  # type: ignore[misc]
        ours.send(b"a")
        lookout.look()
        lookout.forget(theirs.fileno())
        ours.close()
        theirs.close()
    assert notes == [0, 1, 2]


async def test_a_run_has_one() -> None:
    assert lookout_of_this_run() is lookout_of_this_run()
