"""Long work in steps, between which the event loop has its turn.

A task has the loop to itself until it waits, so work that takes more than a few milliseconds is
written as a generator that yields after each step. What is large is cut so that none of its steps
takes long, whatever is in it.
"""

from collections.abc import Generator
from typing import TypeVar

import anyio

__all__ = ("run_in_steps", "yield_shielded")

_T = TypeVar("_T")


async def run_in_steps(steps: Generator[object, None, _T]) -> _T:
    """What ``steps`` returns; wherever it yields, the loop has a turn."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result
        await anyio.lowlevel.checkpoint()


async def yield_shielded() -> None:
    """A turn for the loop in work that has to come to its end, even if it has been cancelled."""
    with anyio.CancelScope(shield=True):
        await anyio.lowlevel.checkpoint()
