"""Whatever is given: a report, or a clear word and exit status 2; never a traceback."""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from characters import CHARACTERS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from report_lines import event_line, line_of, lines_of
from server_process import environment

from ape_cerebras.commands import run_command
from ape_cerebras.report.columns import LABELS, NUMBERS

KEYS = ("timestamp", "route", "outcome", "level", "message", *NUMBERS, *LABELS)
SEVERAL = lines_of(300)


def report(path: Path, *arguments: str | Path) -> int:
    return run_command(["report", str(path), *map(str, arguments)])


words = st.sampled_from(["measured", "completed", "derived", "2026", "NaTZ"])
names = st.text(CHARACTERS, max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
    | st.text(CHARACTERS, max_size=12) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner),
    max_leaves=4,
)  # fmt: skip


@st.composite
def odd_lines(draw: st.DrawFn) -> bytes:
    """A line of the proxy with fields that were changed, cut, or with bytes among it."""
    line = orjson.loads(draw(st.sampled_from([line_of(), event_line("Settings"), SEVERAL[7]])))
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=4)):
        line[key] = draw(values)
    if draw(st.booleans()) and "message" in line:
        line["message"] = draw(st.sampled_from(["Stopped", "Settings", "Worker serves"]))
        line |= {"settings": draw(values), "chat_requests": draw(values)}
    text = orjson.dumps(line)
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.binary(max_size=8)) + text[place + draw(st.integers(0, 9)) :]
    return text


@settings(
    max_examples=75,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(odd_lines() | st.binary(max_size=80), max_size=8))
def test_random_garbage_is_reported_or_refused(tmp_path: Path, lines: list[bytes]) -> None:
    log, figures = tmp_path / "a.log", tmp_path / "a.json"
    log.write_bytes(b"\n".join(lines))
    status = report(log, "--json", figures, "--md", "--compare", log, "--slo", "ttft:p50<1s")
    assert status in (0, 1, 2)
    if status != 2:
        assert orjson.loads(figures.read_bytes())["requests"] > 0
    figures.unlink(missing_ok=True)


ODD_NAME = "\x1b[2J\x9b\u202e\x0e$\\frac$模😀_"  # a terminal, a formula, no glyph


def named(name: str) -> list[bytes]:
    """Lines with this for every text, and of an event."""
    texts = dict.fromkeys((*LABELS, "trace_id", "request_id", "upstream_id"), name)
    event = orjson.loads(event_line("Settings")) | {"settings": {name: name}, "version": name}
    return [
        orjson.dumps(orjson.loads(line) | texts | {"outcome": outcome})
        for line in (line_of(), SEVERAL[7])
        for outcome in ("completed", name)
    ] + [orjson.dumps(event), orjson.dumps(event | {"message": name, "level": name})]


def test_no_text_of_a_log_is_obeyed_by_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients choose names of models and agents."""
    log = tmp_path / f"{ODD_NAME}.log"
    log.write_bytes(b"\n".join(named(ODD_NAME)))
    assert report(log, "--md", "--compare", log) == 0
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert "\\x1b[2J" in shown


@pytest.mark.usefixtures("not_laid_out")
@example(named(ODD_NAME))
@settings(
    max_examples=4,  # each is drawn: 0.8 s; drawing odd values is also test_command's
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(odd_lines(), min_size=2, max_size=9))
def test_random_garbage_is_drawn_or_refused(tmp_path: Path, lines: list[bytes]) -> None:
    log, page = tmp_path / "a.log", tmp_path / "a.html"
    log.write_bytes(b"\n".join([line_of(), *lines]))
    assert report(log, "--html", page) in (0, 2)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (gzip.compress(b"\n".join(SEVERAL), mtime=0)[:-900], "cannot be read to its end"),
        (gzip.compress(b"", mtime=0)[:12], "cannot be read to its end"),
        (gzip.compress(b"no log\n", mtime=0), "no line of this proxy's log among 1 lines"),
        (b"\x1f\x8b" + bytes(50), "cannot be read to its end"),
        (bytes(range(256)) * 99, "no line of this proxy's log"),
        (b'{"time":"2026-11-29","status":200,"path":"/v1/chat/completions"}\n', "no line of this"),
    ],
)
@pytest.mark.parametrize("name", ["a.log", "a.log.gz"])
def test_what_cannot_be_read_is_named(
    content: bytes, word: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether a file is packed says its content, not its name."""
    log = tmp_path / name
    log.write_bytes(content)
    assert report(log) == 2
    assert word in capsys.readouterr().err


