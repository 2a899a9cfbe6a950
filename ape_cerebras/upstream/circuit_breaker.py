"""When upstream is known to be down, so that nobody is made to wait for finding that out: a state
machine over a clock. Nothing is awaited here, and nobody is told.

::

             a run of failures                      its time is over, and a request comes
    closed ─────────────────────► open, for a time ────────────────────────────────────► half-open
       ▲                             ▲                                                    │    │
       │                             └──────── the probe failed: open for twice as long ──┘    │
       └─────────────────────────────────────── the probe was answered ────────────────────────┘

Half-open lets one request through at a time: the probe. One that comes to nothing (its client
leaves before upstream has answered) says nothing, and the next request is the next probe.

What was sent before the circuit opened, or closed, says nothing any more about how it is now.
"""

import math

from ..errors import KeyRefused, ProxyError, ResponseWithheld, UpstreamFailed, UpstreamUnavailable

__all__ = ("STATES", "CircuitBreaker", "says_it_is_down")

STATES = ("closed", "open", "half_open")

_FIRST_TIME = 1.0  # seconds
_LONGEST_TIME = 30.0  # seconds


def says_it_is_down(error: ProxyError) -> bool | None:
    """Whether a request that failed so tells that upstream is down; None where it does not tell."""
    if isinstance(error, KeyRefused | ResponseWithheld):  # which were answers
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
        self._era = 0  # goes up when the circuit opens, and when it closes

    @property
    def state(self) -> str:
        if self._open_until is None:
            return "closed"
        return "half_open" if self._probing else "open"

    def enter(self, now: float) -> int:
        """Let a request through; what ``leave`` wants to have back. Raises UpstreamUnavailable."""
        if self._open_until is not None:
            if self._probing or now < self._open_until:
                raise UpstreamUnavailable(max(1, math.ceil(self._open_until - now)))
            self._probing = True
        return self._era

    def leave(self, era: int, failed: bool | None, now: float) -> None:
        """What a request came to; None where that says nothing of upstream."""
        if era != self._era:
            return
        self._probing = False
        if failed is False:
            self._close()
        elif failed:
            self._note_failure(now)

    def _close(self) -> None:
        self._in_a_row = 0
        self._time = _FIRST_TIME
        if self._open_until is not None:
            self._open_until = None
            self._era += 1

    def _note_failure(self, now: float) -> None:
        self._in_a_row += 1
        if self._open_until is not None:
            self._time = min(2 * self._time, _LONGEST_TIME)
        elif self._in_a_row < self._failures:
            return
        self._open_until = now + self._time
        self._era += 1
