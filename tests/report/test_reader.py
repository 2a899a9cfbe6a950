"""Log lines to columns, whatever is in front of them."""

from typing import Any

import numpy as np
import orjson
import pytest
from report_lines import BEGIN, event_line, line_of

from ape_cerebras.report.columns import LABELS, NUMBERS, Batch, columns_of
from ape_cerebras.report.reader import Reader, Selection
from ape_cerebras.telemetry.logs import LOG_FIELDS

LINE = line_of()
TEXT = LINE.decode()


def read(lines: list[bytes], selection: Selection | None = None) -> tuple[Reader, Batch | None]:
    reader = Reader(selection or Selection())
    reader.begin_input("a")
    return reader, reader.read(lines)


def test_the_keys_are_those_of_log_lines() -> None:
    known = {field.key for field in LOG_FIELDS}
    assert {*NUMBERS, *LABELS} - known <= {"run_id"}


@pytest.mark.parametrize(
    "line",
    [
        LINE,
        b"2026-11-29T12:00:01.123456789Z " + LINE,  # docker logs -t
        b"proxy-1  | " + LINE,  # docker compose logs
        b"\x1b[36mproxy-1  |\x1b[0m " + LINE,
        b"[pod/proxy-5d4/ape-cerebras] " + LINE,  # kubectl logs --prefix
        b'2026-11-29T12:00:01Z {job="proxy", pod="a"} ' + LINE,  # logcli
        b"Nov 29 12:00:01 host ape-cerebras[7]: " + LINE + b"\r",  # journalctl
        orjson.dumps({"log": TEXT + "\n", "stream": "stdout", "time": "2026"}),  # Docker's files
        orjson.dumps({"labels": {"job": "proxy"}, "line": TEXT, "timestamp": "2026"}),
        orjson.dumps([{"line": TEXT, "timestamp": "1", "fields": {}}]),  # Loki in Grafana
        b'    "line": ' + orjson.dumps(TEXT) + b",\r",  # the same, a key on each line
    ],
)
def test_a_prefix_is_stripped(line: bytes) -> None:
    reader, batch = read([line])
    assert batch is not None
    assert batch.numbers["ttft_seconds"] == [0.1]
    assert batch.labels["model"] == ["gpt-oss-120b"]
    assert batch.ends == [BEGIN.timestamp()]
    assert reader.counts == {"selected": 1, "not selected": 0}


def test_lines_are_counted_by_what_they_are() -> None:
    lines = [
        LINE,
        LINE[:-30],
        line_of(timestamp=7),
        line_of(timestamp="yesterday"),
        b"a word",
        b"[1, 2]",
        b'{"level":"info"}',
        b"",
        b"  ",
        event_line("Listening", version="0.2.0"),
        event_line("Settings", settings={"LOG_LEVEL": "info"}),
        line_of(route="/health"),
    ]
    reader, batch = read(lines)
    assert batch is not None
    assert reader.counts == {
        "selected": 1,
        "not selected": 0,
        "broken": 3,
        "not ours": 3,
        "events": 2,
        "other requests": 1,
    }
    assert reader.events == {("info", "Listening"): 1, ("info", "Settings"): 1}
    run = reader.runs["a"]  # the input, as no line names a run
    assert (run.lines, run.versions, run.settings) == (1, {"0.2.0"}, {"LOG_LEVEL": "info"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ttft_seconds", "fast"),
        ("prompt_tokens", [1]),
        ("prompt_tokens", {"a": 1}),
        ("total_time_seconds", 1e308 * 10),
        ("model", ["a"]),
        ("model", 7),
        ("outcome", None),
        ("upstream_status", "429"),
        ("completion_tokens", 2**63),
    ],
)
def test_a_value_of_another_type_is_none(field: str, value: Any) -> None:
    line = orjson.loads(LINE)
    line[field] = value
    _, batch = read([orjson.dumps(line), LINE])
    assert batch is not None
    assert len(batch.ends) == 2
    columns_of(batch)
    if field in NUMBERS and not isinstance(value, int):
        assert np.isnan(batch.numbers[field][0])
        assert not np.isnan(batch.numbers[field][1])


def test_only_what_is_selected_is_given() -> None:
    lines = [
        line_of(10, model="a", client="x"),
        line_of(20, model="a", client="y"),
        line_of(30, model="b", client="x"),
    ]
    begin = BEGIN.timestamp()
    for selection, ends in (
        (Selection(labels=(("model", "a"),)), [10, 20]),
        (Selection(labels=(("model", "a"), ("client", "x"))), [10]),
        (Selection(since=begin + 15), [20, 30]),
        (Selection(until=begin + 15), [10]),
        (Selection(since=begin + 19.9), [30]),  # it began before it ended
        (Selection(warmup=15.0), [30]),
    ):
        reader, batch = read(lines, selection)
        assert [] if batch is None else (batch.ends - begin).tolist() == ends
        assert reader.counts["selected"] == len(ends)
        assert reader.counts["not selected"] == 3 - len(ends)


def test_each_input_has_its_own_warmup() -> None:
    reader = Reader(Selection(warmup=5.0))
    for name, begin in (("a", 0.0), ("b", 100.0), ("a", 6.0)):
        reader.begin_input(name)
        batch = reader.read([line_of(begin), line_of(begin + 5.5)])
        assert batch is not None
        assert len(batch.ends) == (2 if begin == 6.0 else 1)


def test_steps_of_the_clock_are_counted() -> None:
    reader, _ = read([line_of(at) for at in (0, 10, 9.5, 3, 4, 11, 2)])
    assert reader.clock_steps == 2
    reader.read([line_of(1)])
    reader.begin_input("b")
    reader.read([line_of(0)])
    assert reader.clock_steps == 3


# Runs


def test_lines_are_checked_against_what_the_proxy_counted() -> None:
    """A run with two workers, one that still goes on, and lines without a run."""
    lines = [
        event_line("Settings", run_id="one", settings={"ASYNC_WORKERS": "2"}, version="0.2.0"),
        event_line("Worker serves", run_id="one"),
        event_line("Worker serves", run_id="one"),
        *[line_of(number, run_id="one") for number in range(5)],
        event_line("Stopped", run_id="one", chat_requests=2, lines_dropped=0),
    ]
    reader, _ = read(lines)
    assert (reader.runs["one"].lines, reader.runs["one"].missing) == (5, None)
    reader.read([event_line("Stopped", run_id="one", chat_requests=4, lines_dropped=1)])
    assert (reader.runs["one"].missing, reader.runs["one"].dropped) == (1, 1)
    reader.read([line_of(9, run_id="one"), line_of(9, run_id="one")])
    assert reader.runs["one"].missing == -1
    reader.read([event_line("Settings", run_id="two", settings={}), line_of(7, run_id="two")])
    assert reader.runs["two"].missing is None
    reader.read([event_line("Stopped", run_id="two", chat_requests=1, lines_dropped=0)])
    assert reader.runs["two"].missing == 0
    reader.read([line_of(8)])
    assert reader.runs["a"].missing is None


def test_a_run_is_selected_by_its_id() -> None:
    lines = [line_of(1, run_id="one"), line_of(2, run_id="two"), line_of(3)]
    for run, end in (("one", 1), ("two", 2), ("a", 3)):
        _, batch = read(lines, Selection(labels=(("run_id", run),)))
        assert batch is not None
        assert batch.ends == [BEGIN.timestamp() + end]
