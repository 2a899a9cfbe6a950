"""A raw stand-in for the API: canned bytes, no parsing worth the name, so that it is not what is
measured. What it answers depends on a word in the request: ``plain``, ``burst``, ``paced``."""

import asyncio
import sys

TOKENS = 100
PACE = 0.005  # seconds between the tokens of a paced stream: 200 a second

_EVENT = (
    b'data: {"id":"chatcmpl-fb114482-912c-4675-890c-fcaeaeb5d38e","choices":[{"delta":%s,'
    b'"index":0}],"created":1787325819,"model":"gpt-oss-120b",'
    b'"system_fingerprint":"fp_e2cabf4999eb0aead3d1","object":"chat.completion.chunk"%s}\n\n'
)
_USAGE = (
    b',"usage":{"total_tokens":169,"completion_tokens":100,"prompt_tokens":69},"time_info":'
    b'{"queue_time":0.0001,"prompt_time":0.0002,"completion_time":0.0003,"total_time":0.0007}'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + _chunk(_EVENT % (b'{"role":"assistant"}', b""))
)
_TOKEN = _chunk(_EVENT % (b'{"content":" some words of it"}', b""))
_TAIL = _chunk(_EVENT % (b"{}", _USAGE)) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_BURST = _HEAD + _TOKEN * TOKENS + _TAIL
_REPLY = (
    b'{"id":"chatcmpl-1","choices":[{"finish_reason":"stop","index":0,"message":'
    b'{"content":"ok","role":"assistant"}}],"model":"gpt-oss-120b"%s}' % _USAGE
)
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_REPLY),
    _REPLY,
)


class Mock(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._inbox = b""
        self._paced: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        self._inbox += data
        head, found, rest = self._inbox.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(rest) < length:
            return
        body, self._inbox = rest[:length], rest[length:]
        if b"burst" in body:
            self._transport.write(_BURST)
        elif b"paced" in body:
            self._paced = asyncio.ensure_future(self._pace())
        else:
            self._transport.write(_PLAIN)

    async def _pace(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport.write(_HEAD)
        began_at = loop.time()
        for number in range(TOKENS):
            await asyncio.sleep(began_at + number * PACE - loop.time())
            self._transport.write(_TOKEN)
        self._transport.write(_TAIL)

    def connection_lost(self, error: Exception | None) -> None:
        if self._paced:
            self._paced.cancel()


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
