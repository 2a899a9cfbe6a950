"""Three proxies behind a real balancer, set up as ``contrib`` has it: only addresses differ, and
the folder for its files."""

import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, TaskStatus
from end_to_end import (
    Client,
    Running,
    Script,
    ScriptedUpstream,
    free_port,
    running_proxy,
    running_upstream,
)
from programs import tool
from waiting import TIMEOUT

from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.upstream.connect import connect_tcp

__all__ = ("BALANCERS", "HOSTS", "Fleet", "balanced")

CONTRIB = Path(__file__).parents[2] / "contrib"
NAME = "cerebras-proxy:8000"
_IN_FLIGHT = b"cerebras_proxy_requests_in_flight "
_ALL_UP = b'haproxy_backend_active_servers{proxy="proxies"} 3\n'
HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


@dataclass
class Fleet:
    """A balancer that runs, what is behind it, and clients before it."""

    port: int
    proxies: list[Running]
    upstream: ScriptedUpstream
    _clients: AsyncExitStack

    async def client(self) -> Client:
        stream = await connect_tcp("127.0.0.1", self.port)
        assert isinstance(stream, SocketStream)
        self._clients.callback(stream.close)
        return Client(stream)

    async def in_flight(self) -> list[int]:
        """How many exchanges each proxy has, without this one."""
        return [await self._in_flight(*proxy.proxy.addresses[0]) for proxy in self.proxies]

    @staticmethod
    async def _in_flight(host: str, port: int) -> int:
        text = await _body_of(host, port, "/metrics")
        row = next(line for line in text.splitlines() if line.startswith(_IN_FLIGHT))
        return int(float(row.removeprefix(_IN_FLIGHT))) - 1


@asynccontextmanager
async def balanced(kind: str, script: Script, folder: Path) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(running_upstream(script))
        port = free_port("0.0.0.0")  # on each of the proxies' addresses
        proxies = [
            await stack.enter_async_context(
                running_proxy(upstream.port, HOST=host, PORT=str(port), APE_API_KEY="a-key")
            )
            for host in HOSTS
        ]
        listens_on = free_port()
        await stack.enter_async_context(BALANCERS[kind](listens_on, port, folder))
        await _until(listens_on, "/health", b'"status":"healthy"')
        async with AsyncExitStack() as clients:
            yield Fleet(listens_on, proxies, upstream, clients)


def _replaced(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@asynccontextmanager
async def _haproxy(port: int, proxies: int, folder: Path) -> AsyncIterator[None]:
    """HAProxy resolves the proxies' addresses with a name server, as a container does with
    Docker's."""
    program, metrics = tool("haproxy", "haproxy"), free_port()
    async with anyio.create_task_group() as tasks:
        names = await tasks.start(_serve_names)
        replacements = {
            "127.0.0.11:53": f"127.0.0.1:{names}",
            "bind :8000": f"bind 127.0.0.1:{port}",
            "bind :8404": f"bind 127.0.0.1:{metrics}",
            NAME: f"cerebras-proxy:{proxies}",
            # Here all proxies share an event loop with everybody, on a machine that may be busy.
            "option httpchk": "timeout check 10s\n    option httpchk",
        }
        config = folder / "haproxy.cfg"
        config.write_text(_replaced((CONTRIB / "haproxy/haproxy.cfg").read_text(), replacements))
        with _process(folder, program, "-f", str(config)):
            await _until(metrics, "/metrics", _ALL_UP)
            yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def _nginx(port: int, proxies: int, folder: Path) -> AsyncIterator[None]:
    """nginx resolves the proxies' addresses with the system, which no test can control."""
    text = (CONTRIB / "nginx/nginx.conf").read_text().replace("/tmp/", f"{folder}/")
    line = next(line for line in text.splitlines() if f"server {NAME}" in line)
    lines = "\n".join(line.replace(NAME, f"{host}:{proxies}") for host in HOSTS)
    replacements = {"listen 8000;": f"listen 127.0.0.1:{port};", line: lines}
    config = folder / "nginx.conf"
    config.write_text(_replaced(text, replacements))
    program = tool("nginx", "nginx")
    with _process(folder, program, "-p", str(folder), "-c", str(config), "-g", "daemon off;"):
        yield


BALANCERS: dict[str, Callable[[int, int, Path], AbstractAsyncContextManager[None]]] = {
    "haproxy": _haproxy,
    "nginx": _nginx,
}


@contextmanager
def _process(folder: Path, *command: str) -> Iterator[None]:
    """A balancer; its output is shown where a test fails."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(TIMEOUT)
            print((folder / "output").read_text("utf-8", "replace"))


async def _until(port: int, path: str, wanted: bytes) -> None:
    """Send requests until the response contains ``wanted``; nobody may listen yet."""
    with anyio.fail_after(TIMEOUT):
        while True:
            with suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
                if wanted in await _body_of("127.0.0.1", port, path):
                    return
            await anyio.sleep(0.01)  # between two requests: it starts on the same processor


async def _body_of(host: str, port: int, path: str) -> bytes:
    stream = await connect_tcp(host, port)
    assert isinstance(stream, SocketStream)
    try:
        return (await Client(stream).get(path)).body
    finally:
        stream.close()


# A name server with one response, the proxies' addresses: RFC 1035, and no more than is needed.

_HEADER = struct.Struct("!6H")
_RESPONSE, _ADDRESS, _INTERNET = 0x8180, 1, 1
_SAME_NAME = 0xC00C  # where the query has it


async def _serve_names(*, task_status: TaskStatus[int]) -> None:
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:
        task_status.started(udp.extra_attributes[SocketAttribute.local_port]())
        async for query, (host, port) in udp:
            await udp.sendto(_dns_response(query), host, port)


def _dns_response(query: bytes) -> bytes:
    end = query.index(0, _HEADER.size) + 5
    kind = int.from_bytes(query[end - 4 : end - 2], "big")
    hosts = HOSTS if kind == _ADDRESS else ()
    responses = b"".join(
        struct.pack("!3HIH", _SAME_NAME, _ADDRESS, _INTERNET, 1, 4) + socket.inet_aton(host)
        for host in hosts
    )
    identity = int.from_bytes(query[:2], "big")
    head = _HEADER.pack(identity, _RESPONSE, 1, len(hosts), 0, 0)
    return head + query[_HEADER.size : end] + responses
