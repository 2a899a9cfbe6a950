"""Objectives, as ``--slo`` gives them: ``ttft:p95<300ms``, ``errors<1%``."""

import re
from typing import Any, NamedTuple

from .columns import METRICS
from .inputs import UnusableInput

__all__ = ("UNITS", "Objective", "read_objective")

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "%": 0.01, "": 1.0}
_FORM = re.compile(r"(\w+)(?::p(\d+(?:\.\d+)?))?\s*([<>])=?\s*(\d+(?:\.\d+)?)\s*(\D*)")


class Objective(NamedTuple):
    """``metric`` is one of ``METRICS`` or ``errors``; ``quantile`` is None for errors; ``limit`` in
    seconds, per second, or as a share."""

    text: str
    metric: str
    quantile: float | None
    limit: float

    @property
    def unit(self) -> str:
        return "%" if self.quantile is None else METRICS[self.metric][1]

    def is_met(self, value: Any) -> Any:
        """By a value, or by each of an array."""
        return value >= self.limit if self.metric == "tokens_per_second" else value <= self.limit


def read_objective(text: str) -> Objective:
    """Read ``--slo``. Raises UnusableInput."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UnusableInput(f"--slo {text!r}: must be like 'ttft:p95<300ms' or 'errors<1%'")
    metric, percent, sign, number, unit = match.groups()
    if metric != "errors" and metric not in METRICS:
        raise UnusableInput(f"--slo {text!r}: there are errors, {', '.join(METRICS)}")
    upwards, unit = metric == "tokens_per_second", unit.strip()
    if (metric == "errors") != (percent is None) or (sign == ">") != upwards:
        raise UnusableInput(f"--slo {text!r}: needs a percentile and <, errors < only, a rate >")
    if unit not in UNITS or (unit == "%") != (metric == "errors"):
        raise UnusableInput(f"--slo {text!r}: the limit must be a number with ms, s or % behind it")
    quantile = None if percent is None else float(percent) / 100
    if quantile is not None and not 0 < quantile < 1:
        raise UnusableInput(f"--slo {text!r}: the percentile must be above 0 and below 100")
    return Objective(text, metric, quantile, float(number) * UNITS[unit])
