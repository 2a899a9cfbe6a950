"""Waiting in an event loop without knowing for how long: for a condition, or for all other tasks.

anyio's ``wait_all_tasks_blocked`` looks every 0.1 s on asyncio. Beside a task that wakes as often,
as the proxy's watch of the loop's lag does, it may look each time at the moment when that task has
been woken and has not run yet, and so never return.
"""

import asyncio
from collections.abc import Callable

import anyio
import anyio.lowlevel
import sniffio
import trio.testing

__all__ = ("TIMEOUT", "until", "wait_all_tasks_blocked")

TIMEOUT = 5.0  # seconds until a test that waits for something fails

_waiting = set[asyncio.Task[object] | None]()


async def until(is_so: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    """Return once ``is_so`` returns true; it is called in every iteration of the loop. Raises
    TimeoutError."""
    with anyio.fail_after(timeout):
        while not is_so():
            await anyio.lowlevel.checkpoint()


async def wait_all_tasks_blocked() -> None:
    """Return once all tasks of this event loop wait for something, but for those that wait here."""
    if sniffio.current_async_library() == "trio":
        await trio.testing.wait_all_tasks_blocked()
        return
    this_task = asyncio.current_task()
    _waiting.add(this_task)
    try:
        while True:
            await asyncio.sleep(0)
            if not any(_can_run(task) for task in asyncio.all_tasks() - _waiting):
                return
    finally:
        _waiting.remove(this_task)


def _can_run(task: asyncio.Task[object]) -> bool:
    waits_for = task._fut_waiter  # type: ignore[attr-defined]
    return waits_for is None or waits_for.done()
