"""Which connections their peers have closed: told at once, of those that are still held only."""

import socket

import anyio
import pytest
from memory import memory_pair

from ape_cerebras.closings import Closings
from ape_cerebras.network import SocketStream

pytestmark = pytest.mark.anyio


class Holder:
    """Holds our end of a connection; ``theirs`` is the other."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.stream = SocketStream(ours)

    def close(self) -> None:
        self.stream.close()
        self.theirs.close()


async def test_only_an_end_is_told_whatever_else_arrives() -> None:
    closings: Closings[Holder] = Closings()
    one, other = Holder(), Holder()
    assert closings.watch(one.stream, one)
    assert closings.watch(other.stream, other)
    for holder in (one, other):
        holder.theirs.send(b"data")
        with anyio.move_on_after(0) as scope:
            await closings.next()
        assert scope.cancelled_caught
    other.theirs.close()
    with anyio.fail_after(1):
        assert await closings.next() == [other]
    one.theirs.shutdown(socket.SHUT_WR)  # half an end is one, for who would answer
    with anyio.fail_after(1):
        assert await closings.next() == [one]
    one.close()
    other.close()


async def test_an_end_that_comes_later_is_waited_for() -> None:
    closings: Closings[Holder] = Closings()
    holder = Holder()
    closings.watch(holder.stream, holder)
    async with anyio.create_task_group() as tasks:
        told: list[Holder] = []

        async def wait() -> None:
            told.extend(await closings.next())

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        holder.theirs.close()
    assert told == [holder]
    holder.close()


async def test_one_that_we_have_closed_is_forgotten() -> None:
    """Its descriptor's number is another's soon."""
    closings: Closings[Holder] = Closings()
    for _ in range(100):
        holder = Holder()
        assert closings.watch(holder.stream, holder)
        holder.close()
    last = Holder()
    closings.watch(last.stream, last)
    last.theirs.close()
    assert await closings.next() == [last]
    last.close()


async def test_what_has_no_socket_cannot_be_watched() -> None:
    ours, _ = memory_pair()
    closings: Closings[object] = Closings()
    assert not closings.watch(ours, object())
