"""What a stream adds up to, fed and read at once."""

from typing import NamedTuple

from steps import result_of

from ape_cerebras.chat.assembly import Assembly

__all__ = ("Whole", "feed", "reply_of")


def feed(assembly: Assembly, piece: bytes) -> None:
    result_of(assembly.feed(piece))


class Whole(NamedTuple):
    """A reply, its body in one piece."""

    status: int
    body: bytes


def reply_of(assembly: Assembly) -> Whole:
    status, body = result_of(assembly.reply())
    return Whole(status, bytes(body))
