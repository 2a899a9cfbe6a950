"""The event loops there are to run on, by their names in the setting ``BACKEND``.

anyio knows uvloop as an option of asyncio; here it is a backend like the two others.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import sniffio

__all__ = (
    "current_backend",
    "anyio_backend_of",
    "run_on",
)

_T = TypeVar("_T")


def anyio_backend_of(backend: str) -> tuple[str, dict[str, Any]]:
    """The name that anyio has for it, and its options."""
    return ("asyncio", {"use_uvloop": True}) if backend == "uvloop" else (backend, {})


def run_on(backend: str, work: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
    """Run ``work`` on an event loop of its own; what it returns."""
    name, options = anyio_backend_of(backend)
    return anyio.run(work, *arguments, backend=name, backend_options=options)


def current_backend() -> str:
    """The one that is running."""
    library = sniffio.current_async_library()
    if library == "asyncio" and type(asyncio.get_running_loop()).__module__ == "uvloop":
        return "uvloop"
    return library
