"""Reading of a chat request's body, edits of the few values that may change, and compression.

The body is the client's and goes upstream byte for byte. Prompt caching works on exact prefixes, so
nothing may be serialised again, reordered or put in front of the messages. Only these
change, each in its place: a model that is missing or an alias, ``stream`` where a plain request is
converted to a stream, and the limit of completion tokens where settings bound it.

A conversion asks for usage in the stream, which a plain reply always has: Cerebras sends it anyway
(recorded in 2026), other servers only when asked. A client's own ``stream_options`` stay as they
are, and count.

Bodies that are not plain JSON (gzip, MessagePack) are binary: legal upstream, forwarded untouched,
and their model is known from the response only.

A body is parsed once, by orjson, in one go: 2 to 10 ms for 1 MB, whatever is in it, and up to
125 ms for 10 MB (CPython 3.11, one core of a virtual server). Bodies with so many values that they
would take longer are refused before they are parsed.
"""

import os
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import anyio
import orjson
from anyio.lowlevel import checkpoint_if_cancelled
from anyio.to_thread import run_sync

from ..config.values import CompletionBounds
from ..errors import BadRequest, UnsupportedMedia
from ..http1.messages import Headers

__all__ = ("ChatRequest", "Compression", "count_contents", "read_chat_request")

_JSON = b"application/json"
_MESSAGE_PACK = frozenset(
    (b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack")
)

# The members that limit a response; the second is the old name.
_LIMIT_NAMES = ("max_completion_tokens", "max_tokens")
_NO_LIMIT = -1  # the API's word for that

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_VALUE = re.compile(rb"\s*:\s*(" + _STRING + rb"|true|false|null|-?[0-9][0-9.eE+-]*)", re.DOTALL)
_EMPTY = re.compile(rb"\s*\}")

# These bound the time that one body can take. The longest context of a model is 131,072 tokens.
_MAX_STRINGS = 100_000
_MAX_VALUES = 200_000
_MAX_READ_NAMES = 10_000  # at any depth
_VALUE_MARKS = (b",", b"[", b"{")
_NO_MARKS = bytes(byte for byte in range(256) if byte not in b'"[]{},')
_MAX_MODEL = 1_000  # characters


_NAMED_TWICE = "The body names 'model', 'stream' or its limit of tokens more than once."
_NO_WHOLE_LIMIT = "The limit of tokens must be a whole number: this proxy has a cap on it."
_NAMED_TOO_OFTEN = "The body names 'model', 'stream' or its limit of tokens too often."
_READ_NAMES = {name: b'"%s"' % name.encode() for name in ("model", "stream", *_LIMIT_NAMES)}
_ESCAPES = (b"\\u005", b"\\u006", b"\\u007")
# Any letter of a name may be written as an escape.
_SPELLINGS = {
    name: "".join(rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)
    for name in _READ_NAMES
}
# In valid JSON a quote that follows no backslash, and is followed by a name and a colon, begins a
# member's name: inside of a string it would be escaped, and no letter may follow a string. Compiled
# when the first body needs it, which takes 5 ms: few bodies do, and every start would.
_READ_NAME = r'"(?<!\\")(?:{})"(?=\s*:)'.format(
    "|".join(f"(?P<{name}>{spelling})" for name, spelling in _SPELLINGS.items())
).encode()

_AS_THEY_ARE = CompletionBounds()

_GZIP_LEVEL = 1
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # with gzip's header
_GZIP = (b"content-encoding", b"gzip")


class ChatRequest(NamedTuple):
    """A chat request as it goes upstream.

    ``model``: the model upstream is to use; ``requested_model``: the one the client named; None in
    a binary body. ``stream``: whether the client wants a stream, None likewise. ``converted``:
    whether upstream is to stream all the same. ``limit``: the most completion tokens, as upstream
    gets it; None where the body names none or is binary. ``choices``: how many the
    body asks for; 1 where it is binary.
    """

    body: bytes
    model: str | None = None
    requested_model: str | None = None
    stream: bool | None = None
    converted: bool = False
    limit: int | None = None
    choices: int = 1


def read_chat_request(
    body: bytes,
    content_type: bytes,
    content_encoding: bytes,
    default_model: str,
    aliases: Mapping[str, str],
    *,
    convert: bool = False,
    bounds: CompletionBounds = _AS_THEY_ARE,
) -> ChatRequest:
    """Check and read a body; put in the default model or an alias's target, and the limit of tokens
    that ``bounds`` require. With ``convert``, a plain request in JSON is made one for a stream.

    Raises UnsupportedMedia, or BadRequest where plain JSON is nothing the API could take, or its
    limit is none that ``bounds`` can be compared with.
    """
    if _is_binary(content_type, content_encoding):
        return ChatRequest(body)
    request = _parse(body)
    names = _find_names(body, request)
    _check(request)
    model, stream = request.get("model"), request.get("stream")
    requested = default_model if model is None else model
    served = requested if model is None else aliases.get(requested, requested)
    converted = convert and not stream
    changes: dict[str, Any] = {} if served == model else {"model": served}
    if converted:
        changes["stream"] = True
        if "stream_options" not in request:
            changes["stream_options"] = {"include_usage": True}
    limits = _bounded(request, bounds)
    changes |= limits
    if changes:
        body = _edited(body, names, changes)
    limit = _limit_in(request | limits if limits else request)
    choices = max(1, _whole_number(request.get("n")) or 1)
    return ChatRequest(body, served, requested, bool(stream), converted, limit, choices)


def _check(request: dict[str, Any]) -> None:
    model, stream = request.get("model"), request.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false.")
    if "model" in request and (not isinstance(model, str) or not model):
        raise BadRequest("'model' must be a non-empty string.")
    if model is not None and len(model) > _MAX_MODEL:
        raise BadRequest("'model' is too long.")


def _is_binary(content_type: bytes, content_encoding: bytes) -> bool:
    """Return whether a body of that kind is not plain JSON. Raises UnsupportedMedia."""
    media_type = content_type.partition(b";")[0].strip().lower()
    coding = content_encoding.strip().lower() or b"identity"
    known = media_type == _JSON or media_type in _MESSAGE_PACK
    if not known or coding not in (b"identity", b"gzip"):
        raise UnsupportedMedia
    return media_type != _JSON or coding == b"gzip"


def _parse(body: bytes) -> dict[str, Any]:
    strings, values = count_contents(body, _MAX_STRINGS, _MAX_VALUES)
    if strings > _MAX_STRINGS:
        raise BadRequest("The body has more strings than this proxy reads.")
    if values > _MAX_VALUES:
        raise BadRequest("The body has more values than this proxy reads.")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("The body is not valid JSON.") from None
    if not isinstance(request, dict):
        raise BadRequest("The body must be a JSON object.")
    return request


def count_contents(text: bytes, most_strings: int, most_values: int) -> tuple[int, int]:
    """Count the strings and values of a JSON text, without parsing it; at least as many as it has.

    A value needs a comma or an opening bracket, a string two quotes, so a short text cannot have
    many, and neither can one with few of these bytes. Only where the bytes exceed a limit are those
    inside of strings left out: a prompt of nothing but commas is one value. A count beyond its
    limit shows that it is exceeded, not by how much.
    """
    if len(text) <= min(most_strings, most_values):
        return 0, 0
    strings, values = text.count(b'"') // 2, sum(map(text.count, _VALUE_MARKS))
    if strings <= most_strings and values <= most_values:
        return strings, values
    outside, quotes = _outside_strings(text, 2 * most_strings)
    return quotes // 2, sum(map(outside.count, _VALUE_MARKS))


def _outside_strings(text: bytes, most_quotes: int) -> tuple[bytes, int]:
    """Return the commas and brackets outside of strings, of a text that begins outside of one, and
    the number of its quotes; no bytes where these are too many."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = text.count(b'"')
    if quotes > most_quotes:
        return b"", quotes
    # A string without marks inside does not matter; without these strings few quotes are left.
    marks = text.translate(None, _NO_MARKS).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2]), quotes


def _find_names(body: bytes, request: dict[str, Any]) -> dict[str, int]:
    """Return where each name of ``_READ_NAMES`` ends that is a member of the outermost object.

    Raises BadRequest where one is there twice: one parser takes the first and another the last, and
    the API might use a value that was not checked here.
    """
    ends, times = {}, 0
    for name, quoted in _READ_NAMES.items():
        if name in request:
            ends[name] = body.find(quoted) + len(quoted)
            times += body.count(quoted)
    if times > _MAX_READ_NAMES:
        raise BadRequest(_NAMED_TOO_OFTEN)
    # Maybe the escape of a letter, or of the underscore, is in a name.
    if body.find(b"\\u00") >= 0 and any(escape in body for escape in _ESCAPES):
        return _outermost(body, re.finditer(_READ_NAME, body))
    if times == len(ends):  # without escapes each stands there at least once
        return ends
    found = (place for name in ends for place in re.finditer(_READ_NAMES[name], body))
    places = sorted(place.start() for place in found)
    member = re.compile(_READ_NAME)
    return _outermost(body, filter(None, (member.match(body, at) for at in places)))


def _outermost(body: bytes, names: Iterable[re.Match[bytes]]) -> dict[str, int]:
    """Return where each outermost name ends, of the names at any depth of a valid body.

    The depth of a name follows from the brackets between it and the one before: to count them takes
    a tenth of the time of walking through the text.
    """
    ends: dict[str, int] = {}
    depth = at = 0
    for number, name in enumerate(names):
        if number == _MAX_READ_NAMES:
            raise BadRequest(_NAMED_TOO_OFTEN)
        between = body[at : name.start()]
        if b'"' in between:
            between, _ = _outside_strings(between, 2 * _MAX_STRINGS)
        depth += between.count(b"{") + between.count(b"[")
        depth -= between.count(b"}") + between.count(b"]")
        at = name.end()
        if depth == 1:
            if name.lastgroup in ends:
                raise BadRequest(_NAMED_TWICE)
            ends[str(name.lastgroup)] = at
    return ends


def _bounded(request: dict[str, Any], bounds: CompletionBounds) -> dict[str, int]:
    """Return the limits to be put into a request, by name: none where it may stay as it is.

    Raises BadRequest where a cap is set and a value is no limit: the API might read a text, or a
    number below -1, as one that is higher.
    """
    if bounds.default is bounds.cap is None:
        return {}
    given = {name: request[name] for name in _LIMIT_NAMES if name in request}
    if bounds.default is not None and all(value is None for value in given.values()):
        # Into the old name if that has a null: both names are one too many for the API.
        return {next(iter(given), _LIMIT_NAMES[0]): bounds.default}
    cap = bounds.cap
    if cap is None:
        return {}
    lowered = {}
    for name, value in given.items():
        number = _whole_number(value)
        if value is not None and (number is None or number < _NO_LIMIT):
            raise BadRequest(_NO_WHOLE_LIMIT)
        if number is not None and (number > cap or number == _NO_LIMIT):
            lowered[name] = cap
    return lowered


def _limit_in(request: dict[str, Any]) -> int | None:
    """Return the most completion tokens that a request names; None where it names none, or one that
    the API might read as a higher one."""
    named = [request[name] for name in _LIMIT_NAMES if request.get(name) is not None]
    if not named:
        return None
    limits = [number for number in map(_whole_number, named) if number is not None and number >= 0]
    return max(limits) if len(limits) == len(named) else None


def _whole_number(value: Any) -> int | None:
    """Return a whole number, however JSON spells it: 1000, 1000.0 or 1e3. None for other values.
    A number of more than 64 bits is a float here."""
    if type(value) is float and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _edited(body: bytes, names: dict[str, int], changes: dict[str, Any]) -> bytes:
    """Return the body with other values for the members in ``changes``; those in ``names`` are
    strings or literals. Missing members become the first ones, so that every other byte still
    follows the same bytes."""
    parts: list[bytes] = []
    at = 0
    missing = {name: value for name, value in changes.items() if name not in names}
    if missing:
        at = body.index(b"{") + 1
        comma = b"" if _EMPTY.match(body, at) else b","
        parts += (body[:at], orjson.dumps(missing)[1:-1], comma)
    for name in sorted(changes.keys() & names.keys(), key=names.__getitem__):
        old = _VALUE.match(body, names[name])
        if old is None:
            raise AssertionError("a value that was read is in the body")
        parts += (body[at : old.start(1)], orjson.dumps(changes[name]))
        at = old.end(1)
    return b"".join((*parts, body[at:]))


def _gzip(body: bytes) -> bytes:
    return zlib.compress(body, _GZIP_LEVEL, _GZIP_WINDOW)


class Compression:
    """Compresses bodies of ``min_bytes`` or more for the way upstream; None: no body. To be made
    inside a running event loop.

    On a slow uplink a long prompt is on its way for longer than it takes to compress it. Level 1 of
    gzip makes a third of a prompt of 1 MB (prose and code) in 15 ms, level 6 a quarter in 38 ms
    (zlib 1.2.13, one core of a server): worth its time only on uplinks of less than 20 Mbit/s.

    zlib releases the interpreter while it works, so a thread does it and the event loop goes on.
    The threads have a limit of their own, so that other work for threads (name lookups) need not
    wait. A client that disconnects meanwhile is released when the thread is done.
    """

    def __init__(self, min_bytes: int | None) -> None:
        self._min_bytes = min_bytes
        self._threads = anyio.CapacityLimiter(os.cpu_count() or 1)

    async def compress(self, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        """Return the headers and the body of a request, the body compressed if it is large enough
        and gets smaller by it. It must not be compressed already."""
        if self._min_bytes is None or len(body) < self._min_bytes:
            return headers, body
        compressed = await run_sync(_gzip, body, limiter=self._threads)
        await checkpoint_if_cancelled()  # the client may have disconnected, which ends no thread
        if len(compressed) >= len(body):
            return headers, body
        return (*(field for field in headers if field[0] != b"content-encoding"), _GZIP), compressed
