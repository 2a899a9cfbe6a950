"""Spans and metrics as a real OpenTelemetry collector takes them and passes them on: Rotel, whose
package has the program in it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from end_to_end import free_port
from otlp_collector import Collector, collecting
from server_process import TIMEOUT, serving
from worker_service import CHAT, JSON

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def rotel() -> str:
    found = find_spec("rotel")
    if found is None or found.origin is None:
        pytest.skip("no rotel here: its package is of Python 3.11 on Linux")
    return str(Path(found.origin).parent / "rotel-agent")


@contextmanager
def running_rotel(behind: Collector, log: Path) -> Iterator[str]:
    """The address of a Rotel that passes everything on to another collector."""
    port = free_port()
    command = (
        *(rotel(), "start", "--disable-batching", "--exporter", "otlp"),
        *("--otlp-http-endpoint", f"127.0.0.1:{port}"),
        *("--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"),
        *("--otlp-exporter-endpoint", behind.url, "--otlp-exporter-protocol", "http"),
    )
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            ends_at = time.monotonic() + TIMEOUT
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < ends_at, log.read_text("utf-8")
                assert process.poll() is None, log.read_text("utf-8")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the package has a program for Linux")
def test_a_collector_takes_spans_and_metrics(tmp_path: Path) -> None:
    with collecting() as behind, running_rotel(behind, tmp_path / "log") as url:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_METRICS_EXPORTER": "otlp"}
        often = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "100"}
        with serving("serve", "--demo", **settings, **often) as served:
            connection = served.connection()
            headers = {**JSON, "traceparent": f"00-{TRACE}-{PARENT}-01"}
            connection.request("POST", "/v1/chat/completions", CHAT, headers)
            connection.getresponse().read()
            connection.close()
            server, request = behind.wait_for(2)
            while "gen_ai.server.time_per_output_token" not in behind.metrics:
                behind.wait_for_requests(len(behind.requests) + 1)
            line = served.exchange(TRACE)
    assert behind.requests[0][1]["user-agent"].startswith("Rotel")
    assert (server.span_id, server.parent_span_id) == (line["span_id"], PARENT)
    assert (request.trace_id, request.parent_span_id) == (TRACE, server.span_id)
    assert request.attributes["gen_ai.usage.output_tokens"] == line["completion_tokens"]
    assert [*request.events] == ["head", "first_token", "last_token"]
