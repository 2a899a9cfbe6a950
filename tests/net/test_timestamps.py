"""Timestamps of the wall clock, converted to the loop's: exact, or none.

The clocks of the first tests are fakes. Timestamps of real sockets are tested with the streams.
"""

import socket
import struct
import sys
import time
from collections.abc import Iterator

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.net.event_loop import loop_clock, of_this_loop
from ape_cerebras.net.timestamps import (
    CERTAIN_SECONDS,
    TIMESTAMP_SPACE,
    ArrivalClock,
    ArrivalPeeker,
    Arrivals,
    AwakeClock,
    enable_timestamps,
    moment_within,
    timestamp_in,
)

TOLERANCE = 0.00005  # seconds
SECOND = 1_000_000_000


class Machine:
    """A machine's two clocks. Each reading takes a time; ``interrupt`` makes the next one take
    longer, as it does when the process is preempted."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ahead = 1_700_000_000 * SECOND
        self.interrupt = 0.0

    def clock(self) -> float:
        self.now += 1e-7
        return self.now

    def wall(self) -> int:
        self.now += 1e-7 + self.interrupt
        self.interrupt = 0.0
        return self.timestamp()

    def timestamp(self) -> int:
        """The timestamp that the kernel gives to a segment arriving now."""
        return int(self.now * SECOND) + self.ahead


def test_a_timestamp_is_converted_to_the_other_clock() -> None:
    machine = Machine()
    clock = ArrivalClock(machine.clock, machine.wall)
    since = machine.clock()
    machine.now += 5
    arrived_at, timestamp = machine.now, machine.timestamp()
    machine.now += 3
    assert clock.arrival(timestamp, since, machine.clock()) == pytest.approx(arrived_at, abs=1e-6)


def test_a_preemption_between_two_readings_is_not_taken_for_a_clock_setting() -> None:
    machine = Machine()
    clock = ArrivalClock(machine.clock, machine.wall)
    since = machine.clock()
    machine.now += 1
    arrived_at, timestamp = machine.now, machine.timestamp()
    machine.interrupt = 0.02
    assert clock.arrival(timestamp, since, machine.clock()) == pytest.approx(arrived_at, abs=1e-6)


@pytest.mark.parametrize("step", [-3600.0, -0.01, -0.0001, 0.0001, 0.01, 3600.0])
@pytest.mark.parametrize("after", [False, True], ids=["before it arrived", "after"])
def test_an_arrival_has_no_time_if_the_wall_clock_was_set_meanwhile(
    step: float, after: bool
) -> None:
    machine = Machine()
    clock = ArrivalClock(machine.clock, machine.wall)
    since = machine.clock()
    machine.now += 1
    machine.ahead += 0 if after else int(step * SECOND)
    timestamp = machine.timestamp()
    machine.ahead += int(step * SECOND) if after else 0
    machine.now += 1
    assert clock.arrival(timestamp, since, machine.clock()) is None
    # Another stream, silent since before that, and read after it.
    assert clock.arrival(timestamp, since, machine.clock()) is None
    since = machine.clock()
    machine.now += 1
    arrived_at, timestamp = machine.now, machine.timestamp()
    assert clock.arrival(timestamp, since, machine.clock()) == pytest.approx(arrived_at, abs=1e-6)


@pytest.mark.parametrize("time", [-1.0, 3.0])
def test_a_timestamp_from_outside_the_interval_gives_no_time(time: float) -> None:
    machine = Machine()
    clock = ArrivalClock(machine.clock, machine.wall)
    since = machine.clock()
    timestamp = machine.timestamp() + int(time * SECOND)
    machine.now += 1
    assert clock.arrival(timestamp, since, machine.clock()) is None


SECONDS = st.floats(0, 10)
STEPS = st.one_of(st.just(0.0), st.floats(-1e-3, 1e-3), st.floats(-0.1, 0.1), st.floats(-100, 100))


@given(st.lists(st.tuples(SECONDS, STEPS, SECONDS, STEPS, SECONDS), max_size=20))
def test_a_time_is_right_or_there_is_none(
    reads: list[tuple[float, float, float, float, float]],
) -> None:
    """However often, and by how much, the wall clock is set between any two moments."""
    machine = Machine()
    clock = ArrivalClock(machine.clock, machine.wall)
    for before, first_step, travel, second_step, late in reads:
        since = machine.clock()
        machine.now += before
        machine.ahead += int(first_step * SECOND)
        arrived_at, timestamp = machine.now + travel, machine.timestamp() + int(travel * SECOND)
        machine.now += travel
        machine.ahead += int(second_step * SECOND)
        machine.now += late
        # Two settings of the clock that undo each other cannot be noticed; the error of an
        # arrival between them is as large as the unnoticed setting.
        unnoticed = abs(first_step) if abs(first_step + second_step) < 2 * TOLERANCE else 0.0
        converted = clock.arrival(timestamp, since, machine.clock())
        if converted is not None:
            assert since <= converted <= machine.now
            assert abs(converted - arrived_at) <= 2 * TOLERANCE + unnoticed


def test_the_timestamp_is_found_in_the_ancillary_data() -> None:
    timestamp = struct.pack("=qqqqqq", 17, 5, 0, 0, 9, 9)
    other = (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\0\0\0\0")
    assert timestamp_in([other, (socket.SOL_SOCKET, 37, timestamp)]) == 17 * SECOND + 5
    assert timestamp_in([other]) == timestamp_in([]) == 0


@pytest.mark.anyio
async def test_a_loop_has_one_arrival_clock_on_its_own_clock() -> None:
    assert of_this_loop(ArrivalClock) is of_this_loop(ArrivalClock)
    before = anyio.current_time()
    now = loop_clock()()
    await anyio.lowlevel.checkpoint()  # uvloop's clock is read once an iteration, in milliseconds
    assert before <= now <= anyio.current_time() + 0.001


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux timestamps arrivals")
def test_timestamps_can_be_enabled_on_linux_and_not_on_a_closed_socket() -> None:
    with socket.socket() as sock:
        assert enable_timestamps(sock)
        assert socket.CMSG_SPACE(48) == TIMESTAMP_SPACE
    assert not enable_timestamps(sock)


@pytest.mark.parametrize(
    ("took", "moment"),
    [
        (0.0, 0.0),
        (0.00004, 0.00002),
        (CERTAIN_SECONDS, CERTAIN_SECONDS / 2),
        (5.0, CERTAIN_SECONDS / 2),  # preempted, most likely behind it
        (-1.0, 0.0),  # failed: its end is that of a call before
    ],
)
def test_a_call_took_effect_in_its_middle_unless_it_was_preempted(
    took: float, moment: float
) -> None:
    assert moment_within(100.0, 100.0 + took) == pytest.approx(100.0 + moment)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")
def test_the_awake_clock_goes_on_while_the_thread_runs_and_not_while_it_sleeps() -> None:
    clock = AwakeClock()
    assert clock.is_known
    tick = 0.001
    before, awake, ran = time.monotonic(), clock(), time.thread_time()
    while time.thread_time() < ran + 0.03:
        pass
    assert 0.03 - tick <= clock() - awake <= time.monotonic() - before + tick
    before, awake = time.monotonic(), clock()
    time.sleep(0.05)
    assert time.monotonic() - before - (clock() - awake) >= 0.05 - tick


def test_where_the_system_does_not_count_there_is_no_awake_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object) -> int:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr("os.open", missing)
        clock = AwakeClock()
    assert not clock.is_known


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair(kernel_timestamps: None) -> Iterator[Pair]:
    """Two ends of a TCP connection; the kernel timestamps the arrivals at the second."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert enable_timestamps(theirs)
        yield ours, theirs


