"""A process's signals: which end it, and which it ignores; and its own, to systemd.

The first SIGTERM, SIGINT or SIGHUP lets exchanges finish, the second ends them. SIGHUP is left out
where it has been ignored (``nohup``), and where it reloads the keys file.

A service of ``Type=notify`` reports to systemd that it serves, that it ends, and every so often
that its event loop goes round (sd_notify(3)): datagrams to the socket that NOTIFY_SOCKET names.
"""

import errno
import math
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import anyio

from ..config.config import ConfigError
from ..downstream.listener import CannotListen
from ..net.event_loop import run_on
from ..telemetry.logs import Logs
from ..telemetry.multiprocess import Scoreboard
from .hardening import OutputWriter, report_crash

__all__ = (
    "IGNORED",
    "Systemd",
    "at_each_sighup",
    "ending_signals",
    "hold_sighup",
    "report_not_listening",
    "report_wrong_settings",
    "run_until_stopped",
    "unless_stopped",
    "work_until_stopped",
)

_T = TypeVar("_T")
_E = TypeVar("_E", bound=BaseException)

IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that would end a process silently. Python itself ignores SIGPIPE."""
_OUTPUT_TIMEOUT = 1.0  # seconds
_ANOTHER_PORT = "set PORT, --port or METRICS_PORT to another port; 0 is any free one"
_ANOTHER_HOST = "set HOST or --host to an address of this machine; 0.0.0.0 is all of them"
_REMEDIES = {
    errno.EADDRINUSE: _ANOTHER_PORT,
    errno.EACCES: _ANOTHER_PORT,
    errno.EADDRNOTAVAIL: _ANOTHER_HOST,
    errno.EAFNOSUPPORT: _ANOTHER_HOST,
}


def run_until_stopped(
    work: Callable[[anyio.Event], Awaitable[None]], backend: str, *, sighup_held: bool = False
) -> int:
    """Run ``work`` on an event loop until signals end it, and return the exit status.

    ``work`` gets an event that the first signal sets; the second cancels it. ``sighup_held``:
    SIGHUP is no such signal. Whatever ends ``work`` before is logged by its own name: 2 where a
    setting is wrong, else 1.
    """
    status = 0
    try:
        run_on(backend, work_until_stopped, work, ending_signals(sighup_held=sighup_held))
    except* CannotListen as errors:
        report_not_listening(_first(errors))
        status = 1
    except* ConfigError as errors:
        report_wrong_settings(_first(errors))
        status = 2
    except* Exception as errors:
        report_crash("Failed", errors)
        status = 1
    return status


def _first(group: BaseExceptionGroup[_E]) -> _E:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def report_wrong_settings(error: ConfigError) -> None:
    logs = Logs("debug", OutputWriter(_OUTPUT_TIMEOUT))
    for problem in error.problems:
        logs.event("error", "Wrong setting", problem=problem)


def report_not_listening(error: CannotListen) -> None:
    """Log why nothing is served. A lookup's error has a number below 0 (Linux), or none."""
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else "no such address"
    if number == socket.EAI_AGAIN:
        reason = "the name's servers do not respond"
    logs = Logs("debug", OutputWriter(_OUTPUT_TIMEOUT))
    remedy = _REMEDIES.get(number if number > 0 else errno.EADDRNOTAVAIL)
    logs.event("error", "Cannot listen", address=error.filename, reason=reason, remedy=remedy)


class Systemd:
    """The service manager that started this process, if one did. ``tick_every``: seconds between
    two signs of life, half of what it waits for one; infinite where it waits for none."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path[:1] == "@" else path
        self.is_there = path[:1] in ("/", "@") and len(path) > 1
        usec = os.environ.get("WATCHDOG_USEC", "")
        is_ours = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        watches = self.is_there and is_ours and usec.isascii() and usec.isdigit() and len(usec) < 16
        self.tick_every = int(usec) / 2_000_000 if watches and int(usec) else math.inf

    def notify(self, state: bytes) -> None:
        """``READY=1``, ``WATCHDOG=1`` or ``STOPPING=1``. A manager that is gone is none."""
        if not self.is_there:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(state, self._address)

    async def report(self, stop: anyio.Event) -> None:
        """Report that the process serves, its signs of life, and that it ends; until cancelled."""
        self.notify(b"READY=1")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep_ticking)
            await stop.wait()
            self.notify(b"STOPPING=1")

    async def _keep_ticking(self) -> None:
        while self.tick_every < math.inf:
            self.notify(b"WATCHDOG=1")
            await anyio.sleep(self.tick_every)


async def work_until_stopped(
    work: Callable[[anyio.Event], Awaitable[None]],
    ending: tuple[signal.Signals, ...],
    lifeline: int | None = None,
    scoreboard: Scoreboard | None = None,
) -> None:
    """Run ``work`` with an event that the first signal of ``ending`` sets; a second cancels it.

    In a worker, the end of ``lifeline``, a pipe from its parent, sets the event too; and a second
    signal, which may come from elsewhere, cancels the work only if ``scoreboard`` demands it.
    """
    stop = anyio.Event()

    async def watch_signals() -> None:
        with anyio.open_signal_receiver(*ending, *IGNORED) as signals:
            async for number in signals:
                if number in IGNORED:
                    continue
                if stop.is_set() if scoreboard is None else scoreboard.must_end_now():
                    break
                stop.set()
        tasks.cancel_scope.cancel()

    async def watch_lifeline(lifeline: int) -> None:
        await anyio.wait_readable(lifeline)
        stop.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_signals)
        if lifeline is not None:
            tasks.start_soon(watch_lifeline, lifeline)
        await work(stop)
        tasks.cancel_scope.cancel()


async def unless_stopped(work: Callable[[], Awaitable[_T]]) -> _T | None:
    """Run ``work`` and return its result, or cancel it at the first signal and return None."""
    result = None

    async def cancel_at_signal() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            await anext(aiter(signals))
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_signal)
        result = await work()
        tasks.cancel_scope.cancel()
    return result


def ending_signals(*, sighup_held: bool = False) -> tuple[signal.Signals, ...]:
    """The signals that end this process. SIGHUP is one, since a terminal that closes is a reason
    like any other, unless it is ignored or ``sighup_held``."""
    always = (signal.SIGTERM, signal.SIGINT)
    if sighup_held or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return always
    return (*always, signal.SIGHUP)


def hold_sighup() -> None:
    """Keep each SIGHUP pending until ``at_each_sighup``, also in processes forked later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Not every system keeps an ignored signal pending.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def at_each_sighup(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` for each SIGHUP that is pending, or comes."""
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        async for _ in signals:
            await work()
