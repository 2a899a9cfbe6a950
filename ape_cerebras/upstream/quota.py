"""The account's quota as the API tells of it, in the ``x-ratelimit-*`` headers of its answers."""

import re

from ..http1.messages import Headers
from ..telemetry.exchange import Quota

__all__ = ("Quota", "WINDOWS", "read_quota")

WINDOWS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}  # seconds

_FIELD = re.compile(rb"x-ratelimit-(limit|remaining)-(requests|tokens)-(minute|hour|day)")
_NUMBER = re.compile(rb"[0-9]{1,18}(?:\.[0-9]{1,18})?")


def read_quota(headers: Headers) -> Quota:
    """What such headers say; what cannot be read counts, and says nothing."""
    told: dict[bytes, dict[tuple[str, str], float]] = {b"limit": {}, b"remaining": {}}
    malformed = 0
    for name, value in headers:
        field = _FIELD.fullmatch(name)
        if field is None:
            continue
        if not _NUMBER.fullmatch(value):
            malformed += 1
            continue
        what, kind, window = field.groups()
        told[what][kind.decode(), window.decode()] = float(value)
    return Quota(told[b"limit"], told[b"remaining"], malformed)
