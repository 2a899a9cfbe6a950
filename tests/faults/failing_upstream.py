"""An upstream that responds as far as the request itself demands, and then resets the connection,
closes it or stalls."""

import random
import re
import socket
import struct
from typing import NamedTuple

import anyio
import orjson
from anyio.abc import SocketAttribute
from end_to_end import FINISH, TOKEN, Conversation, events

__all__ = ("ENDS", "Plan", "as_requested")

ENDS = ("reset", "close", "stall")
_REFUSALS = ("400 Bad Request", "429 Too Many Requests", "500 Internal Server Error")
_PACE = 0.005  # seconds between the pieces of a response, so that many are in flight at once


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n%s\r\n\r\n"
_STREAM_HEAD = _HEAD % (b"text/event-stream", b"Transfer-Encoding: chunked")
_TOKENS, _LAST = _chunk(events(TOKEN) * 3), _chunk(events(FINISH, b"[DONE]"))
_REPLY = (
    b'{"choices":[{"message":{"content":"a"}}],'
    b'"usage":{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14}}'
)
_PLAIN_HEAD = _HEAD % (b"application/json", b"Content-Length: %d" % len(_REPLY))

# What is sent, by the stage at which upstream is when that has been.
_STREAM = {
    "before the head": b"",
    "inside the head": _STREAM_HEAD[:40],
    "behind the head": _STREAM_HEAD[40:],
    "inside a chunk": _TOKENS[:9],
    "inside an event": _TOKENS[9:50],
    "between chunks": _TOKENS[50:],
    "between others": _TOKENS * 5,
    "inside the end marker": _LAST[:-8],
    "behind the end marker": _LAST[-8:],
    "behind the end": b"0\r\n\r\n",
}
_PLAIN = {
    "before the head": b"",
    "inside the head": _PLAIN_HEAD[:40],
    "behind the head": _PLAIN_HEAD[40:],
    "inside the body": _REPLY[:20],
    "behind the end": _REPLY[20:],
}
_COMPLETE_FROM = ("behind the end marker", "behind the end")


class Plan(NamedTuple):
    """``end`` is one of ``ENDS``, "complete" for none, or "refuse" with a status for the stage."""

    stream: bool
    end: str = "complete"
    stage: str = ""

    @classmethod
    def of_dice(cls, dice: random.Random) -> "Plan":
        """Two of five get a complete response."""
        stream = dice.random() < 0.8
        throw = dice.random()
        if throw < 0.4:
            return cls(stream)
        if throw < 0.5:
            return cls(stream, "refuse", dice.choice(_REFUSALS))
        return cls(stream, dice.choice(ENDS), dice.choice(list(_STREAM if stream else _PLAIN)))

    @property
    def completes(self) -> bool:
        """Whether a client that stays may get a complete response."""
        return self.end == "complete" or self.stage in _COMPLETE_FROM

    def body(self) -> bytes:
        """The request for it."""
        requested = {"stream": self.stream, "user": f"{self.end} {self.stage}"}
        return orjson.dumps({"model": "gpt-oss-120b", "messages": [], **requested})


def _plan_in(request: bytes) -> Plan:
    found = re.search(rb'"user":"(\w+) ([^"]*)"', request)
    if found is None:
        return Plan(stream=False)
    return Plan(b'"stream":true' in request, found[1].decode(), found[2].decode())


async def as_requested(peer: Conversation) -> None:
    """Responds to one request after the other."""
    while True:
        plan = _plan_in(await peer.request())
        peer.upstream.requests.clear()
        if plan.end == "refuse":
            await peer.respond(b'{"message":"no"}', status=plan.stage)
            continue
        for stage, piece in (_STREAM if plan.stream else _PLAIN).items():
            if piece:
                await peer.send(piece)
                await anyio.sleep(_PACE)
            if stage == plan.stage:
                await end(peer, plan.end)
                return


async def end(peer: Conversation, how: str) -> None:
    """End a connection by ``how``; a script that returns closes it."""
    if how == "stall":
        await peer.until_disconnected()
    if how == "reset":
        sock = peer.stream.extra(SocketAttribute.raw_socket)  # through TLS too
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
