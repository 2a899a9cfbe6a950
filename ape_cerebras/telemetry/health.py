"""The state of the service: the report of ``/health``, and whether the service is degraded.

It is degraded, over a sliding minute of at least 20 chat exchanges, for two reasons: ``ttft``, when
the 95th percentile (nearest rank) of TTFT is above its target; and ``failures``, when more than 5 %
of the exchanges failed through no fault of their client. No TTFT has to be kept for that: the
percentile is above the target exactly if more than 5 % of the values are. It has recovered when no
more than half of that share is bad, so that a share near the limit does not change it back and
forth.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from ..config.config import Config
from ..net.event_loop import loop_clock
from ..version import VERSION
from .exchange import Exchange
from .logs import Logs
from .metric_table import DEGRADED_REASONS
from .metrics import LiveState, Metrics
from .multiprocess import WorkerSlot
from .outcomes import OUTCOMES
from .timings import Timings

__all__ = ("Degradation", "Health", "SlidingMinute")

_WINDOW = 60  # seconds
_MIN_SAMPLES = 20
_ENTERS_ABOVE, _LEAVES_AT = 0.05, 0.025  # shares
_ACCOUNT_REFUSED = {
    "upstream_key_refused": "Upstream refuses the account's key",
    "upstream_payment_required": "Upstream wants the account to be paid for",
}


class SlidingMinute:
    """Counts of the last 60 seconds, by name, in steps of a second."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, dict[str, int]]] = deque()

    def add(self, now: float, *names: str) -> None:
        """Count one of each name."""
        self._advance(now)
        counts = self._seconds[-1][1]
        for name in names:
            counts[name] = counts.get(name, 0) + 1

    def total(self, now: float, name: str) -> int:
        self._advance(now)
        return sum(counts.get(name, 0) for _, counts in self._seconds)

    def _advance(self, now: float) -> None:
        second = math.floor(now)
        if self._seconds and self._seconds[-1][0] >= second:
            return
        self._seconds.append((second, {}))
        while self._seconds[0][0] <= second - _WINDOW:
            self._seconds.popleft()


class Degradation:
    """Decides whether the service is degraded. ``ttft_target``: seconds, or None without one."""

    def __init__(self, ttft_target: float | None) -> None:
        self._target = math.inf if ttft_target is None else ttft_target
        self._minute = SlidingMinute()
        self._degraded: tuple[str, ...] = ()

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Count a chat exchange that has ended."""
        ttft = timings.ttft_seconds
        names = ["exchanges", timings.outcome]
        if timings.traits.degrades:
            names.append("failures")
        if ttft is not None:
            names.append("ttfts")
            if ttft > self._target:
                names.append("missed")
        self._minute.add(exchange.finished_at, *names)

    def reasons(self, now: float) -> tuple[str, ...]:
        """Why the service is degraded; empty where it is not."""
        self._degraded = tuple(
            reason for reason in DEGRADED_REASONS if self._is_degraded(reason, now)
        )
        return self._degraded

    def _is_degraded(self, reason: str, now: float) -> bool:
        bad, samples = self._counts(reason, now)
        if reason in self._degraded:
            return bad > _LEAVES_AT * samples
        return samples >= _MIN_SAMPLES and bad > _ENTERS_ABOVE * samples

    def _counts(self, reason: str, now: float) -> tuple[int, int]:
        """How many are bad, of how many."""
        names = {"ttft": ("missed", "ttfts"), "failures": ("failures", "exchanges")}[reason]
        bad, samples = (self._minute.total(now, name) for name in names)
        return bad, samples

    def figures(self, reason: str, now: float) -> dict[str, Any]:
        """What that is decided by, for the log."""
        bad, samples = self._counts(reason, now)
        of_failures = reason == "failures"
        outcomes = [name for name, each in OUTCOMES.items() if each.degrades or not of_failures]
        figures: dict[str, Any] = {
            "share": round(bad / samples, 4) if samples else 0.0,
            "target": _ENTERS_ABOVE,
            "samples": samples,
            "main_outcome": max(outcomes, key=lambda name: self._minute.total(now, name)),
        }
        return figures if of_failures else {**figures, "ttft_target_seconds": self._target}


class Health:
    """The health of one proxy. ``slot`` is a worker's."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        logs: Logs,
        read_state: Callable[[], LiveState] = LiveState,
        slot: WorkerSlot | None = None,
    ) -> None:
        self._metrics = metrics
        self._logs = logs
        self._read_state = read_state
        self._slot = slot
        target = None if config.ttft_target_ms is None else config.ttft_target_ms / 1000
        self._degradation = Degradation(target)
        self._degraded: tuple[str, ...] = ()
        self._refused, self._refused_at = "", -math.inf  # the outcome, and when it last was
        self._clock = loop_clock()
        self._started_at = self._clock()

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Take account of an exchange that has ended."""
        if timings.is_chat:
            self._degradation.observe(exchange, timings)
            if timings.outcome in _ACCOUNT_REFUSED:
                self._note_account(exchange, timings.outcome)

    def _note_account(self, exchange: Exchange, outcome: str) -> None:
        """Log that the API refuses the account: once, until that has not happened for a minute."""
        if outcome != self._refused:
            message, trace_id = _ACCOUNT_REFUSED[outcome], exchange.trace_id
            status = exchange.upstream_status
            self._logs.event("error", message, trace_id=trace_id, upstream_status=status)
        self._refused, self._refused_at = outcome, exchange.finished_at

    def report(self) -> tuple[int, dict[str, object]]:
        """Status and body of the response to ``GET /health``."""
        state = self._read_state()
        report: dict[str, object] = {
            "status": "draining" if state.draining else "degraded" if self._degraded else "healthy",
            "service": "cerebras-proxy",
            "version": VERSION,
            "uptime_seconds": round(self._clock() - self._started_at, 3),
        }
        if self._degraded:
            report["degraded"] = self._degraded
        if state.circuit is not None:
            report["upstream_circuit"] = state.circuit
        if self._slot is not None:
            scoreboard = self._slot.scoreboard
            report["workers"] = {"up": scoreboard.up, "configured": scoreboard.workers}
        return (503 if state.draining else 200), report

    def check(self) -> None:
        """Log and set in the metrics what has changed since the last check."""
        now = self._clock()
        degraded = self._degradation.reasons(now)
        for reason in sorted(set(degraded) ^ set(self._degraded)):
            figures = self._degradation.figures(reason, now)
            if reason in degraded:
                self._logs.event("warning", "Service degraded", reason=reason, **figures)
            else:
                self._logs.event("info", "Service recovered", reason=reason, **figures)
        self._degraded = degraded
        self._metrics.set_degraded(degraded)
        if self._refused and self._clock() - self._refused_at > _WINDOW:
            self._logs.event("info", "Upstream has not refused the account for a minute")
            self._refused = ""
