"""Hardening of a process of our own before it serves: no core dumps, crash reports without texts,
output whatever its encoding and whoever reads it, and few passes of the garbage collector. Forked
workers inherit all of that.

Its memory holds keys, so no core file and no debugger may get it. Exception messages may quote a
header, and with it a key; Python's own reports (its hooks for programs, threads and finalizers, and
``logging``, which asyncio uses) print them. Ours have exception types and code locations only.
"""

import ctypes
import gc
import logging
import os
import resource
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

__all__ = (
    "OutputWriter",
    "end_now",
    "ends_with_its_reader",
    "forbid_core_dumps",
    "report_crash",
    "report_crashes",
    "show_any_text",
    "tune_garbage_collector",
)

_PR_SET_DUMPABLE = 4  # linux/prctl.h
_STANDARD_OUTPUT = 1
_WAITING_LINES = 1000
_LAST_WAIT = 0.1  # seconds for a thread to end by itself
# Objects that make a pass over the youngest; youngest passes that make one over those that survived
# them; passes over these that make one over everything: never.
_COLLECT_AFTER = (5_000, 5, 1_000_000)


def forbid_core_dumps() -> None:
    """Leave no core file, whatever happens.

    The limit keeps the kernel from writing a file, but not from feeding a program (a pipe in
    core_pattern), and can be raised again from outside. On Linux the process is also not dumpable
    (prctl(2), PR_SET_DUMPABLE): no core at all, and its memory, environment and descriptors are
    closed to other processes of the same user. Debuggers and profilers like py-spy have to be
    root's then.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_now(status: int) -> None:
    """Exit where threads would hold the end of the process: in a call that hangs, say a lookup of
    Redis's name, nothing ends them. Otherwise do nothing."""
    others = [each for each in threading.enumerate() if each is not threading.main_thread()]
    if all(each.daemon for each in others):
        return
    for thread in others:
        thread.join(_LAST_WAIT)
    if any(each.is_alive() and not each.daemon for each in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def show_any_text() -> None:
    """Print a question mark where the encoding of standard output lacks a character. Python would
    fail, after a part of the output."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """End where nobody reads standard output any more, as with ``| head``: that is no fault. Python
    would report one, and exit with 120 where it finds that out in its own last flush."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # as it is behind >&-
                sys.stdout.flush()
    except* BrokenPipeError:
        poll = select.poll()
        poll.register(_STANDARD_OUTPUT, 0)  # POLLERR is always reported
        if not poll.poll(0):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STANDARD_OUTPUT)  # for the last flush


def tune_garbage_collector() -> None:
    """Exempt the program itself from garbage collection, and do without full passes.

    A full pass holds the event loop for 79 ms with 1,000 streams open, and 700 ms with 9,750, and
    finds nothing: an exchange and its connection leave no reference cycle, however they end
    (``tests/process/test_hardening_garbage``). The longest pass is now over 30,000 new objects: 10
    to 17 ms, where it was 80 ms with 9,750 streams when survivors were frozen after each full pass.
    Python's default passes over 700 objects at a time, many of requests in flight, cost five times
    as much under plain requests (CPU, CPython 3.11, one core of a virtual server).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


class OutputWriter:
    """Writes lines to standard output without a thread; each waits ``timeout`` seconds at most.

    Lines that cannot be written in time are kept for the next call, up to 1,000 of them.
    """

    def __init__(self, timeout: float = 0.0) -> None:
        self._timeout = timeout
        self._poll = select.poll()
        self._poll.register(_STANDARD_OUTPUT, select.POLLOUT)
        self._waiting: deque[bytes] = deque(maxlen=_WAITING_LINES)

    def __call__(self, line: bytes) -> None:
        self._waiting.append(line)
        self.flush(self._timeout)

    def flush(self, timeout: float = 0.0) -> bool:
        """Write the lines kept, each within ``timeout`` seconds. Returns whether none is left."""
        while self._waiting and self._poll.poll(timeout * 1000):
            with suppress(OSError):
                os.write(_STANDARD_OUTPUT, self._waiting.popleft())
        return not self._waiting


def report_crash(message: str, error: BaseException | None, worker: int | None = None) -> None:
    """Log an exception at once or not at all: the event loop may be waiting. ``message`` is one of
    our own texts."""
    # Here, because this module is the first that the command line imports, to close the process.
    from ..telemetry.logs import Logs, describe_exceptions

    exceptions = [] if error is None else describe_exceptions(error)
    Logs("error", OutputWriter(), worker).event("error", message, exceptions=exceptions)


def report_crashes() -> None:
    """Report every exception that Python would, and whatever libraries log, in the whole
    process."""
    sys.excepthook = lambda _, error, trace: report_crash("Failed", error)
    threading.excepthook = lambda failed: report_crash("A thread failed", failed.exc_value)
    sys.unraisablehook = lambda failed: report_crash("A finalizer failed", failed.exc_value)
    logging.getLogger().addHandler(_CrashHandler())


class _CrashHandler(logging.Handler):
    """OpenTelemetry logs each try of a collector that is down; ``Traces`` counts what is lost."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry."):
            return
        error = record.exc_info[1] if record.exc_info else None
        report_crash("A library reported a problem", error)
