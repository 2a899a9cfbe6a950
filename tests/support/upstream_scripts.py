"""Scripts for an upstream's side of a connection."""

from typing import Literal

from end_to_end import TOKEN, Conversation, Script, events

__all__ = (
    "responds",
    "responds_once",
    "closes",
    "one_after_another",
    "one_token_and_no_more",
    "pieces_of",
    "resets",
    "responds_with",
    "silent",
    "streams",
)


async def responds(peer: Conversation) -> None:
    """Respond to every request."""
    while True:
        await peer.request()
        await peer.respond(b"{}")


async def responds_once(peer: Conversation) -> None:
    await peer.request()
    await peer.respond(b"{}")


async def closes(peer: Conversation) -> None:
    await peer.request()


async def resets(peer: Conversation) -> None:
    await peer.request()
    peer.stream.reset()


async def silent(peer: Conversation) -> None:
    """Reads a request, and waits until the other side disconnects."""
    await peer.request()
    await peer.until_disconnected()


def streams(*pieces: bytes, then: Literal["end", "stay", "leave"] = "end") -> Script:
    """A stream of these pieces for every request. ``then``: the body ends, or upstream stays and
    stalls, or closes the connection."""

    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            await peer.stream_head()
            for piece in pieces:
                await peer.chunk(piece)
            if then == "stay":
                await peer.until_disconnected()
            if then != "end":
                return
            await peer.end()

    return script


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


one_token_and_no_more = streams(events(TOKEN), then="stay")


def responds_with(status: int, body: bytes = b"{}", headers: bytes = b"") -> Script:
    async def response(peer: Conversation) -> None:
        await peer.respond(body, status=f"{status} X", headers=headers)

    return response


def one_after_another(*responses: Script) -> Script:
    """One response for each request, whichever connection it comes over; the last for all
    others."""

    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            number = len(peer.upstream.requests)
            await responses[min(number, len(responses)) - 1](peer)

    return script
