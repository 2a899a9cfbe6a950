"""Spans of finished exchanges, and three metrics, sent over OTLP by OpenTelemetry's SDK.

An exchange has a server span, and where it went upstream a client span below it: the one whose id
is in the ``traceparent`` that the API got. Both are made when the exchange has ended and its client
has everything, 0.1 ms for both; threads of the SDK encode and send them. The proxy loads this
module only where a collector is named: the extra ``otel`` brings the SDK.

Names follow OpenTelemetry's semantic conventions 1.41.1. They are written out here, since the
library that has them calls those of ``gen_ai`` incubating, and moves them. Names that begin with
``cerebras_proxy`` are our own. No prompt, completion, key or path is in any of them.
"""

import os
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE, OTEL_SERVICE_NAME
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from ..config.config import Config
from ..net.event_loop import loop_clock
from ..version import VERSION
from .exchange import Exchange
from .logs import Logs
from .timings import Timings

__all__ = ("Traces",)

_SCOPE = "ape_cerebras"
_SCHEMA = "https://opentelemetry.io/schemas/1.41.1"
_SERVICE = "ape-cerebras"  # its name where the environment gives it none
_PROVIDER = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "cerebras"}
_UNTRACED = ("/health", "/metrics")  # probes and scrapes
_MAX_QUEUE, _MAX_BATCH = 2048, 512  # spans; the SDK's defaults
_MAX_TEXT = 256  # characters of text from outside
_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)
_NO_FAULT_OF_OURS = ("client", "limit")  # sides, whose failures are no error of a server's span
_IN_THE_WORLD = ("upstream", "account")  # sides, whose failures are the request's upstream

_Attributes = dict[str, Any]
_Rows = tuple[tuple[str, str], ...]  # key of a span; name in the exchange, its timings or its usage

