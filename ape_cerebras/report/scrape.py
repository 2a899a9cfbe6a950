"""Metrics of running proxies: scraped, parsed, and differenced between scrapes.

A counter that is lower than at the scrape before has begun anew, and all of that proxy with it: its
increase is what it counts now. No histogram mixes buckets from before and after.
Rates are added up over proxies, each by the seconds that it has been seen.
"""

import errno
import http.client
import math
import os
import re
import socket
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from ..telemetry.metric_table import METRICS, STEM, WORKER_METRICS
from .texts import printable

__all__ = ("Merged", "ScrapeFailed", "ScrapedProxy", "SeriesKey", "merged", "quantile", "scrape")

_MAX_BODY = 32 * 1024 * 1024  # bytes; a proxy with every model has 0.3 MB
_READ_BYTES = 64 * 1024
_ADDRESS = re.compile(r"[^\s/?#@]+(?::\d{1,5})?")
_MANY_RESETS = 3  # one after another: no proxy restarts at each scrape
_UNUSED = ("chunk_gap_seconds", "loop_lag_seconds", "model_limit")  # a third of the text
_COUNTED = tuple(row.name for row in (*METRICS, *WORKER_METRICS) if row.type == "counter") + tuple(
    f"{row.name}_{part}"
    for row in METRICS
    if row.type == "histogram"
    for part in ("bucket", "count", "sum")
)
_COUNTERS = frozenset(_COUNTED)


class SeriesKey(NamedTuple):
    """The name of a metric without its stem, and its labels in their order."""

    name: str
    labels: tuple[tuple[str, str], ...]

    def label(self, name: str) -> str:
        return next((value for each, value in self.labels if each == name), "")


Samples = dict[SeriesKey, float]


class ScrapeFailed(Exception):
    """Why metrics cannot be read, in our own words."""


def scrape(url: str, timeout: float) -> Samples:
    """The samples of a proxy. Raises ScrapeFailed, where nothing comes for ``timeout`` seconds, or
    not all of it; the lookup of a name may take longer."""
    secure, host, port, path = _parts_of(url)
    ends_at = time.monotonic() + timeout
    connection = (
        http.client.HTTPSConnection(host, port, timeout=timeout)
        if secure
        else http.client.HTTPConnection(host, port, timeout=timeout)
    )
    try:
        connection.request("GET", path, headers={"Accept": "text/plain"})
        with connection.getresponse() as response:
            _reject_status(response.status)
            body = _read(response, ends_at)
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise ScrapeFailed(_why(error, timeout)) from None
    finally:
        connection.close()
    return parse(body)


def _parts_of(url: str) -> tuple[bool, str, int | None, str]:
    """TLS or not, host, port, and path: ``/metrics`` where there is none."""
    text = url if "://" in url else f"http://{url}"
    try:
        text.encode("ascii")
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, parts, port = None, urlsplit(""), None
    is_one = host and parts.scheme in ("http", "https") and _ADDRESS.fullmatch(parts.netloc)
    if not is_one or not host or re.search(r"\s", text):
        raise ScrapeFailed("no URL such as http://127.0.0.1:8000")
    path = parts.path if parts.path.strip("/") else "/metrics"
    return parts.scheme == "https", host, port, path + (f"?{parts.query}" if parts.query else "")


def _reject_status(status: int) -> None:
    if status in (401, 403):
        raise ScrapeFailed(f"wants authentication (status {status})")
    if status == 404:
        raise ScrapeFailed("has no metrics there (status 404): METRICS_PORT or METRICS_ENABLED?")
    if 300 <= status < 400:
        raise ScrapeFailed(f"redirects elsewhere (status {status})")
    if status != 200:
        raise ScrapeFailed(f"responds with status {status}")


