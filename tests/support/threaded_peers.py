"""A client and an upstream on plain sockets, in threads of their own: so that the event loop
runs the proxy alone."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader

__all__ = ("ThreadedUpstream", "request_all", "in_chunks", "plain")

# Seconds without progress until a test fails: all calls for 10,000 events may be counted meanwhile,
# which took more than 30 beside 24 other processes on two cores.
_TIMEOUT = 120.0
_READ_BYTES = 16 * 1024


def plain(body: bytes, content_type: bytes = b"application/json") -> bytes:
    """A response with a length."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (content_type, len(body)) + body


def in_chunks(body: bytes, size: int) -> bytes:
    """A body as chunks of so many bytes."""
    cuts = range(0, len(body), size)
    chunks = (body[at : at + size] for at in cuts)
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


class ThreadedUpstream:
    """Responds to every request with the bytes of ``response``."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.response = b""

    @contextmanager
    def serving(self) -> Iterator[None]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield
        finally:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        connection.settimeout(_TIMEOUT)
        with connection, suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as reader:
                while self._read_request(reader):
                    connection.sendall(self.response)

    @staticmethod
    def _read_request(reader: BufferedReader) -> bool:
        fields = _read_head(reader)
        _read_body(reader, int(fields.get(b"content-length", b"0")))
        return bool(fields)


def _read_head(reader: BufferedReader) -> dict[bytes, bytes]:
    """The fields of a head by lower-case name, and its first line under an empty name."""
    fields = {b"": reader.readline()}
    while len(line := reader.readline()) > 2:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip()
    return fields if fields[b""] else {}


def _read_body(reader: BufferedReader, length: int) -> None:
    """Read into one small buffer, so that the memory measured meanwhile is the proxy's."""
    place = memoryview(bytearray(_READ_BYTES))
    while length and (count := reader.readinto1(place[:length])):
        length -= count


def _read_response(reader: BufferedReader) -> int:
    """The status, once the whole response has arrived."""
    fields = _read_head(reader)
    if b"content-length" in fields:
        _read_body(reader, int(fields[b"content-length"]))
    else:
        while size := int(reader.readline(), 16):
            _read_body(reader, size + 2)
        reader.readline()
    return int(fields[b""].split()[1])


def request_all(port: int, requests: bytes, responses: int, write_bytes: int) -> list[int]:
    """Send bytes, so many in a write; the statuses of the responses."""

    def send() -> None:
        with suppress(OSError):  # a refused body need not be read
            for at in range(0, len(requests), write_bytes):
                client.sendall(requests[at : at + write_bytes])

    with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as client:
        sending = threading.Thread(target=send)
        sending.start()
        with client.makefile("rb") as reader:
            statuses = [_read_response(reader) for _ in range(responses)]
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)
        sending.join()
    return statuses
