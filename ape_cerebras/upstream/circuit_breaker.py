"""The circuit breaker: no request is sent while the API is known to be down.

A state machine over a clock; it awaits nothing and notifies nobody. ::

             a run of failures                      its time is over, and a request comes
    closed ─────────────────────► open, for a time ────────────────────────────────────► half-open
       ▲                             ▲                                                    │    │
       │                             └──────── the probe failed: open for twice as long ──┘    │
       └────────────────────────────────────── the probe got a response ───────────────────────┘

Half-open lets one request through at a time: the probe. A probe without a result (its client
disconnects before the API responds) proves nothing, and the next request is the next probe. Nor do
results count of requests that were sent before the circuit last opened or closed.
"""

import math

from ..errors import KeyRefused, ProxyError, ResponseWithheld, UpstreamFailed, UpstreamUnavailable

__all__ = ("CircuitBreaker", "is_outage")

_FIRST_TIME = 1.0  # seconds
_LONGEST_TIME = 30.0  # seconds


def is_outage(error: ProxyError) -> bool | None:
    """Whether a request that failed so shows that the API is down; None where it shows nothing."""
    if isinstance(error, KeyRefused | ResponseWithheld):  # there was a response
        return False
    return True if isinstance(error, UpstreamFailed) else None


class CircuitBreaker:
    """Opens after ``failures`` in a row. ``enter`` and ``leave`` stand around each request."""

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._in_a_row = 0
        self._open_until: float | None = None
        self._time = _FIRST_TIME
        self._probing = False
        self._era = 0  # rises when the circuit opens, and when it closes

    @property
    def in_a_row(self) -> int:
        """The failures in a row."""
        return self._in_a_row

    @property
    def state(self) -> str:
        """closed, open or half_open."""
        if self._open_until is None:
            return "closed"
        return "half_open" if self._probing else "open"

    def enter(self, now: float) -> int:
        """Let a request through; return what ``leave`` needs. Raises UpstreamUnavailable."""
        if self._open_until is not None:
            if self._probing or now < self._open_until:
                left = min(self._open_until - now, self._time)  # the sum may be rounded up
                raise UpstreamUnavailable(max(1, math.ceil(left)))
            self._probing = True
        return self._era

    def leave(self, era: int, failed: bool | None, now: float) -> None:
        """Take in a request's result; None where it shows nothing."""
        if era != self._era:
            return
        self._probing = False
        if failed is False:
            self._in_a_row = 0
            self._time = _FIRST_TIME
            if self._open_until is not None:
                self._open_until = None
                self._era += 1
        elif failed:
            self._in_a_row += 1
            if self._open_until is not None:
                self._time = min(2 * self._time, _LONGEST_TIME)
            if self._open_until is not None or self._in_a_row >= self._failures:
                self._open_until = now + self._time
                self._era += 1
