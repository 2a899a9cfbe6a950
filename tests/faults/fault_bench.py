"""What the fault cases are made of: rows, the proxy and the scripted upstream that go through many
of them, and the scene of one.

A case is a row of a table. Most are bytes that a client sends, the status it must get, and what
becomes of its connection; ``play`` is for those that are more than that.
"""

import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import anyio
import orjson
import trustme
from end_to_end import (
    Client,
    Conversation,
    Response,
    Running,
    Script,
    ScriptedUpstream,
    running_proxy,
)
from tls_upstream import certificate, over_tls
from waiting import until

from ape_cerebras.net.event_loop import of_this_loop
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.timestamps import AwakeClock

__all__ = (
    "BODY",
    "CLIENT_KEY",
    "HEALTH",
    "Bench",
    "Case",
    "Scene",
    "responds",
    "benched",
    "get",
    "post",
    "until",
)

CLIENT_KEY = "T-client-key-9876543210"
BODY = b'{"model":"gpt-oss-120b","messages":[]}'
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
CHAT_LINE = b"POST /v1/chat/completions HTTP/1.1"
AUTHORIZED = b"Authorization: Bearer " + CLIENT_KEY.encode()
JSON_TYPE = b"Content-Type: application/json"


def post(
    body: bytes = BODY,
    *extra: bytes,
    line: bytes = CHAT_LINE,
    host: bytes | None = b"Host: a",
    key: bytes | None = AUTHORIZED,
    kind: bytes | None = JSON_TYPE,
    length: bytes | None = None,
) -> bytes:
    """A good chat request, with the lines under test changed; an empty ``length`` is none."""
    length = b"Content-Length: %d" % len(body) if length is None else length
    lines = [line, host, key, kind, *extra, length]
    return b"\r\n".join([each for each in lines if each]) + b"\r\n\r\n" + body


def get(line: bytes = b"GET /health HTTP/1.1", *extra: bytes, host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([each for each in (line, host, *extra) if each]) + b"\r\n\r\n"


async def responds(peer: Conversation) -> None:
    """The upstream of most cases."""
    while True:
        await peer.request()
        await peer.respond(b'{"ok":1}')


@dataclass(frozen=True)
class Case:
    """A row.

    ``then``: what becomes of the client's connection: "keep" (it serves another request), "close"
    (as announced in the response, and nothing more comes), "cut" (the body does not end as HTTP
    requires), "either" (keep or close, and nothing more comes).
    ``up``: requests that upstream sees; None for any number.
    ``relayed``: an error is upstream's own.
    ``lines``: exchanges logged for what was sent; None for any number.
    ``process``: plays the case with processes of its own. ``once``: on one event loop, as it is
    decided before there is one.
    ``needs``: the capability that the case waits for.
    """

    id: str
    sends: bytes = b""
    status: int | tuple[int, ...] = 200
    then: str = "keep"
    _: KW_ONLY
    up: int | None = 0
    code: str = ""
    method: str = "GET"
    relayed: bool = False
    lines: int | None = 1
    pieces: int = 1
    upstream: Script = responds
    settings: Mapping[str, str] = field(default_factory=dict)
    check: Callable[["Scene", Response], object] | None = None
    play: Callable[["Scene"], Awaitable[None]] | None = None
    process: Callable[[str], None] | None = None
    once: bool = False
    needs: str = ""


class FaultUpstream(ScriptedUpstream):
    """Runs the current ``script`` for each connection, and keeps every byte it receives."""

    def __init__(self) -> None:
        super().__init__(responds)
        self.got = bytearray()
        self._open: set[anyio.CancelScope] = set()

    async def _converse(self, stream: SocketStream) -> None:
        receive = stream.receive

        async def recorded(max_bytes: int = 65536) -> bytes:
            data = await receive(max_bytes)
            self.got += data
            return data

        stream.receive = recorded  # type: ignore[method-assign]
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            with suppress(anyio.ClosedResourceError, ssl.SSLError, OSError):
                await super()._converse(stream)
            self._open.discard(scope)

    def begin(self, script: Script) -> None:
        self.script = script
        self.requests.clear()
        self.got.clear()
        self.disconnected = anyio.Event()
        self.connections = 0

    def end(self) -> None:
        for scope in tuple(self._open):
            scope.cancel()
        self._open.clear()


@dataclass
class Bench:
    """A proxy with certain settings, and its upstream."""

    running: Running
    upstream: FaultUpstream
    secure: Callable[[Script], Script]
    series: set[str] = field(default_factory=set)
    played: int = 0


@asynccontextmanager
async def benched(settings: Mapping[str, str], authority: trustme.CA) -> AsyncIterator[Bench]:
    """``TLS`` among the settings names upstream's certificate: see ``certificate``."""
    gc.collect()  # descriptors that went with an earlier event loop are not to go in mid-case
    of_this_loop(AwakeClock)  # it keeps one open, from the first response that may bring a token on
    upstream = FaultUpstream()
    environment = {"APE_API_KEY": CLIENT_KEY, **settings}
    tls_name = environment.pop("TLS", None)
    secure: Callable[[Script], Script] = lambda script: script  # noqa: E731
    async with anyio.create_task_group() as tasks:
        upstream.port = await tasks.start(upstream.serve)
        if tls_name is not None:
            leaf = certificate(tls_name, authority)
            secure = lambda script: over_tls(script, leaf)  # noqa: E731
            environment.setdefault("CEREBRAS_BASE_URL", f"https://localhost:{upstream.port}")
        with authority.cert_pem.tempfile() as bundle:
            async with running_proxy(upstream.port, SSL_CERT_FILE=bundle, **environment) as running:
                yield Bench(running, upstream, secure)
        tasks.cancel_scope.cancel()


class Scene:
    """One case on its bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.upstream = bench.upstream
        self.seen = bytearray()
        """Every byte that a client got."""
        self._lines_before = len(bench.running.lines.raw)
        self.clients: list[Client] = []

    async def client(self) -> Client:
        return self._recorded(await self.bench.running.client())

    async def scraper(self) -> Client:
        return self._recorded(await self.bench.running.scraper())

    def _recorded(self, client: Client) -> Client:
        receive = client.stream.receive

        async def recorded(max_bytes: int = 65536) -> bytes:
            data = await receive(max_bytes)
            self.seen += data
            return data

        client.stream.receive = recorded  # type: ignore[method-assign]
        self.clients.append(client)
        return client

    @property
    def written(self) -> list[bytes]:
        """Log lines of this case."""
        return self.bench.running.lines.raw[self._lines_before :]

    @property
    def exchanges(self) -> list[dict[str, Any]]:
        reported = [orjson.loads(line) for line in self.written]
        return [line for line in reported if "outcome" in line]

    async def logged(self, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.exchanges) >= count)
        return self.exchanges

    @property
    def request(self) -> bytes:
        """What upstream got last."""
        return self.upstream.requests[-1]
