"""Which arrival time each byte gets that a socket stream reads."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from anyio import WouldBlock
from stolen_time import StolenTime

from ape_cerebras.net.event_loop import loop_clock, of_this_loop
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.timestamps import ArrivalClock, ArrivalPeeker, AwakeClock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("kernel_timestamps")]

TOLERANCE = 0.0001  # seconds
SEGMENTS = 60  # more than the kernel coalesces
IN_VAIN = pytest.mark.parametrize("in_vain", [False, True], ids=["at once", "found empty before"])


def pause() -> None:
    """Hold the event loop, for longer than a timestamp may be wrong."""
    time.sleep(5 * TOLERANCE)


def sleep(seconds: float) -> None:
    """Put the thread to sleep, as an event loop that waits does."""
    time.sleep(seconds)


def preempt() -> None:
    """Keep the thread from its event loop, awake, for longer than a timestamp may be wrong."""
    until = time.monotonic() + 50 * TOLERANCE
    while time.monotonic() < until:
        pass


@contextmanager
def connection(*, in_vain: bool = False) -> Iterator[tuple[socket.socket, SocketStream]]:
    """One end of a connection, and a stream that peeks at arrivals over the other; ``in_vain``: one
    whose last read found nothing."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs.setblocking(False)
        stream = SocketStream(theirs)
        stream.peek_arrivals(True)
        if in_vain:
            with pytest.raises(WouldBlock):
                stream.receive_nowait()
        yield ours, stream
        stream.close()


@IN_VAIN
async def test_no_byte_gets_an_earlier_time_than_it_had(in_vain: bool) -> None:
    """Peeked bytes may be in several segments, each with a timestamp of its own."""
    with connection(in_vain=in_vain) as (ours, stream):
        sent_at = []
        for number in range(SEGMENTS):
            sent_at.append(loop_clock()())
            ours.send(bytes([number]))
            pause()
        of_this_loop(ArrivalPeeker).poll()
        read = b""
        while len(read) < SEGMENTS:
            read += await stream.receive()
            assert stream.has_timestamp
            assert stream.arrived_at >= sent_at[len(read) - 1] - TOLERANCE
    assert read == bytes(range(SEGMENTS))


@IN_VAIN
@pytest.mark.parametrize("max_bytes", [1, 3, 1000])
async def test_the_first_arrival_keeps_its_time_however_it_is_read(
    max_bytes: int, in_vain: bool
) -> None:
    with connection(in_vain=in_vain) as (ours, stream):
        ours.send(b"first")
        of_this_loop(ArrivalPeeker).poll()
        first_until = loop_clock()()
        pause()
        ours.send(b"second")
        times: dict[int, float] = {}
        while len(times) < len(b"firstsecond"):
            for _ in await stream.receive(max_bytes):
                times[len(times)] = stream.arrived_at
        assert all((time_ < first_until + TOLERANCE) is (at < 5) for at, time_ in times.items())


@IN_VAIN
async def test_each_of_several_arrivals_that_wait_has_its_time(in_vain: bool) -> None:
    """As when head, role and first token arrive one by one while the loop is blocked."""
    with connection(in_vain=in_vain) as (ours, stream):
        sent_at = []
        for part in (b"role", b"token", b"more"):
            sent_at.append(loop_clock()())
            ours.send(part)
            of_this_loop(ArrivalPeeker).poll()
            pause()
        for number, part in enumerate((b"role", b"token", b"more")):
            assert await stream.receive(1000) == part
            assert sent_at[number] - TOLERANCE <= stream.arrived_at
            assert [*sent_at, loop_clock()()][number + 1] > stream.arrived_at


