"""What a self-check is played with: the proxy and the simulated API as processes of their own, a
client that notes what it sees, and a load."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
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
    "certificates",
    "pin",
    "play",
    "running",
)

_PATIENCE = 60.0  # seconds
_MAX_LINE = 64 * 1024  # bytes
_SETTINGS = {setting.variable for setting in SETTINGS}
_FIRST_TOKEN = b'"content":"'
_END = b"\r\n0\r\n\r\n"
_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"X-Trace-ID: %s\r\nX-Simulate: %s\r\nContent-Length: %d\r\n\r\n%s"
)
_BODY = b'{"model":"llama3.1-8b","stream":true,"messages":[{"role":"user","content":"Hello!"}]}'


class ProcessEnded(Exception):
    """A process that was to run on has ended. Its text is the last that its log has said."""


class ServerProcess:
    """A running process: its address, and what its log has said, by trace id."""

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
        """The line of the exchange with that trace id, once it is there. Raises TimeoutError,
        ProcessEnded."""
        await self._until(lambda: trace_id in self._lines)
        return self._lines.pop(trace_id)

    async def until_it_listens(self) -> None:
        """Raises TimeoutError, ProcessEnded."""
        await self._until(lambda: bool(self.address))

    async def _until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(_PATIENCE):
            while not condition():
                if self._ended:
                    raise ProcessEnded(self._last.decode())
                await self._more.wait()

    def cpu_seconds(self) -> float:
        """What the process has used so far; Linux only (proc(5))."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def read_log(self) -> None:
        """Take in the log until the process ends."""
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        stream = BufferedByteReceiveStream(self._process.stdout)
        try:
            while True:
                self._last = await stream.receive_until(b"\n", _MAX_LINE)
                self._take(orjson.loads(self._last))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.ClosedResourceError):
            self._ended = True
            self._more.set()

    def _take(self, line: dict[str, Any]) -> None:
        if line.get("address") and line["level"] == "info":  # else it says where it cannot
            self.address = line["address"]
        if line["trace_id"] is not None:
            self._lines[line["trace_id"]] = line
        self._more.set()
        self._more = anyio.Event()


@cache
def _cores() -> list[int]:
    """Those that this process may use, before it has been given one; Linux only."""
    return sorted(os.sched_getaffinity(0))


def pin(pid: int, core: int) -> None:
    """Give a process (0: this one) one of the cores that this one may use, counted from 0."""
    cores = _cores()
    os.sched_setaffinity(pid, {cores[core % len(cores)]})


class Certificates(NamedTuple):
    """Files of a certificate that the simulator can show, and of the authority behind it."""

    authority: str
    chain: str
    key: str


def certificates(folder: str) -> Certificates:
    """Issued for 127.0.0.1, and written into ``folder``. Raises ImportError without trustme."""
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
    """``ape-cerebras`` with these arguments and settings, and none of those in the environment.

    ``core``: the number of the one it may use, of those that this process may; so that what is
    measured has one to itself.
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
            served = ServerProcess(process)
            tasks.start_soon(served.read_log)
            await served.until_it_listens()
            yield served
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):  # it has ended
                process.kill()
            await process.aclose()


class ClientTimings(NamedTuple):
    """A stream as its client saw it: seconds from writing the request (the middle of the call that
    did, ``uncertain`` either way) to the first token's arrival, and to the end's."""

    ttft: float
    total: float
    uncertain: float


async def play(stream: TimestampedStream, simulation: str, trace_id: str) -> ClientTimings:
    """Ask for a stream that the simulator plays as it is told, and read it to its end."""
    request = _REQUEST % (trace_id.encode(), simulation.encode(), len(_BODY), _BODY)
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
    first_at = first_at or stream.arrived_at
    return ClientTimings(first_at - began_at, stream.arrived_at - began_at, uncertain)


class LoadGenerator:
    """Streams that are played over and over, to keep a process busy."""

    def __init__(self, tasks: TaskGroup, port: int, simulation: str) -> None:
        self._tasks = tasks
        self._port = port
        self._simulation = simulation
        self._scopes: list[anyio.CancelScope] = []

    def set(self, streams: int) -> None:
        """Have so many streams under way."""
        while len(self._scopes) > streams:
            self._scopes.pop().cancel()
        while len(self._scopes) < streams:
            scope = anyio.CancelScope()
            self._scopes.append(scope)
            self._tasks.start_soon(self._play, scope)

    async def _play(self, scope: anyio.CancelScope) -> None:
        stream = await connect_tcp("127.0.0.1", self._port)
        try:
            with scope:
                while True:
                    await play(stream, self._simulation, token_hex(8))
        finally:
            stream.close()
