"""What the proxy reads in a chat request's body, and the one thing it may edit there: the model.

The body is the client's and goes up byte for byte. Only where the model is missing or aliased does
one value change, in place: prompt caching upstream works on exact prefixes, so nothing may be
re-serialised, reordered or put in front of the messages.

Bodies that are not plain JSON (gzip, MessagePack) are opaque: legal upstream, forwarded untouched,
and known by what the answer says of itself.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from .errors import BadRequest, UnsupportedMedia

__all__ = ("ChatRequest", "read_chat_request")

_JSON = b"application/json"
_MESSAGE_PACK = frozenset(
    (b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack")
)

# One top-level step through a JSON text that is known to be valid: a string, or a bracket.
_STEP = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]]', re.DOTALL)
_VALUE_AFTER_NAME = re.compile(rb"\s*:\s*")
_READ_NAMES = ("model", "stream")


class ChatRequest(NamedTuple):
    """``body`` as it goes upstream. ``model`` is what upstream is asked for, ``requested_model``
    what the client asked for; both None where the body is opaque. ``stream`` likewise."""

    body: bytes
    model: str | None = None
    requested_model: str | None = None
    stream: bool | None = None


def read_chat_request(
    body: bytes,
    content_type: bytes,
    content_encoding: bytes,
    default_model: str,
    aliases: Mapping[str, str],
) -> ChatRequest:
    """Check and read a body; put the default model in, or an alias's target, where it is due.

    Raises UnsupportedMedia, or BadRequest where plain JSON is not what the API could take.
    """
    media_type = content_type.partition(b";")[0].strip().lower()
    coding = content_encoding.strip().lower() or b"identity"
    if coding not in (b"identity", b"gzip"):
        raise UnsupportedMedia
    if media_type in _MESSAGE_PACK or (media_type == _JSON and coding == b"gzip"):
        return ChatRequest(body)
    if media_type != _JSON:
        raise UnsupportedMedia
    return _read_json(body, default_model, aliases)


def _read_json(body: bytes, default_model: str, aliases: Mapping[str, str]) -> ChatRequest:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(request, dict):
        raise BadRequest("The body must be a JSON object.")
    model, stream = request.get("model"), request.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false.")
    if "model" in request and (not isinstance(model, str) or not model):
        raise BadRequest("'model' must be a non-empty string.")
    _refuse_duplicates(body)
    if model is None:
        body = _insert_model(body, default_model, is_empty=not request)
        return ChatRequest(body, default_model, default_model, bool(stream))
    served = aliases.get(model, model)
    if served != model:
        body = _replace_model(body, served)
    return ChatRequest(body, served, model, bool(stream))


def _refuse_duplicates(body: bytes) -> None:
    """Of two equal names one parser takes the first and another the last: what is checked here
    would not be what is used there.

    Walking the body costs about 1 µs for each string or bracket, so it is done only where a name
    could stand twice: written out more than once, or hidden behind a unicode escape.
    """
    if b"\\u" not in body and all(body.count(b'"%s"' % name.encode()) < 2 for name in _READ_NAMES):
        return
    names = [orjson.loads(body[start:end]) for start, end in _top_level_names(body)]
    if any(names.count(name) > 1 for name in _READ_NAMES):
        raise BadRequest("The body names 'model' or 'stream' more than once.")


def _top_level_names(body: bytes) -> list[tuple[int, int]]:
    """Where the member names of the outermost object stand, quotes included."""
    depth = 0
    spans = []
    for step in _STEP.finditer(body):
        first = step[0][0]
        if first in b"{[":
            depth += 1
        elif first in b"}]":
            depth -= 1
        elif depth == 1 and _VALUE_AFTER_NAME.match(body, step.end()):
            spans.append(step.span())
    return spans


def _insert_model(body: bytes, model: str, *, is_empty: bool) -> bytes:
    """Put the member in as the first one, which leaves every other byte where it follows."""
    start = body.index(b"{") + 1
    comma = b"" if is_empty else b","
    return b'%s"model":%s%s%s' % (body[:start], orjson.dumps(model), comma, body[start:])


def _replace_model(body: bytes, model: str) -> bytes:
    """Put another value in place of that of the member ``model``."""
    for start, end in _top_level_names(body):
        if orjson.loads(body[start:end]) == "model":
            gap = _VALUE_AFTER_NAME.match(body, end)
            value = _STEP.match(body, gap.end()) if gap else None
            if value:
                return body[: value.start()] + orjson.dumps(model) + body[value.end() :]
    raise AssertionError("a model that was read is in the body")
