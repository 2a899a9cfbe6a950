"""The metrics as a scraper reads them: names, labels and values."""

from decimal import Decimal
from itertools import accumulate

import pytest
from exchanges import CHAT, RETRIED, chat_exchange, plain_exchange, stream_exchange, with_timings
from scraped_metrics import OPENMETRICS, families, new_metrics, observed, samples, value

from ape_cerebras import VERSION
from ape_cerebras.config.settings import BUCKETS
from ape_cerebras.errors import ClientGone, ConnectFailed
from ape_cerebras.telemetry.exchange import Usage
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.telemetry.outcomes import ALERTED, OUTCOMES
from ape_cerebras.upstream.client import read_quota

# Name (without the stem) → type, labels.
TABLE: dict[str, tuple[str, set[str]]] = {
    "requests_total": ("counter", {"model"}),
    "errors_total": ("counter", {"model"}),
    "outcomes_total": ("counter", {"route", "outcome", "class", "status_code"}),
    "process_cpu_seconds_total": ("counter", set()),
    "process_max_fds": ("gauge", set()),
    "process_open_fds": ("gauge", set()),
    "process_resident_memory_bytes": ("gauge", set()),
    "process_start_time_seconds": ("gauge", set()),
    "process_virtual_memory_bytes": ("gauge", set()),
    "upstream_failures_total": ("counter", {"outcome", "cause"}),
    "upstream_errors_total": ("counter", {"status", "code"}),
    "ttft_seconds": ("histogram", {"model", "source"}),
    "upstream_ttft_seconds": ("histogram", {"model"}),
    "proxy_ttft_seconds": ("histogram", {"model"}),
    "retry_seconds": ("histogram", {"model"}),
    "retries_total": ("counter", {"reason"}),
    "retries_forgone_total": ("counter", {"why"}),
    "malformed_retry_after_total": ("counter", set()),
    "client_retries_total": ("counter", {"model"}),
    "upstream_circuit": ("gauge", {"state"}),
    "wait_seconds": ("histogram", {"model"}),
    "upstream_connect_seconds": ("histogram", {"model"}),
    "upstream_tls_seconds": ("histogram", {"model"}),
    "proxy_own_seconds": ("histogram", {"model"}),
    "chunk_gap_seconds": ("histogram", {"model"}),
    "upstream_connection_uses_total": ("counter", {"connection"}),
    "ttfo_seconds": ("histogram", {"model"}),
    "tpot_seconds": ("histogram", {"model", "source"}),
    "network_seconds": ("histogram", {"model"}),
    "upstream_queue_seconds": ("histogram", {"model"}),
    "upstream_prompt_seconds": ("histogram", {"model"}),
    "request_duration_seconds": ("histogram", {"route"}),
    "overhead_seconds": ("histogram", {"route"}),
    "tokens_total": ("counter", {"model", "type"}),
    "output_tokens_per_second": ("histogram", {"model", "source"}),
    "cost_usd_total": ("counter", {"model"}),
    "reserved_tokens_total": ("counter", {"model"}),
    "malformed_quota_headers_total": ("counter", set()),
    "unknown_quota_headers_total": ("counter", set()),
    "client_requests_total": ("counter", {"client"}),
    "client_tokens_total": ("counter", {"client", "type"}),
    "client_cost_usd_total": ("counter", {"client"}),
    "catalogue_fetches_total": ("counter", {"result"}),
    "catalogue_drift": ("gauge", {"kind"}),
    "model_limit": ("gauge", {"model", "kind"}),
    "unpriced_requests_total": ("counter", set()),
    "usage_missing_total": ("counter", set()),
    "usage_estimated_total": ("counter", set()),
    "finish_reasons_total": ("counter", {"model", "finish_reason"}),
    "ttft_target_missed_total": ("counter", set()),
    "degraded": ("gauge", {"reason"}),
    "client_blocked_seconds_total": ("counter", set()),
    "queue_length": ("gauge", set()),
    "requests_in_flight": ("gauge", set()),
    "client_connections": ("gauge", set()),
    "client_connections_limit": ("gauge", set()),
    "client_connections_full_total": ("counter", set()),
    "upstream_connections": ("gauge", {"state"}),
    "upstream_reachable": ("gauge", set()),
    "upstream_ratelimit_limit": ("gauge", {"kind", "window"}),
    "upstream_ratelimit_remaining": ("gauge", {"kind", "window"}),
    "loop_lag_seconds": ("histogram", set()),
    "background_failures_total": ("counter", {"task"}),
    "log_lines_dropped_total": ("counter", set()),
    "spans_lost_total": ("counter", set()),
    "build_info": ("gauge", {"version", "python", "backend"}),
}
GRID = tuple(
    (f"x-ratelimit-{what}-{kind}-{window}".encode(), f"{number}".encode())
    for number, (what, kind, window) in enumerate(
        (what, kind, window)
        for what in ("limit", "remaining")
        for kind in ("requests", "tokens")
        for window in ("minute", "hour", "day")
    )
)


