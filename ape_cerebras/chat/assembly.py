"""The completion object that a stream adds up to, sans I/O: the stream's bytes in, a reply out.

A delta is what is to be added to a message, and that is done by one rule for the fields that are
known and for those that are not: text is joined, lists follow one another, objects are put together
field by field, of anything else the last word counts, and null takes nothing away. Only names,
roles and the like are said once and not added up. Calls of tools are told apart by their index,
which no plain reply has. In a choice the same holds around its delta, where logprobs are, but that
a string is no piece of a text there; around the choices the last word counts.

What results is what the API answers to the same request plainly, its members in the same order.

A large read is fed in the parts that ``sse.parts`` makes of it, between which the event loop goes
on. The reply is written in one go: 10 ms for 10 MB of text.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ..errors import InvalidResponse, UpstreamFailed
from .meter import read_json
from .request import count_contents
from .sse import EventReader

__all__ = ("Assembly", "Reply")

_END = b"[DONE]"
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_WEIGHT = 32 * 1024 * 1024
_MAX_VALUES = 20_000  # in one event; they are parsed in 2 ms
_MAX_ITEMS = 1_000  # choices, or calls of tools, in one event

# Of the strings in a delta these are no text to be added to.
_SAID_ONCE = frozenset(("id", "name", "role", "type"))

# The order of members in recorded plain replies; what they do not have comes after.
_COMPLETION = (
    *("id", "choices", "created", "model", "system_fingerprint", "object", "usage", "time_info"),
)
_CHOICE = ("finish_reason", "index", "message")
_MESSAGE = ("content", "reasoning", "tool_calls", "role")

_Fields = dict[str, Any]


class Reply(NamedTuple):
    """What a client that asked for no stream is answered; JSON."""

    status: int
    body: bytes


class Assembly:
    """Takes in a stream, however cut. What comes after the end marker, or an error, is no part of
    the answer."""

    def __init__(self) -> None:
        self._events = EventReader(_MAX_EVENT_BYTES)
        self._unfinished = 0  # bytes of an event that has not ended, at most
        self._fields: _Fields = {}
        self._choices: dict[int, _Choice] = {}
        self._weight = 0
        self._failure: Reply | None = None
        self._ended = False

    def feed(self, chunk: bytes) -> None:
        """Take in the next piece. Raises InvalidResponse where that is no stream of completions, or
        one too large to be held."""
        if self._ended:
            return
        # Too large an event is read over by the reader, and would be missing without a word.
        self._unfinished += len(chunk)
        if self._unfinished > _MAX_EVENT_BYTES:
            raise InvalidResponse
        payloads = self._events.feed(chunk)
        if payloads or self._events.at_boundary:
            self._unfinished = len(chunk)
        for payload in payloads:
            self._ended = self._ended or payload.startswith(_END)
            if not self._ended:
                self._take(payload)

    def _take(self, payload: bytes) -> None:
        _, values = count_contents(payload, 2 * _MAX_VALUES, _MAX_VALUES)
        event = read_json(payload) if values <= _MAX_VALUES else None
        if not isinstance(event, dict):
            raise InvalidResponse
        if event.get("error"):
            self._failure = Reply(_status_of(event), payload)
            self._ended = True
            return
        try:
            self._add(event)
        except RecursionError:
            raise InvalidResponse from None
        if self._weight > _MAX_WEIGHT:
            raise InvalidResponse

    def _add(self, event: _Fields) -> None:
        for name, value in event.items():
            if name == "choices":
                self._weight += _weigh(value)
                for position, part in enumerate(_list(value)):
                    self._choice(_object(part), position).add(part)
            elif name not in self._fields:
                self._weight += len(name) + _weigh(value)
                self._fields[name] = value
            elif value not in (None, self._fields[name]):  # mostly it is what it was
                self._weight += _weigh(value) - _weigh(self._fields[name])
                self._fields[name] = value

    def _choice(self, part: _Fields, position: int) -> "_Choice":
        index = _index_of(part, position)
        return self._choices.setdefault(index, _Choice(index))

    def reply(self) -> Reply:
        """What it adds up to: the completion, or the error that ended it, in the API's own words.

        Raises InvalidResponse where there is neither.
        """
        if self._failure is not None:
            return self._failure
        if not self._choices:
            raise InvalidResponse
        try:
            return Reply(200, _dump(self._whole()))
        except (ValueError, RecursionError):
            raise InvalidResponse from None

    def _whole(self) -> _Fields:
        choices = [choice.whole() for _, choice in sorted(self._choices.items())]
        own = {"choices": choices, "object": "chat.completion"}
        return _ordered({**self._fields, **own}, _COMPLETION)


class _Choice:
    """One of the answers to a request, as far as it has come."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._fields: _Fields = {}
        self._message: _Fields = {}
        self._calls: dict[int, _Fields] = {}

    def add(self, part: _Fields) -> None:
        for name, value in part.items():
            if name == "delta":
                self._add_delta(_object(value))
            else:
                # ``text`` is a message's content of old; other strings here are no text.
                _put(self._fields, name, value, joins=name == "text")

    def _add_delta(self, delta: _Fields) -> None:
        for name, value in delta.items():
            if name == "tool_calls":
                for call in _list(value):
                    self._add_call(_object(call))
            else:
                _put(self._message, name, value, joins=True)

    def _add_call(self, part: _Fields) -> None:
        """One without an index is whole, and a call of its own."""
        index = _index_of(part, max(self._calls, default=-1) + 1)
        call = self._calls.setdefault(index, {})
        for name, value in part.items():
            if name != "index":
                _put(call, name, value, joins=True)

    def whole(self) -> _Fields:
        calls = [_joined(call) for _, call in sorted(self._calls.items())]
        message = {"role": "assistant", **_joined(self._message)}
        if calls:
            message["tool_calls"] = calls
        elif "content" not in message:  # there was no text to send, yet a plain reply says so
            message["content"] = ""
        own = {"index": self._index, "message": _ordered(message, _MESSAGE)}
        return _ordered({"finish_reason": None, **_joined(self._fields), **own}, _CHOICE)


