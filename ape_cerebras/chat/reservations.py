"""What the API sets aside for a request when it admits it, and how little a request may ask for.

A request is charged its prompt's estimate and the most tokens that its answer may have. Reported of
2026: 16,384 where the request says nothing, and at most. Nobody has told how the prompt is
estimated; here four bytes of the request count as a token.
"""

from collections.abc import Mapping
from typing import Any

from ..config.values import CompletionBounds

__all__ = ("LIMIT_NAMES", "bounded", "limit_in", "reservation")

LIMIT_NAMES = ("max_completion_tokens", "max_tokens")
"""The members of a request that limit its answer; the second is the old name."""

_NO_LIMIT = -1  # the API's word for that
_MOST = 16_384  # tokens
_BYTES_A_TOKEN = 4


def bounded(request: Mapping[str, Any], bounds: CompletionBounds) -> dict[str, int]:
    """The limits to be put into a request, by name: none where it may stay as it is. What is no
    limit at all is for the API to refuse."""
    if bounds.default is bounds.cap is None:
        return {}
    given = {name: request[name] for name in LIMIT_NAMES if name in request}
    if bounds.default is not None and all(value is None for value in given.values()):
        # Into the old name if that has a null: both names are one too many for the API.
        return {next(iter(given), LIMIT_NAMES[0]): bounds.default}
    if bounds.cap is None:
        return {}
    return {name: bounds.cap for name, value in given.items() if _exceeds(value, bounds.cap)}


def _exceeds(value: Any, cap: int) -> bool:
    return type(value) is int and (value > cap or value == _NO_LIMIT)


def limit_in(request: Mapping[str, Any], put_in: Mapping[str, int]) -> int | None:
    """The most tokens that a request's answer may have, with those limits in it that are put there;
    None where it says nothing."""
    values = [put_in.get(name, request.get(name)) for name in LIMIT_NAMES]
    return next((value for value in values if type(value) is int and value >= 0), None)


def reservation(request_bytes: int, limit: int | None) -> int:
    """Tokens that are set aside for a request of that size, and with that limit."""
    return -(-request_bytes // _BYTES_A_TOKEN) + (_MOST if limit is None else min(limit, _MOST))
