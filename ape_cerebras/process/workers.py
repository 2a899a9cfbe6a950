"""Several worker processes that serve one port: started, watched, restarted, drained.

The parent reads the settings, opens the sockets and forks; it never has a thread or an event loop,
so a fork copies nothing that is held or half done. A worker therefore is there in milliseconds,
with the settings that were read once, even where a secret's file has gone since; fresh interpreters
would read them, and the program itself, anew at each restart. All signals wait for the parent to
ask for them: none can come at a bad moment, or reach a worker's first steps in its stead.

All workers accept from the same sockets, so that a connection that waits is taken by one that
lives. With sockets of their own (SO_REUSEPORT) the kernel would go on giving connections to one
that has died. They are spread evenly because a worker that has more of them than another waits for
a moment before it takes the next (``Scoreboard.has_more_connections``): of 32 connections, one of
two workers had 17 at most. By chance alone it had up to 30, and by the kernel's hash 21.

A drain is the workers' own; SIGTERM tells them to, and may well come twice: from the parent, and
from who signals all processes of the service. What only the parent can know, that there is no time
left, is on the scoreboard. Ctrl-C and the end of a terminal reach all processes of a group, and
are the parent's affair. If the parent is gone, a pipe that it held open tells.
"""

import os
import select
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import anyio

from ..config.config import Config
from ..config.keys_file import read_keys_file
from ..downstream.listener import Ports, announce
from ..limits.api_keys import log_rejected_keys_file
from ..net.event_loop import run_on
from ..telemetry.logs import Logs
from ..telemetry.multiprocess import Scoreboard, WorkerSlot, forget_worker, share_values
from .hardening import tell
from .signals import IGNORED, ending_signals, until_told

__all__ = ("Work", "next_pause", "serve_with_workers")

Work = Callable[[Config, WorkerSlot, Ports, anyio.Event], Awaitable[None]]

_STANDARD_OUTPUT = 1
_IN_MEMORY = "/dev/shm"  # noqa: S108 - made there with a name of its own, for us alone
_FIRST_PAUSE = 0.1  # seconds before a worker is restarted
_LONGEST_PAUSE = 10.0  # seconds
_GOOD_LIFE = 30.0  # seconds after which a worker's end is no sequel of the last one's
_BEYOND_GRACE = 3.0  # seconds that a worker has to end after its exchanges should have
_FOR_NOW = 3600.0  # seconds; waits are for signals
_LOOK_AGAIN = 0.1  # seconds between looks at an output that is stalled
_LAST_WORDS = 1.0  # seconds for what is waiting at the end
_MAX_WAITING = 1000  # lines


def serve_with_workers(config: Config, ports: Ports, work: Work) -> int:
    """Serve with ``config.async_workers`` processes, each of which does ``work``, until a signal
    ends that; the exit status."""
    return _Parent(config, ports, work).serve()


def next_pause(last: float, lived: float) -> float:
    """Seconds before the next start of a worker that ``lived`` for so long after the ``last``."""
    if lived >= _GOOD_LIFE:
        return _FIRST_PAUSE
    return min(max(2 * last, _FIRST_PAUSE), _LONGEST_PAUSE)


def _where_files_are_memory() -> str | None:
    """None for the system's choice, or the user's. Metrics change all the time, and a container's
    file system may be read-only."""
    chosen = "TMPDIR" in os.environ or not os.access(_IN_MEMORY, os.W_OK)
    return None if chosen else _IN_MEMORY


class _Output:
    """Standard output without a thread: lines wait for as long as that is stalled."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._poll.register(_STANDARD_OUTPUT, select.POLLOUT)
        self._waiting: deque[bytes] = deque(maxlen=_MAX_WAITING)

    def __call__(self, line: bytes) -> None:
        self._waiting.append(line)
        self.flush()

    def flush(self, patience: float = 0.0) -> bool:
        """Write what can be, each line within ``patience`` seconds; whether that was all."""
        while self._waiting and self._poll.poll(patience * 1000):
            with suppress(OSError):
                os.write(_STANDARD_OUTPUT, self._waiting.popleft())
        return not self._waiting


@dataclass
class _Slot:
    """A worker's number, and the process that has it; 0 where there is none for now."""

    number: int
    process: int = 0
    began_at: float = 0.0
    pause: float = 0.0
    due_at: float = 0.0


