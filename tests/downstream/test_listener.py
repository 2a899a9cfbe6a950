"""The listening sockets and accepting from them, over real sockets."""

import errno
import gc
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint
from end_to_end import KEY
from memory_stream import MemoryStream, memory_pair
from sockets import client_of
from trio.testing import MockClock
from waiting import TIMEOUT, wait_all_tasks_blocked

from ape_cerebras.config.config import Config
from ape_cerebras.downstream.connection import Downstream
from ape_cerebras.downstream.listener import Acceptor, Connections, open_listeners
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.telemetry.logs import Logs

pytestmark = pytest.mark.anyio


class Door(Connections):
    """Connections whose room a test decides on."""

    def __init__(self) -> None:
        super().__init__(1000, None)
        self.may_enter = anyio.Event()
        self.may_enter.set()

    async def wait_for_room(self) -> None:
        await self.may_enter.wait()
        await checkpoint()


class Arrivals:
    """The connections that an acceptor gave, with a door that a test can shut."""

    def __init__(self, listener: socket.socket) -> None:
        self.streams: list[SocketStream] = []
        self.errors: list[str] = []
        self.changed = anyio.Event()
        self.door = Door()
        self.acceptor = Acceptor(listener, Logs("error", self._write_line), self.door)

    async def accept(self) -> None:
        while True:
            self.streams.append(await self.acceptor.accept())
            self._notify()

    def _write_line(self, line: bytes) -> None:
        self.errors.append(json.loads(line)["message"])
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, is_true: Callable[[], bool]) -> None:
        with anyio.fail_after(TIMEOUT):
            while not is_true():
                await self.changed.wait()

    async def until_there_are(self, count: int) -> None:
        await self.until(lambda: len(self.streams) == count)
        assert len(self.door) == count

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


@asynccontextmanager
async def accepting(host: str = "127.0.0.1") -> AsyncIterator[tuple[socket.socket, Arrivals]]:
    (listener,) = open_listeners(host, 0)
    arrivals = Arrivals(listener)
    with closing(listener), closing(arrivals):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(arrivals.accept)
            yield listener, arrivals
            tasks.cancel_scope.cancel()


async def has_ipv6() -> bool:
    try:
        for listener in open_listeners("::1", 0):
            listener.close()
    except OSError:
        return False
    return True


# Listening


