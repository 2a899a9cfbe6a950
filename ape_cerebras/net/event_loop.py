"""The event loop that runs: its name, its clock, and how long work shares it.

This is the one module that detects which async library is running. uvloop, an option of asyncio to
anyio, counts as a backend of its own here, as in the setting ``BACKEND``. trio is imported by those
who run on it only.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import sniffio
from anyio.lowlevel import RunVar

__all__ = (
    "ANYIO_BACKENDS",
    "Clock",
    "current_backend",
    "loop_clock",
    "of_this_loop",
    "run_on",
    "yield_shielded",
)

_T = TypeVar("_T")

Clock = Callable[[], float]
"""Monotonic seconds."""

ANYIO_BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "trio": ("trio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
}
"""anyio's name for each backend, and its options."""

_singletons: RunVar[dict[type, Any]] = RunVar("ape_cerebras singletons")


def run_on(backend: str, work: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
    """Run ``work`` on a new event loop, and return its result."""
    name, options = ANYIO_BACKENDS[backend]
    return anyio.run(work, *arguments, backend=name, backend_options=options)


def current_backend() -> str:
    """The backend that is running: ``asyncio``, ``trio`` or ``uvloop``."""
    library = sniffio.current_async_library()
    if library == "asyncio" and type(asyncio.get_running_loop()).__module__ == "uvloop":
        return "uvloop"
    return library


def loop_clock() -> Clock:
    """The running event loop's clock, which can be read without looking for the loop each time."""
    if current_backend() == "trio":
        import trio

        return trio.lowlevel.current_clock().current_time
    # What asyncio's loops read. uvloop caches one reading for a whole iteration.
    return time.monotonic


def of_this_loop(kind: type[_T]) -> _T:
    """The one instance of ``kind`` that the running event loop has, made at the first call."""
    instances = _singletons.get(None)
    if instances is None:
        instances = {}
        _singletons.set(instances)
    if kind not in instances:
        instances[kind] = kind()
    instance: _T = instances[kind]
    return instance


async def yield_shielded() -> None:
    """Yield to the event loop in work that must be completed even when it has been cancelled."""
    with anyio.CancelScope(shield=True):
        await anyio.lowlevel.checkpoint()
