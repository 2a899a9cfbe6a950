"""What the proxy reads in a chat request's body, and the few things it may edit there.

The body is the client's and goes up byte for byte. Only a model that is missing or aliased,
``stream`` where a plain request is turned into one for a stream, and the limit of the answer's
tokens where there are settings for that, change, in place: prompt caching
upstream works on exact prefixes, so nothing may be re-serialised, reordered or put in front of the
messages.

Turning adds no ``stream_options``: Cerebras tells usage and timings with the last choice's end,
unasked (recorded in 2026). What a client says in them itself stays as it is, and counts.

Bodies that are not plain JSON (gzip, MessagePack) are opaque: legal upstream, forwarded untouched,
and known by what the answer says of itself.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from secrets import token_hex
from typing import Any, NamedTuple

import orjson

from ..config.values import CompletionBounds
from ..errors import BadRequest, UnsupportedMedia
from ..http1.body_parts import Body
from .occurrences import occurrences
from .pieces import AT_ONCE, Malformed, Piece, Sparse, pieces
from .reservations import LIMIT_NAMES, bounded, limit_in

__all__ = ("ChatRequest", "read_chat_request")

_JSON = b"application/json"
_MESSAGE_PACK = frozenset(
    (b"application/msgpack", b"application/vnd.msgpack", b"application/x-msgpack")
)

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_VALUE = re.compile(rb"\s*:\s*(" + _STRING + rb"|true|false|null|-?[0-9][0-9.eE+-]*)", re.DOTALL)
_EMPTY = re.compile(rb"\s*\}")

# A large body is read in pieces, between which the event loop has its turn: these bound what one
# request may cost in all. The longest context of a model is 131,072 tokens.
_MAX_STRINGS = 100_000
_MAX_VALUES = 200_000
_MAX_READ_NAMES = 10_000  # at any depth, beside as many at the beginning
_MAX_MODEL = 1_000  # characters; what is cut in pieces is longer, so that a model's name never is


def _in_any_spelling(name: str) -> str:
    """A pattern for a JSON string's inside: any of its letters may be written as an escape."""
    return "".join(rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in name)


_READ_NAMES = ("model", "stream", *LIMIT_NAMES)
_PLAIN_NAMES = tuple(b'"%s":' % name.encode() for name in _READ_NAMES)
_ESCAPES = (b"\\u005", b"\\u006", b"\\u007")
_SPELLINGS = "|".join(f"(?P<{name}>{_in_any_spelling(name)})" for name in _READ_NAMES)
_READ_NAME = re.compile(rf'"(?:{_SPELLINGS})"(?=\s*:)'.encode())


_AS_THEY_ARE = CompletionBounds()


class _Member(NamedTuple):
    """One of the outermost object: its value, and where its name ends in a piece of the body."""

    value: Any
    piece: Piece
    end_of_name: int


class _Edit(NamedTuple):
    """Text to be put in place of what is there from ``begin`` to ``end``."""

    begin: int
    end: int
    text: bytes


class ChatRequest(NamedTuple):
    """``body`` as it goes upstream. ``model`` is what upstream is asked for, ``requested_model``
    what the client asked for; both None where the body is opaque. ``stream`` is what the client
    asked for, None likewise; ``turned`` says that upstream is asked for a stream all the same.
    ``limit``: the most tokens that the answer may have, as upstream is told; None where it is not,
    or the body is opaque."""

    body: Body
    model: str | None = None
    requested_model: str | None = None
    stream: bool | None = None
    turned: bool = False
    limit: int | None = None


def read_chat_request(
    body: Body,
    content_type: bytes,
    content_encoding: bytes,
    default_model: str,
    aliases: Mapping[str, str],
    *,
    turn: bool = False,
    bounds: CompletionBounds = _AS_THEY_ARE,
) -> Generator[None, None, ChatRequest]:
    """Check and read a body; put the default model in, or an alias's target, where it is due; and
    the limit of tokens that ``bounds`` ask for. With ``turn``, one that asks for a plain reply is
    made to ask for a stream, if it is plain JSON.

    To be run in steps; returns the request. Raises UnsupportedMedia, or BadRequest where plain JSON
    is not what the API could take.
    """
    media_type = content_type.partition(b";")[0].strip().lower()
    coding = content_encoding.strip().lower() or b"identity"
    if coding not in (b"identity", b"gzip"):
        raise UnsupportedMedia
    if media_type in _MESSAGE_PACK or (media_type == _JSON and coding == b"gzip"):
        return ChatRequest(body)
    if media_type != _JSON:
        raise UnsupportedMedia
    members = yield from _read_members(body)
    return _read(body, members, default_model, aliases, bounds, turn=turn)


def _read(
    body: Body,
    members: dict[str, _Member],
    default_model: str,
    aliases: Mapping[str, str],
    bounds: CompletionBounds,
    *,
    turn: bool,
) -> ChatRequest:
    request = {name: member.value for name, member in members.items()}
    model, stream = request.get("model"), request.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false.")
    if "model" in request and (not isinstance(model, str) or not model):
        raise BadRequest("'model' must be a non-empty string.")
    if model is not None and len(model) > _MAX_MODEL:
        raise BadRequest("'model' is too long.")
    asked = default_model if model is None else model
    served = asked if model is None else aliases.get(asked, asked)
    turned = turn and not stream
    changes: dict[str, Any] = {} if served == model else {"model": served}
    if turned:
        changes["stream"] = True
    limits = bounded(request, bounds)
    changes |= limits
    if changes:
        body = _edited(body, members, changes)
    return ChatRequest(body, served, asked, bool(stream), turned, limit_in(request, limits))


