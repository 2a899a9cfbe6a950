"""Large JSON, read and written in steps, between which the event loop has its turn.

A thread would be no help: who parses or writes in C lets nobody else go on meanwhile.
"""

import json
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import orjson

from ..http1.body_parts import Body
from .pieces import AT_ONCE, pieces

__all__ = ("Text", "dump", "is_light")

_VALUES_AT_MOST = 20_000  # of what is larger than that; they are read in 2 ms


def is_light(text: bytes) -> Generator[None, None, bool]:
    """Whether a text can be parsed at once: it is small, or large by its strings only."""
    if len(text) <= AT_ONCE:
        return True
    values = 0
    try:
        for piece in pieces(text):
            yield
            values += piece.values
            if values > _VALUES_AT_MOST:
                return False
    except ValueError:  # it is no JSON
        return False
    return True


class Text(list[str]):
    """A string in pieces."""


def dump(value: Any, size: int) -> Generator[None, None, Body]:
    """A value as JSON, which has about ``size`` bytes. Of a large one the members of objects, the
    items of tuples and a ``Text`` may be large; the items of lists are written at once.

    Raises ValueError for a number that JSON does not have, and RecursionError.
    """
    if size <= AT_ONCE:
        with suppress(orjson.JSONEncodeError):
            return Body([orjson.dumps(value, "".join, orjson.OPT_PASSTHROUGH_SUBCLASS)])
    return (yield from _dump_in_steps(value))


def _dump_in_steps(value: Any) -> Generator[None, None, Body]:
    written = Body()
    paused_at = 0
    for part in _parts(value):
        written.add(part)
        if len(written) - paused_at > AT_ONCE:
            paused_at = len(written)
            yield
    return written


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        members = (chain((_dump_at_once(name), b":"), _parts(each)) for name, each in value.items())
        return _enclosed(b"{", members, b"}")
    if isinstance(value, tuple):
        return _enclosed(b"[", map(_parts, value), b"]")
    if isinstance(value, Text):
        return _string_parts(value)
    if isinstance(value, list):
        return _enclosed(b"[", ((_dump_at_once(each),) for each in value), b"]")
    return iter((_dump_at_once(value),))


def _string_parts(text: Text) -> Iterator[bytes]:
    yield b'"'
    some, size = [], 0
    for piece in text:
        some.append(piece)
        size += len(piece) + 1
        if size > AT_ONCE:
            yield _dump_at_once("".join(some))[1:-1]
            some, size = [], 0
    yield _dump_at_once("".join(some))[1:]


def _enclosed(begin: bytes, items: Iterable[Iterable[bytes]], end: bytes) -> Iterator[bytes]:
    yield begin
    comma = b""
    for item in items:
        yield comma
        yield from item
        comma = b","
    yield end


def _dump_at_once(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # Half of a surrogate pair is written as its escape; beside its other half that is the pair.
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