_OF_EXCHANGE: _Rows = (
    ("http.response.status_code", "status"),
    ("cerebras_proxy.request_id", "request_id"),
    ("cerebras_proxy.outcome", "outcome"),
    ("cerebras_proxy.client", "client"),
    ("cerebras_proxy.ttft", "ttft_seconds"),
    ("cerebras_proxy.ttft_source", "ttft_source"),
    ("cerebras_proxy.proxy_ttft", "proxy_ttft_seconds"),
    ("cerebras_proxy.wait", "wait_seconds"),
    ("cerebras_proxy.cost_usd", "cost"),
    ("cerebras_proxy.usage_source", "usage_source"),
)
_OF_MODEL: _Rows = (
    ("gen_ai.request.model", "model"),
    ("gen_ai.request.stream", "stream"),
    ("gen_ai.response.model", "response_model"),
    ("gen_ai.usage.input_tokens", "prompt_tokens"),
    ("gen_ai.usage.output_tokens", "completion_tokens"),
    ("gen_ai.usage.cache_read.input_tokens", "cached_tokens"),
    ("gen_ai.usage.reasoning.output_tokens", "reasoning_tokens"),
    ("openai.response.service_tier", "service_tier"),
)
_OF_UPSTREAM: _Rows = (
    ("http.response.status_code", "upstream_status"),
    ("cerebras_proxy.upstream_ttft", "upstream_ttft_seconds"),
    ("cerebras_proxy.connection", "connection"),
    ("cerebras_proxy.attempts", "attempts"),
    ("cerebras_proxy.retry", "retry_seconds"),
    ("cerebras_proxy.connect", "connect_seconds"),
    ("cerebras_proxy.tls", "tls_seconds"),
    ("cerebras_proxy.queue", "queue_seconds"),
    ("cerebras_proxy.prompt", "prompt_seconds"),
    ("cerebras_proxy.cause", "cause"),
    ("cerebras_proxy.upstream_code", "upstream_code"),
)
_EVENTS: _Rows = (
    ("head", "head_at"),
    ("first_token", "first_token_at"),
    ("last_token", "last_token_at"),
)
_HISTOGRAMS = (
    (
        *("gen_ai.server.time_to_first_token", "ttft_seconds", True),
        (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    ),
    (
        *("gen_ai.server.time_per_output_token", "tpot_seconds", True),
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    ),
    (
        *("gen_ai.server.request.duration", "total_time_seconds", False),
        tuple(0.01 * 2**power for power in range(14)),
    ),
)
"""Name, the timing that is recorded, whether of completed exchanges only, and the bounds."""


class Traces:
    """The spans and metrics of one proxy. ``model_label``: the name that a metric may have for a
    model, of a closed set. ``lost``: spans that no collector has taken."""

    def __init__(self, config: Config, logs: Logs, model_label: Callable[[str | None], str]):
        self._logs = logs
        self._label = model_label
        self._clock = loop_clock()
        self._server = config.cerebras_base_url
        self._reported = 0
        self._made = self._refused = 0
        self._ids = _GivenIds()
        resource = _resource()
        self._provider = TracerProvider(
            resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._tracer = self._provider.get_tracer(_SCOPE, VERSION, _SCHEMA)
        self._most = _max_queue()
        self._exporter: _CountingExporter | None = None
        if (url := config.traces_url) is not None:
            self._exporter = _CountingExporter(OTLPSpanExporter(url))
            batch = self._most if self._most < _MAX_BATCH else None
            self._provider.add_span_processor(
                BatchSpanProcessor(self._exporter, self._most, max_export_batch_size=batch)
            )
        self._metrics = None
        if (url := config.otlp_metrics_url) is not None:
            self._metrics = _OtlpMetrics(url, resource, self._server.host, self._server.port)

    @property
    def lost(self) -> int:
        return self._refused + (self._exporter.lost if self._exporter else 0)

    def observe(self, exchange: Exchange, timings: Timings) -> None:
        """Make the spans of an exchange that has ended, and record its times."""
        if exchange.route in _UNTRACED:
            return
        if self._metrics is not None and exchange.is_chat:
            self._metrics.record(timings, self._label(exchange.model))
        if self._exporter is None:
            return
        epoch = time.time_ns() - round(self._clock() * 1e9)
        span = self._start_server_span(exchange, timings, epoch)
        if not (span.is_recording() and span.get_span_context().trace_flags.sampled):
            return
        count = 1 + _went_upstream(exchange, timings)
        if self._made - self._exporter.taken > self._most - count:  # the SDK would drop older ones
            self._refused += count
            return
        self._made += count
        if count > 1:
            self._make_client_span(exchange, timings, epoch, set_span_in_context(span))
        span.end(_nanoseconds(epoch, exchange.finished_at))

    def report(self) -> None:
        """Log that spans are lost: once, until that has not happened between two calls."""
        lost = self.lost
        if lost and not self._reported:
            self._logs.event("warning", "Spans are lost: their collector does not take them")
        elif self._reported and lost == self._reported and self._exporter and self._exporter.works:
            self._logs.event("info", "The collector takes spans again", lost=lost)
            lost = 0
        self._reported = lost

    def shut_down(self) -> None:
        """Send what waits, and end the SDK's threads. Blocks, with a slow collector for long."""
        self._provider.shutdown()
        if self._metrics is not None:
            self._metrics.shut_down()

    def report_unsent(self) -> None:
        """Log how many spans wait that will never be sent."""
        taken = self._exporter.taken if self._exporter else 0
        if lost := self.lost + self._made - taken:
            self._logs.event("warning", "Spans were lost", lost=lost)

    def _start_server_span(self, exchange: Exchange, timings: Timings, epoch: int) -> Span:
        _, trace, _, flags = exchange.traceparent.decode().split("-")
        trace_id = int(trace, 16)
        parent = None
        if exchange.parent_span_id is not None:
            parent = _context(trace_id, exchange.parent_span_id, int(flags, 16))
        self._ids.next = trace_id, int(exchange.span_id, 16)
        method = exchange.method if exchange.method in _METHODS else "_OTHER"
        has_route = exchange.route.startswith("/")
        name = method if method != "_OTHER" else "HTTP"
        attributes: _Attributes = {"http.request.method": method, "url.scheme": "http"}
        if has_route:
            attributes["http.route"] = exchange.route
        attributes |= _read(_OF_EXCHANGE, exchange, timings)
        if not exchange.status:
            del attributes["http.response.status_code"]
        if exchange.trace_id != trace:  # X-Trace-ID, which need not be a W3C id
            attributes["cerebras_proxy.trace_id"] = exchange.trace_id
        if timings.traits.failed:
            attributes["error.type"] = timings.outcome
        span = self._tracer.start_span(
            f"{name} {exchange.route}" if has_route else name,
            parent or Context(),
            SpanKind.SERVER,
            attributes,
            start_time=_nanoseconds(epoch, exchange.started_at),
        )
        _add_events(span, exchange, epoch, _OWN_EVENTS)
        if timings.traits.failed and timings.traits.side not in _NO_FAULT_OF_OURS:
            span.set_status(Status(StatusCode.ERROR))
        return span

    def _make_client_span(
        self, exchange: Exchange, timings: Timings, epoch: int, context: Context
    ) -> None:
        attributes: _Attributes = {
            "server.address": self._server.host,
            "server.port": self._server.port,
            "http.request.method": exchange.method,
            **_read(_OF_UPSTREAM, exchange, timings),
        }
        name = "chat" if exchange.is_chat else str(exchange.method)
        if exchange.is_chat:
            label = self._label(exchange.model)
            name = name if label == "other" else f"chat {_plain(label)}"
            attributes |= {**_PROVIDER, **_read(_OF_MODEL, exchange, timings)}
            if exchange.finish_reason is not None:
                attributes["gen_ai.response.finish_reasons"] = [exchange.finish_reason]
        has_failed = timings.traits.failed and timings.traits.side in _IN_THE_WORLD
        has_failed = has_failed or timings.outcome == "upstream_rejected"
        if has_failed:
            attributes["error.type"] = timings.outcome
        begin_at = _upstream_began_at(exchange, timings)
        self._ids.next = 0, int(exchange.traceparent.split(b"-")[2], 16)
        start = _nanoseconds(epoch, begin_at)
        span = self._tracer.start_span(name, context, SpanKind.CLIENT, attributes, start_time=start)
        _add_events(span, exchange, epoch, _EVENTS)
        if has_failed:
            span.set_status(Status(StatusCode.ERROR))
        end_at = exchange.finished_at if exchange.last_body_at is None else exchange.last_body_at
        span.end(_nanoseconds(epoch, max(begin_at, end_at)))


_OWN_EVENTS: _Rows = (("received", "received_at"), ("first_token_sent", "first_token_sent_at"))


def _nanoseconds(epoch: int, at: float) -> int:
    return epoch + round(at * 1e9)


def _add_events(span: Span, exchange: Exchange, epoch: int, events: _Rows) -> None:
    for name, attribute in events:
        at = getattr(exchange, attribute)
        if at is not None:
            span.add_event(name, timestamp=_nanoseconds(epoch, at))


def _read(rows: _Rows, exchange: Exchange, timings: Timings) -> _Attributes:
    """The attributes that ``rows`` describe, as far as the exchange has them."""
    found: _Attributes = {}
    for key, name in rows:
        for source in (timings, exchange, timings.usage):
            value = getattr(source, name, None)
            if value is not None:
                found[key] = _plain(value)
                break
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, str):
        return value[:_MAX_TEXT].encode("ascii", "backslashreplace").decode()
    return value


def _went_upstream(exchange: Exchange, timings: Timings) -> bool:
    """Whether a request of its own was sent, or would have been but for a connection."""
    return exchange.sent_at is not None or timings.cause is not None


def _upstream_began_at(exchange: Exchange, timings: Timings) -> float:
    """The begin of the first attempt. Its time is in the parts before the last was sent."""
    received_at = exchange.started_at if exchange.received_at is None else exchange.received_at
    if exchange.sent_at is None:
        return received_at + (exchange.admission_wait_seconds or 0.0)
    parts = (
        *(exchange.retry_seconds, exchange.pool_wait_seconds),
        *(exchange.connect_seconds, exchange.tls_seconds),
    )
    return max(received_at, exchange.sent_at - sum(part or 0.0 for part in parts))


def _context(trace_id: int, span_id: str, flags: int) -> Context:
    """That of the client's span."""
    remote = SpanContext(trace_id, int(span_id, 16), is_remote=True, trace_flags=TraceFlags(flags))
    return set_span_in_context(NonRecordingSpan(remote), Context())


class _GivenIds(IdGenerator):
    """Gives a span the ids that its exchange has had all the time: the log has them, and the API.
    ``next``: of the trace, where it begins with the span, and of the span."""

    def __init__(self) -> None:
        self.next = 0, 0

    def generate_trace_id(self) -> int:
        return self.next[0]

    def generate_span_id(self) -> int:
        return self.next[1]


class _CountingExporter(SpanExporter):
    """Counts the spans that the SDK gives to an exporter, and those that are lost by it. ``works``:
    whether the latest were not."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.taken = self.lost = 0  # written by the SDK's thread
        self.works = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            self.works = result is SpanExportResult.SUCCESS
            self.lost += 0 if self.works else len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _OtlpMetrics:
    """The histograms of the conventions for a server of models, as this proxy's clients see it."""

    def __init__(self, url: str, resource: Resource, host: str, port: int) -> None:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(url))
        self._provider = MeterProvider([reader], resource, shutdown_on_exit=False)
        self._attributes: _Attributes = {**_PROVIDER, "server.address": host, "server.port": port}
        meter = self._provider.get_meter(_SCOPE, VERSION, _SCHEMA)
        self._histograms = [
            (
                meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=[*bounds]),
                attribute,
                of_completed,
            )
            for name, attribute, of_completed, bounds in _HISTOGRAMS
        ]

    def record(self, timings: Timings, model: str) -> None:
        attributes: _Attributes = {**self._attributes, "gen_ai.request.model": model}
        if timings.traits.failed:
            attributes["error.type"] = timings.outcome
        for histogram, attribute, of_completed in self._histograms:
            value = getattr(timings, attribute)
            if value is not None and not (of_completed and timings.traits.failed):
                histogram.record(value, attributes)

    def shut_down(self) -> None:
        self._provider.shutdown()


def _resource() -> Resource:
    """Who sends: the SDK reads OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME."""
    named = Resource.create({SERVICE_VERSION: VERSION})
    if os.environ.get(OTEL_SERVICE_NAME) or not str(
        named.attributes.get("service.name", "")
    ).startswith("unknown_service"):
        return named
    return named.merge(Resource({"service.name": _SERVICE}))


def _max_queue() -> int:
    """OTEL_BSP_MAX_QUEUE_SIZE, of which the SDK makes no error where it is none."""
    text = os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, "")
    return max(2, int(text)) if text.isdecimal() else _MAX_QUEUE
