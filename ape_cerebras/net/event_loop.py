"""The event loop that runs: its name, its clock, how long work shares it, and work beside it.

This is the one module that detects which async library is running. uvloop, an option of asyncio to
anyio, counts as a backend of its own here, as in the setting ``BACKEND``. trio is imported by those
who run on it only.
"""

import asyncio
import errno
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Generic, TypeVar

import anyio
import sniffio
from anyio.lowlevel import RunVar, current_token

__all__ = (
    "ANYIO_BACKENDS",
    "Clock",
    "ThreadCall",
    "current_backend",
    "import_for",
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


def import_for(backend: str, module: str) -> None:
    """Import a module for a process that runs on ``backend`` and on nothing else.

    httpcore imports trio wherever that is installed: a quarter of the CPU of a start, and 4 MB.
    Nothing uses it on another loop, so there httpcore finds none, as where it is not installed.
    """
    is_needless = backend != "trio" and "trio" not in sys.modules
    if is_needless:
        sys.modules["trio"] = None  # type: ignore[assignment]  # "import trio" fails
    try:
        import_module(module)
    finally:
        if is_needless:
            del sys.modules["trio"]


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


class ThreadCall(Generic[_T]):
    """Blocking work in a daemon thread of its own, for calls into the system that may hang.

    Only those wait for its end who await the result and are not cancelled. The threads of asyncio's
    executor, of uvloop and of anyio would be waited for when the process ends: a name lookup held
    it for 7 seconds and more. ``began_at`` is a reading of the loop's clock.

    Raises OSError (EAGAIN, as pthread_create does) where no thread can be started.
    """

    def __init__(self, work: Callable[[], _T]) -> None:
        self._work = work
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._ended = anyio.Event()
        self._token = current_token()
        self.began_at = loop_clock()()
        try:
            threading.Thread(target=self._run, name="thread-call", daemon=True).start()
        except RuntimeError:
            raise OSError(errno.EAGAIN, "no thread") from None

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error
        with suppress(Exception):  # the loop has ended, and nobody waits any more
            anyio.from_thread.run_sync(self._ended.set, token=self._token)

    async def result(self) -> _T:
        """Wait for the result. Raises what the work raised."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]
