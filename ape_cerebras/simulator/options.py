"""The simulator's options: times, counts and faults, from the command line or from a request.

The times of a response::

    request read ── ttft ──► first token ── tokens / rate ──► last token
                 └ queue_time, prompt_time are parts of it

The first token is generated ``ttft`` seconds after the request, token k after it k / ``rate``
seconds later, so that an observer measures exactly ``rate`` tokens per second from first to last.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .completion import Timing
from .replies import ERRORS, error_named

__all__ = (
    "FAULTS",
    "INSTEAD_OF_A_RESPONSE",
    "SIMULATION_FLAGS",
    "Simulation",
    "count",
    "option",
    "positive_count",
)

FAULTS: Mapping[str, str] = {
    "cut": "the connection is closed after event `at`",
    "cut_inside": "the connection is closed in the middle of event `at`",
    "end": "the body ends after event `at`, as if it were complete",
    "error_event": "an error event is sent in place of event `at`, then the body ends",
    "stall": "nothing is sent after event `at`",
    "silence": "no response is sent",
    "slow_head": "the head is sent byte by byte, one per `byte_time`",
    "garbage": "the response is not HTTP",
    "close": "the connection is closed without a response",
}
"""The faults that are no HTTP error. Events are counted from 1; `at` 0 is between the head and the
first event. An `at` beyond the end means the last place where the fault still is one. A plain body
is one event; an error event becomes the HTTP error 500 there."""

INSTEAD_OF_A_RESPONSE = frozenset(("silence", "slow_head", "garbage", "close"))
"""Faults that replace the response as a whole, and so are not paced."""


def seconds(text: str) -> float:
    """A duration from 0 up."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("must be a number from 0 up")
    return value


def count(text: str) -> int:
    """A whole number from 0 up."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ValueError("must be a whole number from 0 up")
    return int(text)


def positive_count(text: str) -> int:
    """A whole number from 1 up."""
    if count(text) < 1:
        raise ValueError("must be a whole number from 1 up")
    return count(text)


def fault(text: str) -> str:
    """The name of a fault, or the name or status of an HTTP error."""
    if text and text not in FAULTS and error_named(text) is None:
        raise ValueError("is no fault")
    return text


def option(default: Any, kind: Callable[[str], Any], text: str) -> Any:
    """A field that the command line can set, with its parser and help."""
    return field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """How the simulator responds to a request. Durations are seconds."""

    ttft: float = option(0.05, seconds, "seconds from request to first token")
    head_lead: float = option(
        0.0, seconds, "seconds by which head and role event precede the first token"
    )
    rate: float = option(2000.0, seconds, "tokens per second after the first; 0: all at once")
    tokens: int = option(64, count, "tokens of a completion, reasoning included")
    tokens_per_chunk: int = option(8, positive_count, "tokens per event, at most")
    reasoning_tokens: int = option(16, count, "reasoning tokens, of models that reason")
    queue_time: float = option(0.002, seconds, "the part of ttft reported as queue_time")
    prompt_time: float | None = option(
        None, seconds, "the part of ttft reported as prompt_time; the rest if not given"
    )
    cached_tokens: int = option(0, count, "prompt tokens reported as cached, at most all")
    fault: str = option(
        "", fault, f"one of {', '.join((*FAULTS, *ERRORS))}, or an HTTP error's status"
    )
    at: int = option(2, count, "the event at which a fault inside a response happens")
    byte_time: float = option(1.0, seconds, "seconds between bytes of a slow head")
    api_key: str | None = field(default=None, repr=False)
    """The one key that is accepted; None for any."""

    def overridden(self, text: str) -> "Simulation":
        """Return a copy with the options of an ``x-simulate`` header: ``name=value, name=value``.

        Raises ValueError with our own text about the option that is wrong.
        """
        values = {}
        for item in text.split(","):
            name, _, value = (part.strip() for part in item.partition("="))
            if name not in _KINDS:
                raise ValueError(
                    f"x-simulate: {name!r} is no option; there are {', '.join(_KINDS)}"
                )
            try:
                values[name] = _KINDS[name](value)
            except ValueError:
                raise ValueError(f"x-simulate: {name}={value!r} is not possible") from None
        return replace(self, **values)

    def due(self, made: int) -> float:
        """Seconds from the request until ``made`` tokens are generated; with 0, until the head is
        due."""
        if not made:
            return max(0.0, self.ttft - self.head_lead)
        return self.ttft + self.generation(made)

    def generation(self, made: int) -> float:
        """Seconds from the first token to the last of ``made``."""
        return made / self.rate if self.rate and made > 1 else 0.0

    def timing(self, tokens: int, created: float) -> Timing:
        """The reported times of a completion of ``tokens`` tokens, begun at Unix time
        ``created``."""
        queue = min(self.queue_time, self.ttft)
        rest = self.ttft - queue
        prompt = rest if self.prompt_time is None else min(self.prompt_time, rest)
        return Timing(created, queue, prompt, self.generation(tokens), self.due(tokens))


SIMULATION_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = tuple(
    (each.name, each.metadata["kind"], each.metadata["help"])
    for each in fields(Simulation)
    if each.metadata
)
"""Name, parser and help of every option of the command line and of ``x-simulate``."""

_KINDS = {name: kind for name, kind, _ in SIMULATION_FLAGS}