@pytest.mark.parametrize("accept", [b"", OPENMETRICS])
def test_the_table(accept: bytes) -> None:
    new = {"pool_wait_seconds": 0.001, "connect_seconds": 0.001, "tls_seconds": 0.001}
    metrics = observed(
        stream_exchange(
            quota=read_quota(GRID),
            client="alice",
            reserved_tokens=100,
            finish_reason="stop",
            **RETRIED,
            **new,
        ),
        stream_exchange(error=ConnectFailed("ECONNREFUSED"), upstream_status=429),
    )
    metrics.count_catalogue_fetch(succeeded=True)
    metrics.count_background_failure("warmup")
    metrics.set_catalogue(
        {"m": {"context_tokens": 8}}, dict.fromkeys(("price", "only_listed", "not_listed"), 0)
    )
    found: dict[str, tuple[str, set[str]]] = {}
    for metric in families(metrics, accept).values():
        name = metric.name.removeprefix("cerebras_proxy_")
        name += "_total" * (metric.type == "counter")
        labels = {frozenset(sample.labels.keys() - {"le"}) for sample in metric.samples}
        assert len(labels) == 1, name
        found[name] = (metric.type, set(*labels))
        assert metric.documentation
    assert found == TABLE


def test_the_metrics_of_a_stream() -> None:
    parts = {"pool_wait_seconds": 0.0002, "connect_seconds": 0.0003, "tls_seconds": 0.0004}
    metrics = observed(
        stream_exchange(upstream_wait_seconds=1.5, client_blocked_seconds=0.25, **parts)
    )
    model = {"model": "gpt-oss-120b"}
    for name, expected in {
        "upstream_ttft_seconds": 0.199,
        "proxy_ttft_seconds": 0.004,
        "wait_seconds": 0.0002,
        "upstream_connect_seconds": 0.0003,
        "upstream_tls_seconds": 0.0004,
        "proxy_own_seconds": 0.0031,
        "chunk_gap_seconds": 0.4,
        "ttfo_seconds": 0.303,
        "network_seconds": 0.089,
        "upstream_queue_seconds": 0.05,
        "upstream_prompt_seconds": 0.06,
    }.items():
        assert value(metrics, f"{name}_sum", **model) == expected, name
        assert value(metrics, f"{name}_count", **model) == 1, name
    measured = {"source": "measured", **model}
    assert value(metrics, "ttft_seconds_sum", **measured) == 0.203
    assert value(metrics, "tpot_seconds_sum", **measured) == 0.1
    assert value(metrics, "output_tokens_per_second_sum", **measured) == 12.5
    assert value(metrics, "request_duration_seconds_sum", route=CHAT) == 2.0
    assert value(metrics, "overhead_seconds_sum", route=CHAT) == 0.25
    assert value(metrics, "client_blocked_seconds_total") == 0.25
    assert value(metrics, "requests_total", **model) == 1
    assert value(metrics, "errors_total", **model) == 0
    assert value(metrics, "cost_usd_total", **model) == 0.00000725
    tokens = {"prompt": 10, "completion": 5, "cached": 4, "reasoning": 1}
    for kind, expected in tokens.items():
        assert value(metrics, "tokens_total", type=kind, **model) == expected
    outcome = {"route": CHAT, "outcome": "completed", "class": "ok", "status_code": "200"}
    assert value(metrics, "outcomes_total", **outcome) == 1


def test_gap_counts_fill_the_buckets_one_by_one() -> None:
    bounds = BUCKETS["gap"]
    counts = [number % 3 for number in range(len(bounds) + 1)]
    metrics = observed(stream_exchange(gap_counts=counts))
    for upper, below in zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True):
        bound = {"le": upper, "model": "gpt-oss-120b"}
        assert value(metrics, "chunk_gap_seconds_bucket", **bound) == below
    assert value(metrics, "chunk_gap_seconds_count", model="gpt-oss-120b") == sum(counts)


def test_connections_are_counted_by_kind() -> None:
    metrics = observed(stream_exchange(), plain_exchange(), stream_exchange(connection="warm"))
    assert value(metrics, "upstream_connection_uses_total", connection="reused") == 2
    assert value(metrics, "upstream_connection_uses_total", connection="warm") == 1


