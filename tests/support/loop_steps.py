"""The work of an event loop's steps, counted, not timed: a count is the same on every machine,
however busy it is. Work in Python is function calls; work in C, on data of whatever size, allocates
memory for its results. A step of few calls that allocates little memory is short.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from unittest.mock import patch

import sniffio
import trio

__all__ = ("Steps", "watched_steps")


@dataclass(eq=False)
class Steps(trio.abc.Instrument):
    """The maxima over the steps of a loop: function calls, and bytes of memory allocated beyond
    those before the step."""

    most_calls: int = 0
    most_bytes: int = 0
    _calls: int = 0
    _bytes_before: int = 0

    def before_task_step(self, task: object) -> None:
        tracemalloc.reset_peak()
        self._bytes_before, _ = tracemalloc.get_traced_memory()
        self._calls = 0

    def after_task_step(self, task: object) -> None:
        self.most_calls = max(self.most_calls, self._calls)
        _, most = tracemalloc.get_traced_memory()
        self.most_bytes = max(self.most_bytes, most - self._bytes_before)

    def count(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self._calls += 1


@contextmanager
def watched_steps() -> Iterator[Steps]:
    """Watch the steps of the running loop, in this thread."""
    steps = Steps()
    watching = _watching_trio if sniffio.current_async_library() == "trio" else _watching_asyncio
    gc.collect()
    tracemalloc.start()
    sys.setprofile(steps.count)
    try:
        with watching(steps):
            yield steps
    finally:
        sys.setprofile(None)
        tracemalloc.stop()


@contextmanager
def _watching_trio(steps: Steps) -> Iterator[None]:
    trio.lowlevel.add_instrument(steps)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(steps)


@contextmanager
def _watching_asyncio(steps: Steps) -> Iterator[None]:
    run = asyncio.Handle._run

    def watched(handle: asyncio.Handle) -> None:
        steps.before_task_step(handle)
        run(handle)
        steps.after_task_step(handle)

    with patch.object(asyncio.Handle, "_run", watched):
        yield
