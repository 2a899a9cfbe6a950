"""How much of what the API reserves for requests is used, over an hour: who reserves much and uses
little has less of the account's tokens per minute than it pays for."""

from typing import NamedTuple

from .exchange import Exchange

__all__ = ("Waste", "Wasted")

_HOUR = 3600.0  # seconds
_LEAST = 5  # a fifth


class Wasted(NamedTuple):
    """Tokens of an hour, and the setting that would have had fewer reserved."""

    reserved_tokens: int
    used_tokens: int
    setting: str


class Waste:
    """Counts from ``now`` on, an hour at a time."""

    def __init__(self, now: float) -> None:
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._began_at = now
        self._reserved = self._used = 0
        self._unused_without_limit = 0  # of requests that said nothing of a limit

    def observe(self, exchange: Exchange) -> None:
        """Count a chat exchange that has ended."""
        reserved, usage = exchange.reserved_tokens, exchange.usage
        if reserved is None or usage is None:
            return
        used = usage.prompt_tokens + usage.completion_tokens
        self._reserved += reserved
        self._used += used
        if exchange.completion_limit is None:
            self._unused_without_limit += reserved - used

    def look(self, now: float) -> Wasted | None:
        """What was wasted in an hour that is over, if it was more than four fifths."""
        if now < self._began_at + _HOUR:
            return None
        unused = self._reserved - self._used
        most_say_nothing = 2 * self._unused_without_limit > unused
        setting = f"MAX_COMPLETION_TOKENS_{'DEFAULT' if most_say_nothing else 'CAP'}"
        wasted = Wasted(self._reserved, self._used, setting)
        is_much = self._used * _LEAST < self._reserved
        self._begin(now)
        return wasted if is_much else None
