"""What is refused by limits of this proxy's own; see the tree in ``errors``."""

import math

from .errors import Overloaded, ProxyError
from .limits.token_buckets import Verdict

__all__ = ("BudgetSpent", "LimitsUnknown", "NoTurn", "RateLimited")

_WAIT_AT_MOST = 60  # seconds: SDKs take no notice of a Retry-After above that, and retry at once


def _retry_after(seconds: float) -> tuple[bytes, bytes]:
    return b"retry-after", b"%d" % min(_WAIT_AT_MOST, max(1, math.ceil(seconds)))


class NoTurn(Overloaded):
    """``seconds``: how long a request that came now would have to wait for its turn."""

    message = "As many requests as this proxy handles are under way and waiting."

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.headers = (_retry_after(seconds),)


class LimitsUnknown(Overloaded):
    message = "What is left of the limits is not known at the moment."


class RateLimited(
    ProxyError,
    status=429,
    type="too_many_requests_error",
    code="rate_limit_exceeded",
    outcome="rate_limited",
):
    """With headers as the API's own limits have them: always with the window's name."""

    message = "Requests per minute limit of this proxy exceeded."

    def __init__(self, verdict: Verdict) -> None:
        super().__init__()
        limit = 0 if verdict.lacking is None else math.floor(verdict.lacking.capacity)
        self.headers = (
            _retry_after(verdict.wait),
            (b"x-ratelimit-limit-requests-minute", b"%d" % limit),
            (b"x-ratelimit-remaining-requests-minute", b"%d" % math.floor(verdict.left)),
            (b"x-ratelimit-reset-requests-minute", b"%.3f" % verdict.wait),
        )


class BudgetSpent(
    ProxyError,
    status=429,
    type="too_many_requests_error",
    code="budget_exceeded",
    outcome="budget_exceeded",
):
    """``seconds``: until it is midnight, which is too long for SDKs to retry."""

    message = "What this key may spend on a day is spent; the next day begins at midnight UTC."

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.headers = (_retry_after(seconds), (b"x-should-retry", b"false"))
