"""A proxy that runs, a scripted upstream, and a client that sees every byte, for end-to-end tests
over real sockets on loopback."""

import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import h11
import orjson
from anyio.abc import TaskStatus
from key_leaks import check_for_keys
from waiting import TIMEOUT

from ape_cerebras import Config, Proxy, serve
from ape_cerebras.downstream.listener import Acceptor, open_listeners
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.upstream.connect import Connect, connect_tcp

__all__ = (
    "FINISH",
    "KEY",
    "TOKEN",
    "Client",
    "Conversation",
    "Lines",
    "Response",
    "Running",
    "Script",
    "ScriptedUpstream",
    "body_of",
    "chat",
    "error_shape",
    "events",
    "hold_the_loop",
    "running_proxy",
    "running_upstream",
    "serve_each",
)

KEY = "csk-upstream-key-0123456789"


def chat(body: bytes = b'{"model":"gpt-oss-120b","messages":[]}', *extra: bytes) -> bytes:
    """A chat request, with more header lines where they are given."""
    lines = b"".join(line + b"\r\n" for line in extra)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"%sContent-Length: %d\r\n\r\n%s" % (lines, len(body), body)
    )


def events(*payloads: bytes) -> bytes:
    return b"".join(b"data: %s\n\n" % payload for payload in payloads)


