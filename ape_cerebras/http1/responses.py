"""What an HTTP response's head takes from tables and clocks: reason phrases, the date."""

import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

__all__ = ("BODILESS", "PHRASES", "http_date")

BODILESS = (204, 304)
"""Statuses that have no body, whatever their heads say (RFC 9112 section 6.3)."""
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


def http_date() -> bytes:
    """Now, as the Date field has it (RFC 9110 section 6.6.1)."""
    return _written(int(time.time()))


@lru_cache(maxsize=1)
def _written(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