class _Parent:
    def __init__(self, config: Config, ports: Ports, work: Work) -> None:
        self._config = config
        self._ports = ports
        self._work = work
        self._output = _Output()
        self._logs = Logs(config.log_level, self._output)
        self._scoreboard = Scoreboard(config.async_workers)
        self._slots = [_Slot(number + 1) for number in range(config.async_workers)]
        self._lifeline, self._held_open = os.pipe()
        self._ending = False
        self._kill_at = float("inf")
        self._status = 0
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how a worker ended
        # A keys file is read again at SIGHUP, which then is no reason to end.
        self._ended_by = ending_signals(config.ape_api_keys_file is not None)
        self._awaited = {signal.SIGCHLD, signal.SIGHUP, *self._ended_by, *IGNORED}
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)

    def serve(self) -> int:
        """Return when a signal has ended all; the exit status."""
        try:
            where = _where_files_are_memory()
            self._directory = tempfile.mkdtemp(prefix="ape-cerebras-", dir=where)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            self._logs.event("error", "No directory for the metrics of workers", reason=reason)
            return 1
        try:
            announce(self._logs, self._config, self._ports, workers=self._scoreboard.workers)
            return self._watch()
        finally:
            self._output.flush(_LAST_WORDS)
            shutil.rmtree(self._directory, ignore_errors=True)

    def _watch(self) -> int:
        while self._living or not self._ending:
            self._start_who_is_due()
            caught = signal.sigtimedwait(self._awaited, self._patience())
            if caught is not None and caught.si_signo in self._ended_by:
                self._end()
            elif caught is not None and caught.si_signo == signal.SIGHUP:
                self._reread_keys()
            self._look_who_died()
            self._kill_who_is_late()
        self._logs.event("info", "All workers have ended")
        return self._status

    @property
    def _living(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.process]

    def _patience(self) -> float:
        """Seconds until there is something to do without a signal."""
        now = time.monotonic()
        due = [slot.due_at for slot in self._slots if not slot.process and not self._ending]
        look_at = now + (_FOR_NOW if self._output.flush() else _LOOK_AGAIN)
        return max(0.0, min(*due, self._kill_at, look_at) - now)

    # Starting

    def _start_who_is_due(self) -> None:
        for slot in self._slots:
            if not slot.process and not self._ending and time.monotonic() >= slot.due_at:
                self._start(slot)

    def _start(self, slot: _Slot) -> None:
        slot.began_at = time.monotonic()
        try:
            slot.process = os.fork()
        except OSError as error:  # no room for another process, for now
            reason = os.strerror(error.errno or 0)
            self._schedule(slot, "error", "Cannot start a worker", reason=reason)
        else:
            if not slot.process:
                self._be_worker(slot.number)

    def _schedule(self, slot: _Slot, level: str, message: str, **why: Any) -> None:
        now = time.monotonic()
        slot.pause = next_pause(slot.pause, now - slot.began_at)
        slot.due_at = now + slot.pause
        why["restart_in_seconds"] = slot.pause
        self._logs.event(level, message, worker=slot.number, **why)

    # In a worker

    def _be_worker(self, number: int) -> NoReturn:
        """What a fork does instead of all that its parent would have done."""
        status = 1
        try:
            self._settle_in(number)
            slot = WorkerSlot(number, self._scoreboard, self._directory)
            work = partial(self._work, self._config, slot, self._ports)
            must_end_now = self._scoreboard.must_end_now
            run_on(self._config.backend, until_told, work, self._lifeline, must_end_now)
            self._leave(number)
            status = 0
        except BaseException as error:
            tell("Worker failed", error, number)
        finally:
            os._exit(status)

    def _settle_in(self, number: int) -> None:
        os.close(self._held_open)
        ours = {signal.SIGTERM, signal.SIGCHLD}
        if self._config.ape_api_keys_file is not None:
            ours.add(signal.SIGHUP)
        for not_ours in self._awaited - ours:
            signal.signal(not_ours, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
        share_values(self._directory, number)

    def _leave(self, number: int) -> None:
        """Of workers without a parent the last one clears up."""
        self._scoreboard.mark_down(number)
        is_orphan, _, _ = select.select([self._lifeline], [], [], 0)
        if is_orphan and not self._scoreboard.up:
            shutil.rmtree(self._directory, ignore_errors=True)

    # Keys

    def _reread_keys(self) -> None:
        """For the workers to come, and have those there are do the same."""
        before = self._config.ape_api_keys_file
        if before is None:
            return
        try:
            after = read_keys_file(before.path)
        except ValueError as problem:
            log_rejected_keys_file(self._logs, str(problem))
            return
        self._config = replace(self._config, ape_api_keys_file=after)
        for slot in self._living:
            os.kill(slot.process, signal.SIGHUP)

    # Ending

    def _end(self) -> None:
        """The first time, let exchanges finish; the second time, do not."""
        grace = self._config.graceful_shutdown_timeout
        if self._ending:
            self._scoreboard.end_now()
            grace = 0.0
        self._ending = True
        self._kill_at = time.monotonic() + grace + _BEYOND_GRACE
        self._ports.close()
        for slot in self._living:
            os.kill(slot.process, signal.SIGTERM)

    def _look_who_died(self) -> None:
        for slot in self._living:
            process, status = os.waitpid(slot.process, os.WNOHANG)
            if process:
                self._bury(slot, os.waitstatus_to_exitcode(status))

    def _bury(self, slot: _Slot, code: int) -> None:
        """``code`` is an exit status, or less than 0 a signal's number."""
        process, slot.process = slot.process, 0
        self._scoreboard.mark_down(slot.number)
        forget_worker(self._directory, slot.number)
        if self._ending:
            # SIGTERM ends one that does not serve yet, or no longer.
            self._status |= code not in (0, -signal.SIGTERM)
            return
        if not self._scoreboard.has_served:  # nor will its successors be
            self._logs.event("error", "No worker can serve")
            self._status = 1
            self._end()
            return
        self._scoreboard.count_restart()
        how = {"signal": -code} if code < 0 else {"exit_status": code}
        level = "error" if code else "warning"
        self._schedule(slot, level, "Worker ended", process=process, **how)

    def _kill_who_is_late(self) -> None:
        if time.monotonic() < self._kill_at:
            return
        self._kill_at = float("inf")
        for slot in self._living:
            self._logs.event("error", "Worker does not end, and is killed", worker=slot.number)
            os.kill(slot.process, signal.SIGKILL)
