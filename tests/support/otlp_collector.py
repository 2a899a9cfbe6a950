"""A collector for traces and metrics: OTLP over HTTP, read with OpenTelemetry's own protocol
buffers."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

__all__ = ("CollectedSpan", "Collector", "collecting")

_TIMEOUT = 15.0  # seconds until a test that waits for spans fails
_KINDS = {2: "server", 3: "client"}


class CollectedSpan(NamedTuple):
    """A span as a collector gets it; times are nanoseconds since the epoch, ids hexadecimal."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_span_id: str
    attributes: dict[str, Any]
    events: dict[str, int]
    begin: int
    end: int
    is_error: bool
    resource: dict[str, Any]


class Collector:
    """What came so far. ``status`` is that of the responses; while ``held`` there are none."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.metrics: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        self.port = 0
        self._more = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        with self._more:
            self.requests.append((path, headers))
            if self.status == 200 and path.endswith("/v1/traces"):
                self.spans += _spans_of(ExportTraceServiceRequest.FromString(body))
            elif self.status == 200 and path.endswith("/v1/metrics"):
                self.metrics |= _metrics_of(ExportMetricsServiceRequest.FromString(body))
            self._more.notify_all()
        self.held.wait(_TIMEOUT)
        return self.status

    def wait_for(self, count: int, trace_id: str = "") -> list[CollectedSpan]:
        """The spans, of one trace if it is named, once there are so many: servers' first."""

        def found() -> list[CollectedSpan]:
            return [each for each in self.spans if trace_id in ("", each.trace_id)]

        with self._more:
            assert self._more.wait_for(lambda: len(found()) >= count, _TIMEOUT), self.spans
        return sorted(found(), key=lambda span: span.kind != "server")

    def wait_for_requests(self, count: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: len(self.requests) >= count, _TIMEOUT)


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        assert isinstance(pair, KeyValue)
        found[pair.key] = _plain(pair.value)
    return found


def _spans_of(message: ExportTraceServiceRequest) -> Iterator[CollectedSpan]:
    for of_resource in message.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield CollectedSpan(
                    span.name,
                    _KINDS[span.kind],
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _attributes(span.attributes),
                    {event.name: event.time_unix_nano for event in span.events},
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == 2,
                    {**resource, "schema": scope.schema_url},
                )


def _metrics_of(message: ExportMetricsServiceRequest) -> dict[str, Any]:
    return {
        metric.name: metric
        for of_resource in message.resource_metrics
        for scope in of_resource.scope_metrics
        for metric in scope.metrics
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status = self.server.collector.take(self.path, headers, body)
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    collector: Collector

    def handle_error(self, *_: object) -> None:
        """A client that has gone, which a test may want."""


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.collector = collector
        collector.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            collector.held.set()
            server.shutdown()
            thread.join()
