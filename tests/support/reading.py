"""Chat requests read at once, and their bodies in one piece."""

from typing import Any, NamedTuple

from steps import result_of

from ape_cerebras.chat.request import read_chat_request
from ape_cerebras.http1.body_parts import Body

__all__ = ("ALIASES", "DEFAULT", "JSON", "Read", "read", "read_whole_chat")

JSON = b"application/json"


class Read(NamedTuple):
    """A ChatRequest."""

    body: bytes
    model: str | None = None
    requested_model: str | None = None
    stream: bool | None = None
    turned: bool = False
    limit: int | None = None


def read_whole_chat(
    body: bytes,
    content_type: bytes,
    content_encoding: bytes,
    default_model: str,
    aliases: dict[str, str],
    **more: Any,
) -> Read:
    """As ``read_chat_request``."""
    whole = Body([body])
    chat = result_of(
        read_chat_request(whole, content_type, content_encoding, default_model, aliases, **more)
    )
    return Read(bytes(chat.body), *chat[1:])


DEFAULT = "the-default"
ALIASES = {"old": "new", "gpt-4": "gpt-oss-120b", 'qu"ote\\': "plain", "plain": 'qu"ote\\'}


def read(
    body: bytes, content_type: bytes = JSON, content_encoding: bytes = b"", *, turn: bool = False
) -> Read:
    return read_whole_chat(body, content_type, content_encoding, DEFAULT, ALIASES, turn=turn)
