"""Byte streams over sockets: their bytes, the arrival times, and the end of a connection."""

import select
import socket
from contextlib import suppress
from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import SocketAttribute
from end_to_end import hold_the_loop
from sockets import sockets
from waiting import until, wait_all_tasks_blocked

from ape_cerebras.downstream.listener import Acceptor, open_listeners
from ape_cerebras.net.event_loop import loop_clock
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import PeerStalled
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.upstream.connect import connect_tcp

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

with_kernel_timestamps = pytest.mark.usefixtures("kernel_timestamps")


async def test_bytes_arrive_as_they_were_sent_however_many() -> None:
    payload = bytes(range(256)) * 20_000  # more than the kernel takes at once
    received = bytearray()
    async with sockets() as (ours, theirs), anyio.create_task_group() as tasks:
        tasks.start_soon(ours.send, payload)
        while len(received) < len(payload):
            received += await theirs.receive()
    assert received == payload
    assert ours.write_wait_seconds > 0


def noted_moments(stream: SocketStream) -> list[float]:
    """The moments that a stream reads from its clock from now on."""
    moments, now = list[float](), stream.now

    def noted() -> float:
        moments.append(now())
        return moments[-1]

    stream.now = noted
    return moments


async def test_arrivals_have_times_and_waits_are_counted() -> None:
    async with sockets() as (ours, theirs):
        before = loop_clock()()
        await ours.send(b"a")
        assert before <= ours.left_at <= ours.written_at
        assert await theirs.receive() == b"a"
        assert before <= theirs.arrived_at <= loop_clock()()
        moments = noted_moments(theirs)
        with anyio.move_on_after(0.02) as scope:
            await theirs.receive()
        theirs.read_timeout = 0.02
        waited = theirs.read_wait_seconds
        # An expired wait counts too, from when it began; uvloop's timers are in milliseconds.
        [began_at] = [before for before, end in pairwise(moments) if end - before == waited]
        assert began_at + waited >= scope.deadline - 0.001
        with pytest.raises(PeerStalled):
            await theirs.receive()
        assert theirs.read_wait_seconds >= waited + 0.019


@with_kernel_timestamps
async def test_an_arrival_is_when_the_kernel_got_the_bytes_not_when_the_loop_read_them() -> None:
    async with sockets() as (ours, theirs):
        for number in range(3):
            await ours.send(b"a")
            left_at, held_until = ours.left_at, hold_the_loop()
            await theirs.receive()
            assert left_at - 0.0001 <= theirs.arrived_at < held_until, number
    assert theirs.reads_without_timestamp == 0


@with_kernel_timestamps
@pytest.mark.parametrize("peeking", [True, False])
async def test_peeking_distinguishes_arrivals_that_are_coalesced(peeking: bool) -> None:
    read: list[tuple[bytes, float]] = []

    async def receive(stream: SocketStream) -> None:
        while sum(len(data) for data, _ in read) < 3:
            read.append((await stream.receive(), stream.arrived_at))

    async with sockets() as (ours, theirs), sockets() as (others, _):
        await ours.send(b"a response before")
        await theirs.receive()
        theirs.peek_arrivals(peeking)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive, theirs)
            await wait_all_tasks_blocked()
            await ours.send(b"aa")
            await others.send(b"whatever happens on any other socket")
            first_held_until = hold_the_loop()
            await ours.send(b"b")
    if peeking:
        (first, first_at), (second, second_at) = read
        assert (first, second) == (b"aa", b"b")
        assert first_at < first_held_until <= second_at
    else:
        [(both, at)] = read
        assert both == b"aab"
        assert at >= first_held_until
    assert theirs.reads_without_timestamp == 0


@with_kernel_timestamps
async def test_peeked_arrivals_may_be_read_in_parts_and_their_socket_closed() -> None:
    async with sockets() as (ours, theirs), sockets() as (others, _):
        theirs.peek_arrivals(True)
        for _ in range(2):
            with anyio.move_on_after(0):
                await theirs.receive()
            await ours.send(b"abc")
            await others.send(b"x")
            assert [await theirs.receive(2), await theirs.receive(2)] == [b"ab", b"c"]
        with anyio.move_on_after(0):
            await theirs.receive()
        theirs.close()
        await ours.send(b"d")
        await others.send(b"x")  # meets no state of closed sockets
        with pytest.raises(ClosedResourceError):
            await theirs.receive()


@with_kernel_timestamps
async def test_bytes_that_arrive_before_their_connection_is_accepted_have_timestamps() -> None:
    [listener] = open_listeners("127.0.0.1", 0)
    accepted: list[SocketStream] = []
    read = anyio.Event()

    async def accept() -> None:
        accepted.append(await Acceptor(listener, Logs("error", print)).accept())
        read.set()

    with listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            await wait_all_tasks_blocked()  # the backlog has been found empty
            with socket.create_connection(listener.getsockname()) as client:
                client.send(b"a")
                held_until = hold_the_loop()
                await read.wait()
                await accepted[0].receive()
            tasks.cancel_scope.cancel()
        assert accepted[0].arrived_at < held_until
        assert accepted[0].reads_without_timestamp == 0
        accepted[0].close()