def _read_members(body: Body) -> Generator[None, None, dict[str, _Member]]:
    """Those of ``_READ_NAMES`` that are members of the body's outermost object."""
    reader = _MemberReader()
    try:
        for number, piece in enumerate(_pieces(body)):
            if number:
                yield
            reader.take(piece)
    except (orjson.JSONDecodeError, Malformed):
        raise BadRequest("The body is not valid JSON.") from None
    except Sparse:
        raise BadRequest("The body has a gap between two values that is too long.") from None
    return reader.members


def _pieces(body: Body) -> Iterator[Piece]:
    return pieces(body) if len(body) > AT_ONCE else iter((Piece(bytes(body)),))


class _MemberReader:
    """Finds those of ``_READ_NAMES`` that are members of the outermost object, piece by piece.

    Raises BadRequest where one is there twice: one parser takes the first and another the last, so
    that what is checked here would not be what is used there.
    """

    def __init__(self) -> None:
        self.members: dict[str, _Member] = {}
        self._strings = self._values = self._names = 0  # so far

    def take(self, piece: Piece) -> None:
        self._refuse_too_many(piece)
        request = orjson.loads(piece.text)
        if not isinstance(request, dict):  # nor is any piece if the first is not
            raise BadRequest("The body must be a JSON object.")
        for name, end in self._find_names(piece.text, request):
            if name in self.members:
                raise BadRequest(
                    "The body names 'model', 'stream' or its limit of tokens more than once."
                )
            self.members[name] = _Member(request[name], piece, end)

    def _refuse_too_many(self, piece: Piece) -> None:
        self._strings += piece.strings
        self._values += piece.values
        if self._strings > _MAX_STRINGS:
            raise BadRequest("The body has more strings than this proxy reads.")
        if self._values > _MAX_VALUES:
            raise BadRequest("The body has more values than this proxy reads.")
        # Looking for names takes its time, so they are counted where there can be so many.
        if self._strings + occurrences(b'"', piece.text) // 2 > _MAX_READ_NAMES:
            self._names += sum(piece.text.count(name) for name in _PLAIN_NAMES)
        if self._names > _MAX_READ_NAMES:
            raise BadRequest("The body names 'model', 'stream' or its limit of tokens too often.")

    def _find_names(self, text: bytes, request: dict[str, Any]) -> list[tuple[str, int]]:
        """The outermost members that have one of ``_READ_NAMES``: name, and where the name ends."""
        written = [(name, b'"%s"' % name.encode()) for name in _READ_NAMES if name in request]
        # Perhaps: the escape of a letter, or of the underscore, is somewhere.
        hidden = b"\\u00" in text and any(escape in text for escape in _ESCAPES)
        if hidden or any(text.count(quoted) != 1 for _, quoted in written):
            return self._find_outermost(text)
        return [(name, text.index(quoted) + len(quoted)) for name, quoted in written]

    def _find_outermost(self, text: bytes) -> list[tuple[str, int]]:
        """The same where a name may stand elsewhere too, or be spelled with escapes.

        A parser tells no places and keeps only one of two equal names. So each name gets another in
        its place, which nobody can guess; the parser then tells which of these are outermost. That
        takes a tenth of the time of walking through the text.
        """
        found: list[tuple[str, int]] = []
        prefix = token_hex(16)

        def rename(place: re.Match[bytes]) -> bytes:
            found.append((str(place.lastgroup), place.end()))
            return b'"%s%d"' % (prefix.encode(), len(found))

        renamed = orjson.loads(_READ_NAME.sub(rename, text))
        return [each for number, each in enumerate(found, 1) if f"{prefix}{number}" in renamed]


def _edited(body: Body, members: dict[str, _Member], changes: dict[str, Any]) -> Body:
    """The body with other values for the members that are named."""
    missing = {name: value for name, value in changes.items() if name not in members}
    edits = [
        _replacement(members[name], value) for name, value in changes.items() if name in members
    ]
    if missing:
        edits.append(_insertion(body, missing))
    parts: list[bytes] = []
    at = 0
    for edit in sorted(edits):
        parts += (*body.between(at, edit.begin), edit.text)
        at = edit.end
    return Body((*parts, *body.between(at, len(body))))


def _insertion(body: Body, members: dict[str, Any]) -> _Edit:
    """Put members in as the first ones, which leaves every other byte where it follows."""
    first = next(_pieces(body)).text  # the object begins in it
    start = first.index(b"{") + 1
    comma = b"" if _EMPTY.match(first, start) else b","
    return _Edit(start, start, orjson.dumps(members)[1:-1] + comma)


def _replacement(member: _Member, value: Any) -> _Edit:
    """Put another value in place of a member's, a string or a literal."""
    old = _VALUE.match(member.piece.text, member.end_of_name)
    if old is None:
        raise AssertionError("a value that was read is in the body")
    shift = member.piece.shift
    return _Edit(old.start(1) + shift, old.end(1) + shift, orjson.dumps(value))
