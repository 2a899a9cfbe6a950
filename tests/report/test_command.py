"""The command as a user runs it: its outputs, its exit status, and what it says of bad input."""

import gzip
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import orjson
import pytest
from end_to_end import running_proxy
from report_lines import event_line, line_of, lines_of, values_of
from running_simulator import STREAM, chat, rig
from server_process import environment

from ape_cerebras.commands import run_command
from ape_cerebras.net.timestamps import CERTAIN_SECONDS


@pytest.fixture
def raw_lines() -> Sequence[bytes]:
    return lines_of(2000)


@pytest.fixture
def log(tmp_path: Path, raw_lines: Sequence[bytes]) -> Path:
    path = tmp_path / "proxy.log"
    path.write_bytes(b"\n".join(raw_lines))  # the last one is not ended
    return path


def report(*arguments: str | Path) -> int:
    return run_command(["report", *map(str, arguments)])


def figures(*arguments: str | Path, status: int = 0) -> Any:
    """The JSON of a report."""
    path = Path(str(arguments[0])).parent / "figures.json"
    assert report(*arguments, "--json", path) == status
    return orjson.loads(path.read_bytes())


# Figures


def test_figures_are_those_of_the_raw_lines(log: Path, raw_lines: Sequence[bytes]) -> None:
    found = figures(log)
    assert found["requests"] == 2000
    for name, key in (("ttft", "ttft_seconds"), ("upstream_ttft", "upstream_ttft_seconds")):
        values = values_of(raw_lines, key)
        for quantile in (0.5, 0.9, 0.95, 0.99):
            shown = found["latencies"][name]["quantiles"][f"p{100 * quantile:g}"]
            expected = np.quantile(values, quantile, method="inverted_cdf")
            assert shown["value"] == pytest.approx(expected, rel=0.003)
            assert shown["interval"][0] <= shown["value"] <= shown["interval"][1]
        assert found["latencies"][name]["quantiles"]["p99.9"] == {"value": None, "needs": 3688}
    assert found["sums"]["completion_tokens"] == values_of(raw_lines, "completion_tokens").sum()
    tokens, seconds = (
        values_of(raw_lines, name) for name in ("completion_tokens", "generation_seconds")
    )
    rate = found["tokens_per_second_of_generation"]
    assert rate == pytest.approx(tokens.sum() / seconds.sum())
    assert found["cached_ratio"] == pytest.approx(
        values_of(raw_lines, "cached_tokens").sum() / values_of(raw_lines, "prompt_tokens").sum()
    )


@pytest.mark.anyio
async def test_figures_are_what_the_simulator_says_it_did(tmp_path: Path) -> None:
    """Six fast streams, six slow ones, two failures, and one plain response."""
    simulate = ["ttft=0.02"] * 6 + ["ttft=0.12"] * 6 + ["fault=queue"] * 2
    async with rig(tokens=30, rate=3000.0) as api, running_proxy(api.port) as proxy:
        client = await proxy.client()
        for options in simulate:
            response = await client.request(chat(STREAM, f"X-Simulate: {options}"))
            assert response.status == (429 if "fault" in options else 200)
        await client.request(chat(None, "X-Simulate: ttft=0.05"))
        await proxy.lines.exchange(15)
        truth = list(api.simulator.truth)
    log = tmp_path / "proxy.log"
    log.write_bytes(b"".join(proxy.lines.raw))
    found = await anyio.to_thread.run_sync(figures, log)
    served = [each for each in truth if each.status == 200]
    assert found["requests"] == len(truth) == 15
    assert found["outcomes"] == {"completed": len(served), "upstream_rate_limited": 2}
    [failure] = found["failures"]
    assert (failure["upstream_status"], failure["upstream_code"]) == ("429", "queue_exceeded")
    assert found["sums"]["completion_tokens"] == 30 * len(served)
    upstream, derived = (found["latencies"][name] for name in ("upstream_ttft", "ttft_derived"))
    assert (upstream["count"], derived["count"]) == (12, 1)
    known = [(each.ttft_seconds, each.uncertain_seconds) for each in served[:12]]
    true = [ttft - uncertain for ttft, uncertain in known if ttft is not None and uncertain]
    assert len(true) == 12
    # The proxy sees what upstream did, and what lies between. Its time begins by a write, whose
    # moment it knows to half of CERTAIN_SECONDS; the simulator's ends by one, and it takes the
    # middle of that however long it was, and says so.
    assert min(true) <= upstream["min"] + CERTAIN_SECONDS <= min(true) + 1.0
    assert sum(true) / 12 <= upstream["mean"] + CERTAIN_SECONDS
    shares = found["parts_of_ttft"]["all"]
    assert shares["queue"] == pytest.approx(0.002, abs=1e-4)


