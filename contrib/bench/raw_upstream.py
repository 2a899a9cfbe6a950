"""Raw mock of the API on bare epoll: canned bytes and almost no parsing, so that the mock is not
what is measured.

    python raw_upstream.py PORT [CERTIFICATE_AND_KEY]

``GET /release`` releases held responses, ``GET /step`` has each send its next write; ``GET /count``
returns how many there are, how many connections, and the size of the last request's body as it
came: ``{"held": 0, "connections": 1, "body": 80}``. Any other GET gets a small response, for peers
that check their upstream's health. A gzip body is inflated completely, as the API has to do that as
well.
"""

import gc
import heapq
import json
import select
import socket
import ssl
import sys
import time
import zlib
from collections.abc import Callable

from responses import RESPONSES, SMALL, CannedResponse

SEARCHED_BYTES = 4096  # of a body, for the name of its response
READ = select.EPOLLIN | select.EPOLLRDHUP
NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Connection:
    """One connection: the part of a request that has arrived, and the bytes still to send."""

    def __init__(self, sock: socket.socket, mock: "Mock") -> None:
        self.sock = sock
        self._mock = mock
        self._secure = isinstance(sock, ssl.SSLSocket)
        self._inbox = b""
        self._missing = 0  # bytes of a body whose response is decided
        self._inflate: Callable[[bytes], bytes] = bytes  # what is done with a body's pieces
        self._response: CannedResponse | None = None
        self._next_write = 0
        self._outbox = b""
        self._waits = False  # until the outbox can go on

    def readable(self) -> bool:
        """Read; False if the peer has closed the connection."""
        while True:
            try:
                data = self.sock.recv(262144)
            except NOT_NOW:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._take(data)
            if not self._secure:  # epoll reports what is left; it does not know what TLS buffers
                return True

    def _take(self, data: bytes) -> None:
        if self._missing:
            self._missing -= len(data)
            self._inflate(data)
        else:
            self._inbox += data
            self._parse()
        if self._response and self._missing <= 0:
            self._begin(self._response)

    def _parse(self) -> None:
        head, found, body = self._inbox.partition(b"\r\n\r\n")
        if found and head.startswith(b"GET "):
            self._inbox = b""
            self.send(self._mock.response_to(head.split(b" ", 2)[1]))
        elif found:
            self._parse_request(head, body)

    def _parse_request(self, head: bytes, body: bytes) -> None:
        _, sized, rest = head.lower().partition(b"content-length:")
        missing = int(rest.partition(b"\r\n")[0]) - len(body) if sized else 0
        if not sized and not body.endswith(b"0\r\n\r\n"):
            return
        if missing > 0 and len(body) < SEARCHED_BYTES:
            return
        self._inbox, self._missing = b"", missing
        self._mock.last_body = len(body) + missing
        compressed = b"\r\ncontent-encoding: gzip" in head.lower()
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress if compressed else bytes
        start = self._inflate(body)[:SEARCHED_BYTES]
        self._response = next(a for word, a in RESPONSES.items() if word + b": say" in start)

    def _begin(self, response: CannedResponse) -> None:
        self._response, self._missing, self._next_write = None, 0, 1
        self.send(response.writes[0])
        if response.held:
            self._mock.held[self] = response
        elif len(response.writes) > 1:
            self._mock.later(time.monotonic(), self, response)

    def go_on(self, response: CannedResponse) -> bool:
        """Send the next write; whether there is one more."""
        self.send(response.writes[self._next_write])
        self._next_write += 1
        return self._next_write < len(response.writes)

    def send(self, data: bytes) -> None:
        if self._outbox:
            self._outbox += data
            return
        self._outbox = data
        self.writable()

    def writable(self) -> None:
        try:
            while self._outbox:
                self._outbox = self._outbox[self.sock.send(self._outbox) :]
        except NOT_NOW:
            pass
        except OSError:
            self._outbox = b""
        if self._waits is not bool(self._outbox):
            self._waits = bool(self._outbox)
            self._mock.epoll.modify(self.sock, READ | (select.EPOLLOUT if self._waits else 0))


class Mock:
    """All connections, and the writes that are due."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self.epoll = select.epoll()
        self.held: dict[Connection, CannedResponse] = {}
        self.last_body = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Connection, CannedResponse]] = []
        self.epoll.register(self._listener, select.EPOLLIN)

    def serve(self) -> None:
        listener = self._listener.fileno()
        while True:
            wait = max(self._due[0][0] - time.monotonic(), 0) if self._due else -1
            for number, event in self.epoll.poll(wait):
                if number == listener:
                    self._accept()
                else:
                    self._serve(number, event)
            self._send_due()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context:
            sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._connections[sock.fileno()] = Connection(sock, self)
        self.epoll.register(sock, READ)

    def _serve(self, number: int, event: int) -> None:
        connection = self._connections[number]
        if event & select.EPOLLOUT:
            connection.writable()
        if event & ~select.EPOLLOUT and not connection.readable():
            del self._connections[number]
            self.held.pop(connection, None)
            connection.sock.close()

    def later(self, began_at: float, connection: Connection, response: CannedResponse) -> None:
        heapq.heappush(self._due, (began_at + response.pace, id(connection), connection, response))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due_at, _, connection, response = heapq.heappop(self._due)
            if connection.sock.fileno() >= 0 and connection.go_on(response):
                self.later(due_at, connection, response)

    def response_to(self, path: bytes) -> bytes:
        if path == b"/release":
            held, self.held = self.held, {}
            for connection, response in held.items():
                connection.go_on(response)
        elif path == b"/step":
            self.held = {each: what for each, what in self.held.items() if each.go_on(what)}
        elif path == b"/count":
            connections = len(self._connections)
            count = {"held": len(self.held), "connections": connections, "body": self.last_body}
            text = json.dumps(count).encode()
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
        return SMALL


def main(port: str, certificate: str = "") -> None:
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    gc.disable()  # nothing here makes cycles
    Mock(int(port), context).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
