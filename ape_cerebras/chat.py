"""What the proxy reads in a chat request's body, and the two things it may edit there.

The body is the client's and goes up byte for byte. Only a model that is missing or aliased, and
``stream`` where a plain request is turned into one for a stream, change, in place: prompt caching
upstream works on exact prefixes, so nothing may be re-serialised, reordered or put in front of the
messages.

Turning adds no ``stream_options``: Cerebras tells usage and timings with the last choice's end,
unasked (recorded in 2026). What a client says in them itself stays as it is, and counts.

Bodies that are not plain JSON (gzip, MessagePack) are opaque: legal upstream, forwarded untouched,
and known by what the answer says of itself.
"""

import re
from collections.abc import Mapping
from secrets import token_hex
from typing import Any, NamedTuple

import orjson

from .errors import BadRequest, UnsupportedMedia

__all__ = ("ChatRequest", "read_chat_request")

_JSON = b"application/json"
_MESSAGE_PACK = frozenset(
    (b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack")
)

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_VALUE = re.compile(rb"\s*:\s*(" + _STRING.pattern + rb"|true|false|null)", re.DOTALL)

# Parsing holds the event loop: 10 MiB of nothing but small members would hold it for a second, what
# is within these numbers for less than 0.2 s. The longest context of a model is 131,072 tokens.
_MAX_STRINGS = 100_000
_MAX_VALUES = 200_000
_MAX_READ_NAMES = 10_000  # at any depth


def _in_any_spelling(name: str) -> str:
    """A pattern for a JSON string's inside: any of its letters may be written as an escape."""
    return "".join(rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)


_READ_NAMES = ("model", "stream")
_SPELLINGS = "|".join(f"(?P<{name}>{_in_any_spelling(name)})" for name in _READ_NAMES)
_READ_NAME = re.compile(rf'"(?:{_SPELLINGS})"(?=\s*:)'.encode())


class ChatRequest(NamedTuple):
    """``body`` as it goes upstream. ``model`` is what upstream is asked for, ``requested_model``
    what the client asked for; both None where the body is opaque. ``stream`` is what the client
    asked for, None likewise; ``turned`` says that upstream is asked for a stream all the same."""

    body: bytes
    model: str | None = None
    requested_model: str | None = None
    stream: bool | None = None
    turned: bool = False


def read_chat_request(
    body: bytes,
    content_type: bytes,
    content_encoding: bytes,
    default_model: str,
    aliases: Mapping[str, str],
    *,
    turn: bool = False,
) -> ChatRequest:
    """Check and read a body; put the default model in, or an alias's target, where it is due. With
    ``turn``, one that asks for a plain reply is made to ask for a stream, if it is plain JSON.

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
    return _read_json(body, default_model, aliases, turn=turn)


def _read_json(
    body: bytes, default_model: str, aliases: Mapping[str, str], *, turn: bool
) -> ChatRequest:
    _refuse_too_many_values(body)
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
    ends_of_names = _find_read_names(body, request)
    asked = default_model if model is None else model
    served = asked if model is None else aliases.get(asked, asked)
    turned = turn and not stream
    changes: dict[str, Any] = {} if served == model else {"model": served}
    if turned:
        changes["stream"] = True
    body = _edited(body, ends_of_names, changes, is_empty=not request)
    return ChatRequest(body, served, asked, bool(stream), turned)


def _refuse_too_many_values(body: bytes) -> None:
    # The quote that opens a string never follows a backslash, so these are no fewer than strings.
    if body.count(b'"') - body.count(b'\\"') > 2 * _MAX_STRINGS:
        raise BadRequest("The body has more strings than this proxy reads.")
    # A text may hold any number of commas: only where there are many is it taken out first.
    if _count_values(body) > _MAX_VALUES and _count_values(_STRING.sub(b"", body)) > _MAX_VALUES:
        raise BadRequest("The body has more values than this proxy reads.")


def _count_values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _find_read_names(body: bytes, request: dict[str, Any]) -> dict[str, int]:
    """Where those of ``_READ_NAMES`` end that are names of the outermost object's members.

    Raises BadRequest where one is there twice: one parser takes the first and another the last, so
    that what is checked here would not be what is used there.
    """
    written = {name: b'"%s"' % name.encode() for name in _READ_NAMES if name in request}
    hidden = b"\\u006" in body or b"\\u007" in body  # perhaps: a letter's escape is somewhere
    if not hidden and all(body.count(name) == 1 for name in written.values()):
        return {name: body.index(text) + len(text) for name, text in written.items()}
    members = _outermost(body)
    if len(members) > len(written):
        raise BadRequest("The body names 'model' or 'stream' more than once.")
    return dict(members)


def _outermost(body: bytes) -> list[tuple[str, int]]:
    """The members of a valid body's outermost object that have one of ``_READ_NAMES``: name, and
    where the name ends.

    A parser tells no places and keeps only one of two equal names. So each name gets another in its
    place, which nobody can guess; the parser then tells which of these are outermost. That takes a
    tenth of the time of walking through the body.
    """
    found: list[tuple[str, int]] = []
    prefix = token_hex(16)

    def rename(place: re.Match[bytes]) -> bytes:
        if len(found) == _MAX_READ_NAMES:
            raise BadRequest("The body names 'model' or 'stream' too often.")
        found.append((str(place.lastgroup), place.end()))
        return b'"%s%d"' % (prefix.encode(), len(found))

    renamed = orjson.loads(_READ_NAME.sub(rename, body))
    return [each for number, each in enumerate(found, 1) if f"{prefix}{number}" in renamed]


def _edited(
    body: bytes, ends_of_names: dict[str, int], changes: dict[str, Any], *, is_empty: bool
) -> bytes:
    """The body with other values for the members that are named."""
    missing = {name: value for name, value in changes.items() if name not in ends_of_names}
    # From the back to the front, so that the places of those still to come hold.
    for name in sorted(
        changes.keys() - missing.keys(), key=ends_of_names.__getitem__, reverse=True
    ):
        body = _replace_value(body, ends_of_names[name], changes[name])
    return _insert_members(body, missing, is_empty=is_empty) if missing else body


def _insert_members(body: bytes, members: dict[str, Any], *, is_empty: bool) -> bytes:
    """Put members in as the first ones, which leaves every other byte where it follows."""
    start = body.index(b"{") + 1
    comma = b"" if is_empty else b","
    return b"%s%s%s%s" % (body[:start], orjson.dumps(members)[1:-1], comma, body[start:])


def _replace_value(body: bytes, end_of_name: int, value: Any) -> bytes:
    """Put another value in place of that of the member named there, a string or a literal."""
    old = _VALUE.match(body, end_of_name)
    if old is None:
        raise AssertionError("a value that was read is in the body")
    return body[: old.start(1)] + orjson.dumps(value) + body[old.end(1) :]