def test_inputs_are_files_patterns_gzip_and_stdin(
    tmp_path: Path, raw_lines: Sequence[bytes]
) -> None:
    """The last in a process, with a terminal that knows no more than ASCII."""
    (tmp_path / "a-1.log").write_bytes(b"\n".join(raw_lines[:500]) + b"\n")
    (tmp_path / "a-2.log").write_bytes(b"\n".join(raw_lines[500:900]))
    with gzip.open(tmp_path / "b.log.gz", "wb") as packed:
        packed.write(b"\n".join(raw_lines[900:1400]))
    found = figures(tmp_path / "a-*.log", tmp_path / "b.log.gz")
    assert found["requests"] == 1400
    assert len(found["inputs"]) == 3
    path = tmp_path / "figures.json"
    arguments = (sys.executable, "-m", "ape_cerebras", "report", "-", "--md", "--json", path)
    variables = environment(PYTHONIOENCODING="ascii")
    piped = subprocess.run(
        arguments, input=b"\n".join(raw_lines), capture_output=True, check=True, env=variables
    )
    assert orjson.loads(path.read_bytes())["requests"] == 2000
    assert b"| ? |" in piped.stdout or b" ?s " in piped.stdout
    assert piped.stderr == b""


def test_figures_go_to_standard_output(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(log, "--json", "-") == 0
    assert orjson.loads(capsys.readouterr().out)["requests"] == 2000


def test_lines_are_selected(log: Path) -> None:
    assert figures(log, "--client", "coder")["requests"] == 667
    assert figures(log, "--since", "2026-11-29T12:00:30Z")["requests"] < 510
    assert figures(log, "--warmup", "10s", "--window", "500ms")["requests"] < 1510
    assert set(figures(log, "--by", "client")["groups"]) == {"client"}


def test_objectives_decide_about_the_exit_status(log: Path) -> None:
    met = figures(log, "--slo", "ttft:p95<2s", "--slo", "errors<5%")
    assert [each["met"] for each in met["objectives"]] == [True, True]
    assert met["good"] == met["outcomes"]["completed"]
    missed = figures(log, "--slo", "ttft:p95<2s", "--slo", "errors<1%", status=1)
    assert [each["met"] for each in missed["objectives"]] == [True, False]
    unclear = figures(log, "--slo", "ttft:p99.9<100s", status=1)
    assert unclear["objectives"][0]["value"] is None


def test_figures_of_agents_are_those_of_the_raw_lines(
    log: Path, raw_lines: Sequence[bytes]
) -> None:
    groups = figures(log)["groups"]["agent"]
    assert set(groups) == {"planner", "coder", "critic"}
    for name, found in groups.items():
        own = [line for line in raw_lines if orjson.loads(line)["agent_id"] == name]
        assert found["requests"] == found["turns"] == len(own)
        assert found["cost_usd"] == pytest.approx(values_of(own, "cost_usd").sum())
        values = values_of(own, "ttft_seconds")
        for quantile in (0.5, 0.95):
            expected = np.quantile(values, quantile, method="inverted_cdf")
            shown = found["ttft"]["quantiles"][f"p{100 * quantile:g}"]["value"]
            assert shown == pytest.approx(expected, rel=0.012)


def test_turns_quota_and_intended_starts(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    own = {"agent_id": "a", "intended_start_lag_seconds": 0.3}
    lines = [
        line_of(1, **own, reserved_tokens=1000),
        line_of(3, **own, client_attempt=1),
        line_of(6, **own),
    ]
    log.write_bytes(b"\n".join(lines))
    found = figures(log)
    agent = found["groups"]["agent"]["a"]
    assert (agent["requests"], agent["turns"]) == (3, 2)
    # Each ended 0.2 s after it began, so 1.8 and 2.8 s lie between them.
    assert agent["pause"]["count"] == 2
    assert agent["pause"]["mean"] == pytest.approx(2.3)
    assert (found["sums"]["reserved_tokens"], found["sums"]["used_of_reserved"]) == (1000, 150)
    assert found["used_of_reserved"] == 0.15
    for name, value in (("ttft_intended", 0.4), ("total_intended", 0.5)):
        assert found["latencies"][name]["mean"] == pytest.approx(value)
    assert next(iter(found["latencies"])) == "ttft_intended"


def test_the_head_says_what_a_log_is_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    settings = {"RETRY_ATTEMPTS": "3", "RETRY_BACKOFF": "1.5", "CEREBRAS_API_KEY": "(set)"}
    begun = event_line("Settings", run_id="one", version="0.2.0", settings=settings)
    ended = event_line("Stopped", run_id="one", chat_requests=4, lines_dropped=1)
    lines = [line_of(number, run_id="one") for number in range(3)]
    log.write_bytes(b"\n".join([begun, *lines, ended, line_of(9, run_id="two")]))
    assert report(log, "--run-id", "one") == 0
    shown = capsys.readouterr().out
    assert "| run | one |" in shown
    assert "| proxy's version | 0.2.0 |" in shown
    assert "| RETRY_ATTEMPTS | 3 |" in shown
    assert "RETRY_BACKOFF" not in shown
    assert "CEREBRAS_API_KEY" not in shown
    assert "1 of 4 requests have no line here; the proxy could not write 1 lines" in shown
    assert "The log is not complete" in shown
    assert report(log, "--run-id", "two") == 0
    assert "| complete | not known" in capsys.readouterr().out


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_from_five_runs_on_runs_are_compared(
    slower: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        for side, factor in (("this", 1.0), ("other", slower)):
            seed = number + (10 if side == "other" else 0)
            lines = lines_of(200, seed, slower=factor)
            (tmp_path / f"{side}-{number}.log").write_bytes(b"\n".join(lines))
    this, other = (sorted(tmp_path.glob(f"{side}-*.log")) for side in ("this", "other"))
    found = figures(*this, "--compare", *other, "--md")
    comparison = found["comparison"]
    assert (comparison["by"], comparison["runs"]) == ("runs", [5, 5])
    p50 = comparison["metrics"]["ttft"]["p50"]
    assert p50["differs"] is (slower > 1)
    assert ("no difference that these data show" in capsys.readouterr().out) or slower > 1
    for side, paths in (("ours", this), ("other", other)):
        each = [
            np.quantile(values_of(path.read_bytes().split(b"\n"), "ttft_seconds"), 0.5)
            for path in paths
        ]
        assert p50[side] == pytest.approx(np.median(each), rel=0.02)


def test_a_comparison(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.log"
    for slower, shown in ((1.0, "no difference that these data show"), (1.5, "+")):
        other.write_bytes(b"\n".join(lines_of(2000, 2, slower=slower)))
        assert report(log, "--compare", other) == 0
        [row] = re.findall(
            r"\| TTFT \| p50 \| [^|]+ \| [^|]+ \| ([^|]+) \|", capsys.readouterr().out
        )
        assert row.startswith(shown)


# Outputs


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_loads_nothing(
    log: Path, tmp_path: Path, raw_lines: Sequence[bytes]
) -> None:
    """Of more agents than have plots of their own."""
    agents = [b'"agent_id":"agent-%d"' % (number % 13) for number in range(len(raw_lines))]
    log.write_bytes(
        b"\n".join(
            re.sub(b'"agent_id":"[a-z]+"', agent, line)
            for agent, line in zip(agents, raw_lines, strict=True)
        )
    )
    path = tmp_path / "report.html"
    assert report(log, "--html", path) == 0
    page = Page(path.read_text())
    addresses = [value for _, attrs in page.tags for value in attrs.values() if value]
    assert [value for value in addresses if value.startswith(("http:", "//"))] == [
        value for value in addresses if value.startswith("http://www.w3.org/")
    ]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert {value for value in addresses if "url(" in value} <= {
        value for value in addresses if "url(#" in value
    }
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    figures = [tag for tag, _ in page.tags].count("figure")
    drawn = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert figures == len(drawn) == 11
    assert "The 12 of 13 agents with most requests" in page.text
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawn)
    assert [tag for tag, _ in page.tags].count("details") == figures
    assert "<script>" not in path.read_text()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.usefixtures("undrawn")
def test_names_of_a_log_are_no_markup(tmp_path: Path) -> None:
    log, path = tmp_path / "a.log", tmp_path / "report.html"
    log.write_bytes(line_of(model="<img src=x>|`", client="$page", outcome="<b>"))
    assert report(log, "--html", path, "--md") == 0
    page = Page(path.read_text())
    assert "<img src=x>|`" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("img", "b")]


@pytest.mark.usefixtures("not_laid_out")
def test_plots_and_markdown(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(log, "--png", tmp_path / "plots", "--md") == 0
    assert {path.read_bytes()[:4] for path in (tmp_path / "plots").iterdir()} == {b"\x89PNG"}
    text = capsys.readouterr().out
    assert "Coordinated omission cannot be excluded" in text
    assert re.search(r"\| TTFT \| 1,9\d\d \|.*\| needs 3,688 \|", text)
    assert "| upstream_rate_limited | 429 | queue_exceeded |  |" in text


@pytest.mark.usefixtures("undrawn")
def test_a_plot_of_measured_and_derived_times_says_so(log: Path, tmp_path: Path) -> None:
    page, derived = tmp_path / "report.html", line_of(50, ttft_source="derived")
    for lines, title in (
        (lines_of(20), "<h3>TTFT over time"),
        ([derived] * 20, "<h3>TTFT (derived) over time"),
        ([*lines_of(20), derived], "<h3>TTFT (measured and derived) over time"),
    ):
        log.write_bytes(b"\n".join(lines))
        assert report(log, "--html", page) == 0
        assert title in page.read_text()


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_how_far_it_is(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ape_cerebras.report.command._PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert report(log) == 0
    shown = terminal.getvalue()
    assert re.search(r"█{24} 100 %  1,999 lines  [\d,]+ lines/s", shown)
    assert shown.endswith("\r\x1b[K")


def test_a_log_without_good_news_may_be_of_a_level_above(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, failed = tmp_path / "a.log", line_of(outcome="upstream_failed", level="error")
    for lines, doubts in (([failed], True), ([failed, event_line("Listening")], False)):
        log.write_bytes(b"\n".join(lines))
        assert report(log) == 0
        assert ("with a LOG_LEVEL above it" in capsys.readouterr().out) is doubts


def test_a_failure_has_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(line_of(outcome="upstream_connect_failed", cause="ECONNREFUSED"))
    assert report(log) == 0
    assert "| upstream_connect_failed |  |  | ECONNREFUSED | 1 |" in capsys.readouterr().out


@pytest.mark.usefixtures("undrawn")
def test_live_rewrites_the_page_as_the_log_grows(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "live.html"
    seen: list[str] = []

    def sleep(_: float) -> None:
        """In place of a pause; the line that is not ended yet is not read yet."""
        seen.append(path.read_text())
        if len(seen) == 2:
            raise KeyboardInterrupt
        with log.open("ab") as more:
            more.write(b"\n" + line_of(50) + b"\n")

    monkeypatch.setattr("ape_cerebras.report.command.time.sleep", sleep)
    assert report(log, "--live", "--html", path) == 0
    for text, count in zip((*seen, path.read_text()), ("1,999", "2,001", "2,001"), strict=True):
        assert f"<h1>{count} chat requests" in text
    assert ['http-equiv="refresh"' in text for text in (*seen, path.read_text())] == [
        *(True, True, False)
    ]


# Bad input

ALONE = [line_of()]
FAILED = [
    line_of(ttft_source=None, ttft_seconds=None, upstream_ttft_seconds=None, outcome="refused")
]


@pytest.mark.usefixtures("not_laid_out")
@pytest.mark.parametrize(
    "lines",
    [
        ALONE,
        FAILED,
        [line_of(ttft_source="derived")],
        [line_of(0), line_of(-86_400 * 365), line_of(86_400 * 365)],  # a clock that was set
        [line_of(timestamp="0001-01-01T00:00:00.000Z"), line_of()],
        [line_of(total_time_seconds=-5.0, proxy_ttft_seconds=-0.1), line_of(prompt_tokens=-3)],
        [line_of(1e-3 * number) for number in range(50)],
    ],
)
def test_odd_logs_have_a_report(lines: list[bytes], tmp_path: Path) -> None:
    assert_a_report(lines, tmp_path)


def test_values_that_are_far_apart_have_a_report(tmp_path: Path) -> None:
    """With as many and as long marks at the axes as they can have, so this one is laid out."""
    assert_a_report(
        [line_of(total_time_seconds=1e300), line_of(ttft_seconds=0, upstream_ttft_seconds=0)],
        tmp_path,
    )


def assert_a_report(lines: list[bytes], tmp_path: Path) -> None:
    log, page = tmp_path / "a.log", tmp_path / "a.html"
    log.write_bytes(b"\n".join(lines))
    assert figures(log, "--html", page, "--md", "--compare", log)["requests"] > 0
    assert "<svg" in page.read_text()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "events",
    [
        [event_line("Settings", x=1), event_line("Listening", version="0.1.0")],
        [event_line("Listening", version="0.1.0"), event_line("Listening", version="2.0")],
    ],
)
def test_events_without_what_they_should_have_are_no_failure(
    events: list[bytes], tmp_path: Path
) -> None:
    """A plot has nothing of an event."""
    log, page = tmp_path / "a.log", tmp_path / "a.html"
    log.write_bytes(b"\n".join([*ALONE, *events]))
    assert figures(log, "--html", page, "--md", "--compare", log)["requests"] == 1
    assert "<svg" in page.read_text()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "no line of this proxy's log among 0 lines"),
        (b"GET / 200\nGET / 404\n", "no line of this proxy's log among 2 lines"),
        (b"\x00\xff\xfe" * 999, "no line of this proxy's log"),
        (b'{"level":"info","msg":"other"}\n', "no line of this proxy's log among 1 lines"),
        (event_line("Listening"), "1 lines of this proxy, none of a chat request"),
        (line_of(route="/health"), "none of a chat request"),
        (line_of()[:-20], "no line of this proxy's log among 1 lines"),
    ],
)
def test_what_is_no_log_is_said(
    content: bytes, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(content)
    assert report(log) == 2
    assert word in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["gone.log"], "gone.log: no such file"),
        (["gone-*.log"], "gone-*.log: no such file, and none like it"),
        ([".."], "cannot be read"),
        (["LOG", "--compare", "gone.log"], "gone.log: no such file"),
        (["LOG", "--client", "nobody"], "none of 2000 chat requests is selected"),
        (["LOG", "--live"], "--live needs --html"),
        (["LOG", "--html", "/nonexistent/a.html"], "/nonexistent/a.html: cannot be written"),
        (["LOG", "--json", "/nonexistent/a.json"], "/nonexistent/a.json: cannot be written"),
        (["LOG", "--slo", "ttft"], "must be like"),
        (["LOG", "--slo", "ttft<3s"], "needs a percentile"),
        (["LOG", "--slo", "errors:p95<1%"], "needs a percentile"),
        (["LOG", "--slo", "ttft:p95>3s"], "needs a percentile"),
        (["LOG", "--slo", "speed:p95<3s"], "there are errors, ttft_intended"),
        (["LOG", "--slo", "ttft:p100<3s"], "below 100"),
        (["LOG", "--slo", "ttft:p95<3 parsecs"], "a number with ms"),
        (["LOG", "--slo", "errors<1"], "a number with ms"),
        (["TORN.gz"], "cannot be read to its end"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: list[str],
    word: str,
    log: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    raw_lines: Sequence[bytes],
) -> None:
    torn = tmp_path / "torn.gz"
    torn.write_bytes(gzip.compress(b"\n".join(raw_lines), mtime=0)[:-900])
    given = {"LOG": str(log), "TORN.gz": str(torn)}
    assert report(*(given.get(each, each) for each in arguments)) == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--since", "noon"], ["--warmup", "-3s"], ["--window", "x"], ["--by", "colour"], []]
)
def test_wrong_flags_end_with_status_2(flags: list[str], log: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        report(*([log] if flags else []), *flags)
    assert caught.value.code == 2


# The extra

_WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *more: None if name == "matplotlib" else found(name, *more)
from ape_cerebras.commands import run_command
run_command(["report", "a.log"])
"""


def test_without_the_extra_it_says_which() -> None:
    done = subprocess.run(
        (sys.executable, "-c", _WITHOUT), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs matplotlib: pip install 'ape-cerebras[report]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_commands_import_nothing_of_it() -> None:
    code = (
        "import sys; from ape_cerebras.commands import _parser; "
        "[_parser(name) for name in ('serve', 'check', 'simulate')]; import ape_cerebras.server; "
        "print({'numpy', 'matplotlib', 'boost_histogram'} & set(sys.modules))"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_text_is_reported_without_matplotlib(log: Path) -> None:
    code = (
        "import sys; from ape_cerebras.commands import run_command; "
        f"run_command(['report', {str(log)!r}]); "
        "print('matplotlib' in sys.modules, file=sys.stderr)"
    )
    command = (sys.executable, "-c", code)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"


def test_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        report("--help")
    assert "--compare" in capsys.readouterr().out