async def test_of_coalesced_arrivals_it_is_known_how_early_the_first_may_have_been() -> None:
    with connection(in_vain=True) as (ours, stream):
        ours.send(b"first")
        first_at, stolen_time = loop_clock()(), StolenTime()
        preempt()
        ours.send(b"second")
        second_at = loop_clock()()
        preempt()
        assert await stream.receive() == b"firstsecond"
        assert stream.arrived_at >= first_at + 50 * TOLERANCE - TOLERANCE
        stolen = stolen_time()
        assert stream.arrived_at - stream.arrival_seconds <= first_at + TOLERANCE + stolen
        # And so for the next ones, which came since the read began.
        ours.send(b"third")
        first_at, stolen_time = loop_clock()(), StolenTime()
        preempt()
        ours.send(b"fourth")
        await stream.receive()
        earliest, stolen = stream.arrived_at - stream.arrival_seconds, stolen_time()
        assert second_at < earliest <= first_at + TOLERANCE + stolen
        stream.peek_arrivals(False)
        assert stream.arrival_seconds == 0


async def test_while_the_thread_slept_nothing_had_arrived() -> None:
    asleep, empty_from = 0.03, loop_clock()()
    with connection(in_vain=True) as (ours, stream):
        sleep(asleep)
        ours.send(b"first")
        first_at, stolen_time = loop_clock()(), StolenTime()
        preempt()
        ours.send(b"second")
        await stream.receive()
        earliest, stolen = stream.arrived_at - stream.arrival_seconds, stolen_time()
        assert empty_from + asleep - 0.001 <= earliest <= first_at + TOLERANCE + stolen


@pytest.mark.parametrize("known", [True, False], ids=["one segment", "no clock"])
async def test_without_coalescing_there_is_no_doubt_however_late_the_read(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the system does not say when a thread was awake: nothing would be certain."""
    with connection(in_vain=True) as (ours, stream):
        monkeypatch.setattr(of_this_loop(AwakeClock), "is_known", known)
        ours.send(b"first")
        preempt()
        if not known:
            ours.send(b"second")
            preempt()
        await stream.receive()
        assert stream.arrival_seconds == 0


async def test_arrivals_that_were_peeked_at_one_by_one_are_in_no_doubt() -> None:
    with connection(in_vain=True) as (ours, stream):
        for part in (b"first", b"second"):
            ours.send(part)
            of_this_loop(ArrivalPeeker).poll()
            preempt()
        for part in (b"first", b"second"):
            assert await stream.receive() == part
            assert stream.arrival_seconds == 0


async def test_arrivals_coalesced_between_two_polls_are_in_doubt_for_as_long() -> None:
    with connection(in_vain=True) as (ours, stream):
        preempt()
        polled_at = loop_clock()()
        of_this_loop(ArrivalPeeker).poll()
        for part in (b"first", b"second"):
            ours.send(part)
            preempt()
        of_this_loop(ArrivalPeeker).poll()
        await stream.receive()
        assert stream.arrived_at - stream.arrival_seconds >= polled_at - TOLERANCE
        assert stream.arrival_seconds >= 50 * TOLERANCE - TOLERANCE


async def test_timestamps_are_used_again_after_the_wall_clock_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also on a connection whose every read finds bytes, for hours."""
    with connection() as (ours, stream):
        stream.peek_arrivals(False)
        kernel_times = []
        for ahead in (0, 10**9, 0, 0, 0):
            monkeypatch.setattr(
                of_this_loop(ArrivalClock), "_wall", lambda a=ahead: time.time_ns() + a
            )
            ours.send(b"response")
            assert await stream.receive() == b"response"
            kernel_times.append(stream.has_timestamp)
        assert kernel_times == [True, False, False, False, True]


async def test_arrivals_have_timestamps_where_no_more_sockets_can_be_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "as where fs.epoll.max_user_watches is reached")

    with connection() as (ours, stream):
        stream.peek_arrivals(False)
        with monkeypatch.context() as patch:
            patch.setattr(of_this_loop(ArrivalPeeker), "watch", full)
            stream.peek_arrivals(True)
        ours.send(b"response")
        assert await stream.receive() == b"response"
        assert stream.has_timestamp