def test_a_plain_response_has_its_own_source() -> None:
    metrics = observed(plain_exchange())
    model = {"model": "gpt-oss-120b"}
    assert value(metrics, "ttft_seconds_count", source="derived", **model) == 1
    assert value(metrics, "ttft_seconds_count", source="measured", **model) is None
    for name, total in (("tpot_seconds", 0.1), ("output_tokens_per_second", 12.5)):
        assert value(metrics, f"{name}_sum", source="derived", **model) == total
        assert value(metrics, f"{name}_count", source="measured", **model) is None


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("queue_exceeded", "queue_exceeded"),
        ("token_quota_exceeded", "token_quota_exceeded"),
        ("made_up_by_nobody_knows_whom", "other"),
        (None, "none"),
    ],
)
def test_errors_of_the_api_are_counted_by_a_closed_list_of_codes(
    code: str | None, label: str
) -> None:
    metrics = observed(
        chat_exchange(upstream_status=429, upstream_code=code),
        chat_exchange(upstream_status=429, upstream_code=code, route="/v1/models"),
        chat_exchange(),
        chat_exchange(upstream_status=None),
    )
    assert value(metrics, "upstream_errors_total", status="429", code=label) == 2
    errors = [s for s in samples(metrics) if "upstream_errors" in s.name]
    assert [sample.value for sample in errors] == [2]


def test_an_incomplete_request_has_no_overhead() -> None:
    metrics = observed(chat_exchange(route="none", received_at=None, status=408))
    assert value(metrics, "request_duration_seconds_count", route="none") == 1
    assert value(metrics, "overhead_seconds_count", route="none") is None


@pytest.mark.parametrize(("outcome", "status"), ALERTED.items())
def test_outcomes_with_an_alert_are_counted_from_0(outcome: str, status: int) -> None:
    labels = {"route": CHAT, "class": OUTCOMES[outcome].side, "status_code": str(status)}
    assert value(new_metrics(), "outcomes_total", outcome=outcome, **labels) == 0


def test_other_routes_do_not_count_as_chat_requests() -> None:
    metrics = observed(chat_exchange(route="/health", usage=Usage(1, 1, 2, 0, 0)))
    health = {"route": "/health", "outcome": "completed", "class": "ok", "status_code": "200"}
    assert value(metrics, "outcomes_total", **health) == 1
    assert not [sample for sample in samples(metrics) if "model" in sample.labels]


def test_finish_reasons_and_tokens_that_only_some_models_have() -> None:
    usage = Usage(10, 5, 15, 0, 0, 3, None, 8)
    metrics = observed(
        stream_exchange(finish_reason="length", usage=usage),
        stream_exchange(finish_reason="length"),
        stream_exchange(),
    )
    model = {"model": "gpt-oss-120b"}
    assert value(metrics, "finish_reasons_total", finish_reason="length", **model) == 2
    for kind, count in (("accepted_prediction", 3), ("rejected_prediction", None), ("image", 8)):
        assert value(metrics, "tokens_total", type=kind, **model) == count
    assert value(observed(stream_exchange()), "tokens_total", type="image", **model) is None


def test_responses_without_a_price_or_usage() -> None:
    estimated = Usage(10, 9, 19)
    metrics = observed(
        stream_exchange(model="new", cost=None),
        stream_exchange(usage=None, estimated_usage=estimated, cost=Decimal("0.01")),
        stream_exchange(estimated_usage=estimated, cost=Decimal("0.01"), error=ClientGone()),
    )
    assert value(metrics, "unpriced_requests_total") == 1
    assert value(metrics, "usage_missing_total") == 1
    assert value(metrics, "usage_estimated_total") == 2
    assert value(metrics, "cost_usd_total", model="other") is None
    model = {"model": "gpt-oss-120b"}
    assert value(metrics, "tokens_total", type="completion", **model) == 18
    assert value(metrics, "cost_usd_total", **model) == 0.02


def test_missed_ttft_targets_are_counted() -> None:
    exchanges = [
        stream_exchange(first_token_at=100.0, first_token_sent_at=moment)
        for moment in (100.2, 100.200001, 101.0)
    ]
    assert value(observed(*exchanges, TTFT_TARGET_MS="200"), "ttft_target_missed_total") == 2
    assert value(observed(*exchanges), "ttft_target_missed_total") == 0


def test_model_labels_are_a_closed_set() -> None:
    metrics = new_metrics(MODEL_ALIASES="small=own-model")
    names = ("gpt-oss-120b", "own-model", "small", "x" * 10_000, "\n\u2028", None)
    for name in names:
        metrics.observe(*with_timings(stream_exchange(model=name)))
    assert value(metrics, "requests_total", model="gpt-oss-120b") == 1
    assert value(metrics, "requests_total", model="own-model") == 1
    assert value(metrics, "requests_total", model="other") == 4


