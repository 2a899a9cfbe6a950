"""The ways to an upstream: a good one, and those on which one gets nowhere, each over sockets of
its own. A seeded choice for each connection."""

import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import trustme
from end_to_end import Conversation, Script, ScriptedUpstream
from failing_upstream import ENDS, end
from server_process import refusing_port
from tls_upstream import certificate, over_tls

from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.upstream.connect import connect_tcp

__all__ = ("GOOD", "Address", "Opened", "Ways", "opened_ways", "strange_names")

GOOD = "good"
Address = tuple[str, int]
_SLOW, _NOWHERE = "slow.localhost", "nowhere.localhost"
_LOOK_UP = 0.2  # seconds
_UNTRUSTED = ("elsewhere.example", "expired", "not yet valid", "self-signed")


class Ways:
    """``addresses`` by the way's name; ``trouble`` is the share of connections that get a bad one,
    none to begin with. ``taken`` counts."""

    def __init__(self, addresses: Mapping[str, Address], dice: random.Random) -> None:
        self._addresses = addresses
        self._dice = dice
        self._bad = sorted(set(addresses) - {GOOD})
        self.trouble = 0.0
        self.taken: Counter[str] = Counter()

    async def connect(self, host: str, port: int) -> TimestampedStream:
        """Connect to one of these in place of the requested address."""
        is_bad = self._dice.random() < self.trouble
        way = self._dice.choice(self._bad) if is_bad else GOOD
        self.taken[way] += 1
        return await connect_tcp(*self._addresses[way])


class _Upstream(ScriptedUpstream):
    """Broken connections are what it is for. ``connections`` are those that are open."""

    async def _converse(self, stream: SocketStream) -> None:
        with suppress(anyio.ClosedResourceError, OSError):  # ssl.SSLError is one
            await super()._converse(stream)
        self.connections -= 1


async def _greets(how: str, peer: Conversation) -> None:
    """Does ``how`` when it has got the first byte."""
    await peer.stream.receive(1)
    await end(peer, how)


async def _speaks_plainly(peer: Conversation) -> None:
    await peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await peer.until_disconnected()


def _scripts(script: Script, authority: trustme.CA) -> Iterator[tuple[str, Script]]:
    good = certificate("localhost", authority)
    yield GOOD, over_tls(script, good)
    for kind in _UNTRUSTED:
        yield kind, over_tls(script, certificate(kind, authority))
    for how in ENDS:
        yield f"{how} in the handshake", partial(_greets, how)
        yield f"{how} in the request", over_tls(partial(_greets, how), good)
    yield "no TLS", _speaks_plainly


@contextmanager
def _black_hole() -> Iterator[Address]:
    """A full backlog: a connection attempt gets no response."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        filling = [socket.socket() for _ in range(4)]
        for sock in filling:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()
        finally:
            for sock in filling:
                sock.close()


@dataclass
class Opened:
    """Where each way begins, and what is at its end."""

    addresses: dict[str, Address] = field(default_factory=dict)
    upstreams: list[ScriptedUpstream] = field(default_factory=list)

    @property
    def connections(self) -> int:
        """How many are open."""
        return sum(upstream.connections for upstream in self.upstreams)


@asynccontextmanager
async def opened_ways(script: Script, authority: trustme.CA) -> AsyncIterator[Opened]:
    """``script`` is upstream's at the end of the good way."""
    opened = Opened()
    addresses = opened.addresses
    with _black_hole() as hole, refusing_port() as port:
        addresses |= {"black hole": hole, "refused": ("127.0.0.1", port)}
        addresses["no such name"] = (_NOWHERE, port)
        async with anyio.create_task_group() as tasks:
            for name, each in _scripts(script, authority):
                opened.upstreams.append(_Upstream(each))
                addresses[name] = ("127.0.0.1", await tasks.start(opened.upstreams[-1].serve))
            addresses["slow name"] = (_SLOW, addresses[GOOD][1])
            yield opened
            tasks.cancel_scope.cancel()


@contextmanager
def strange_names() -> Iterator[None]:
    """One name takes its time to be found, another is not there at all."""
    look_up = socket.getaddrinfo

    def strangely(host: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if options.get("flags", 0) & socket.AI_NUMERICHOST:
            return look_up(host, *more, **options)
        if name == _NOWHERE:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        if name == _SLOW:
            time.sleep(_LOOK_UP)
            name = "127.0.0.1"
        return look_up(name, *more, **options)

    socket.getaddrinfo = strangely
    try:
        yield
    finally:
        socket.getaddrinfo = look_up
