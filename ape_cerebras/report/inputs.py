"""What is read: files, what patterns match, and standard input, in pieces of whole lines."""

import errno
import glob
import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .texts import printable

__all__ = ("Inputs", "UnusableInput")

_CHUNK_BYTES = 16 * 1024 * 1024
_LONGEST_LINE = 64 * 1024 * 1024  # bytes: an export that is one line; the proxy's have 4 KiB
_MAGIC = b"\x1f\x8b"  # of gzip


class UnusableInput(Exception):
    """What was given cannot be used; our own text."""


@dataclass
class Inputs:
    """The lines of all inputs, in their order."""

    names: list[str]
    _open: list[IO[bytes]]
    _sizes: float
    too_long: int = 0
    """Lines of more than 64 MiB, which are left out."""
    _read: float = 0.0
    _rests: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def opened(cls, given: list[str], stack: ExitStack) -> "Inputs":
        """Raises UnusableInput."""
        names: list[str] = []
        for each in given:
            found = [each] if each == "-" or _exists(each) else sorted(glob.glob(each))
            if not found:
                raise UnusableInput(f"{_shown(each)}: no such file, and none like it")
            names += found
        names = list(dict.fromkeys(names))  # no line counts twice
        opened, sizes = [], 0.0
        for name in names:
            try:
                opened.append(_open(name, stack))
                sizes += 0.0 if name == "-" else Path(name).stat().st_size
            except OSError as error:
                reason = os.strerror(error.errno or errno.EIO)
                raise UnusableInput(f"{_shown(name)}: cannot be read ({reason})") from None
        return cls([*map(_shown, names)], opened, sizes)

    def share_read(self) -> float | None:
        """From 0 to 1; None where that is not known."""
        return min(1.0, self._read / self._sizes) if self._sizes else None

    def chunks(self, number: int) -> Iterator[list[bytes]]:
        """The lines of one input, some at a time, to its present end. Raises UnusableInput."""
        file, rest = self._open[number], self._rests.pop(number, b"")
        before = self._read
        try:
            while chunk := file.read(_CHUNK_BYTES):
                self._read = before + _position(file) if self._sizes else 0.0
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_LINE:
                    self.too_long += 1
                    rest = b""
                yield lines
        except (OSError, EOFError, zlib.error):
            raise UnusableInput(f"{self.names[number]}: cannot be read to its end") from None
        self._rests[number] = rest

    def rests(self) -> Iterator[tuple[str, bytes]]:
        """The last line of each input that no newline ends, with the input's name."""
        for number, rest in self._rests.items():
            yield self.names[number], rest


def _shown(name: str) -> str:
    """The name as text: a file's may be any bytes."""
    return printable(os.fsencode(name).decode("utf-8", "replace"))


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a name; a NUL in it
        return False


def _open(name: str, stack: ExitStack) -> Any:
    """Whether it is packed says the content, as names do not always."""
    if name == "-" and sys.stdin is None:
        raise OSError(errno.EBADF, "")
    if name == "-":
        file: Any = sys.stdin.buffer
    else:
        file = stack.enter_context(open(name, "rb"))  # noqa: SIM115 - the stack closes it
    packed = file.peek(2)[:2] == _MAGIC
    return stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file


def _position(file: IO[bytes]) -> float:
    """How much of the file itself has been read."""
    raw = file.fileobj if isinstance(file, gzip.GzipFile) else file
    try:
        return float(raw.tell())
    except (OSError, AttributeError):
        return 0.0
