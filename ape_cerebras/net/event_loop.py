"""The event loops there are to run on, by their names in the setting ``BACKEND``.

anyio knows uvloop as an option of asyncio; here it is a backend like the two others.
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import anyio
import sniffio

__all__ = (
    "BACKENDS",
    "BACKEND_HELP",
    "current_backend",
    "anyio_backend_of",
    "read_backend",
    "run_on",
)

_T = TypeVar("_T")

BACKENDS = ("asyncio", "trio", "uvloop")
BACKEND_HELP = f"the event loop: {', '.join(BACKENDS)}"


def read_backend(text: str) -> str:
    """The name of a backend that is installed here, in any case. Raises ValueError."""
    name = text.lower()
    if name not in BACKENDS:
        raise ValueError(f"must be one of {', '.join(BACKENDS)}")
    if name == "uvloop" and find_spec("uvloop") is None:
        raise ValueError("needs a package for uvloop: pip install 'ape-cerebras[uvloop]'")
    return name


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
