"""A proxy's metrics, made for a test and read back as a scraper reads them."""

from collections.abc import Iterator

from exchanges import with_timings
from prometheus_client import parser
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.samples import Sample

from ape_cerebras import Config
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.metrics import LiveState, Metrics

__all__ = (
    "CLIENT_KEY",
    "KEY",
    "OPENMETRICS",
    "families",
    "live",
    "new_metrics",
    "observed",
    "rendered",
    "samples",
    "config_with",
    "value",
)

KEY = "csk-upstream-key-0123456789"
CLIENT_KEY = "ape-key-0123456789"
OPENMETRICS = b"application/openmetrics-text"


def config_with(**settings: str) -> Config:
    return Config.from_environment({"CEREBRAS_API_KEY": KEY, "APE_API_KEY": CLIENT_KEY, **settings})


def new_metrics(**settings: str) -> Metrics:
    return Metrics(config_with(**settings), "trio", read_state=live)


def live(in_flight: int = 3, lines_dropped: float = 7, spans_lost: int = 9) -> LiveState:
    """A state with distinct numbers."""
    return LiveState(False, in_flight, 4, 5, 6, 8, lines_dropped, "closed", spans_lost=spans_lost)


def rendered(metrics: Metrics, accept: bytes = b"") -> tuple[bytes, str]:
    metrics.refresh()
    return metrics.render(accept)


def families(metrics: Metrics, accept: bytes = b"") -> dict[str, Metric]:
    text, content_type = rendered(metrics, accept)
    is_open = content_type.startswith(OPENMETRICS.decode())
    parse = openmetrics_parser if is_open else parser
    return {metric.name: metric for metric in parse.text_string_to_metric_families(text.decode())}


def samples(metrics: Metrics) -> Iterator[Sample]:
    for metric in families(metrics).values():
        yield from metric.samples


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    found = [
        sample.value
        for sample in samples(metrics)
        if sample.name == f"cerebras_proxy_{name}" and sample.labels == labels
    ]
    assert len(found) < 2
    return found[0] if found else None


def observed(*exchanges: Exchange, **settings: str) -> Metrics:
    metrics = new_metrics(**settings)
    for exchange in exchanges:
        metrics.observe(*with_timings(exchange))
    return metrics