@with_kernel_timestamps
async def test_the_delay_of_a_busy_loop_is_not_waiting_for_the_peer() -> None:
    async with sockets() as (ours, theirs), anyio.create_task_group() as tasks:

        async def send_and_hold() -> None:
            await wait_all_tasks_blocked()
            await ours.send(b"a")
            hold_the_loop()

        tasks.start_soon(send_and_hold)
        began_at = loop_clock()()
        await theirs.receive()
        assert 0 < theirs.read_wait_seconds <= theirs.arrived_at - began_at


async def test_without_a_timestamp_the_time_of_the_read_is_used_and_counted() -> None:
    async with sockets() as (ours, theirs):
        theirs.kernel_timestamps = False
        await ours.send(b"a")
        held_until = hold_the_loop()
        await theirs.receive()
        assert theirs.arrived_at >= held_until
        assert theirs.reads_without_timestamp == 1


async def test_the_hook_is_called_before_a_wait_and_only_then() -> None:
    calls: list[int] = []
    async with sockets() as (ours, theirs):

        async def hook() -> None:
            calls.append(1)
            await ours.send(b"b")

        await ours.send(b"a")
        theirs.before_wait = hook
        assert await theirs.receive() == b"a"
        assert calls == []
        assert await theirs.receive() == b"b"
        assert calls == [1]


async def test_a_read_timeout_of_0_reads_but_never_waits() -> None:
    calls: list[int] = []
    async with sockets() as (ours, theirs):

        async def hook() -> None:
            calls.append(1)

        theirs.before_wait = hook
        theirs.read_timeout = 0
        with pytest.raises(PeerStalled):
            await theirs.receive()
        await ours.send(b"a")
        await anyio.wait_readable(theirs.extra(anyio.abc.SocketAttribute.raw_socket))
        await anyio.lowlevel.checkpoint()
        assert await theirs.receive() == b"a"
        with pytest.raises(PeerStalled):
            await theirs.receive()
        assert calls == []
        assert theirs.read_wait_seconds == 0


@pytest.mark.parametrize("before", [b"", b"ab"])
async def test_a_read_that_stops_at_urgent_data_is_followed_by_another(before: bytes) -> None:
    received, sent = bytearray(), bytearray()

    async def read() -> None:
        while True:
            received.extend(await theirs.receive())

    async with sockets() as (ours, theirs), anyio.create_task_group() as tasks:
        raw = ours.extra(SocketAttribute.raw_socket)
        tasks.start_soon(read)
        for _ in range(3):
            # The reader waits, and one edge reports all that arrives now.
            await wait_all_tasks_blocked()
            for data, flag in ((before, 0), (b"!", socket.MSG_OOB), (b"cd", 0)):
                raw.send(data, flag)
            sent.extend(before + b"cd")
            await until(lambda: received == sent)
        tasks.cancel_scope.cancel()


async def test_a_cancelled_receive_loses_nothing() -> None:
    """The stream yields to the event loop before it reads, not after."""
    async with sockets() as (ours, theirs):
        got = b""
        for number in range(200):
            await ours.send(b"%d," % number)
            with anyio.CancelScope() as scope:
                scope.cancel()
                got += await theirs.receive()
        while not got.endswith(b"199,"):
            got += await theirs.receive()
    assert got == b"".join(b"%d," % number for number in range(200))


@pytest.mark.parametrize("iterations", range(6))
async def test_an_arrival_that_wakes_a_cancelled_reader_is_read_by_the_next(
    iterations: int,
) -> None:
    async with sockets() as (ours, theirs):
        await ours.send(b"a")
        assert await theirs.receive() == b"a"
        got = b""

        async def receive() -> None:
            nonlocal got
            with scope:
                got += await theirs.receive()

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await wait_all_tasks_blocked()
            await ours.send(b"b")
            for _ in range(iterations):
                await anyio.lowlevel.checkpoint()
            scope.cancel()
        with anyio.fail_after(5):
            got = got or await theirs.receive()
    assert got == b"b"


async def test_an_arrival_that_a_watcher_was_notified_of_is_read_later() -> None:
    async with sockets() as (ours, theirs):
        await ours.send(b"a")
        assert await theirs.receive() == b"a"
        notified = anyio.Event()
        if not theirs.watch(notified.set):
            return
        await ours.send(b"b")
        with anyio.fail_after(5):
            await notified.wait()
            theirs.watch(None)
            assert await theirs.receive() == b"b"


