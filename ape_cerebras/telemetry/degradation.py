"""Whether the service is degraded, over a sliding minute of chat exchanges.

Two reasons: ``ttft``, when the 95th percentile (nearest rank) of TTFT is above its target; and
``failures``, when more than 5 % of at least 20 exchanges failed through no fault of their client.
No TTFT has to be kept for that: the percentile is above the target exactly if too few are at or
below it, so each second of the minute is four counts.
"""

import math
from collections import deque

from .exchange import Exchange
from .timings import Timings

__all__ = ("REASONS", "Degradation", "SlidingMinute")

REASONS = ("ttft", "failures")

_WINDOW = 60  # seconds
_MIN_EXCHANGES = 20


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
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, {}))
        while self._seconds[0][0] <= second - _WINDOW:
            self._seconds.popleft()


class Degradation:
    """``ttft_target`` in seconds; None where there is none to miss."""

    def __init__(self, ttft_target: float | None) -> None:
        self._target = ttft_target
        self._minute = SlidingMinute()

    def misses_target(self, timings: Timings) -> bool:
        ttft = timings.ttft_seconds
        return self._target is not None and ttft is not None and ttft > self._target

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Count a chat exchange that has ended."""
        found = {
            "exchanges": True,
            "failures": timings.traits.degrades,
            "timed": timings.ttft_seconds is not None,
            "missed": self.misses_target(timings),
        }
        self._minute.add(exchange.finished_at, *(name for name, holds in found.items() if holds))

    def reasons(self, now: float) -> tuple[str, ...]:
        """Why the service is degraded at ``now``; empty where it is not."""
        names = ("timed", "missed", "exchanges", "failures")
        timed, missed, exchanges, failures = (self._minute.total(now, name) for name in names)
        rank_of_p95 = -(-95 * timed // 100)
        found = {
            "ttft": timed > 0 and timed - missed < rank_of_p95,
            "failures": exchanges >= _MIN_EXCHANGES and failures * 20 > exchanges,
        }
        return tuple(reason for reason in REASONS if found[reason])
