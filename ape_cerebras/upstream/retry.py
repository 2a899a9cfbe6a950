"""Whether a request is made again, and when: decisions over values.

A request may be made again where it never reached the API (no connection), or where the API says
itself that it failed (500, 502, 503, 504, and the 429 of a full queue, which clears within about a
second). The 429s of the account's own quota are the client's to know. A certificate that is refused
now will be in a second, so a failure of TLS is final; and so is an answer that did not come, or
broke off, for its request may have been carried out.

The wait is drawn at random from all that is allowed ("full jitter"), and what is allowed doubles
from one retry to the next: those who failed together do not come back together. What upstream asks
for by ``Retry-After`` is waited for at least.
"""

import re
from collections import deque
from email.utils import parsedate_to_datetime

from ..errors import ConnectFailed, ConnectTimeout, ProxyError

__all__ = ("RetryBudget", "objection", "pause_before", "read_retry_after", "reason_to_retry")

_TRY_AGAIN = frozenset((500, 502, 503, 504))
_QUEUE_FULL = "queue_exceeded"

_LONGEST_PAUSE = 8.0  # seconds
_LONGEST_ASKED = 60.0  # seconds; where more is asked for, the client is told
_SPREAD = 0.25  # of what upstream asks for, so that those who were told the same do not come as one

_SECONDS = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_DATE = re.compile(rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")

_WINDOW = 60  # seconds
_SHARE = 5  # requests for each retry
_IN_ANY_CASE = 10  # retries in a window: with few requests there is nothing to hammer with


def reason_to_retry(error: ProxyError | None, status: int | None, code: str | None) -> str | None:
    """Why a try that ended so may be made again; None where it may not. ``error``: what it failed
    by; else ``status`` and ``code`` are upstream's."""
    if error is not None:
        return "connect" if isinstance(error, ConnectFailed | ConnectTimeout) else None
    if status == 429:
        return code if code == _QUEUE_FULL else None
    return str(status) if status in _TRY_AGAIN else None


def read_retry_after(value: bytes, now: float) -> float:
    """The seconds that a ``Retry-After`` asks for, which may also come as a date (RFC 9110 section
    10.2.3). ``now``: since the epoch. Raises ValueError where it is malformed."""
    if _SECONDS.fullmatch(value):
        return float(value)
    if not _DATE.fullmatch(value):
        raise ValueError
    moment: float = parsedate_to_datetime(value.decode()).timestamp()
    return max(0.0, moment - now)


def pause_before(retry: int, backoff: float, retry_after: float, chance: float) -> float:
    """Seconds to wait before the first, second, … ``retry``. ``chance``: drawn from 0 to 1."""
    drawn = chance * min(_LONGEST_PAUSE, backoff * 2.0 ** (retry - 1))
    return max(drawn, retry_after * (1 + _SPREAD * chance))


def objection(
    *,
    refused: bool,
    circuit_open: bool,
    last: bool,
    retry_after: float,
    pause: float,
    time_left: float,
    within_budget: bool,
) -> str | None:
    """What speaks against a retry for which there is a reason; None where nothing does."""
    found = {
        "refused": refused,
        "circuit": circuit_open,
        "attempts": last,
        "retry_after": retry_after > _LONGEST_ASKED,
        "deadline": pause >= time_left,
        "budget": not within_budget,
    }
    return next((why for why, holds in found.items() if holds), None)


class _Second:
    __slots__ = ("at", "requests", "retries")

    def __init__(self, at: int) -> None:
        self.at = at
        self.requests = self.retries = 0


class RetryBudget:
    """At most one retry for five requests, over the last minute; so that an upstream that fails for
    all gets a fifth more to do than before, and not several times as much."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque()

    def note_request(self, now: float) -> None:
        self._second(now).requests += 1

    def note_retry(self, now: float) -> None:
        self._second(now).retries += 1

    def allows_one(self, now: float) -> bool:
        self._second(now)
        requests = sum(second.requests for second in self._seconds)
        retries = sum(second.retries for second in self._seconds)
        return retries < max(_IN_ANY_CASE, requests // _SHARE)

    def _second(self, now: float) -> _Second:
        """The counts of this one; those that are no longer of the last minute are let go."""
        at = int(now)
        while self._seconds and self._seconds[0].at <= at - _WINDOW:
            self._seconds.popleft()
        if not self._seconds or self._seconds[-1].at < at:
            self._seconds.append(_Second(at))
        return self._seconds[-1]