@dataclass
class Conversation:
    """One connection of an upstream, driven by a script."""

    stream: SocketStream
    upstream: "ScriptedUpstream"
    _rest: bytes = b""

    async def request(self) -> bytes:
        """The next whole request; recorded."""
        while b"\r\n\r\n" not in self._rest:
            self._rest += await self.stream.receive()
        head, _, rest = self._rest.partition(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        while len(rest) < length:
            rest += await self.stream.receive()
        whole, self._rest = head + b"\r\n\r\n" + rest[:length], rest[length:]
        self.upstream.requests.append(whole)
        return whole

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def respond(self, body: bytes, *, status: str = "200 OK", headers: bytes = b"") -> None:
        await self.send(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s"
            % (status.encode(), headers, len(body), body)
        )

    async def stream_head(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def until_disconnected(self) -> None:
        """Return when the other side has closed or reset the connection."""
        try:
            while True:
                await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.upstream.disconnected.set()


Script = Callable[[Conversation], Awaitable[None]]

TOKEN = b'{"choices":[{"delta":{"content":"a"},"index":0}],"model":"gpt-oss-120b"}'
FINISH = (
    b'{"choices":[{"delta":{},"finish_reason":"stop","index":0}],"model":"gpt-oss-120b",'
    b'"usage":{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14},'
    b'"time_info":{"queue_time":0.001,"prompt_time":0.002,"completion_time":0.003}}'
)


def error_shape(body: dict[str, object]) -> tuple[object, object]:
    """Type and code of an error, after checking that both of its shapes agree."""
    inner = body.pop("error")
    assert inner == body
    assert set(body) == {"message", "type", "param", "code"}
    return body["type"], body["code"]


def body_of(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


async def serve_each(
    converse: Callable[[SocketStream], Coroutine[Any, Any, None]], *, task_status: TaskStatus[int]
) -> None:
    """Listen on a free port, reported by ``task_status``, and run ``converse`` for each connection
    in a task."""
    [listener] = open_listeners("127.0.0.1", 0)
    with listener:
        async with anyio.create_task_group() as tasks:
            task_status.started(listener.getsockname()[1])
            acceptor = Acceptor(listener, Logs("error", print))
            while True:
                tasks.start_soon(converse, await acceptor.accept())


@dataclass
class ScriptedUpstream:
    """Runs ``script`` for each connection; records every request."""

    script: Script
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    disconnected: anyio.Event = field(default_factory=anyio.Event)

    async def serve(self, *, task_status: TaskStatus[int]) -> None:
        await serve_each(self._converse, task_status=task_status)

    async def _converse(self, stream: SocketStream) -> None:
        self.connections += 1
        try:
            await self.script(Conversation(stream, self))
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self.disconnected.set()
        finally:
            stream.close()


class Lines:
    """The log lines of a proxy, as objects; ``raw`` as bytes. pytest shows them where a test
    fails."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self._more = anyio.Event()

    def write(self, line: bytes) -> None:
        check_for_keys(line)
        print(line.decode(), end="")
        self.raw.append(line)
        self._more.set()
        self._more = anyio.Event()

    def all(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.raw]

    def exchanges(self) -> list[dict[str, Any]]:
        return [line for line in self.all() if "outcome" in line]

    async def event(self, message: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The first line with that message, once it is there."""
        with anyio.fail_after(timeout):
            while True:
                found = [line for line in self.all() if line["message"] == message]
                if found:
                    return found[0]
                await self._more.wait()

    async def exchange(self, number: int = 1, timeout: float = TIMEOUT) -> dict[str, Any]:
        """The line of the exchange that was the ``number``-th to end, once it is there."""
        with anyio.fail_after(timeout):
            while len(self.exchanges()) < number:
                await self._more.wait()
        return self.exchanges()[number - 1]


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool
    """Whether the body ended by its framing, rather than with the connection."""

    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """A client that sends bytes as they are given, and reads responses by h11."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._beyond = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def response(self, method: str = "GET", timeout: float = TIMEOUT) -> Response:
        """The next response; interim ones are skipped."""
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        reader.send(h11.EndOfMessage())
        if self._beyond:  # no bytes would mean the end
            reader.receive_data(self._beyond)
        head, body = None, b""
        with anyio.fail_after(timeout):
            while True:
                try:
                    event = reader.next_event()
                except h11.RemoteProtocolError:
                    return _response(head, body, complete=False)
                if event is h11.NEED_DATA:
                    if not await self._feed(reader) and head is None:
                        raise anyio.EndOfStream
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self._beyond = reader.trailing_data[0]
                    return _response(head, body, complete=True)

    async def _feed(self, reader: h11.Connection) -> bool:
        try:
            data = await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            data = b""
        reader.receive_data(data)
        return bool(data)

    async def request(self, data: bytes, method: str = "GET") -> Response:
        await self.send(data)
        return await self.response(method)

    async def get(self, path: str, *extra: str) -> Response:
        lines = "".join(f"{line}\r\n" for line in extra)
        return await self.request(f"GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n".encode())

    async def until(self, wanted: bytes) -> bytes:
        """Read until ``wanted`` has come; all that was read."""
        read = self._beyond
        with anyio.fail_after(TIMEOUT):
            while wanted not in read:
                read += await self.stream.receive()
        self._beyond = b""
        return read

    async def peek_until(self, wanted: bytes) -> None:
        """Read until ``wanted`` has come, and keep all of it to be read again."""
        self._beyond = await self.until(wanted)

    async def until_closed(self) -> bytes:
        """Read to the end of the connection; all that was read."""
        read = self._beyond
        with anyio.fail_after(TIMEOUT):
            try:
                while True:
                    read += await self.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return read


def _response(head: h11.Response | None, body: bytes, *, complete: bool) -> Response:
    assert head is not None
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return Response(head.status_code, headers, body, complete)


@dataclass
class Running:
    """A proxy that serves."""

    proxy: Proxy
    lines: Lines
    ended: anyio.Event
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.proxy.addresses[0][1]

    async def client(self) -> Client:
        return await self._client_of(self.port)

    async def scraper(self) -> Client:
        """A client of the port that scrapers have for themselves, where they have one."""
        addresses = self.proxy.scrapers_addresses or self.proxy.addresses
        return await self._client_of(addresses[0][1])

    async def _client_of(self, port: int) -> Client:
        stream = await connect_tcp("127.0.0.1", port)
        assert isinstance(stream, SocketStream)
        self.clients.append(Client(stream))
        return self.clients[-1]

    async def metric(self, name: str) -> float:
        """The sum of a metric's samples, as a scrape gives them."""
        return sum(value for series, value in await self.samples() if series.split("{")[0] == name)

    async def until_metric(self, name: str, is_so: Callable[[float], bool]) -> None:
        """Scrape until that is so of its sum."""
        with anyio.fail_after(TIMEOUT):
            while not is_so(await self.metric(name)):
                await anyio.lowlevel.checkpoint()

    async def sample(self, series: str) -> float:
        """One sample, by its name and labels."""
        return dict(await self.samples())[series]

    async def samples(self) -> list[tuple[str, float]]:
        """All series with their values, of one scrape."""
        client = await self.scraper()
        text = (await client.get("/metrics")).body.decode()
        client.stream.close()
        rows = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return [(series, float(value)) for series, _, value in rows]


@asynccontextmanager
async def running_proxy(
    upstream_port: int, connect: Connect | None = None, /, **settings: str
) -> AsyncIterator[Running]:
    environment = {
        "CEREBRAS_API_KEY": KEY,
        "CEREBRAS_BASE_URL": f"http://127.0.0.1:{upstream_port}",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "WARM_CONNECTIONS": "0",
        "LOG_LEVEL": "debug",
        **settings,
    }
    lines, ended = Lines(), anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def run(*, task_status: TaskStatus[Proxy]) -> None:
            config = Config.from_environment(environment)
            await serve(config, write_line=lines.write, connect=connect, task_status=task_status)
            ended.set()

        proxy = await tasks.start(run)
        running = Running(proxy, lines, ended)
        try:
            yield running
        finally:
            for client in running.clients:
                client.stream.close()
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def running_upstream(script: Script) -> AsyncIterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(script)
    async with anyio.create_task_group() as tasks:
        upstream.port = await tasks.start(upstream.serve)
        yield upstream
        tasks.cancel_scope.cancel()


def hold_the_loop() -> float:
    """Block the event loop for a while; return the end of that on its clock."""
    time.sleep(0.02)
    return anyio.current_time()


def free_port(host: str = "127.0.0.1") -> int:
    """A free port below the range of ephemeral ports, so that no process gets it that lets the
    system choose."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            return port
