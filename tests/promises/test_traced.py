"""Spans of exchanges, as a collector gets them, beside what the client, the API and the log see."""

import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import orjson
import pytest
from anyio import to_thread
from end_to_end import (
    FINISH,
    TOKEN,
    Conversation,
    chat,
    events,
    running_proxy,
    running_upstream,
)
from opentelemetry.sdk.environment_variables import OTEL_BSP_SCHEDULE_DELAY
from otlp_collector import CollectedSpan, Collector, collecting
from run_here import run_here
from server_process import RUN_TIMEOUT, environment, run, serving, start
from worker_service import CHAT, JSON, running_workers

pytestmark = pytest.mark.anyio

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
STREAM = b'{"model":"gpt-oss-120b","messages":[{"role":"user","content":"a secret"}],"stream":true}'
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "20"}  # milliseconds


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(OTEL_BSP_SCHEDULE_DELAY, "20")
    with collecting() as made:
        yield made


def traceparent(flags: str = "01") -> bytes:
    return f"traceparent: 00-{TRACE}-{PARENT}-{flags}".encode()


async def collected(collector: Collector, count: int) -> list[CollectedSpan]:
    """Waits in a thread, for the proxy is on this one."""
    return await to_thread.run_sync(partial(collector.wait_for, count))


def sent_up(request: bytes) -> list[str]:
    """The fields of the ``traceparent`` that the API got."""
    [line] = [each for each in request.lower().split(b"\r\n") if each.startswith(b"traceparent")]
    return line.decode().partition(": ")[2].split("-")


async def stream_a_token(conversation: Conversation) -> None:
    while True:
        await conversation.request()
        await conversation.stream_head()
        await conversation.chunk(events(TOKEN))
        await conversation.chunk(events(FINISH, b"[DONE]"))
        await conversation.end()


async def test_a_stream_has_two_spans(collector: Collector) -> None:
    before = time.time_ns()
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url + "/") as running,
    ):
        client = await running.client()
        await client.request(chat(STREAM, traceparent()))
        server, request = await collected(collector, 2)
        line = await running.lines.exchange()
    assert [each.trace_id for each in (server, request)] == [TRACE, TRACE] == [line["trace_id"]] * 2
    assert (server.kind, server.name) == ("server", "POST /v1/chat/completions")
    assert (server.span_id, server.parent_span_id) == (line["span_id"], line["parent_span_id"])
    assert server.parent_span_id == PARENT
    assert (request.kind, request.name) == ("client", "chat gpt-oss-120b")
    assert sent_up(upstream.requests[0]) == ["00", TRACE, request.span_id, "01"]
    assert request.parent_span_id == server.span_id
    assert not server.is_error
    assert not request.is_error
    # Times: as the line has them, within the microsecond that it rounds to.
    assert before <= server.begin <= server.events["received"] <= request.begin
    assert [*request.events] == ["head", "first_token", "last_token"]
    assert request.begin <= request.events["head"] <= request.events["first_token"]
    assert request.events["last_token"] <= request.end <= server.end <= time.time_ns()
    felt = server.events["first_token_sent"] - server.events["received"]
    assert felt / 1e9 == pytest.approx(line["ttft_seconds"], abs=2e-6)
    whole = server.end - server.events["received"]
    assert whole / 1e9 == pytest.approx(line["total_time_seconds"], abs=2e-6)


async def test_attributes_are_those_of_the_conventions(collector: Collector) -> None:
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        await (await running.client()).request(chat(STREAM))
        server, request = await collected(collector, 2)
    assert server.attributes["http.request.method"] == "POST"
    assert server.attributes["http.route"] == "/v1/chat/completions"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["cerebras_proxy.outcome"] == "completed"
    assert "error.type" not in server.attributes
    own = {name for name in request.attributes if name.startswith("cerebras_proxy.")}
    assert {name: value for name, value in request.attributes.items() if name not in own} == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "cerebras",
        "gen_ai.request.model": "gpt-oss-120b",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "gpt-oss-120b",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": upstream.port,
    }
    assert server.resource["service.name"] == "ape-cerebras"
    assert server.resource["schema"] == "https://opentelemetry.io/schemas/1.41.1"
    assert "secret" not in repr(collector.spans)


async def test_sampling_follows_the_client(collector: Collector) -> None:
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        client = await running.client()
        await client.request(chat(STREAM, traceparent("00")))
        await client.request(chat(STREAM, b"X-Trace-ID: mine"))  # neither: recorded by default
        server, request = await collected(collector, 2)
        first, second = [await running.lines.exchange(number) for number in (1, 2)]
    assert (first["parent_span_id"], "parent_span_id" in second) == (PARENT, False)
    assert len(collector.spans) == 2
    assert server.parent_span_id == ""
    assert server.span_id == second["span_id"]
    assert server.attributes["cerebras_proxy.trace_id"] == "mine"
    assert sent_up(upstream.requests[1]) == ["00", server.trace_id, request.span_id, "00"]