async def test_a_watcher_is_notified_at_once_of_possible_arrivals() -> None:
    async with sockets() as (ours, theirs):
        await ours.send(b"ab")
        assert await theirs.receive(1) == b"a"
        notified = anyio.Event()
        if theirs.watch(notified.set):
            assert notified.is_set()


async def test_an_end_that_arrives_with_the_last_bytes_is_read_too() -> None:
    async with sockets() as (ours, theirs):
        await ours.send(b"a")
        assert await theirs.receive() == b"a"
        got: list[bytes] = []

        async def receive() -> None:
            with suppress(EndOfStream):
                while True:
                    got.append(await theirs.receive())

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await wait_all_tasks_blocked()
                ours.send_nowait(b"b")
                await ours.send_eof()
    assert got == [b"b"]


async def test_other_tasks_run_beside_a_stream_that_never_waits() -> None:
    iterations = 0
    async with sockets() as (ours, theirs), anyio.create_task_group() as tasks:

        async def count() -> None:
            nonlocal iterations
            while True:
                iterations += 1
                await anyio.lowlevel.checkpoint()

        tasks.start_soon(count)
        for _ in range(500):
            await ours.send(b"x")
            await theirs.receive(1)
        tasks.cancel_scope.cancel()
    assert iterations > 10


async def test_half_close_and_reset() -> None:
    async with sockets() as (ours, theirs):
        await ours.send_eof()
        with pytest.raises(EndOfStream):
            await theirs.receive()
        assert not theirs.peer_is_gone()  # its sending side is open
        await theirs.send(b"still")
        assert await ours.receive() == b"still"
        theirs.reset()
        assert theirs.peer_is_gone()
        with pytest.raises(BrokenResourceError):
            await ours.receive()
        assert ours.peer_is_gone()
        with pytest.raises(ClosedResourceError):
            await theirs.receive()


async def test_closing_wakes_a_waiting_reader() -> None:
    async with sockets() as (ours, _), anyio.create_task_group() as tasks:

        async def wait() -> None:
            with pytest.raises((ClosedResourceError, BrokenResourceError)):
                await ours.receive()

        tasks.start_soon(wait)
        await wait_all_tasks_blocked()
        ours.close()
        ours.close()  # once is enough, twice does no harm


async def test_a_peer_that_reads_nothing_stalls_a_write() -> None:
    async with sockets() as (ours, _):
        ours.write_timeout = 0.02
        with pytest.raises(PeerStalled):
            await ours.send(b"x" * 50_000_000)


async def test_sending_without_waiting_sends_what_fits() -> None:
    async with sockets() as (ours, theirs):
        ours.send_nowait(b"0")
        assert await theirs.receive() == b"0"
        theirs.close()
        for _ in range(3):
            ours.send_nowait(b"0")  # after the peer has closed: no error


async def test_nagles_algorithm_is_off_on_both_legs() -> None:
    """It costs tens of milliseconds of TTFT together with delayed acknowledgements."""
    [listener] = open_listeners("127.0.0.1", 0)
    accepted: list[SocketStream] = []
    with listener:
        upstream_leg = await connect_tcp(*listener.getsockname())
        select.select([listener], [], [], 5)
        accepted += Acceptor(listener, Logs("error", print)).accept_waiting()
    for stream in (upstream_leg, *accepted):
        sock = stream.extra(anyio.abc.SocketAttribute.raw_socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        stream.close()
    assert len(accepted) == 1


class Handled:
    """What a handler of arrivals got while ``receive`` waited; it ends the wait at ``last``."""

    def __init__(self, stream: SocketStream, last: bytes = b"end") -> None:
        self.data: list[bytes] = []
        self.times: list[float] = []
        self.failure: Exception | None = None
        self._stream, self._last = stream, last

    def __call__(self) -> bool:
        self.data.append(self._stream.receive_nowait())
        self.times.append(self._stream.arrived_at)
        if self.failure is not None:
            raise self.failure
        return self.data[-1] != self._last


async def test_arrivals_are_handled_while_a_reader_waits_on() -> None:
    async with sockets() as (ours, theirs):
        handled = Handled(theirs)
        assert theirs.handle_arrivals(handled)
        read: list[bytes] = []
        sent: list[bytes] = []
        async with anyio.create_task_group() as tasks:

            async def receive() -> None:
                read.append(await theirs.receive())

            tasks.start_soon(receive)
            for data in (b"a", b"b", b"end"):
                await wait_all_tasks_blocked()
                assert read == []
                await ours.send(data)
                sent.append(data)
                await until(lambda: handled.data == sent)
            await wait_all_tasks_blocked()
            assert read == []  # its wait has ended, and nothing was left
            theirs.handle_arrivals(None)
            await ours.send(b"c")
        assert read == [b"c"]
        assert handled.data == [b"a", b"b", b"end"]
        assert handled.times == sorted(handled.times)


async def test_what_arrives_while_nobody_receives_is_not_handled() -> None:
    async with sockets() as (ours, theirs):
        handled = Handled(theirs)
        theirs.handle_arrivals(handled)
        await ours.send(b"a")
        await wait_all_tasks_blocked()
        assert await theirs.receive() == b"a"
        assert handled.data == []


async def test_what_a_handler_of_arrivals_raises_is_raised_by_the_reader() -> None:
    async with sockets() as (ours, theirs):
        handled = Handled(theirs)
        handled.failure = ValueError("odd")
        theirs.handle_arrivals(handled)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.send, b"a")
            with pytest.raises(ValueError, match="odd"):
                await theirs.receive()
        theirs.handle_arrivals(None)
        await ours.send(b"b")
        assert await theirs.receive() == b"b"


