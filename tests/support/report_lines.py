"""Log lines of a run that never was, by a seed, for tests of the report."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import orjson

from ape_cerebras.report.objectives import Objective
from ape_cerebras.report.reader import Reader, Selection
from ape_cerebras.report.run import Run

__all__ = ("BEGIN", "event_line", "line_of", "lines_of", "run_of", "values_of")

BEGIN = datetime(2026, 11, 29, 12, tzinfo=UTC)


def line_of(end: float = 0.0, **fields: Any) -> bytes:
    """A line of a completed stream that ended ``end`` seconds after the begin; None leaves a field
    out."""
    at = (BEGIN + timedelta(seconds=end)).isoformat(timespec="milliseconds")
    line = {
        "timestamp": at.removesuffix("+00:00") + "Z",
        "level": "info",
        "message": "Chat completion successful",
        "trace_id": "0" * 32,
        "request_id": "r",
        "route": "/v1/chat/completions",
        "outcome": "completed",
        "model": "gpt-oss-120b",
        "ttft_seconds": 0.1,
        "upstream_ttft_seconds": 0.09,
        "proxy_ttft_seconds": 0.01,
        "total_time_seconds": 0.2,
        "generation_seconds": 0.1,
        "queue_seconds": 0.02,
        "prompt_seconds": 0.03,
        "proxy_own_seconds": 0.01,
        "ttft_source": "measured",
        "connection": "reused",
        "prompt_tokens": 100,
        "completion_tokens": 50,
        "cached_tokens": 25,
        "reasoning_tokens": 5,
        "tokens_per_second": 500.0,
        "tpot_seconds": 0.002,
        "cost_usd": 0.001,
        "usage_source": "upstream",
        **fields,
    }
    shown = {name: value for name, value in line.items() if value is not None or name in fields}
    return orjson.dumps({name: value for name, value in shown.items() if value is not None})


def event_line(message: str, **fields: Any) -> bytes:
    first = {"timestamp": "2026-11-29T12:00:00.000Z", "level": "info", "message": message}
    return orjson.dumps({**first, "trace_id": None, **fields})


@cache
def lines_of(count: int, seed: int = 1, *, slower: float = 1.0) -> Sequence[bytes]:
    """Lines with a heavy tail, three clients, failures, and connections that were new; made once,
    by the first test that reads them: 5,000 take a third of a second."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        upstream = round(float(random.lognormal(-2.5, 0.5)) * slower, 6)
        connect = 0.02 if random.random() < 0.05 else None
        proxy = round(0.0004 + (connect or 0.0), 6)
        fields: dict[str, Any] = {
            "ttft_seconds": round(upstream + proxy, 6),
            "upstream_ttft_seconds": upstream,
            "proxy_ttft_seconds": proxy,
            "proxy_own_seconds": 0.0004,
            "connect_seconds": connect,
            "queue_seconds": round(upstream * 0.1, 6),
            "prompt_seconds": round(upstream * 0.2, 6),
            "total_time_seconds": round(upstream + proxy + 0.1, 6),
            "client": ("planner", "coder", "critic")[number % 3],
            "agent_id": ("planner", "coder", "critic")[number % 3],
            "prompt_tokens": int(random.integers(1, 20_000)),
            "completion_tokens": int(random.integers(1, 400)),
            "trace_id": f"{number:032x}",
        }
        if random.random() < 0.03:
            kept = {name: fields[name] for name in ("client", "agent_id", "trace_id")}
            gone = [
                name for name in orjson.loads(line_of()) if name.endswith(("_seconds", "tokens"))
            ]
            failure = {"outcome": "upstream_rate_limited", "level": "error", "ttft_source": None}
            fields = {**dict.fromkeys(gone), "cost_usd": None, **kept, **failure}
            fields |= {"upstream_status": 429, "upstream_code": "queue_exceeded"}
            fields["total_time_seconds"] = 0.01
        made.append(line_of(number / 50, **fields))
    return tuple(made)


def values_of(lines: Sequence[bytes], name: str) -> Any:
    """A field of all lines that have it, as NumPy sees it."""
    return np.array([line[name] for line in map(orjson.loads, lines) if line.get(name) is not None])


def run_of(
    lines: Sequence[bytes],
    objectives: tuple[Objective, ...] = (),
    *,
    pieces: int = 3,
    window: float = 5.0,
) -> Run:
    """The lines added up, read in some pieces."""
    run = Run(window, ("model", "client", "agent_id", "session_id"), list(objectives))
    reader = Reader(Selection())
    for part in np.array_split(range(len(lines)), pieces):
        batch = reader.read([lines[int(number)] for number in part])
        if batch is not None:
            run.add(batch)
    return run