async def test_the_environment_may_sample_less(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        client = await running.client()
        await client.request(chat(STREAM))
        await client.request(chat(STREAM, traceparent()))
        server, _ = await collected(collector, 2)
    assert len(collector.spans) == 2
    assert server.trace_id == TRACE
    assert server.resource["service.name"] == "gateway"
    assert server.resource["deployment.environment.name"] == "test"


async def test_the_environment_may_switch_the_sdk_off(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_METRICS_EXPORTER": "otlp"}
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        await (await running.client()).request(chat(STREAM, traceparent()))
        await running.lines.exchange()
        running.proxy.begin_drain()
        await running.ended.wait()
        assert collector.requests == []
    assert running.lines.all()[-1]["message"] == "Stopped"


async def refuse(conversation: Conversation) -> None:
    await conversation.request()
    await conversation.respond(b'{"code":"queue_exceeded"}', status="429 Too Many Requests")


async def test_errors(collector: Collector) -> None:
    async with (
        running_upstream(refuse) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        await (await running.client()).request(chat(STREAM))
        server, request = await collected(collector, 2)
    for span in (server, request):
        assert span.is_error
        assert span.attributes["error.type"] == "upstream_rate_limited"
        assert span.attributes["http.response.status_code"] == 429
    assert request.attributes["cerebras_proxy.upstream_code"] == "queue_exceeded"
    assert "gen_ai.usage.input_tokens" not in request.attributes


async def test_what_does_not_go_upstream(collector: Collector) -> None:
    """Probes have no span. A client's mistake is no error of ours, and its words are in no name."""
    async with running_proxy(1, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running:
        await (await running.client()).get("/health")
        await (await running.client()).get("/metrics")
        await (await running.client()).request(b"SHOUT /secret HTTP/1.1\r\nHost: a\r\n\r\n")
        await (await running.client()).request(chat(b"not json"))
        await (await running.client()).request(chat(STREAM))  # nobody listens there
        spans = await collected(collector, 4)
    assert len(spans) == 4
    assert [span.name for span in spans] == [
        *("HTTP", "POST /v1/chat/completions", "POST /v1/chat/completions", "chat gpt-oss-120b")
    ]
    assert [span.attributes.get("error.type") for span in spans] == [
        *("refused", "refused", "upstream_connect_failed", "upstream_connect_failed")
    ]
    assert [span.is_error for span in spans] == [False, False, True, True]
    assert spans[0].attributes["http.request.method"] == "_OTHER"
    assert spans[3].attributes["cerebras_proxy.cause"] == "ECONNREFUSED"
    assert "secret" not in repr(spans)


# A collector that is slow or down


async def test_a_slow_collector_loses_spans_and_delays_nobody(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    collector.held.clear()
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        client = await running.client()
        await client.request(chat(STREAM))
        await to_thread.run_sync(collector.wait_for_requests, 1)  # and the SDK waits
        for _ in range(9):
            assert (await client.request(chat(STREAM))).status == 200
        await running.lines.exchange(10)
        lost = await running.metric("cerebras_proxy_spans_lost_total")
        running.proxy._traces.report()  # type: ignore[union-attr]
        running.proxy._traces.report()  # type: ignore[union-attr]
        collector.held.set()
        await collected(collector, 2 + 4)
    assert lost == 20 - 2 - 4
    messages = [line["message"] for line in running.lines.all()]
    assert messages.count("Spans are lost: their collector does not take them") == 1


async def test_a_collector_that_refuses(collector: Collector) -> None:
    collector.status = 400  # not to be tried again
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as running,
    ):
        client = await running.client()
        await client.request(chat(STREAM))
        await to_thread.run_sync(collector.wait_for_requests, 1)
        traces = running.proxy._traces
        assert traces is not None
        collector.status = 200
        await client.request(chat(STREAM))
        await collected(collector, 2)
        assert traces.lost == 2
        assert await running.metric("cerebras_proxy_spans_lost_total") == 2
        for _ in range(2):
            traces.report()
    messages = [line["message"] for line in running.lines.all()]
    assert "The collector takes spans again" in messages


async def test_spans_that_cannot_be_sent_at_the_end_are_logged(collector: Collector) -> None:
    """Nor do they hold the end for longer than the grace period."""
    collector.held.clear()
    settings = {"GRACEFUL_SHUTDOWN_TIMEOUT": "0.2", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    async with (
        running_upstream(stream_a_token) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        client = await running.client()
        await client.request(chat(STREAM))
        await to_thread.run_sync(collector.wait_for_requests, 1)
        await client.request(chat(STREAM))
        running.proxy.begin_drain()
        await running.ended.wait()
        collector.held.set()
    last = running.lines.all()[-1]
    assert (last["message"], last["lost"]) == ("Spans were lost", 2)


# Whole processes


@pytest.fixture
def keeping() -> Any:
    with collecting() as made:
        yield made


@pytest.mark.every_loop
def test_the_end_sends_what_waits(backend: str, keeping: Collector) -> None:
    """The SDK would wait for 5 seconds, and the process does not."""
    settings = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{keeping.url}/at/v1/traces"}
    with serving("serve", "--demo", BACKEND=backend, **settings) as served:
        connection = served.connection()
        connection.request("POST", "/v1/chat/completions", CHAT, JSON)
        connection.getresponse().read()
        connection.close()
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0
    assert len(keeping.spans) == 2
    assert keeping.requests[0][0] == "/at/v1/traces"


@pytest.mark.every_loop
def test_several_workers(backend: str, keeping: Collector, tmp_path: Any) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": keeping.url, **SOON}
    with running_workers(backend, tmp_path, **settings) as workers:
        for number in (1, 2):
            connection = workers.connection(number)
            connection.request("POST", "/v1/chat/completions", CHAT, JSON)
            connection.getresponse().read()
        spans = keeping.wait_for(4)
    assert len({span.resource["service.instance.id"] for span in spans}) == 2
    assert len({span.trace_id for span in spans}) == 2


def test_a_collector_that_is_down_writes_no_crash_reports() -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **SOON}
    with serving("serve", "--demo", **settings) as served:
        connection = served.connection()
        connection.request("POST", "/v1/chat/completions", CHAT, JSON)
        connection.getresponse().read()
        connection.close()
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0
    assert "A library reported a problem" not in {line["message"] for line in served.lines}


def test_metrics_are_sent_where_the_environment_wants_them(keeping: Collector) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": keeping.url, "OTEL_METRICS_EXPORTER": "otlp"}
    with serving("serve", "--demo", OTEL_TRACES_EXPORTER="none", **settings) as served:
        connection = served.connection()
        connection.request("POST", "/v1/chat/completions", CHAT, JSON)
        connection.getresponse().read()
        connection.request("POST", "/v1/chat/completions", CHAT.replace(b"llama", b"own"), JSON)
        connection.getresponse().read()
        connection.close()
        lines = [served.line("outcome") for _ in range(2)]
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0
    assert keeping.spans == []
    ttft = keeping.metrics["gen_ai.server.time_to_first_token"]
    assert ttft.unit == "s"
    points = ttft.histogram.data_points
    assert sum(point.count for point in points) == sum("ttft_seconds" in line for line in lines)
    felt = sum(line.get("ttft_seconds", 0) for line in lines)
    assert sum(point.sum for point in points) == pytest.approx(felt)
    assert list(points[0].explicit_bounds) == [
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    ]
    duration = keeping.metrics["gen_ai.server.request.duration"].histogram.data_points
    assert list(duration[0].explicit_bounds)[-1] == 81.92
    models = {
        pair.value.string_value
        for point in duration
        for pair in point.attributes
        if pair.key == "gen_ai.request.model"
    }
    assert models == {"llama3.1-8b", "other"}
    assert "gen_ai.server.time_per_output_token" in keeping.metrics


# Without it


def test_nothing_is_imported_unless_it_is_switched_on() -> None:
    code = (
        "import sys, anyio; from ape_cerebras import Config, Proxy\n"
        "async def main(): Proxy(Config(cerebras_api_key='csk-0123456789'), print)\n"
        "anyio.run(main); print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


_WITHOUT = """
from ape_cerebras.config import values
found = values.find_spec
values.find_spec = lambda name: None if "opentelemetry" in name else found(name)
"""
_NO_EXTRA = (_WITHOUT, "http/protobuf", "pip install 'ape-cerebras[otel]'")
_NO_GRPC = ("", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf")
_ENDPOINT = "http://127.0.0.1:1"


@pytest.mark.parametrize(("fault", "protocol", "text"), [_NO_EXTRA, _NO_GRPC])
def test_what_keeps_traces_from_a_collector_is_warned_of(
    fault: str, protocol: str, text: str
) -> None:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": _ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    settings |= {"CEREBRAS_API_KEY": "csk-0123456789abcdef", "PORT": "0"}
    done = run("check", timeout=RUN_TIMEOUT, fault=fault, **settings)
    assert done.returncode == 0
    assert "warning: No traces: " in done.stderr
    assert text in done.stderr
    given = environment(**settings)
    with start("serve", fault=fault, env=given, stdout=subprocess.PIPE) as serving:
        assert serving.stdout is not None
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1]["message"] != "Listening":
            lines.append(orjson.loads(serving.stdout.readline()))
        serving.terminate()
    [warning] = [line for line in lines if line["message"] == "No traces"]
    assert warning["level"] == "warning"
    assert text in warning["problem"]


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "must be an http or https URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:pw@collector", "without user and password"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "gopher", "must be one of http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "a b", "names of exporters"),
    ],
)
def test_wrong_settings(setting: str, value: str, word: str) -> None:
    settings = {"CEREBRAS_API_KEY": "csk-0123456789abcdef", setting: value}
    done = run_here("check", **settings)
    assert done.returncode == 2
    assert done.stderr.startswith(setting)
    assert word in done.stderr
    assert "pw" not in done.stderr