def test_text_from_clients_makes_no_series() -> None:
    metrics = observed(stream_exchange(model="other"))
    series = len(list(samples(metrics)))
    for number in range(10_000):
        text = f"model-{number}"
        metrics.observe(
            *with_timings(
                stream_exchange(
                    model=text,
                    requested_model=text,
                    response_model=text,
                    trace_id=text,
                    request_id=text,
                    quota=read_quota(((f"x-ratelimit-{text}".encode(), b"1"),)),
                )
            )
        )
    assert len(list(samples(metrics))) == series


def test_the_quota() -> None:
    metrics = observed(chat_exchange(quota=read_quota(GRID)))
    for name, number in GRID:
        what, kind, window = name.decode().split("-")[2:]
        gauge = f"upstream_ratelimit_{what}"
        assert value(metrics, gauge, kind=kind, window=window) == float(number)
    fraction = ((b"x-ratelimit-remaining-tokens-minute", b"17.5"),)
    metrics.observe(*with_timings(chat_exchange(quota=read_quota(fraction))))
    gauge = "upstream_ratelimit_remaining"
    assert value(metrics, gauge, kind="tokens", window="minute") == 17.5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(
            (b"limit-tokens-day", text)
            for text in (b"", b"-1", b"1e9", b"nan", b"Infinity", b"1_0")
        ),
        *((b"limit-tokens-day", text) for text in (b"9" * 400, b"1.", b"\xb2", b"1,000", b"x")),
        (b"reset-tokens-minute", b"11.38"),
        (b"limit-requests", b"5"),
        (b"limit-tokens-week", b"5"),
        (b"limit-tokens-day-x", b"5"),
    ],
)
def test_an_invalid_quota_is_not_exported(name: bytes, text: bytes) -> None:
    metrics = observed(chat_exchange(quota=read_quota(((b"x-ratelimit-" + name, text),))))
    assert not [sample for sample in samples(metrics) if "ratelimit" in sample.name]


def test_values_read_at_each_scrape() -> None:
    metrics = new_metrics()
    assert value(metrics, "requests_in_flight") == 3
    assert value(metrics, "client_connections") == 4
    assert value(metrics, "upstream_connections", state="active") == 5
    assert value(metrics, "upstream_connections", state="idle") == 6
    assert value(metrics, "upstream_reachable") == 1
    assert value(metrics, "log_lines_dropped_total") == 7
    assert value(metrics, "spans_lost_total") == 9
    assert value(metrics, "queue_length") == 8
    python = next(s.labels["python"] for s in samples(metrics) if s.name.endswith("build_info"))
    build = {"version": VERSION, "python": python, "backend": "trio"}
    assert value(metrics, "build_info", **build) == 1


def test_degradation() -> None:
    metrics = new_metrics()
    for reasons in ((), ("ttft",), ("ttft", "failures"), ("failures",), ()):
        metrics.set_degraded(reasons)
        for reason in ("ttft", "failures"):
            assert value(metrics, "degraded", reason=reason) == (reason in reasons)


def bounds(metrics: Metrics, name: str) -> list[str]:
    found = [s for s in samples(metrics) if s.name == f"cerebras_proxy_{name}_bucket"]
    return [sample.labels["le"] for sample in found]


def test_buckets() -> None:
    assert len(bounds(observed(stream_exchange()), "tpot_seconds")) == 27
    duration = bounds(observed(stream_exchange()), "request_duration_seconds")
    assert duration[:5] == ["0.01", "0.02", "0.04", "0.08", "0.16"]
    assert duration[-2:] == ["327.68", "+Inf"]
    own = observed(stream_exchange(), HISTOGRAM_BUCKETS='{"ttft":[0.5,1],"lag":[0]}')
    assert bounds(own, "ttft_seconds") == bounds(own, "network_seconds") == ["0.5", "1.0", "+Inf"]
    assert bounds(own, "loop_lag_seconds") == ["0.0", "+Inf"]
    assert bounds(own, "request_duration_seconds") == duration


@pytest.mark.parametrize(
    ("seconds", "at_most"),
    [(0.0, "0.5"), (0.5, "0.5"), (0.500001, "1.0"), (1.0, "1.0"), (1.000001, "+Inf"), (9, "+Inf")],
)
def test_a_bucket_holds_what_is_at_most_its_bound(seconds: float, at_most: str) -> None:
    metrics = new_metrics(HISTOGRAM_BUCKETS='{"duration":[0.5,1]}')
    exchange, timings = with_timings(stream_exchange())
    metrics.observe(exchange, timings._replace(total_time_seconds=seconds))
    name = "request_duration_seconds_bucket"
    rises = [value(metrics, name, route=CHAT, le=le) for le in ("0.5", "1.0", "+Inf")]
    assert rises.count(1) == 3 - ["0.5", "1.0", "+Inf"].index(at_most)
