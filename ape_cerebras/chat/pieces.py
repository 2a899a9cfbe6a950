"""A large JSON text in pieces, each JSON by itself, so that it can be parsed without holding the
event loop. Sans I/O.

A text may be cut behind a comma between two values, at whatever depth, and inside of a long string.
On both sides of a cut the containers that stand open there, and the string, are closed and opened
again, with something in them in place of what is on the other side::

    {"a":[1,2,  →  {"a":[1,2,0]}                            "abc…  →  "abc…"
    3,4],"b":5} →  {"":[0,3,4],"b":5}                       …def"  →  "~…def"

So a text is valid if all its pieces are, for the parser of a piece goes from what it is given at
the beginning through the same states as one that reads the whole; and it ends well only if the
containers that are closed behind a piece are those that it has found open. Who finds the places
to cut can thereby make no invalid text pass, however mistaken.

What a piece holds of an object that begins before it are only the members in the piece. Names and
values are never cut but in long strings; what is in front of the rest of one is ``~``.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

__all__ = ("AT_ONCE", "Malformed", "Piece", "Sparse", "pieces")

AT_ONCE = 100 * 1024
"""Bytes that need not be cut: most of what is sent has less, and is parsed in less than 1 ms."""
_PIECE = 16 * 1024  # bytes; looking into them takes up to 2 ms, whatever they are
_DEEPEST = 1024  # containers inside of one another: orjson's own limit

# Escapes of two bytes that could be mistaken for the end of a string are blanked to these, which no
# string may hold. The second cannot be cut off from the first.
_BLANK = b"\x01\x02"
_BETWEEN_CHARACTERS = re.compile(
    rb"(?<!\\)(?<!\\u)(?<!\\u.)(?<!\\u..)(?<!\\u...)(?<!\\u[Dd][89ABab]..)[^\x02\x80-\xbf]",
    re.DOTALL,
)
_LONGEST_CHARACTER = 12  # bytes: two escapes for one above U+FFFF
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")
_OPENS = {ord("]"): ord("["), ord("}"): ord("{")}

_OUTSIDE, _NAME, _VALUE = range(3)  # of strings, in a member's name, in a value
# The innermost container and where in it → what stands for all before, and for all behind.
_BEGIN = {
    (b"[", _OUTSIDE): b"[0,",
    (b"[", _VALUE): b'["~',
    (b"{", _OUTSIDE): b'{"":0,',
    (b"{", _NAME): b'{"~',
    (b"{", _VALUE): b'{"":"~',
    (b"", _VALUE): b'"~',
}
_END = {
    (b"[", _OUTSIDE): b"0]",
    (b"[", _VALUE): b'"]',
    (b"{", _OUTSIDE): b'"":0}',
    (b"{", _NAME): b'":0}',
    (b"{", _VALUE): b'"}',
    (b"", _VALUE): b'"',
}


class Malformed(ValueError):
    """The text is no JSON."""


class Sparse(ValueError):
    """The text has no place to be cut at for as long as half a piece: nothing but blanks, or a
    number of that length."""


class _Text(Protocol):
    """Bytes, or what can be sliced as they can."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> bytes: ...


class Piece(NamedTuple):
    """``text`` is JSON if the whole is. ``shift``: what a position in it is behind that in the
    whole. ``strings``, ``values``: how many there are in it, about; 0 in the last piece."""

    text: bytes
    shift: int = 0
    strings: int = 0
    values: int = 0


class _Place(NamedTuple):
    """Where a text can be cut: what is open there."""

    containers: bytes = b""  # from the outermost on, each by its opening bracket
    where: int = _OUTSIDE

    def begin(self) -> bytes:
        """What stands for all before."""
        if self == _START:
            return b""
        outer = self.containers[:-1].replace(b"{", b'{"":')
        return outer + _BEGIN[self.containers[-1:], self.where]

    def end(self) -> bytes:
        """What stands for all behind."""
        outer = self.containers[:-1].translate(_CLOSING)[::-1]
        return _END[self.containers[-1:], self.where] + outer


_START = _Place()
_CLOSING = bytes.maketrans(b"[{", b"]}")


