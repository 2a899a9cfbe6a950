"""Several worker processes that serve one port: started, watched, restarted, drained.

The parent reads the settings, opens the sockets and forks. It never has a thread or an event loop,
so a fork copies nothing that is locked or half done, and a worker serves within milliseconds, with
the settings that were read once, even where a secret's file has gone since. All signals are pending
until the parent waits for them: none can interrupt it, or reach a worker's first steps.

All workers accept from the same sockets, so that a waiting connection is accepted by a worker that
lives. With sockets of their own (SO_REUSEPORT) the kernel would go on giving connections to one
that has died. Connections are spread evenly because a worker leaves the next one to those that have
fewer (``listener.Precedence``): of 32 connections, one of two workers had 17 at most. By chance
alone it had up to 30, and by the kernel's hash 21.

Each worker drains itself at SIGTERM, which may well come twice: from the parent, and from whoever
signals all processes of the service. Only the parent knows that there is no time left, and sets a
flag on the scoreboard then. Ctrl-C and the end of a terminal reach all processes of a group; the
parent handles them. The parent holds a pipe open, whose end makes orphaned workers drain.
"""

import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import anyio

from ..config.config import Config
from ..config.keys import read_keys_file
from ..downstream.listener import Ports, announce
from ..limits.api_keys import log_rejected_keys_file
from ..net.event_loop import run_on
from ..telemetry.logs import Logs
from ..telemetry.multiprocess import Scoreboard, WorkerSlot, forget_worker, share_values
from .hardening import OutputWriter, report_crash
from .signals import IGNORED, Systemd, ending_signals, work_until_stopped

__all__ = ("Parent", "Work", "restart_delay")

Work = Callable[[Config, WorkerSlot, Ports, anyio.Event], Awaitable[None]]

# Metrics change all the time, and a container's file system may be read-only.
_IN_MEMORY = "/dev/shm"  # noqa: S108 - a directory of ours is made there, with a name of its own
_FIRST_DELAY = 0.1  # seconds before a worker is restarted
_LONGEST_DELAY = 10.0  # seconds
_GOOD_LIFE = 30.0  # seconds after which a worker's end has nothing to do with the last one's
_BEYOND_GRACE = 3.0  # seconds that a worker has to end after its exchanges should have
_NO_TIMEOUT = 3600.0  # seconds; waits are for signals
_RETRY_OUTPUT_EVERY = 0.1  # seconds, while the output is stalled
_READY_EVERY = 0.05  # seconds, while systemd waits for the workers to serve
_FINAL_FLUSH = 1.0  # seconds


def restart_delay(last: float, lived: float) -> float:
    """Seconds before the restart of a worker that ``lived`` for so many; ``last``: the delay of its
    previous restart, 0 if there was none."""
    if lived >= _GOOD_LIFE:
        return _FIRST_DELAY
    return min(max(2 * last, _FIRST_DELAY), _LONGEST_DELAY)


@dataclass
class _Child:
    """A worker's number, and the process that has it; 0 where there is none for now."""

    number: int
    process: int = 0
    began_at: float = 0.0
    delay: float = 0.0
    due_at: float = 0.0


