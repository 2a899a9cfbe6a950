"""Metrics of a kind that prometheus_client does not have."""

from collections.abc import Callable

from prometheus_client import Counter, Histogram

__all__ = ("TalliedHistogram", "following")


class TalliedHistogram(Histogram):
    """One to which observations are added that have been counted by bucket already: a stream has
    thousands, and one at a time they would hold the loop."""

    def add(self, counts: list[int], total: float) -> None:
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
