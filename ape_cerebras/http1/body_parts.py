"""A body of any size, in parts.

In one piece, 10 MB are as much fresh memory that has to be filled at once: 12 ms where the kernel
gives it out page by page (Linux 6.18, one core of a virtual server), and the event loop waits. So
what may be large is never joined.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ("Body",)

_PART_BYTES = 64 * 1024


class Body:
    """Made of ``parts``, which stay as they are; or of what is added bit by bit."""

    __slots__ = ("_begins", "_last", "_parts", "_size")

    def __init__(self, parts: Iterable[bytes] = ()) -> None:
        self._parts: list[bytes] = []
        self._begins: list[int] = []
        self._size = 0  # of the parts, without the last
        self._last = bytearray()
        for part in parts:
            self._append(part)

    def _append(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self._begins.append(self._size)
            self._size += len(part)

    def add(self, data: bytes | bytearray) -> None:
        """Put some more behind it."""
        self._last += data
        if len(self._last) >= _PART_BYTES:
            self._end_part()

    def _end_part(self) -> None:
        self._append(bytes(self._last))
        self._last.clear()

    @property
    def parts(self) -> list[bytes]:
        """None of them is empty."""
        if self._last:
            self._end_part()
        return self._parts

    def __len__(self) -> int:
        return self._size + len(self._last)

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Body) and bytes(self) == bytes(other)

    def __getitem__(self, where: slice) -> bytes:
        if len(self.parts) == 1:  # as nearly all have
            return self._parts[0][where]
        begin, end, _ = where.indices(len(self))
        return b"".join(self.between(begin, end))

    def between(self, begin: int, end: int) -> Iterator[bytes]:
        """What there is from ``begin`` to ``end``, in parts."""
        parts = self.parts
        index = bisect_right(self._begins, begin) - 1
        while begin < end:
            at = begin - self._begins[index]
            piece = parts[index][at : at + end - begin]
            yield piece
            begin += len(piece)
            index += 1
