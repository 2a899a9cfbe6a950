"""The receiving side of a socket: which moment each byte gets."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ape_cerebras.net.arrivals import Receiver
from ape_cerebras.net.lookout import arrival_peeker
from ape_cerebras.net.timestamps import arrival_clock, loop_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("kernel_timestamps")]

TOLERANCE = 0.0001  # seconds
SEGMENTS = 60  # more than the kernel joins to one
IN_VAIN = pytest.mark.parametrize("in_vain", [False, True], ids=["at once", "found empty before"])


def pause() -> None:
    """Keep the loop from its work, for longer than a stamp may be wrong."""
    time.sleep(5 * TOLERANCE)


@contextmanager
def connection(*, in_vain: bool = False) -> Iterator[tuple[socket.socket, Receiver]]:
    """A connection's one end, and an attentive receiver at the other; one that has found it empty
    where it has read ``in_vain``."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs.setblocking(False)
        receiver = Receiver(theirs, loop_clock(), loop_clock()())
        receiver.peek_arrivals(True)
        if in_vain:
            with pytest.raises(BlockingIOError):
                receiver.read(1000)
        yield ours, receiver
        receiver.close()


@IN_VAIN
async def test_no_byte_gets_an_earlier_moment_than_it_had(in_vain: bool) -> None:
    """What was noted may be in several segments, each with a stamp of its own."""
    with connection(in_vain=in_vain) as (ours, receiver):
        sent_at = []
        for number in range(SEGMENTS):
            sent_at.append(loop_clock()())
            ours.send(bytes([number]))
            pause()
        arrival_peeker().poll()
        read = b""
        while len(read) < SEGMENTS:
            read += receiver.read(1000)
            assert receiver.has_timestamp
            assert receiver.arrived_at >= sent_at[len(read) - 1] - TOLERANCE
    assert read == bytes(range(SEGMENTS))


@IN_VAIN
@pytest.mark.parametrize("max_bytes", [1, 3, 1000])
async def test_what_came_first_has_its_moment_however_it_is_read(
    max_bytes: int, in_vain: bool
) -> None:
    with connection(in_vain=in_vain) as (ours, receiver):
        ours.send(b"first")
        arrival_peeker().poll()
        joined_at = loop_clock()()
        pause()
        ours.send(b"second")
        moments: dict[int, float] = {}
        while len(moments) < len(b"firstsecond"):
            for _ in receiver.read(max_bytes):
                moments[len(moments)] = receiver.arrived_at
        assert all((moment < joined_at + TOLERANCE) is (at < 5) for at, moment in moments.items())


@IN_VAIN
async def test_each_of_several_that_wait_has_its_moment(in_vain: bool) -> None:
    """As head, role and first token have that come one by one while the loop is held."""
    with connection(in_vain=in_vain) as (ours, receiver):
        sent_at = []
        for part in (b"role", b"token", b"more"):
            sent_at.append(loop_clock()())
            ours.send(part)
            arrival_peeker().poll()
            pause()
        for number, part in enumerate((b"role", b"token", b"more")):
            assert receiver.read(1000) == part
            assert sent_at[number] - TOLERANCE <= receiver.arrived_at
            assert [*sent_at, loop_clock()()][number + 1] > receiver.arrived_at


async def test_reading_on_without_looking_again_forgives_a_wall_clock_that_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection may go on for hours without ever being read in vain."""
    with connection() as (ours, receiver):
        receiver.peek_arrivals(False)
        stamped = []
        for ahead in (0, 10**9, 0, 0, 0):
            monkeypatch.setattr(arrival_clock(), "_wall", lambda a=ahead: time.time_ns() + a)
            ours.send(b"answer")
            assert receiver.read(1000) == b"answer"
            assert receiver.drained
            stamped.append(receiver.has_timestamp)
        assert stamped == [True, False, False, False, True]


async def test_where_no_more_can_be_watched_bytes_are_read_and_stamped_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "as where fs.epoll.max_user_watches is reached")

    with connection() as (ours, receiver):
        receiver.peek_arrivals(False)
        with monkeypatch.context() as patch:
            patch.setattr(arrival_peeker(), "watch", full)
            receiver.peek_arrivals(True)
        ours.send(b"answer")
        assert receiver.read(1000) == b"answer"
        assert receiver.has_timestamp
