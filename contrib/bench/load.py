"""A load generator of the least possible cost: each client sends the same bytes, and looks only for
the bytes that end an answer."""

import asyncio
import time
from dataclasses import dataclass, field

_ENDS = {"plain": b'"total_time":0.0007}}', "burst": b"\r\n0\r\n\r\n", "paced": b"\r\n0\r\n\r\n"}
_FIRST_TOKEN = {"plain": b'"content"', "burst": b'"content"', "paced": b'"content"'}


@dataclass
class Result:
    """What a run gave: answers, and for each the seconds to the first token and to the end."""

    answers: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, kind: str, result: Result, until: float) -> None:
        self._request = request
        self._end = _ENDS[kind]
        self._first = _FIRST_TOKEN[kind]
        self._result = result
        self._until = until
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._tail = b""
        self._seen_first = False
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._tail = (self._tail + data)[-4096:] if self._seen_first else self._tail + data
        if not self._seen_first and self._first in self._tail:
            self._seen_first = True
            self._result.first.append(now - self._sent_at)
        if not self._tail.endswith(self._end):
            return
        self._result.answers += 1
        self._result.total.append(now - self._sent_at)
        if now < self._until:
            self._send()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("cut off in the middle of an answer"))


def request_of(kind: str) -> bytes:
    stream = b"false" if kind == "plain" else b"true"
    body = (
        b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"%s: say something"}],'
        b'"stream":%s}' % (kind.encode(), stream)
    )
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer bench-key\r\n"
        b"Accept: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )


async def run(port: int, kind: str, clients: int, seconds: float) -> Result:
    """Keep ``clients`` connections busy for ``seconds``; every answer begun is waited for."""
    result = Result()
    began_at = time.perf_counter()
    loop = asyncio.get_running_loop()

    def client() -> _Client:
        return _Client(request_of(kind), kind, result, began_at + seconds)

    connections = [await loop.create_connection(client, "127.0.0.1", port) for _ in range(clients)]
    await asyncio.gather(*(protocol.done for _, protocol in connections))
    result.seconds = time.perf_counter() - began_at
    return result
