"""The simulator's options: times, counts and faults, from the command line or from a request.

Times are those of an answer on its way::

    request read ── ttft ──► first token ── tokens / rate ──► last token
                 └ queue_time, prompt_time are parts of it

The first token is made when ``ttft`` is over, token k after it when k / ``rate`` more seconds are,
so that an observer measures exactly ``rate`` tokens per second from first to last.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .completion import Timing
from .replies import ERRORS, error_named

__all__ = (
    "FAULTS",
    "INSTEAD_OF_AN_ANSWER",
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
    "error_event": "an error event comes in place of event `at`, then the body ends",
    "stall": "nothing comes after event `at`",
    "silence": "nothing is answered",
    "slow_head": "the head comes byte by byte, one in `byte_time`",
    "garbage": "the answer is not HTTP",
    "close": "the connection is closed without an answer",
}
"""The faults that are no HTTP error. Events are counted from 1; `at` 0 is after the head and before
any event. An `at` beyond the end means the last place where the fault still is one. A plain body is
one event. Where an error event cannot be, in a plain body, the answer is the HTTP error 500."""

INSTEAD_OF_AN_ANSWER = frozenset(("silence", "slow_head", "garbage", "close"))
"""Those that leave no answer to be paced; they come at once."""


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
    """A fault's name, or an HTTP error's name or status."""
    if text and text not in FAULTS and error_named(text) is None:
        raise ValueError("is no fault")
    return text


def option(default: Any, kind: Callable[[str], Any], text: str) -> Any:
    """A field that the command line can set: its parser, and what its help says."""
    return field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What the simulator does with a request. Durations are seconds."""

    ttft: float = option(0.05, seconds, "seconds from request to first token")
    head_lead: float = option(
        0.0, seconds, "seconds, of ttft, by which head and role event precede the first token"
    )
    rate: float = option(2000.0, seconds, "tokens per second after the first; 0: all at once")
    tokens: int = option(64, count, "tokens of a completion, reasoning included")
    tokens_per_chunk: int = option(8, positive_count, "tokens of an event, at most")
    reasoning_tokens: int = option(16, count, "tokens of reasoning, of models that reason")
    queue_time: float = option(0.002, seconds, "the part of ttft told as time in the queue")
    prompt_time: float | None = option(
        None, seconds, "the part of ttft told as time for the prompt; all the rest if not given"
    )
    cached_tokens: int = option(0, count, "tokens of the prompt told as cached, at most all")
    fault: str = option(
        "", fault, f"one of {', '.join((*FAULTS, *ERRORS))}, or an HTTP error's status"
    )
    at: int = option(2, count, "the event at which a fault inside an answer comes")
    byte_time: float = option(1.0, seconds, "seconds between bytes of a slow head")
    api_key: str | None = field(default=None, repr=False)
    """The one key that is accepted; None for any."""

    def overridden(self, text: str) -> "Simulation":
        """With the options of an ``x-simulate`` header: ``name=value, name=value``.

        Raises ValueError with a text that says which one is wrong, and how.
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
        """Seconds from the request to the moment at which ``made`` tokens are made; with none, to
        that of the head."""
        if not made:
            return max(0.0, self.ttft - self.head_lead)
        return self.ttft + self.generation(made)

    def generation(self, made: int) -> float:
        """Seconds from the first token to the last of ``made``."""
        return made / self.rate if self.rate and made > 1 else 0.0

    def timing(self, tokens: int, created: float) -> Timing:
        """The times of an answer of ``tokens`` tokens that began at the Unix time ``created``."""
        queue = min(self.queue_time, self.ttft)
        rest = self.ttft - queue
        prompt = rest if self.prompt_time is None else min(self.prompt_time, rest)
        return Timing(created, queue, prompt, self.generation(tokens), self.due(tokens))


SIMULATION_FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = tuple(
    (each.name, each.metadata["kind"], each.metadata["help"])
    for each in fields(Simulation)
    if each.metadata
)
"""Name, parser and help of every option that the command line and ``x-simulate`` can set."""

_KINDS = {name: kind for name, kind, _ in SIMULATION_FLAGS}