class Parent:
    """Serves with ``config.async_workers`` processes, each of which does ``work``."""

    def __init__(self, config: Config, ports: Ports, work: Work) -> None:
        self._config = config
        self._ports = ports
        self._work = work
        self._output = OutputWriter()
        self._logs = Logs(config.log_level, self._output, run_id=config.run_id)
        self._scoreboard = Scoreboard(config.async_workers)
        self._children = [_Child(number + 1) for number in range(config.async_workers)]
        self._lifeline, self._held_open = os.pipe()
        self._ending = False
        self._kill_at = float("inf")
        self._status = 0
        self._systemd = Systemd()
        self._ready = not self._systemd.is_there
        self._tick_at = time.monotonic() + self._systemd.tick_every
        self._ticks: dict[int, int] = {}
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would hide how a worker ended
        # SIGHUP reloads the keys file where there is one, and does not end anything then.
        self._ended_by = ending_signals(sighup_held=config.ape_api_keys_file is not None)
        self._awaited = {signal.SIGCHLD, signal.SIGHUP, *self._ended_by, *IGNORED}
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, self._awaited)

    def serve(self) -> int:
        """Serve until a signal ends that; the exit status."""
        chosen = "TMPDIR" in os.environ or not os.access(_IN_MEMORY, os.W_OK)
        try:
            where = None if chosen else _IN_MEMORY
            self._directory = tempfile.mkdtemp(prefix="ape-cerebras-", dir=where)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            self._logs.event("error", "No directory for the metrics of workers", reason=reason)
            return 1
        try:
            announce(self._logs, self._config, self._ports, workers=self._scoreboard.workers)
            while self._living or not self._ending:
                self._start_due_workers()
                self._handle_signal(signal.sigtimedwait(self._awaited, self._seconds_to_wait()))
                self._reap_workers()
                self._kill_late_workers()
                self._notify_systemd()
            self._logs.event("info", "All workers have ended")
            return self._status
        finally:
            self._output.flush(_FINAL_FLUSH)
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def _living(self) -> list[_Child]:
        return [child for child in self._children if child.process]

    def _seconds_to_wait(self) -> float:
        """Seconds until there is something to do without a signal."""
        now = time.monotonic()
        due = [child.due_at for child in self._children if not child.process and not self._ending]
        at_latest = now + (_NO_TIMEOUT if self._output.flush() else _RETRY_OUTPUT_EVERY)
        if not self._ready:
            at_latest = now + _READY_EVERY
        return max(0.0, min(*due, self._kill_at, self._tick_at, at_latest) - now)

    def _notify_systemd(self) -> None:
        """That the workers serve; and that all their event loops go round, or one is hung and the
        whole service has to be restarted, since a worker that hangs keeps what it accepted."""
        if not self._ready and self._scoreboard.up == self._scoreboard.workers:
            self._ready = True
            self._systemd.notify(b"READY=1")
        now = time.monotonic()
        if now < self._tick_at:
            return
        self._tick_at = now + self._systemd.tick_every
        before, self._ticks = self._ticks, dict(self._scoreboard.ticks)
        if all(before.get(number) != tick for number, tick in self._ticks.items()):
            self._systemd.notify(b"WATCHDOG=1")

    def _handle_signal(self, caught: signal.struct_siginfo | None) -> None:
        if caught is None:
            return
        if caught.si_signo in self._ended_by:
            self._end()
        elif caught.si_signo == signal.SIGHUP and self._config.ape_api_keys_file is not None:
            self._reload_keys(self._config.ape_api_keys_file.path)

    def _reload_keys(self, path: str) -> None:
        """For later workers, and have the present ones do the same."""
        try:
            keys_file = read_keys_file(path)
        except ValueError as problem:
            log_rejected_keys_file(self._logs, str(problem))
            return
        except Exception as error:  # nobody knows which; nothing in a file may end the service
            report_crash("Keys file not read, the keys stay as they were", error)
            return
        self._config = replace(self._config, ape_api_keys_file=keys_file)
        for child in self._living:
            os.kill(child.process, signal.SIGHUP)

    def _start_due_workers(self) -> None:
        for child in self._children:
            now = time.monotonic()
            if child.process or self._ending or now < child.due_at:
                continue
            child.began_at = now
            try:
                child.process = os.fork()
            except OSError as error:  # no room for another process, for now
                reason = os.strerror(error.errno or 0)
                self._schedule(child, "error", "Cannot start a worker", reason=reason)
            else:
                if not child.process:
                    self._be_worker(child.number)

    def _schedule(self, child: _Child, level: str, message: str, **why: Any) -> None:
        now = time.monotonic()
        child.delay = restart_delay(child.delay, now - child.began_at)
        child.due_at = now + child.delay
        why["restart_in_seconds"] = child.delay
        self._logs.event(level, message, worker=child.number, **why)

    def _be_worker(self, number: int) -> NoReturn:
        """Serve, and end this process: a fork must do nothing of what its parent would go on to
        do."""
        status = 1
        try:
            os.close(self._held_open)
            handled = {signal.SIGTERM, signal.SIGCHLD}
            if self._config.ape_api_keys_file is not None:
                handled.add(signal.SIGHUP)
            for ignored in self._awaited - handled:
                signal.signal(ignored, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)
            share_values(self._directory, number)
            slot = WorkerSlot(number, self._scoreboard, self._directory)
            work = partial(self._work, self._config, slot, self._ports)
            ending = (signal.SIGTERM,)
            backend, lifeline = self._config.backend, self._lifeline
            run_on(backend, work_until_stopped, work, ending, lifeline, self._scoreboard)
            self._scoreboard.mark_down(number)
            is_orphan, _, _ = select.select([self._lifeline], [], [], 0)
            if is_orphan and not self._scoreboard.up:  # the last worker clears up then
                shutil.rmtree(self._directory, ignore_errors=True)
            status = 0
        except BaseException as error:
            report_crash("Worker failed", error, number)
        finally:
            os._exit(status)

    def _end(self) -> None:
        """The first time, let exchanges finish; the second time, end them."""
        grace = self._config.graceful_shutdown_timeout
        if self._ending:
            self._scoreboard.end_now()
            grace = 0.0
        self._ending = True
        self._systemd.notify(b"STOPPING=1")
        self._kill_at = time.monotonic() + grace + _BEYOND_GRACE
        self._ports.close()
        for child in self._living:
            os.kill(child.process, signal.SIGTERM)

    def _reap_workers(self) -> None:
        for child in self._living:
            process, status = os.waitpid(child.process, os.WNOHANG)
            if process:
                child.process = 0
                self._scoreboard.mark_down(child.number)
                forget_worker(self._directory, child.number)
                self._note_end(child, process, os.waitstatus_to_exitcode(status))

    def _note_end(self, child: _Child, process: int, code: int) -> None:
        """``code`` is an exit status, or if negative a signal's number."""
        if self._ending:
            # SIGTERM ends a worker that does not serve yet, or any more.
            self._status |= code not in (0, -signal.SIGTERM)
        elif not self._scoreboard.has_served:  # nor will its successors
            self._logs.event("error", "No worker can serve")
            self._status = 1
            self._end()
        else:
            self._scoreboard.count_restart()
            how = {"signal": -code} if code < 0 else {"exit_status": code}
            level = "error" if code else "warning"
            self._schedule(child, level, "Worker ended", process=process, **how)

    def _kill_late_workers(self) -> None:
        if time.monotonic() < self._kill_at:
            return
        self._kill_at = float("inf")
        for child in self._living:
            self._logs.event("error", "Worker does not end, and is killed", worker=child.number)
            os.kill(child.process, signal.SIGKILL)
