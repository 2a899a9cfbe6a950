"""The floor: h11 reads the client's requests and frames the heads of its responses, httpcore sends
the request and reads the head of the response, and the body is piped as it comes, framing and all.

For requests and responses with a length or in chunks, of HTTP/1.1.
"""

import h11
import httpcore
from floor_sockets import READ_BYTES, ChunkedEnd, Streams, run, wrote

ORIGIN = httpcore.Origin(b"http", b"localhost", 80)


class HeadStream(httpcore.AsyncNetworkStream):
    """httpcore's stream to upstream: a request leaves in one write, and a read gives the head of
    the response and nothing behind it."""

    def __init__(self, streams: Streams) -> None:
        self.reader, self._writer = streams
        self._held: list[bytes] = []

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._held.append(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            await wrote(self._writer, b"".join(self._held))
            self._held.clear()
        return await self.reader.readuntil(b"\r\n\r\n")

    async def aclose(self) -> None:
        self._writer.close()


async def read_request(http: h11.Connection, client: Streams) -> httpcore.Request | None:
    """The client's next request with its body; None at the end of the connection."""
    head, body = None, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await client[0].read(READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            url = httpcore.URL(scheme=b"http", host=b"localhost", port=80, target=head.target)
            fields = head.headers.raw_items()
            return httpcore.Request(head.method, url, headers=fields, content=body)
        else:
            return None


async def relay_response(
    response: httpcore.Response, http: h11.Connection, stream: HeadStream, client: Streams
) -> None:
    reader, writer = stream.reader, client[1]
    held = http.send(h11.Response(status_code=response.status, headers=response.headers)) or b""
    length = next((v for name, v in response.headers if name.lower() == b"content-length"), None)
    if length is not None:
        data = await reader.readexactly(int(length))
        held += http.send(h11.Data(data=data)) or b""
        await wrote(writer, held)
    else:
        end, ended = ChunkedEnd(), False
        while not ended:
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionError
            await wrote(writer, held + data if held else data)
            held, ended = b"", end.is_in(data)
    http.send(h11.EndOfMessage())  # what it gives for chunks has been piped


async def relay(client: Streams, upstream: Streams) -> None:
    http, stream = h11.Connection(h11.SERVER), HeadStream(upstream)
    while (request := await read_request(http, client)) is not None:
        connection = httpcore.AsyncHTTP11Connection(ORIGIN, stream)
        response = await connection.handle_async_request(request)
        await relay_response(response, http, stream, client)
        http.start_next_cycle()


if __name__ == "__main__":
    run(relay)
