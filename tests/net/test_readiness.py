"""Waiting for a socket: until it is ready, until the deadline, until it is closed."""

import errno
import gc
import math
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio import ClosedResourceError
from waiting import wait_all_tasks_blocked

from ape_cerebras.config.values import BACKENDS
from ape_cerebras.net.event_loop import loop_clock, run_on
from ape_cerebras.net.readiness import Readiness, readiness_of
from ape_cerebras.net.socket_stream import SocketStream

pytestmark = [pytest.mark.anyio, pytest.mark.every_loop]

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def within(seconds: float) -> float:
    """So many seconds from now."""
    return loop_clock()() + seconds


async def read(sock: socket.socket, readiness: Readiness) -> bytes:
    """As the streams do it: first try, then wait."""
    with anyio.fail_after(5):
        while True:
            try:
                return sock.recv(100)
            except BlockingIOError:
                assert await readiness.reading.wait(within(5))


async def test_arrivals_before_during_and_after_a_wait_are_read(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    for number in range(100):
        text = b"%d" % number
        if number % 3 == 0:
            ours.send(text)
        async with anyio.create_task_group() as tasks:
            if number % 3 == 1:
                tasks.start_soon(_send_later, ours, text)
            elif number % 3 == 2:
                ours.send(text[:1])
                ours.send(text[1:])
                await wait_all_tasks_blocked()
            got = await read(theirs, readiness)
            while len(got) < len(text):
                got += await read(theirs, readiness)
        assert got == text
    readiness.close()


def fill(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.send(b"a" * 65536)


async def _send_later(sock: socket.socket, data: bytes) -> None:
    await wait_all_tasks_blocked()
    sock.send(data)


async def test_a_wait_ends_at_its_deadline_and_the_next_is_not_affected(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    assert not await readiness.reading.wait(within(0.01))
    ours.send(b"a")
    assert await read(theirs, readiness) == b"a"
    readiness.close()


async def test_a_cancelled_wait_loses_nothing(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    for _ in range(3):
        with anyio.move_on_after(0):
            await readiness.reading.wait(math.inf)
        ours.send(b"a")
        assert await read(theirs, readiness) == b"a"
    readiness.close()


async def test_a_full_socket_is_writable_once_it_has_been_read(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(ours)
    for _ in range(2):
        fill(ours)
        # An edge from before this wait may be out of date.
        while await readiness.writing.wait(within(0.01)):
            fill(ours)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_drain_later, theirs)
            with anyio.fail_after(5):
                assert await readiness.writing.wait(math.inf)
    readiness.close()


async def _drain_later(sock: socket.socket) -> None:
    await wait_all_tasks_blocked()
    with suppress(BlockingIOError):
        while True:
            sock.recv(1 << 20)


async def test_the_end_of_the_peer_wakes_a_reader(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_close_later, ours)
        assert await read(theirs, readiness) == b""
    readiness.close()


async def _close_later(sock: socket.socket) -> None:
    await wait_all_tasks_blocked()
    sock.close()


async def test_closing_wakes_waiting_tasks(pair: Pair) -> None:
    _, theirs = pair
    readiness = readiness_of(theirs)

    async def close_later() -> None:
        await wait_all_tasks_blocked()
        readiness.close()
        theirs.close()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close_later)
        with pytest.raises(ClosedResourceError):
            await readiness.reading.wait(within(5))


async def test_a_reused_descriptor_is_another_socket() -> None:
    for closed_well in (True, False, True):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setblocking(False)
            readiness = readiness_of(theirs)
            ours.send(b"a")
            assert await read(theirs, readiness) == b"a"
            if closed_well:
                readiness.close()


@pytest.mark.parametrize("reads", [True, False])
async def test_a_watcher_of_the_end_is_notified_only_of_the_end(reads: bool, pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    ended = anyio.Event()
    assert readiness.watch(ended.set, end_only=True)
    for _ in range(3):
        ours.send(b"a")
        if reads:
            assert await read(theirs, readiness) == b"a"
        await wait_all_tasks_blocked()
        assert not ended.is_set()
    ours.shutdown(socket.SHUT_WR)
    with anyio.fail_after(5):
        await ended.wait()
    readiness.close()


async def test_a_closed_socket_notifies_of_no_end(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    notified: list[str] = []
    readiness.watch(lambda: notified.append("end"), end_only=True)
    readiness.close()
    ours.close()
    await wait_all_tasks_blocked()
    assert notified == []


def test_a_loop_that_has_ended_leaves_no_descriptor_behind() -> None:
    async def use() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            SocketStream(ours).close()

    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    for backend in BACKENDS:
        run_on(backend, use)
        before = count()
        for _ in range(5):
            run_on(backend, use)
        assert count() == before


async def test_the_deadline_of_a_wait_can_be_changed_and_the_next_has_its_own(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)

    async def shorten_later() -> None:
        await wait_all_tasks_blocked()
        readiness.reading.set_deadline(within(0.01))

    for timeout in (math.inf, 60.0):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shorten_later)
            with anyio.fail_after(5):
                assert not await readiness.reading.wait(within(timeout))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_later, ours, b"a")
            assert await read(theirs, readiness) == b"a"
    readiness.close()


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_the_deadline_of_a_wait_of_no_time_can_be_changed(pair: Pair) -> None:
    readiness = readiness_of(pair[1])

    async def shorten() -> None:
        readiness.reading.set_deadline(within(0))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):  # one of them is started after the wait, and before it has ended
            tasks.start_soon(shorten)
        assert not await readiness.reading.wait(within(0))
    readiness.close()


async def test_a_long_wait_is_not_ended_by_the_timer_of_a_short_one_before(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    for first, second in ((0.05, math.inf), (0.05, 60.0)):
        ours.send(b"a")
        assert await read(theirs, readiness) == b"a"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_send_later, ours, b"b")
            assert await readiness.reading.wait(within(first))  # its timer may go on
        assert await read(theirs, readiness) == b"b"

        async def send_at_last() -> None:
            await anyio.sleep(0.1)  # when the first wait would have ended
            ours.send(b"c")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_at_last)
            with anyio.fail_after(5):
                while True:
                    with suppress(BlockingIOError):
                        assert theirs.recv(100) == b"c"
                        break
                    assert await readiness.reading.wait(within(second))
    readiness.close()


async def test_a_watcher_is_notified_of_unread_bytes(pair: Pair) -> None:
    ours, theirs = pair
    readiness = readiness_of(theirs)
    notified: list[bytes] = []
    came = anyio.Event()

    def hook() -> None:
        with suppress(BlockingIOError):
            while data := theirs.recv(100):
                notified.append(data)
        came.set()

    assert readiness.watch(hook, end_only=False)
    for text in (b"one", b"two"):
        came = anyio.Event()
        ours.send(text)
        with anyio.fail_after(5):
            await came.wait()
    came = anyio.Event()
    ours.shutdown(socket.SHUT_WR)
    with anyio.fail_after(5):
        await came.wait()
    assert notified == [b"one", b"two"]
    readiness.watch(None, end_only=False)
    came = anyio.Event()
    ours.close()
    await wait_all_tasks_blocked()
    assert not came.is_set()
    readiness.close()


async def test_a_socket_that_cannot_be_watched_is_no_error(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process that is out of descriptors would end at its next connection upstream."""

    def out_of_descriptors(*_: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor left for an epoll instance")

    monkeypatch.setattr("ape_cerebras.net.readiness.EdgePoller", out_of_descriptors)
    readiness = Readiness(pair[1])
    assert not readiness.watch(lambda: None, end_only=True)
    readiness.close()
