"""The closed list of ways an exchange can end, and what each means for those who count."""

from typing import NamedTuple

__all__ = ("CUT_SHORT", "OUTCOMES", "Outcome", "outcome_of_status")


class Outcome(NamedTuple):
    """What an outcome means in log and metrics."""

    level: str
    """Level of the exchange's log line."""
    failed: bool
    """Counts in ``errors_total``."""
    degrades: bool
    """Counts as a failure of the service, as opposed to one of its client."""


OUTCOMES = {
    "completed": Outcome("info", failed=False, degrades=False),
    "client_disconnected": Outcome("info", failed=False, degrades=False),
    "client_stalled": Outcome("warning", failed=True, degrades=False),
    "refused": Outcome("warning", failed=True, degrades=False),
    "unauthorized": Outcome("warning", failed=True, degrades=False),
    "rate_limited": Outcome("warning", failed=True, degrades=False),
    "budget_exceeded": Outcome("warning", failed=True, degrades=False),
    "overloaded": Outcome("warning", failed=True, degrades=True),
    "draining": Outcome("warning", failed=True, degrades=False),
    "shut_down": Outcome("warning", failed=True, degrades=False),
    "upstream_rejected": Outcome("error", failed=True, degrades=False),
    "upstream_rate_limited": Outcome("error", failed=True, degrades=True),
    "upstream_failed": Outcome("error", failed=True, degrades=True),
    "upstream_stream_error": Outcome("error", failed=True, degrades=True),
    "upstream_unavailable": Outcome("error", failed=True, degrades=True),
    "upstream_connect_failed": Outcome("error", failed=True, degrades=True),
    "upstream_connect_timeout": Outcome("error", failed=True, degrades=True),
    "upstream_tls_failed": Outcome("error", failed=True, degrades=True),
    "upstream_invalid": Outcome("error", failed=True, degrades=True),
    "upstream_timeout": Outcome("error", failed=True, degrades=True),
    "upstream_stalled": Outcome("error", failed=True, degrades=True),
    "upstream_truncated": Outcome("error", failed=True, degrades=True),
    "exchange_timeout": Outcome("error", failed=True, degrades=True),
    "internal_error": Outcome("error", failed=True, degrades=True),
}
"""The account's 429 degrades the service that agents get, so it counts as a failure of the
service; any other 4xx of the API is the request's own fault and does not."""


CUT_SHORT = ("upstream_truncated", "upstream_stalled")
"""What is told of an answer that has begun and does not come to its end."""


def outcome_of_status(status: int) -> str:
    """The outcome of an exchange whose upstream answered with ``status`` and was relayed whole."""
    if status < 400:
        return "completed"
    if status == 429:
        return "upstream_rate_limited"
    return "upstream_rejected" if status < 500 else "upstream_failed"
