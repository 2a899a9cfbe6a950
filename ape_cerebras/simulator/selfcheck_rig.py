"""The test rig of the self-check: proxy and simulator as processes, a client that measures, and a
load generator."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import anyio
import orjson
from anyio.abc import Process, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from ..config.settings import SETTINGS
from ..net.stream import TimestampedStream
from ..upstream.connect import connect_tcp

__all__ = (
    "ProcessEnded",
    "LoadGenerator",
    "ClientTimings",
    "ServerProcess",
    "issue_certificates",
    "overloaded",
    "pin",
    "play",
    "running",
)

_TIMEOUT = 60.0  # seconds
_MAX_LINE = 64 * 1024  # bytes
_SETTINGS = {setting.variable for setting in SETTINGS}
_FIRST_TOKEN = b'"content":"'
_END = b"\r\n0\r\n\r\n"
_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"X-Trace-ID: %s\r\nX-Simulate: %s\r\nContent-Length: %d\r\n\r\n%s"
)
# It ends with the process that started it, however that ends.
_SPIN = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(100_000):
        pass
"""
_BODY = b'{"model":"llama3.1-8b","stream":true,"messages":[{"role":"user","content":"Hello!"}]}'


class ProcessEnded(Exception):
    """A process ended too early; the text is the last line of its log."""


class ServerProcess:
    """A running process: its address, and the lines of its log by trace id."""

    def __init__(self, process: Process) -> None:
        self.pid = process.pid
        self.address = ""
        self._process = process
        self._last = b""
        self._ended = False
        self._lines: dict[str, dict[str, Any]] = {}
        self._more = anyio.Event()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    async def line(self, trace_id: str) -> dict[str, Any]:
        """Wait for the log line with that trace id. Raises TimeoutError, ProcessEnded."""
        with anyio.fail_after(_TIMEOUT):
            while trace_id not in self._lines:
                await self._next_line()
        return self._lines.pop(trace_id)

    async def wait_until_listening(self) -> None:
        """Raises TimeoutError, ProcessEnded."""
        with anyio.fail_after(_TIMEOUT):
            while not self.address:
                await self._next_line()

    async def _next_line(self) -> None:
        if self._ended:
            raise ProcessEnded(self._last.decode())
        await self._more.wait()

    def cpu_seconds(self) -> float:
        """CPU time that the process has used; Linux only (proc(5))."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def read_log(self) -> None:
        """Read the log until the process ends."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        stream = BufferedByteReceiveStream(self._process.stdout)
        try:
            while True:
                self._last = await stream.receive_until(b"\n", _MAX_LINE)
                self._record(orjson.loads(self._last))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.ClosedResourceError):
            self._ended = True
            self._more.set()

    def _record(self, line: dict[str, Any]) -> None:
        if line.get("address") and line["level"] == "info":  # an error names the address too
            self.address = line["address"]
        if line["trace_id"] is not None:
            self._lines[line["trace_id"]] = line
        self._more.set()
        self._more = anyio.Event()


@cache
def _cores() -> list[int]:
    """The cores that this process may use before it is pinned; Linux only."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, core: int) -> None:
    """Pin a process (0: this one) to one of the cores that this one may use, counted from 0."""
    cores = _cores()
    os.sched_setaffinity(pid, {cores[core % len(cores)]})


@contextmanager
def overloaded(processes: int) -> Iterator[None]:
    """Have so many processes spin on each core that this process may use."""
    spinning: list[subprocess.Popen[bytes]] = []
    try:
        for core in range(len(_cores())):
            for _ in range(processes):
                spinning.append(subprocess.Popen((sys.executable, "-c", _SPIN, str(os.getpid()))))  # noqa: S603
                pin(spinning[-1].pid, core)
        yield
    finally:
        for each in spinning:
            each.kill()
        for each in spinning:
            each.wait()


class Certificates(NamedTuple):
    """Files of the simulator's certificate chain and key, and of the authority behind them."""

    authority: str
    chain: str
    key: str


def issue_certificates(folder: str) -> Certificates:
    """Issue them for 127.0.0.1 and write them into ``folder``. Raises ImportError without
    trustme."""
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    files = Certificates(*(str(Path(folder, name)) for name in Certificates._fields))
    authority.cert_pem.write_to_path(files.authority)
    leaf.private_key_pem.write_to_path(files.key)
    for pem in leaf.cert_chain_pems:
        pem.write_to_path(files.chain, append=True)
    return files


@asynccontextmanager
async def running(*arguments: str, core: int, **settings: str) -> AsyncIterator[ServerProcess]:
    """Run ``ape-cerebras`` with these arguments and settings, and none of the environment's.

    The process is pinned to one of the cores that this one may use, counted from 0, so that the
    measured process has a core to itself.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.removesuffix("_FILE") not in _SETTINGS
    }
    command = [sys.executable, "-m", "ape_cerebras", *arguments]
    process = await anyio.open_process(command, stderr=None, env={**inherited, **settings})
    try:
        pin(process.pid, core)
        async with anyio.create_task_group() as tasks:
            server = ServerProcess(process)
            tasks.start_soon(server.read_log)
            await server.wait_until_listening()
            yield server
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):  # it has ended
                process.kill()
            await process.aclose()


class ClientTimings(NamedTuple):
    """Times of a stream at its client: seconds from writing the request (the middle of the call) to
    the arrival of the first token, and of the end. ``uncertain``: by how much they may be off."""

    ttft: float
    total: float
    uncertain: float


async def play(stream: TimestampedStream, options: str, trace_id: str) -> ClientTimings:
    """Request a stream with these simulator options, and read it to its end."""
    request = _REQUEST % (trace_id.encode(), options.encode(), len(_BODY), _BODY)
    stream.peek_arrivals(True)
    await stream.send(request)
    began_at = (stream.left_at + stream.written_at) / 2
    uncertain = (stream.written_at - stream.left_at) / 2
    first_at: float | None = None
    tail = b""
    while not tail.endswith(_END):
        data = await stream.receive()
        tail = tail[-256:] + data
        if first_at is None and _FIRST_TOKEN in tail:
            first_at = stream.arrived_at
            uncertain = max(uncertain, stream.arrival_seconds)
    first_at = first_at or stream.arrived_at
    return ClientTimings(first_at - began_at, stream.arrived_at - began_at, uncertain)


class LoadGenerator:
    """Plays streams over and over to keep a process busy."""

    def __init__(self, tasks: TaskGroup, port: int, options: str) -> None:
        self._tasks = tasks
        self._port = port
        self._options = options
        self._scopes: list[anyio.CancelScope] = []

    def set_streams(self, streams: int) -> None:
        """Keep so many streams in flight."""
        while len(self._scopes) > streams:
            self._scopes.pop().cancel()
        while len(self._scopes) < streams:
            scope = anyio.CancelScope()
            self._scopes.append(scope)
            self._tasks.start_soon(self._replay, scope)

    async def _replay(self, scope: anyio.CancelScope) -> None:
        stream = await connect_tcp("127.0.0.1", self._port)
        try:
            with scope:
                while True:
                    await play(stream, self._options, token_hex(8))
        finally:
            stream.close()
