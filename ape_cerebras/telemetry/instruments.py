"""Metrics of a kind that prometheus_client does not have."""

import time
from bisect import bisect_left
from collections.abc import Callable

from prometheus_client import Counter, Histogram
from prometheus_client.samples import Exemplar

__all__ = ("QuickHistogram", "following")


class QuickHistogram(Histogram):
    """prometheus_client's, but that it does not look at the buckets one by one: an observation
    takes 0.8 µs for 1.3, with an exemplar 1.0 for 1.9 (CPython 3.11, one core of a virtual server),
    and an exchange makes four to nine."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """``exemplar`` must be one as OpenMetrics has it: it is not looked at."""
        bucket = self._buckets[bisect_left(self._upper_bounds, amount)]
        bucket.inc(1)
        self._sum.inc(amount)
        if exemplar is not None:
            bucket.set_exemplar(Exemplar(exemplar, amount, time.time()))

    def add(self, counts: list[int], total: float) -> None:
        """Observations that have been counted by bucket already: a stream has thousands, and one at
        a time they would hold the loop."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


def following(counter: Counter) -> Callable[[float], None]:
    """What tells a counter how far somebody else has counted since this process began."""
    before = 0.0

    def tell(count: float) -> None:
        nonlocal before
        counter.inc(count - before)
        before = count

    return tell