@pytest.mark.parametrize(
    ("host", "reached_from"),
    [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"])],
)
async def test_who_reaches_an_address(host: str, reached_from: list[str]) -> None:
    if ":" in host and not await has_ipv6():
        pytest.skip("this machine has no IPv6")
    async with accepting(host) as (listener, arrivals):
        port = listener.getsockname()[1]
        for number, address in enumerate(reached_from, 1):
            with anyio.fail_after(TIMEOUT):
                async with await anyio.connect_tcp(address, port):
                    await arrivals.until_there_are(number)


async def test_a_port_can_be_listened_on_again_at_once() -> None:
    async with accepting() as (listener, arrivals):
        with closing(client_of(listener)):
            await arrivals.until_there_are(1)
            port = listener.getsockname()[1]
            arrivals.close()  # by our side first, which leaves it in TIME_WAIT
    (again,) = open_listeners("127.0.0.1", port)
    again.close()


# Accepting


async def test_connections_come_in_order_and_carry_bytes_both_ways() -> None:
    async with accepting() as (listener, arrivals), anyio.create_task_group() as tasks:
        port = listener.getsockname()[1]
        for number in range(20):
            async with await anyio.connect_tcp("127.0.0.1", port) as client:
                await arrivals.until_there_are(number + 1)
                stream = arrivals.streams[-1]
                tasks.start_soon(client.send, b"%d" % number)
                with anyio.fail_after(TIMEOUT):
                    assert await stream.receive() == b"%d" % number
                    await stream.send(b"back")
                    assert await client.receive() == b"back"
        assert arrivals.errors == []


async def test_a_connection_is_made_for_small_writes() -> None:
    async with accepting() as (listener, arrivals):
        with closing(client_of(listener)):
            await arrivals.until_there_are(1)
            sock = arrivals.streams[0].extra(anyio.abc.SocketAttribute.raw_socket)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getblocking()


async def test_where_there_is_no_room_connections_wait_in_the_backlog() -> None:
    async with accepting() as (listener, arrivals):
        arrivals.door.may_enter = anyio.Event()
        with closing(client_of(listener)), closing(client_of(listener)):
            for _ in range(20):
                await checkpoint()
            assert arrivals.streams == []
            arrivals.door.may_enter.set()
            await arrivals.until_there_are(2)


async def test_clients_that_disconnect_at_once_end_nothing() -> None:
    async with accepting() as (listener, arrivals):
        for _ in range(20):
            gone = client_of(listener)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.close()
        with closing(client_of(listener)):
            await arrivals.until_there_are(21)
        assert arrivals.errors == []


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """For as long as the block runs, or until a descriptor is closed, none can be opened.

    The collector would close what loops of other tests have left.
    """
    gc.collect()
    gc.disable()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    with ExitStack() as taken:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            while True:
                try:
                    taken.callback(os.close, os.dup(0))
                except OSError:
                    break
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.enable()


async def test_m8_out_of_descriptors_it_logs_that_and_goes_on_when_there_are_some() -> None:
    async with accepting() as (listener, arrivals):
        with ExitStack() as clients:
            for _ in range(5):
                clients.enter_context(closing(client_of(listener)))
            await arrivals.until_there_are(5)
            late = [clients.enter_context(closing(socket.socket())) for _ in range(5)]
            with no_descriptors_left():
                for client in late:
                    client.setblocking(False)
                    client.connect_ex(listener.getsockname())
                await arrivals.until(lambda: bool(arrivals.errors))
                assert len(arrivals.streams) == 5
            await arrivals.until_there_are(10)
            text = "Cannot accept connections: out of file descriptors or memory"
            assert arrivals.errors == [text]  # once in a second


async def test_a_connection_that_could_not_be_watched_does_not_end_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out_of_descriptors(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor left for an epoll instance")

    async with accepting() as (listener, arrivals):
        with monkeypatch.context() as patch:
            patch.setattr("ape_cerebras.downstream.listener.SocketStream", out_of_descriptors)
            with closing(client_of(listener)):
                await arrivals.until(lambda: bool(arrivals.errors))
        with closing(client_of(listener)):
            await arrivals.until_there_are(1)


async def test_a_listener_that_does_not_listen_is_an_error_and_no_endless_loop() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    arrivals = Arrivals(listener)
    listener.close()
    with anyio.fail_after(TIMEOUT), pytest.raises(OSError, match="Bad file") as caught:
        await arrivals.accept()
    assert caught.value.errno == errno.EBADF
    assert arrivals.errors == []


async def test_a_busy_listener_leaves_the_loop_to_others() -> None:
    async with accepting() as (listener, arrivals):
        arrivals.door.may_enter = anyio.Event()
        with ExitStack() as clients:
            for _ in range(50):
                clients.enter_context(closing(client_of(listener)))
            arrivals.door.may_enter.set()
            iterations = 0
            with anyio.fail_after(TIMEOUT):
                while len(arrivals.streams) < 50:
                    await checkpoint()
                    iterations += 1
            assert iterations >= 25


async def test_the_backlog_can_be_accepted_before_the_end() -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    arrivals = Arrivals(listener)
    with closing(listener), closing(arrivals), ExitStack() as clients:
        for _ in range(3):
            client = clients.enter_context(closing(client_of(listener)))
            with anyio.fail_after(TIMEOUT):
                await anyio.wait_writable(client)
        arrivals.streams += arrivals.acceptor.accept_waiting()
        assert len(arrivals.streams) == 3
        arrivals.streams += arrivals.acceptor.accept_waiting()
        assert len(arrivals.streams) == 3


# Room


async def test_the_connection_that_has_been_idle_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ape_cerebras.downstream.listener._IDLE_ENOUGH", 0.02)
    connections = Connections(3, None)
    ended: list[int] = []

    async def serve(number: int, stream: MemoryStream) -> None:
        downstream = Downstream(stream, Config.from_environment({"CEREBRAS_API_KEY": KEY}))
        connections.add(stream, downstream)
        if await downstream.wait_for_request() is not None:  # it is served until the test ends
            await anyio.sleep_forever()
        ended.append(number)
        connections.discard(stream)

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            client, server = memory_pair()
            if number == 1:
                await client.send(b"G")
            tasks.start_soon(serve, number, server)
            await wait_all_tasks_blocked()
        with anyio.fail_after(TIMEOUT):
            await connections.wait_for_room()
            assert ended == [0]
            client, server = memory_pair()
            tasks.start_soon(serve, 3, server)
            await wait_all_tasks_blocked()
            await connections.wait_for_room()
            assert ended == [0, 2]
        tasks.cancel_scope.cancel()


async def test_a_connection_that_has_just_been_opened_makes_no_room() -> None:
    connections = Connections(1, None)
    _, server = memory_pair()
    downstream = Downstream(server, Config.from_environment({"CEREBRAS_API_KEY": KEY}))
    connections.add(server, downstream)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(downstream.wait_for_request)
        await wait_all_tasks_blocked()
        with anyio.move_on_after(0.05) as waited:
            await connections.wait_for_room()
        assert waited.cancelled_caught
        assert downstream.idle_since is not None
        tasks.cancel_scope.cancel()


def test_full_connections_are_warned_of_once_a_minute() -> None:
    lines: list[bytes] = []

    async def wait_four_times() -> None:
        connections = Connections(1, None, Logs("warning", lines.append))
        connections.add(memory_pair()[1])
        for _ in range(4):
            with anyio.move_on_after(25):
                await connections.wait_for_room()

    trio.run(wait_four_times, clock=MockClock(autojump_threshold=0))
    assert [json.loads(line)["waited"] for line in lines] == [1, 4]