async def test_an_end_is_left_to_the_reader_whose_arrivals_are_handled() -> None:
    async with sockets() as (ours, theirs):
        handled = Handled(theirs)
        theirs.handle_arrivals(handled)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.send_eof)
            with pytest.raises(EndOfStream):
                await theirs.receive()
        assert handled.data == []


async def test_a_reader_whose_arrivals_are_handled_can_be_cancelled() -> None:
    async with sockets() as (ours, theirs):
        handled = Handled(theirs)
        theirs.handle_arrivals(handled)
        with anyio.move_on_after(0):
            await theirs.receive()
        await ours.send(b"a")
        assert await theirs.receive() == b"a"
        theirs.close()
        assert theirs.handle_arrivals(None) in (True, False)  # closed, and no error


async def test_each_handled_arrival_begins_the_read_timeout_anew() -> None:
    async with sockets() as (ours, theirs):
        theirs.read_timeout = 0.5
        handled = Handled(theirs)
        theirs.handle_arrivals(handled)
        async with anyio.create_task_group() as tasks:

            async def stall() -> None:
                with pytest.raises(PeerStalled):
                    await theirs.receive()
                stalled_at.append(theirs.now())

            stalled_at: list[float] = []
            tasks.start_soon(stall)
            await wait_all_tasks_blocked()
            held_until = hold_the_loop()
            await ours.send(b"a")
        assert handled.data == [b"a"]
        assert stalled_at[0] >= held_until + 0.498  # uvloop's timers are in milliseconds
        assert theirs.read_wait_seconds >= 0.498


async def test_more_than_a_read_takes_is_left_to_the_reader() -> None:
    async with sockets() as (ours, theirs):
        sizes: list[int] = []

        def handle() -> bool:
            sizes.append(len(theirs.receive_nowait(1000)))
            return True

        theirs.handle_arrivals(handle)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ours.send, b"a" * 1500)
            rest = await theirs.receive()
        assert (sizes, len(rest)) == ([1000], 500)


async def test_what_arrives_before_a_wait_is_not_missed_by_a_handler() -> None:
    """The hook before a wait may take long, to send to a slow client."""
    async with sockets() as (ours, theirs):
        handled = Handled(theirs)
        theirs.handle_arrivals(handled)

        read: list[bytes] = []
        sent = False

        async def flush() -> None:
            nonlocal sent
            if not sent:
                sent = True
                await ours.send(b"a")
                await wait_all_tasks_blocked()

        async def receive() -> None:
            read.append(await theirs.receive())

        theirs.before_wait = flush
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                while not (read or handled.data):
                    await wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
        assert read + handled.data == [b"a"]


async def test_closing_wakes_a_reader_whose_arrivals_are_handled() -> None:
    async with sockets() as (_, theirs):
        theirs.handle_arrivals(Handled(theirs))
        with anyio.fail_after(2):
            async with anyio.create_task_group() as tasks:

                async def close() -> None:
                    await wait_all_tasks_blocked()
                    theirs.close()

                tasks.start_soon(close)
                with pytest.raises(ClosedResourceError):
                    await theirs.receive()


async def test_a_write_for_a_read_that_must_not_wait_does_not_wait_either() -> None:
    """TLS may have to write where it reads, also outside of any task."""
    async with sockets() as (ours, _):
        ours.read_timeout = 0
        for _ in range(100):  # more than are made in a row without a checkpoint
            with pytest.raises(StopIteration):
                ours.send(b"a").send(None)
        with pytest.raises(BrokenResourceError):  # noqa: PT012 - until there is no room
            while True:
                with pytest.raises(StopIteration):
                    ours.send(bytes(2**20)).send(None)


async def test_nothing_has_left_where_nothing_could_be_sent_now() -> None:
    async with sockets() as (ours, _):
        while ours.send_nowait(bytes(1024 * 1024)):
            pass
        written_at = ours.written_at
        assert ours.send_now(b"a") == 0
        assert ours.written_at == written_at