def test_a_file_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    log, figures = tmp_path / "a.log", tmp_path / "a.json"
    log.write_bytes(line_of())
    assert report(log, str(tmp_path / "*.log"), "--json", figures) == 0
    assert orjson.loads(figures.read_bytes())["requests"] == 1


def test_mixed_versions_and_a_set_clock_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a.log"
    both: list[Any] = [event_line("Listening", version=each) for each in ("0.1.0", "0.2.0")]
    log.write_bytes(b"\n".join([*both, line_of(100), line_of(5), line_of(101)[:-9]]))
    assert report(log) == 0
    shown = capsys.readouterr().out
    assert "Lines are of several versions of the proxy: 0.1.0, 0.2.0." in shown
    assert "Time goes backwards in 1 places" in shown
    assert "1 broken lines are left out." in shown


@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("timestamp", [["2026-11-29T12:00:00.000Z"], [], "29 November"])
def test_a_timestamp_that_is_none_is_unreadable(timestamp: Any, lines: int, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"\n".join([line_of(timestamp=timestamp)] * lines))
    assert report(log) == 2


def test_a_timestamp_with_another_offset_is_read(tmp_path: Path) -> None:
    log, figures = tmp_path / "a.log", tmp_path / "a.json"
    for text in ("2026-11-29T13:00:00.000+01:00", "2026-11-29T12:00:00"):
        log.write_bytes(line_of(timestamp=text))
        assert report(log, "--json", figures) == 0
        assert orjson.loads(figures.read_bytes())["end"] == "2026-11-29T12:00:00.000+00:00"


@pytest.mark.parametrize("value", [{}, {"a": 1}, [], [1], 7, True])
def test_a_timestamp_that_is_no_text_is_unreadable(value: object, tmp_path: Path) -> None:
    log, figures = tmp_path / "a.log", tmp_path / "a.json"
    log.write_bytes(line_of(timestamp=value) + b"\n" + line_of())
    assert report(log, "--json", figures) == 0
    assert orjson.loads(figures.read_bytes())["requests"] >= 1


def test_a_timestamp_without_seconds_is_read_as_python_reads_it(tmp_path: Path) -> None:
    """Which refuses a fraction behind minutes from 3.14 on."""
    log, figures = tmp_path / "a.log", tmp_path / "a.json"
    log.write_bytes(line_of(timestamp="2026-11-29T12:00.000Z"))
    if sys.version_info >= (3, 14):
        assert report(log, "--json", figures) == 2
    else:
        assert report(log, "--json", figures) == 0
        assert orjson.loads(figures.read_bytes())["end"] == "2026-11-29T12:00:00.000+00:00"


def test_the_name_of_a_file_may_be_any_bytes(tmp_path: Path) -> None:
    log, figures = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.log")), tmp_path / "a.json"
    log.write_bytes(line_of())
    assert report(log, "--json", figures, "--md") == 0
    [name] = orjson.loads(figures.read_bytes())["inputs"]
    assert name.endswith("\ufffd.log")
    assert report(log.with_name("gone" + log.name)) == 2


@pytest.mark.parametrize(("objective", "status"), [("ttft:p50<9s", 0), ("ttft:p50<0.001ms", 1)])
def test_an_output_that_nobody_reads_is_no_failure(
    objective: str, status: int, tmp_path: Path
) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"\n".join(SEVERAL))
    reading, writing = os.pipe()
    os.close(reading)
    command = (sys.executable, "-m", "ape_cerebras", "report", log, "--slo", objective)
    done = subprocess.run(
        command, check=False, stdout=writing, stderr=subprocess.PIPE, env=environment()
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, b"")


def test_a_standard_input_that_is_closed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # what Python makes of it
    assert report(Path("-")) == 2
    assert "-: cannot be read" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(line_of())
    (tmp_path / "page").mkdir()
    assert report(log, "--html", tmp_path / "page") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "page"]