def test_each_arrival_is_peeked_at_once(pair: Pair) -> None:
    ours, theirs = pair
    peeker, arrivals = ArrivalPeeker(time.monotonic), Arrivals()
    peeker.watch(theirs, arrivals)
    peeker.poll()
    assert not arrivals
    before = time.time_ns()
    for number in range(3):
        ours.send(b"a" * (number + 1))
        peeker.poll()
        peeker.poll()
        assert [arrival.size for arrival in arrivals] == list(range(1, number + 2))
    times = [arrival.timestamp for arrival in arrivals]
    assert before <= times[0] < times[1] < times[2] <= time.time_ns()


def test_a_forgotten_socket_is_not_peeked_at(pair: Pair) -> None:
    ours, theirs = pair
    peeker = ArrivalPeeker(time.monotonic)
    for _ in range(2):
        arrivals = Arrivals()
        peeker.watch(theirs, arrivals)
        peeker.forget(theirs)
        peeker.forget(theirs)
        ours.send(b"a")
        peeker.poll()
        assert not arrivals


def test_a_descriptor_that_is_reused_is_another_socket() -> None:
    peeker = ArrivalPeeker(time.monotonic)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(3):
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
            with ours, theirs:
                assert enable_timestamps(theirs)
                arrivals = Arrivals()
                peeker.watch(theirs, arrivals)
                ours.send(b"ab")
                peeker.poll()
                assert [arrival.size for arrival in arrivals] == [2]
                peeker.forget(theirs)