def _read(response: http.client.HTTPResponse, ends_at: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(_READ_BYTES):
        body += chunk
        if len(body) > _MAX_BODY:
            raise ScrapeFailed(f"responds with more than {_MAX_BODY >> 20} MB")
        if time.monotonic() > ends_at:
            raise TimeoutError
    if response.length:
        raise http.client.IncompleteRead(b"")
    return bytes(body)


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the response ended too early"
    if isinstance(error, TimeoutError):
        return f"no response within {timeout:g} s"
    if isinstance(error, socket.gaierror | UnicodeError):
        return "there is no such host"
    if isinstance(error, ssl.SSLError):
        return "no trusted TLS is spoken there"
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return os.strerror(error.errno or 0).lower()
    return "what responds there does not speak HTTP"


def parse(body: bytes) -> Samples:
    """The samples of this proxy's metrics in a text. Raises ScrapeFailed where there are none."""
    stem, skipped = STEM, tuple(STEM + name for name in _UNUSED)
    try:
        lines = body.decode().splitlines()
        ours = [line for line in lines if line.startswith(stem) and not line.startswith(skipped)]
        families = text_string_to_metric_families("\n".join((*ours, "")))
        samples = {
            _key_of(sample.name.removeprefix(stem), sample.labels): value
            for family in families
            for sample in family.samples
            if math.isfinite(value := float(sample.value))
        }
    except (ValueError, KeyError, IndexError):
        raise ScrapeFailed("responds with no text of metrics that can be read") from None
    if not samples:
        is_page = body.lstrip()[:1] == b"<"
        what = "a web page" if is_page else "metrics of another program, or with none"
        raise ScrapeFailed(f"responds with {what}")
    return samples


def _key_of(name: str, labels: Mapping[str, str]) -> SeriesKey:
    shown = [(label, printable(text)) for label, text in labels.items()]
    return SeriesKey(name, tuple(sorted(shown)))


class _Increase(NamedTuple):
    """What was counted between two scrapes, ``ended_at`` the second, ``seconds`` apart."""

    ended_at: float
    seconds: float
    counts: Samples


class ScrapedProxy:
    """One proxy: what its latest scrape said, and what it counted in the last ``window`` seconds.

    ``problem``: why the latest scrape failed; empty where it did not. ``restarts`` are those seen.
    """

    def __init__(self, url: str, window: float, timeout: float = 2.0) -> None:
        self.url = url
        self.name = url.removeprefix("http://").removesuffix("/").removesuffix("/metrics")
        self.problem = "not read yet"
        self.restarts = 0
        self._window, self._timeout = window, timeout
        self._last: Samples = {}
        self._last_at = 0.0
        self._increases: deque[_Increase] = deque()
        self._resets = 0  # one after another
        self._lock = threading.Lock()

    @property
    def is_up(self) -> bool:
        return bool(self._last)

    def poll(self) -> None:
        """Scrape, whatever comes of that."""
        try:
            samples = scrape(self.url, self._timeout)
        except ScrapeFailed as failed:
            self.fail(str(failed.args[0]))
        else:
            self.add(samples, time.monotonic())

    def fail(self, problem: str) -> None:
        """Note that a scrape failed. What is counted until the next is nobody's second."""
        with self._lock:
            self.problem = problem
            self._last, self._last_at = {}, 0.0
            self._increases.clear()

    def add(self, samples: Samples, at: float) -> None:
        """Add a scrape of that moment, in seconds of any clock."""
        with self._lock:
            last, seconds = self._last, at - self._last_at
            counters = {each: value for each, value in samples.items() if each.name in _COUNTERS}
            has_begun_anew = any(value < last.get(each, 0.0) for each, value in counters.items())
            if last:
                self.restarts += has_begun_anew
                self._resets = self._resets + 1 if has_begun_anew else 0
                before = {} if has_begun_anew else last
                counts = {each: value - before.get(each, 0.0) for each, value in counters.items()}
                self._increases.append(_Increase(at, seconds, counts))
            while self._increases and self._increases[0].ended_at <= at - self._window:
                self._increases.popleft()
            # A series that is missing for once has not gone.
            self._last = samples if has_begun_anew or not last else {**last, **samples}
            self._last_at = at
            self.problem = ""
            if self._resets >= _MANY_RESETS:
                self.problem = "counters begin anew at each scrape: several proxies at one address?"

    def gauges(self) -> Samples:
        """What is not counted, as last scraped; empty where the proxy is down."""
        with self._lock:
            return {each: v for each, v in self._last.items() if each.name not in _COUNTERS}

    def counted(self) -> tuple[float, Samples]:
        """Seconds seen within the window, and what was counted in them."""
        with self._lock:
            total: Counter[SeriesKey] = Counter()
            for increase in self._increases:
                for each, count in increase.counts.items():
                    total[each] += count  # type: ignore[assignment]
            return sum(increase.seconds for increase in self._increases), dict(total)


class Merged:
    """Several proxies as one. ``increases``: counted in the window; ``seconds``: seen of it."""

    def __init__(self, seconds: float, rates: Samples, histograms: list[Samples]) -> None:
        self.seconds = seconds
        self._rates = rates
        self._of_each = histograms

    def rate(self, name: str, **labels: str) -> float:
        """Increase per second, of all series with these labels."""
        return sum(value for each, value in self._rates.items() if _fits(each, name, labels))

    def rates_by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same by the values of another label."""
        found: Counter[str] = Counter()
        for each, value in self._rates.items():
            if _fits(each, name, labels):
                found[each.label(label)] += value  # type: ignore[assignment]
        return dict(found)

    def count(self, name: str, **labels: str) -> float:
        """Increase within the window."""
        return sum(
            value
            for counts in self._of_each
            for each, value in counts.items()
            if _fits(each, name, labels)
        )

    def quantile(self, q: float, name: str, **labels: str) -> float | None:
        """Of a histogram, as PromQL's histogram_quantile; None where nothing was observed."""
        return quantile(q, self._buckets(name, labels))

    def _buckets(self, name: str, labels: Mapping[str, str]) -> dict[float, float]:
        """Cumulative counts by upper bound. Where proxies have other bounds, those common to all
        are right; a bound that one of them lacks would miss its observations."""
        of_each = []
        for counts in self._of_each:
            buckets: dict[float, float] = {}
            for each, value in counts.items():
                if _fits(each, f"{name}_bucket", labels):
                    bound = float(each.label("le"))
                    buckets[bound] = buckets.get(bound, 0.0) + value
            if buckets:
                of_each.append(buckets)
        common = set.intersection(*map(set, of_each)) if of_each else set()
        return {bound: sum(each[bound] for each in of_each) for bound in sorted(common)}


def _fits(series: SeriesKey, name: str, labels: Mapping[str, str]) -> bool:
    if series.name != name:
        return False
    return all(series.label(label) == value for label, value in labels.items())


def merged(proxies: Iterable[ScrapedProxy]) -> Merged:
    """What these proxies have counted together."""
    rates: Counter[SeriesKey] = Counter()
    longest, of_each = 0.0, []
    for proxy in proxies:
        seconds, counts = proxy.counted()
        if seconds > 0:
            longest = max(longest, seconds)
            of_each.append(counts)
            for each, count in counts.items():
                rates[each] += count / seconds  # type: ignore[assignment]
    return Merged(longest, dict(rates), of_each)


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """The ``q``-quantile of cumulative counts by upper bound, interpolated as PromQL does: linearly
    within a bucket, the first of which begins at 0; of the last bucket, which has no upper bound,
    its lower one. None where nothing was observed."""
    bounds = sorted(buckets)
    if len(bounds) < 2 or not math.isinf(bounds[-1]):
        return None
    counts = [*accumulate((buckets[bound] for bound in bounds), max)]
    if not counts[-1]:
        return None
    rank = q * counts[-1]
    at = next(number for number, count in enumerate(counts) if count >= rank)
    if at == len(bounds) - 1:
        return bounds[-2]
    if at == 0 and bounds[0] <= 0:
        return bounds[0]
    begin, before = (bounds[at - 1], counts[at - 1]) if at else (0.0, 0.0)
    inside = counts[at] - before
    return begin + (bounds[at] - begin) * ((rank - before) / inside if inside else 0.0)
