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

__all__ = ("REASONS", "Degradation")

REASONS = ("ttft", "failures")

_WINDOW = 60  # seconds
_MIN_EXCHANGES = 20


class _Second:
    __slots__ = ("at", "exchanges", "failures", "missed", "timed")

    def __init__(self, at: int) -> None:
        self.at = at
        self.exchanges = self.failures = self.timed = self.missed = 0


class Degradation:
    """``ttft_target`` in seconds; None where there is none to miss."""

    def __init__(self, ttft_target: float | None) -> None:
        self._target = ttft_target
        self._seconds: deque[_Second] = deque()

    def misses_target(self, timings: Timings) -> bool:
        ttft = timings.ttft_seconds
        return self._target is not None and ttft is not None and ttft > self._target

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Count a chat exchange that has ended."""
        at = math.floor(exchange.finished_at)
        if not self._seconds or self._seconds[-1].at < at:
            self._seconds.append(_Second(at))
        second = self._seconds[-1]
        second.exchanges += 1
        second.failures += timings.traits.degrades
        second.timed += timings.ttft_seconds is not None
        second.missed += self.misses_target(timings)

    def reasons(self, now: float) -> tuple[str, ...]:
        """Why the service is degraded at ``now``; empty where it is not."""
        while self._seconds and self._seconds[0].at <= math.floor(now) - _WINDOW:
            self._seconds.popleft()
        timed = sum(second.timed for second in self._seconds)
        missed = sum(second.missed for second in self._seconds)
        exchanges = sum(second.exchanges for second in self._seconds)
        failures = sum(second.failures for second in self._seconds)
        rank_of_p95 = -(-95 * timed // 100)
        found = {
            "ttft": timed > 0 and timed - missed < rank_of_p95,
            "failures": exchanges >= _MIN_EXCHANGES and failures * 20 > exchanges,
        }
        return tuple(reason for reason in REASONS if found[reason])
