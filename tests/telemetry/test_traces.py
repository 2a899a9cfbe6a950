"""Spans of exchanges made to order, whatever these hold; and what they cost nobody."""

from typing import Any

import pytest
from exchanges import chat_exchange, ended_exchanges, stream_exchange, with_timings
from hypothesis import given, settings
from opentelemetry.sdk.environment_variables import OTEL_BSP_SCHEDULE_DELAY
from otlp_collector import CollectedSpan, collecting

from ape_cerebras.config.config import Config
from ape_cerebras.errors import ConnectFailed
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.traces import Traces

pytestmark = pytest.mark.anyio


def spans_of(*exchanges: Exchange, **fields: Any) -> list[CollectedSpan]:
    """The spans of these, by their begin."""
    with collecting() as collector:
        config = Config(
            cerebras_api_key="csk-0123456789",
            otel_exporter_otlp_endpoint=collector.url,
            **fields,
        )
        lines: list[bytes] = []
        traces = Traces(config, Logs("debug", lines.append), lambda model: model or "other")
        for exchange in exchanges:
            traces.observe(*with_timings(exchange))
        traces.shut_down()
        traces.report_unsent()
        assert lines == []
        return sorted(collector.spans, key=lambda span: (span.begin, span.kind))


async def test_the_request_upstream_begins_with_its_first_attempt() -> None:
    parts = {"retry_seconds": 0.5, "pool_wait_seconds": 0.1, "connect_seconds": 0.2}
    server, request = spans_of(
        stream_exchange(**parts, tls_seconds=0.1, sent_at=101.0, attempts=2, finished_at=103.0)
    )
    received = server.events["received"]
    assert request.begin - received == pytest.approx(0.1e9, abs=2000)
    assert request.attributes["cerebras_proxy.attempts"] == 2
    assert request.attributes["cerebras_proxy.retry"] == 0.5


async def test_a_connection_that_failed_has_a_span() -> None:
    never = {"sent_at": None, "head_at": None, "upstream_status": None}
    server, request = spans_of(
        chat_exchange(error=ConnectFailed("ECONNREFUSED"), admission_wait_seconds=0.25, **never)
    )
    assert request.begin - server.events["received"] == pytest.approx(0.25e9, abs=2000)
    assert (request.end, request.events) == (server.end, {})


async def test_what_was_never_sent_has_no_span_of_the_request() -> None:
    [server] = spans_of(chat_exchange(sent_at=None, head_at=None, upstream_status=None))
    assert server.kind == "server"


async def test_names_of_models_are_bounded_text() -> None:
    name = "\ud800ü" * 300
    _, request = spans_of(stream_exchange(model=name, requested_model=name))
    model = request.attributes["gen_ai.request.model"]
    assert model.isascii()
    assert model.startswith("\\ud800\\xfc")


@settings(max_examples=30, deadline=None)
@given(exchange=ended_exchanges())
async def test_any_exchange_has_spans(exchange: Exchange) -> None:
    spans = spans_of(exchange)
    assert len(spans) == (exchange.route not in ("/health",)) * (1 + (exchange.sent_at is not None))
    for span in spans:
        assert span.begin <= span.end
        times = [*span.events.values()]
        assert times == sorted(times)


async def test_spans_wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent where they are made: the queue is the SDK's, and bounded."""
    monkeypatch.setenv(OTEL_BSP_SCHEDULE_DELAY, "60000")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    with collecting() as collector:
        config = Config(
            cerebras_api_key="csk-0123456789", otel_exporter_otlp_endpoint=collector.url
        )
        traces = Traces(config, Logs("debug", print), str)
        for _ in range(10):
            traces.observe(*with_timings(stream_exchange()))
        assert collector.requests == []
        for _ in range(100):
            traces.observe(*with_timings(stream_exchange()))
        collector.wait_for(100)
        traces.shut_down()
        assert len(collector.spans) + traces.lost == 220
