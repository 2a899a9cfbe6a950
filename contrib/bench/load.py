"""Load generator of the least possible cost, on bare epoll: each client sends the same bytes, and
searches the response only for the marks of its first token and its end.
"""

import json
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from responses import MARK

TIMEOUT = 30.0  # seconds without a byte until a run fails
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Failed(Exception):
    """A run that cannot be counted; the message is the reason."""


@dataclass
class Result:
    """Figures of a run: responses, and for each the seconds to the first token and to the end."""

    responses: int = 0
    seconds: float = 0.0
    own_cpu: float = 0.0
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)


def request_of(word: str, key: str, headers: tuple[str, ...] = (), prompt: int = 0) -> bytes:
    """A chat request for the canned response called ``word``, about ``prompt`` bytes long."""
    text = "All work and no play makes a dull token. " * (prompt // 41)
    return request_with_text(word, text, key, headers)


def request_with_text(word: str, text: str, key: str, headers: tuple[str, ...] = ()) -> bytes:
    """A chat request for the canned response called ``word``, with ``text`` in its prompt."""
    message = {"role": "user", "content": f"{word}: say something. {text}"}
    stream = word not in ("plain", "awaited")
    request = {"model": "gpt-oss-120b", "messages": [message], "stream": stream}
    body = json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {key}",
        "Accept: application/json",
        "User-Agent: OpenAI/Python 3.54.0",
        "Content-Type: application/json",
        *headers,
        f"Content-Length: {len(body)}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Client:
    """One connection, on which one request is under way at a time."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self.waits = False  # for a response, or the rest of one
        self.sock = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def send(self) -> None:
        self.waits = True
        self._begun = self._has_token = False
        self._missing = -1  # of a body whose length is known
        self._seen = b""
        self.requested_at = time.perf_counter()
        self.sock.sendall(self._request)

    def take(self, result: Result) -> bool:
        """Read the bytes that have arrived; whether the response is complete."""
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            data = b""
        now = time.perf_counter()
        if not data:
            raise Failed("cut off in the middle of a response")
        if self._missing > 0:
            self._missing -= len(data)
        self._seen += data
        if not self._begun:
            self._begin()
        if not self._has_token and MARK in self._seen:
            self._has_token = True
            result.first.append(now - self.requested_at)
        if not self._complete():
            if self._has_token and self._begun:
                self._seen = self._seen[-len(_LAST_CHUNK) :]
            return False
        self.waits = False
        result.responses += 1
        result.total.append(now - self.requested_at)
        return True

    def _begin(self) -> None:
        head, found, body = self._seen.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise Failed(f"responded {self._seen[:300].decode(errors='replace')!r}")
        self._begun = True
        _, sized, rest = head.lower().partition(b"content-length:")
        if sized:
            self._missing = int(rest.partition(b"\r\n")[0]) - len(body)

    def _complete(self) -> bool:
        if not self._begun:
            return False
        return self._missing == 0 or self._seen.endswith(_LAST_CHUNK)


class Load:
    """Clients that are connected, to be kept busy for a while, any number of times."""

    def __init__(self, port: int, request: bytes, clients: int) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, Client] = {}
        for _ in range(clients):
            client = Client(port, request)
            self._clients[client.sock.fileno()] = client
            self._epoll.register(client.sock, select.EPOLLIN)

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()
        for client in self._clients.values():
            client.sock.close()

    def send(self, clients: Iterable[Client] | None = None) -> None:
        for client in self._clients.values() if clients is None else clients:
            client.send()

    def run(self, seconds: float) -> Result:
        """Keep all busy for ``seconds``; wait for every response that has begun."""
        result = Result()
        began_at, before = time.perf_counter(), time.process_time()
        until = began_at + seconds
        self.send()
        self.gather(result, lambda: time.perf_counter() < until)
        result.seconds = time.perf_counter() - began_at
        result.own_cpu = time.process_time() - before
        return result

    def exchange(self, number: int) -> Result:
        """So many requests and their responses, all clients busy."""
        result, left = Result(), number - len(self._clients)

        def goes_on() -> bool:
            nonlocal left
            left -= 1
            return left >= 0

        self.send()
        self.gather(result, goes_on)
        return result

    def exchange_in_steps(self, step: Callable[[], object]) -> Result:
        """A stream for each client. ``step`` has the mock send each its next token; it is called
        whenever all have got the one before, however long that takes."""
        result, busy = Result(), set(self._clients.values())
        self.send()
        while busy:
            waiting = set(busy)
            while waiting:
                for client in self._ready():
                    waiting.discard(client)
                    if client.take(result):
                        busy.discard(client)
            if busy:
                step()
        return result

    def gather(self, result: Result, goes_on: Callable[[], bool] = lambda: False) -> None:
        """Read the responses in flight; a client whose response is complete sends its next request
        if ``goes_on`` returns true."""
        busy = len(self._clients)
        while busy:
            for client in self._ready():
                if not client.take(result):
                    continue
                if goes_on():
                    client.send()
                else:
                    busy -= 1

    def _ready(self) -> list[Client]:
        ready = self._epoll.poll(TIMEOUT)
        if not ready:
            raise Failed(f"nothing arrived for {TIMEOUT:.0f} s")
        clients = [self._clients[number] for number, _ in ready]
        for client in clients:
            if not client.waits:  # an idle connection that the other side closes
                self._epoll.unregister(client.sock)
        return [client for client in clients if client.waits]

    def send_one_each(self, at_once: int) -> None:
        """Exchange one request and response on each connection, at most ``at_once`` at a time."""
        waiting = list(self._clients.values())
        busy = [waiting.pop() for _ in range(min(at_once, len(waiting)))]
        self.send(busy)
        result, under_way = Result(), len(busy)
        while under_way:
            for client in self._ready():
                if client.take(result):
                    under_way -= 1
                    if waiting:
                        waiting.pop().send()
                        under_way += 1
