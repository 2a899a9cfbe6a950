"""Chat requests, read with a default model and some aliases."""

from ape_cerebras.chat.request import ChatRequest, read_chat_request

__all__ = ("ALIASES", "DEFAULT", "JSON", "read")

JSON = b"application/json"
DEFAULT = "the-default"
ALIASES = {"old": "new", "gpt-4": "gpt-oss-120b", 'qu"ote\\': "plain", "plain": 'qu"ote\\'}


def read(
    body: bytes, content_type: bytes = JSON, content_encoding: bytes = b"", *, convert: bool = False
) -> ChatRequest:
    return read_chat_request(
        body, content_type, content_encoding, DEFAULT, ALIASES, convert=convert
    )
