"""The text of the metrics: its format, exemplars, and no key in it."""

from threading import Thread

import pytest
from exchanges import stream_exchange, with_timings
from hypothesis import given
from hypothesis import strategies as st
from scraped_metrics import (
    CLIENT_KEY,
    KEY,
    OPENMETRICS,
    families,
    new_metrics,
    observed,
    rendered,
    value,
)

from ape_cerebras.telemetry.metrics import Metrics


def exemplars(metrics: Metrics) -> list[tuple[str, dict[str, str], float]]:
    return [
        (metric.name, sample.exemplar.labels, sample.exemplar.value)
        for metric in families(metrics, OPENMETRICS).values()
        for sample in metric.samples
        if sample.exemplar
    ]


@pytest.mark.parametrize("length", [1, 120])
def test_exemplars(length: int) -> None:
    trace_id = "x" * length
    found = exemplars(observed(stream_exchange(trace_id=trace_id)))
    assert found == [("cerebras_proxy_ttft_seconds", {"trace_id": trace_id}, 0.203)]


@pytest.mark.parametrize("length", [121, 128])
def test_a_trace_id_too_long_for_an_exemplar_is_left_out(length: int) -> None:
    metrics = observed(stream_exchange(trace_id="x" * length))
    assert exemplars(metrics) == []
    labels = {"model": "gpt-oss-120b", "source": "measured"}
    assert value(metrics, "ttft_seconds_count", **labels) == 1


def test_the_text_holds_no_key_and_no_creation_times() -> None:
    metrics = observed(stream_exchange())
    for accept in (b"", OPENMETRICS):
        text = rendered(metrics, accept)[0].decode()
        assert KEY not in text
        assert CLIENT_KEY not in text
        assert "_created" not in text


PLAIN_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PROMETHEUS = (
    b"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;"
    b"q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    b"application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        (b"", False),
        (b"*/*", False),
        (b"text/plain; version=1.0.0; escaping=x", False),
        (PROMETHEUS, True),
        (b"Application/OpenMetrics-Text", True),
        (b"text/html, application/openmetrics-text ;q=0.001", True),
        (b"application/openmetrics-text;version=99999999999.x.\xff", True),
        (b"application/openmetrics-text;q=0", False),
        (b"application/openmetrics-text; version=1.0.0; q=0.000, text/plain", False),
        (b"application/openmetrics-text;q=0, application/openmetrics-text;q=1", True),
        (b"application/openmetrics-texture", False),
        (b"xapplication/openmetrics-text", False),
        (b'text/plain;x="application/openmetrics-text"', False),
    ],
)
def test_the_accept_header_chooses_the_format(accept: bytes, is_open: bool) -> None:
    text, content_type = rendered(new_metrics(), accept)
    assert text.endswith(b"# EOF\n") is is_open
    own = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    assert content_type == (own if is_open else PLAIN_TYPE)


METRICS = new_metrics()
KINDS = {rendered(METRICS, accept)[1] for accept in (b"", OPENMETRICS)}


@given(
    st.lists(
        st.sampled_from(
            (OPENMETRICS, b"text/plain", b";", b",", b" ", b"q=0", b"version=", b"\r\n")
        )
        | st.binary(max_size=9)
    ).map(b"".join)
)
def test_no_accept_header_raises_or_is_echoed(accept: bytes) -> None:
    assert rendered(METRICS, accept)[1] in KINDS


def test_a_scrape_in_a_thread_is_safe_while_series_are_made() -> None:
    """Values are locked one by one, so each is consistent in itself."""
    metrics, texts = observed(stream_exchange()), list[bytes]()
    thread = Thread(target=lambda: texts.extend(metrics.render(b"")[0] for _ in range(3)))
    thread.start()
    clients = 0
    while thread.is_alive() and clients < 500:
        clients += 1
        metrics.observe(*with_timings(stream_exchange(client=f"client-{clients}")))
    thread.join()
    assert len(texts) == 3
    counted = value(metrics, "requests_total", model="gpt-oss-120b")
    assert counted == clients + 1