def pieces(text: _Text, size: int = _PIECE) -> Iterator[Piece]:
    """The pieces of ``text``, of at most ``size`` bytes of it; itself where it is no larger.

    Raises Malformed where a piece that was valid cannot be followed by valid ones, and Sparse.
    """
    place, start = _START, 0
    while len(text) - start > size:
        part = text[start : start + size]
        cut = _find_cut(part, place)
        begin = place.begin()
        place = cut.place
        whole = begin + part[: cut.at] + place.end()
        yield Piece(whole, start - len(begin), cut.strings, cut.values)
        start += cut.at
    begin = place.begin()
    yield Piece(begin + text[start : len(text)], start - len(begin))


class _Cut(NamedTuple):
    """``strings``, ``values``: how many there are before it."""

    at: int
    place: _Place
    strings: int
    values: int


def _find_cut(part: bytes, begin: _Place) -> _Cut:
    """The last place in ``part`` where it can be cut."""
    blanked = part.replace(b"\\\\", _BLANK).replace(b'\\"', _BLANK) if b"\\" in part else part
    stretches = blanked.split(b'"')  # by turns outside and inside of strings
    return _behind_comma(stretches, begin, len(part)) or _in_string(blanked, stretches, begin)


def _behind_comma(stretches: list[bytes], begin: _Place, size: int) -> _Cut | None:
    """Behind the last comma between two values; None where there is none."""
    first = int(begin.where != _OUTSIDE)
    behind = size
    for index in reversed(range(len(stretches))):
        behind -= len(stretches[index])
        comma = stretches[index].rfind(b",") if index % 2 == first else -1
        if comma >= 0:
            outside = b"".join((*stretches[first:index:2], stretches[index][: comma + 1]))
            containers = _opened(begin.containers, outside)
            if not containers:
                raise Malformed
            return _cut(behind + comma + 1, _Place(containers), index, outside)
        behind -= 1  # the quote in front of it
    return None


def _in_string(blanked: bytes, stretches: list[bytes], begin: _Place) -> _Cut:
    """Inside of the last string, which has to be long, so that it is no name that matters."""
    first = int(begin.where != _OUTSIDE)
    last = len(stretches) - 1
    goes_on = last % 2 != first
    index = last if goes_on else last - 1
    if index < 0 or len(stretches[index]) < len(blanked) // 2:
        _opened(begin.containers, b"".join(stretches[first::2]))  # it may be that it is no JSON
        raise Sparse
    outside = b"".join(stretches[first:index:2])
    containers = _opened(begin.containers, outside)
    before_its_end = len(blanked) - len(stretches[last]) - 1
    at = _between_characters(blanked) if goes_on else before_its_end
    where = begin.where if index == 0 else _where(containers, stretches[index - 1])
    return _cut(at, _Place(containers, where), index, outside)


def _cut(at: int, place: _Place, quotes: int, outside: bytes) -> _Cut:
    values = outside.count(b",") + outside.count(b"[") + outside.count(b"{")
    return _Cut(at, place, quotes // 2, values)


def _where(containers: bytes, before: bytes) -> int:
    """Whether a string that follows ``before`` is a name or a value."""
    is_name = containers.endswith(b"{") and not before.rstrip().endswith(b":")
    return _NAME if is_name else _VALUE


def _between_characters(blanked: bytes) -> int:
    """The last place that divides no character, and no escape or pair of them."""
    for at in range(len(blanked) - 1, len(blanked) - 2 * _LONGEST_CHARACTER, -1):
        if _BETWEEN_CHARACTERS.match(blanked, at):
            return at
    raise Malformed


def _opened(containers: bytes, outside: bytes) -> bytes:
    """The containers that are open behind ``outside``, text without strings."""
    opened = bytearray(containers)
    brackets = outside.translate(None, _NO_BRACKET)
    for bracket in brackets.replace(b"[]", b"").replace(b"{}", b""):
        if bracket not in _OPENS:
            opened.append(bracket)
            if len(opened) > _DEEPEST:
                raise Malformed
        elif not opened or opened.pop() != _OPENS[bracket]:
            raise Malformed
    return bytes(opened)
