"""Arrivals noted at a glance: each once, and none of what is no longer awaited."""

import socket
from collections.abc import Iterator

import pytest

from ape_cerebras.lookout import Lookout, lookout

pytestmark = pytest.mark.anyio


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_an_arrival_is_noted_once(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    watch, notes = Lookout(), []
    watch.await_arrival(theirs.fileno(), lambda: notes.append(len(notes)))
    watch.look()
    assert notes == []
    ours.send(b"a")
    watch.look()
    watch.look()
    assert notes == [0]
    watch.await_arrival(theirs.fileno(), lambda: notes.append(len(notes)))
    watch.look()
    assert notes == [0, 1]


def test_what_is_forgotten_or_closed_is_not_noted(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    watch = Lookout()
    watch.await_arrival(theirs.fileno(), pytest.fail)
    watch.forget(theirs.fileno())
    watch.forget(theirs.fileno())
    ours.send(b"a")
    watch.look()
    watch.await_arrival(theirs.fileno(), pytest.fail)
    theirs.close()
    watch.look()


def test_a_descriptor_used_again_is_another_socket() -> None:
    watch, notes = Lookout(), []
    for number in range(3):
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        watch.await_arrival(descriptor, lambda number=number: notes.append(number))  # type: ignore[misc]
        ours.send(b"a")
        watch.look()
        ours.close()
        theirs.close()
    assert notes == [0, 1, 2]


async def test_a_run_has_one() -> None:
    assert lookout() is lookout()