def _put(fields: _Fields, name: str, value: Any, *, joins: bool) -> None:
    """Add what an event says of a field to what has been said; ``joins`` is whether strings are
    pieces of text."""
    known = fields.get(name)
    if value is None:
        fields.setdefault(name, None)
    elif isinstance(value, str) and name in _SAID_ONCE:
        fields[name] = known or value
    elif isinstance(value, str) and joins:
        _known_as(_Text, fields, name).append(value)
    elif isinstance(value, list):
        _known_as(list, fields, name).extend(value)
    elif isinstance(value, dict):
        inner = _known_as(dict, fields, name)
        for each, part in value.items():
            _put(inner, each, part, joins=joins)
    else:
        fields[name] = value


def _known_as(kind: type[Any], fields: _Fields, name: str) -> Any:
    """What is known of a field, if of that kind; else a new one of it."""
    if type(fields.get(name)) is not kind:
        fields[name] = kind()
    return fields[name]


def _ordered(fields: Mapping[str, Any], first: tuple[str, ...]) -> _Fields:
    return {**{name: fields[name] for name in first if name in fields}, **fields}


def _index_of(part: _Fields, otherwise: int) -> int:
    index = part.get("index")
    return index if type(index) is int else otherwise


def _object(value: Any) -> _Fields:
    """For null an empty one. Raises InvalidResponse where it is something else."""
    if value is not None and not isinstance(value, dict):
        raise InvalidResponse
    return value or {}


def _list(value: Any) -> list[Any]:
    """The same for a list, which must not be too long either."""
    if value is not None and not isinstance(value, list):
        raise InvalidResponse
    if value and len(value) > _MAX_ITEMS:
        raise InvalidResponse
    return value or []


def _status_of(event: _Fields) -> int:
    """The HTTP status that an error event tells of itself; ours for it where it tells none."""
    status = event.get("status_code")
    return status if type(status) is int and 400 <= status < 600 else UpstreamFailed.status


class _Text(list[str]):
    """A string in pieces."""


def _joined(value: Any) -> Any:
    """The same with each text in one piece. Raises RecursionError."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(each) for name, each in value.items()}
    return value


def _dump(value: Any) -> bytes:
    """Raises ValueError for a number that JSON does not have, and RecursionError."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # Half of a surrogate pair is written as its escape; beside its other half that is the pair.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _weigh(value: Any) -> int:
    """About how many bytes of JSON it is, without writing it."""
    if isinstance(value, str):
        return len(value) + 4
    if isinstance(value, list):
        return 4 + sum(map(_weigh, value))
    if isinstance(value, dict):
        return 4 + sum(len(name) + 4 + _weigh(each) for name, each in value.items())
    return 8
