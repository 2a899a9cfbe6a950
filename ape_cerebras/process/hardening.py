"""What is told of an exception that nobody expected: types and places, and no text.

Its text can quote a header, and with it a key. Python's own ways to tell of one (its hooks for
programs, threads and finalizers, and ``logging``, by which asyncio tells) all print that text;
``take_over`` has them tell as we do, in a process that is all ours.
"""

import logging
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from traceback import walk_tb

from ..telemetry.logs import Logs

__all__ = ("take_over", "tell", "told_of")

_STANDARD_OUTPUT = 1
_MOST = 8  # exceptions of a tree, and places of each, so that a line stays short


def told_of(error: BaseException) -> list[str]:
    """A text for each exception in a tree of groups, causes and contexts: its type and where it
    came through, the innermost place first."""
    found: list[BaseException] = [error]
    for each in found:
        for more in _behind(each):
            if all(more is not known for known in found):
                found.append(more)
    return [_told(each) for each in found[:_MOST]]


def _behind(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions
    if error.__cause__ is not None:
        yield error.__cause__
    elif error.__context__ is not None and not error.__suppress_context__:
        yield error.__context__


def _told(error: BaseException) -> str:
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_name}"
        for frame, line in walk_tb(error.__traceback__)
    ]
    return " < ".join((type(error).__name__, *reversed(places[-_MOST:])))


def tell(message: str, error: BaseException | None, worker: int | None = None) -> None:
    """Log it. ``message`` is one of our own texts."""
    exceptions = [] if error is None else told_of(error)
    Logs("error", _write, worker).event("error", message, exceptions=exceptions)


def _write(line: bytes) -> None:
    """At once or not at all: it may be the event loop that is kept waiting."""
    with suppress(OSError):
        if select.select([], [_STANDARD_OUTPUT], [], 0)[1]:
            os.write(_STANDARD_OUTPUT, line)


def take_over() -> None:
    """Have Python tell of every exception so, and libraries of whatever they log, in the whole
    process."""
    sys.excepthook = lambda _, error, trace: tell("Failed", error)
    threading.excepthook = lambda failed: tell("A thread failed", failed.exc_value)
    sys.unraisablehook = lambda failed: tell("A finalizer failed", failed.exc_value)
    logging.getLogger().addHandler(_Handler())


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell("A library complains", record.exc_info[1] if record.exc_info else None)
