"""Log lines and counters are two accounts of the same exchanges, and agree."""

import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from exchanges import CHAT, ended_exchanges, with_timings
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from scraped_metrics import rendered

from ape_cerebras import Config
from ape_cerebras.telemetry.exchange import Exchange
from ape_cerebras.telemetry.logs import Logs
from ape_cerebras.telemetry.metrics import Metrics
from ape_cerebras.telemetry.outcomes import OUTCOMES

Line = dict[str, Any]

HISTOGRAMS = {
    "ttft_seconds": "ttft_seconds",
    "upstream_ttft_seconds": "upstream_ttft_seconds",
    "proxy_ttft_seconds": "proxy_ttft_seconds",
    "ttfo_seconds": "ttfo_seconds",
    "tpot_seconds": "tpot_seconds",
    "network_seconds": "network_seconds",
    "upstream_queue_seconds": "queue_seconds",
    "upstream_prompt_seconds": "prompt_seconds",
    "output_tokens_per_second": "tokens_per_second",
}


def reported(
    exchanges: list[Exchange],
) -> tuple[list[Line], dict[str, float], list[Any]]:
    """The lines; sums of samples by name; all samples."""
    config = Config.from_environment({"CEREBRAS_API_KEY": "key"})
    metrics = Metrics(config, "asyncio")
    lines: list[Line] = []
    logs = Logs("debug", lambda line: lines.append(json.loads(line, parse_float=Decimal)))
    for exchange in exchanges:
        metrics.observe(*with_timings(exchange))
        logs.exchange(*with_timings(exchange))
    text = rendered(metrics)[0].decode()
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    sums: Counter[str] = Counter()
    for sample in samples:
        sums[sample.name.removeprefix("cerebras_proxy_")] += sample.value  # type: ignore[assignment]
    return lines, dict(sums), samples


def sums_agree(lines: list[Line], sums: dict[str, float], samples: list[Any]) -> None:
    chats = [line for line in lines if line["route"] == CHAT]

    def total(key: str) -> float:
        return float(sum(line.get(key, 0) for line in chats))

    assert len(lines) == sums.get("outcomes_total", 0)
    assert sums.get("requests_total", 0) == len(chats)
    failed = [line for line in chats if OUTCOMES[line["outcome"]].failed]
    assert sums.get("errors_total", 0) == len(failed)
    assert sums.get("cost_usd_total", 0) == pytest.approx(total("cost_usd"))
    unpriced = [c for c in chats if "total_tokens" in c and "cost_usd" not in c]
    assert sums["unpriced_requests_total"] == len(unpriced)
    estimated = [c for c in chats if c.get("usage_source") == "estimated"]
    assert sums["usage_estimated_total"] == len(estimated)
    missing = [c for c in estimated if c["outcome"] == "completed"]
    assert sums["usage_missing_total"] == len(missing)
    for name in ("prompt", "completion", "cached", "reasoning"):
        counted = [
            sample.value
            for sample in samples
            if sample.name == "cerebras_proxy_tokens_total" and sample.labels["type"] == name
        ]
        assert sum(counted) == total(f"{name}_tokens")
    for name, key in HISTOGRAMS.items():
        assert sums.get(f"{name}_count", 0) == sum(key in line for line in chats), name
        assert sums.get(f"{name}_sum", 0) == pytest.approx(total(key)), name
    durations = sum(line["total_time_seconds"] for line in lines)
    assert sums.get("request_duration_seconds_sum", 0) == pytest.approx(float(durations))


def each_outcome_is_counted_with_the_labels_of_its_line(
    lines: list[Line], samples: list[Any]
) -> None:
    counted = Counter(
        {
            (labels["route"], labels["outcome"], int(labels["status_code"])): sample.value
            for sample in samples
            if sample.name == "cerebras_proxy_outcomes_total" and (labels := sample.labels)
        }
    )
    assert counted == Counter(
        (line["route"], line["outcome"], line.get("status_code", 0)) for line in lines
    )


def each_client_has_the_counts_of_its_lines_and_keys_without_a_name_none(
    lines: list[Line], samples: list[Any]
) -> None:
    chats = [line for line in lines if line["route"] == CHAT]
    names = {line["client"] for line in chats if "client" in line}
    counted: dict[str, Counter[str]] = {name: Counter() for name in names}
    for sample in samples:
        if "client" in sample.labels and sample.name.endswith("_total"):
            what = sample.name.removeprefix("cerebras_proxy_client_") + sample.labels.get(
                "type", ""
            )
            counted[sample.labels["client"]][what] = sample.value
    for name in names:
        own = [line for line in chats if line.get("client") == name]
        found = counted[name]
        assert found["requests_total"] == len(own)
        for kind in ("prompt", "completion"):
            assert found[f"tokens_total{kind}"] == sum(c.get(f"{kind}_tokens", 0) for c in own)
        dollars = float(sum(line.get("cost_usd", 0) for line in own))
        assert found["cost_usd_total"] == pytest.approx(dollars)


@settings(max_examples=35)
@example([])
@given(st.lists(ended_exchanges(), min_size=6, max_size=12))
def test_sums(exchanges: list[Exchange]) -> None:
    lines, sums, samples = reported(exchanges)
    assert len(lines) == len(exchanges)
    sums_agree(lines, sums, samples)
    each_outcome_is_counted_with_the_labels_of_its_line(lines, samples)
    each_client_has_the_counts_of_its_lines_and_keys_without_a_name_none(lines, samples)
