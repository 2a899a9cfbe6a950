"""The command ``ape-cerebras report``: its flags, its outputs and its exit status.

0: the report is written; 1: an objective is missed; 2: there is nothing to report about, or
something given is wrong, which is said on standard error.
"""

import argparse
import errno
import gc
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import matplotlib as mpl
import orjson

from ..version import VERSION
from .page import KINDS, Plot, Table, plots_of, tables_of
from .reader import METRICS, Inputs, Objective, Reader, Selection, UnusableInput
from .run import Run, difference

__all__ = ("add_flags", "run_report")

_LIVE_SECONDS = 3.0  # between two looks at growing inputs
_PROGRESS_SECONDS = 0.5
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "%": 0.01, "": 1.0}
_CSS = {"#222222": "ink", "#dddddd": "rule", "#999999": "faint", "#7f7f7f": "faint"}
_BEFORE_PLOTS = ("Run", "Objectives", "Compared", "Latencies")
_SMALL, _IN_SMALL = re.compile(r" (\(.+\))$"), r"<br><small>\1</small>"
_OBJECTIVE = re.compile(r"(\w+)(?::p(\d+(?:\.\d+)?))?\s*([<>])=?\s*(\d+(?:\.\d+)?)\s*(\D*)")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    add = parser.add_argument
    add("logs", nargs="+", metavar="LOG", help="log files, also .gz and patterns; - for stdin")
    add("--html", metavar="FILE", help="write one HTML file with tables and plots")
    add("--png", metavar="DIR", help="write the plots as PNG files into a folder")
    add("--json", metavar="FILE", help="write every figure as JSON; - for standard output")
    add("--md", action="store_true", help="print Markdown, as without --html, --png and --json")
    add("--since", type=_time, metavar="TIME", help="requests that began then or later, RFC 3339")
    add("--until", type=_time, metavar="TIME", help="requests that began before")
    for name in ("model", "client", "session"):
        add(f"--{name}", metavar="NAME", help=f"requests of this {name} only")
    add("--by", action="append", choices=tuple(KINDS.values()), help="tables by these only")
    add("--warmup", type=_duration, default=0.0, metavar="30s", help="left out of each input")
    add("--window", type=_duration, default=5.0, metavar="5s", help="width of a point over time")
    text = "such as 'ttft:p95<300ms', 'errors<1%%', 'tokens_per_second:p95>500'; may be repeated"
    add("--slo", action="append", default=[], metavar="OBJECTIVE", help=text)
    add("--compare", nargs="+", metavar="LOG", help="logs of another run, and how it differs")
    add("--live", action="store_true", help="go on reading, and rewrite --html every 3 seconds")


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise argparse.ArgumentTypeError("must be a time such as 30s, 500ms or 2m")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be a time such as 2026-11-29T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _objective(text: str) -> Objective:
    """Read ``--slo``. Raises UnusableInput."""
    match = _OBJECTIVE.fullmatch(text.strip())
    if match is None:
        raise UnusableInput(f"--slo {text!r}: must be like 'ttft:p95<300ms' or 'errors<1%'")
    metric, percent, sign, number, unit = match.groups()
    if metric != "errors" and metric not in METRICS:
        raise UnusableInput(f"--slo {text!r}: there are errors, {', '.join(METRICS)}")
    upwards, unit = metric == "tokens_per_second", unit.strip()
    if (metric == "errors") != (percent is None) or (sign == ">") != upwards:
        raise UnusableInput(f"--slo {text!r}: needs a percentile and <, errors < only, a rate >")
    if unit not in _UNITS or (unit == "%") != (metric == "errors"):
        raise UnusableInput(f"--slo {text!r}: the limit must be a number with ms, s or % behind it")
    quantile = None if percent is None else float(percent) / 100
    if quantile is not None and not 0 < quantile < 1:
        raise UnusableInput(f"--slo {text!r}: the percentile must be above 0 and below 100")
    return Objective(text, metric, quantile, float(number) * _UNITS[unit])


class _ReadingProgress:
    """A line on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._began_at = self._shown_at = time.monotonic()

    def show(self, inputs: Inputs, lines: int) -> None:
        now = time.monotonic()
        if self._shows and now - self._shown_at >= _PROGRESS_SECONDS:
            self._shown_at = now
            rate, done = lines / (now - self._began_at), 100 * inputs.share_read()
            sys.stderr.write(f"\r{done:3.0f} %  {lines:,} lines  {rate:,.0f} lines/s ")

    def end(self) -> None:
        if self._shows:
            sys.stderr.write("\r\x1b[K")


class _Log(NamedTuple):
    """The logs of one run, and what was read of them."""

    inputs: Inputs
    reader: Reader
    run: Run

    def read(self, progress: _ReadingProgress) -> None:
        """Read all inputs to their present ends. Raises UnusableInput."""
        lines = 0
        for number, name in enumerate(self.inputs.names):
            self.reader.begin_input(name)
            for chunk in self.inputs.chunks(number):
                self._add(chunk)
                lines += len(chunk)
                progress.show(self.inputs, lines)
        progress.end()

    def finish(self) -> None:
        """Read what no newline ends. Raises UnusableInput where there is nothing to report."""
        self._add(self.inputs.rests())
        counts, names = self.reader.counts, ", ".join(self.inputs.names)
        if self.run.sums["requests"]:
            return
        if left_out := counts["not selected"]:
            raise UnusableInput(f"{names}: none of {left_out} chat requests is selected")
        if ours := counts["events"] + counts["other requests"]:
            raise UnusableInput(f"{names}: {ours} lines of this proxy, none of a chat request")
        lines = counts["broken"] + counts["not ours"]
        raise UnusableInput(f"{names}: no line of this proxy's log among {lines} lines")

    def _add(self, lines: list[bytes]) -> None:
        batch = self.reader.read(lines)
        if batch is not None:
            self.run.add(batch)


def run_report(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    gc.disable()  # millions of lines make no cycles
    try:
        with ExitStack() as stack:
            return _report(options, stack)
    except UnusableInput as problem:
        sys.stderr.write(f"ape-cerebras report: {problem}\n")
        return 2
    finally:
        gc.enable()


def _report(options: argparse.Namespace, stack: ExitStack) -> int:
    if options.live and not options.html:
        raise UnusableInput("--live needs --html FILE")
    log = _open(options, options.logs, stack)
    other = None if options.compare is None else _open(options, options.compare, stack)
    progress = _ReadingProgress()
    log.read(progress)
    if other is not None:
        other.read(progress)
        other.finish()
    with suppress(KeyboardInterrupt):
        while options.live:
            if log.run.sums["requests"]:
                _write_html(options.html, log, _summary(log, other), live=True)
            time.sleep(_LIVE_SECONDS)
            log.read(progress)
    log.finish()
    return _write(options, log, _summary(log, other))


def _open(options: argparse.Namespace, names: list[str], stack: ExitStack) -> _Log:
    """Raises UnusableInput."""
    objectives = [_objective(text) for text in options.slo]
    wanted = [(key, getattr(options, name, None)) for key, name in KINDS.items()]
    labels = tuple((key, value) for key, value in wanted if value is not None)
    selection = Selection(options.since, options.until, options.warmup, labels)
    kinds = tuple(key for key, name in KINDS.items() if not options.by or name in options.by)
    inputs = Inputs.opened(names, stack)
    return _Log(inputs, Reader(selection), Run(options.window or 5.0, kinds, objectives))


def _write(options: argparse.Namespace, log: _Log, summary: dict[str, Any]) -> int:
    """Write all outputs and return the exit status. Raises UnusableInput."""
    if options.html:
        _write_html(options.html, log, summary)
    if options.png:
        with _writing(options.png):
            Path(options.png).mkdir(parents=True, exist_ok=True)
            for plot in plots_of(log.run, summary):
                file = Path(options.png) / f"{plot.name}.png"
                plot.figure.savefig(file, dpi=150, facecolor="white")
    text = orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if options.json == "-":
        sys.stdout.write(text.decode())
    elif options.json:
        with _writing(options.json):
            Path(options.json).write_bytes(text)
    if options.md or not (options.html or options.png or options.json):
        sys.stdout.write("\n".join(map(_markdown, [_head(summary), *tables_of(summary)])))
    return 0 if all(each["met"] for each in summary["objectives"]) else 1


def _markdown(table: Table) -> str:
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    note = [table.note, ""] if table.note else []
    return "\n".join([f"## {table.title}", "", *note, *lines, ""])


def _write_html(name: str, log: _Log, summary: dict[str, Any], *, live: bool = False) -> None:
    tables = [_head(summary), *tables_of(summary)]
    first = [_table_html(table) for table in tables if table.title in _BEFORE_PLOTS]
    others = [_table_html(table) for table in tables if table.title not in _BEFORE_PLOTS]
    template = Template(files(__package__).joinpath("page.html").read_text("utf-8"))
    begin = summary["begin"][:16].replace("T", " ")
    text = template.substitute(
        title=f"{summary['requests']:,} chat requests from {begin} UTC",
        reload=f'<meta http-equiv="refresh" content="{_LIVE_SECONDS:.0f}">' if live else "",
        first="".join(first),
        plots="".join(map(_plot_html, plots_of(log.run, summary))),
        others="".join(others),
        version=VERSION,
    )
    with _writing(name):
        part = Path(f"{name}.part")
        part.write_text(text, "utf-8")
        part.replace(name)  # at once: a browser may be reading it


def _table_html(table: Table) -> str:
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    head = f"<thead><tr>{cells}</tr></thead>" if any(table.head) else ""
    rows = []
    for first, *rest in table.rows:
        cells = "".join(f"<td>{_SMALL.sub(_IN_SMALL, escape(cell))}</td>" for cell in rest)
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    body = f'<div class="wide"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'
    title = f"<h2>{escape(table.title)}</h2>" if table.title else ""
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<section>{title}{note}{body}</section>"


def _plot_html(plot: Plot) -> str:
    caption = f"<figcaption><h2>{escape(plot.title)}</h2><p>{escape(plot.text)}</p></figcaption>"
    data = f"<details><summary>Figures</summary>{_table_html(plot.table)}</details>"
    return f"<figure>{caption}{_svg(plot)}{data}</figure>"


def _svg(plot: Plot) -> str:
    """The plot as SVG for a page: names of its own, colours by CSS, and a text in place of it."""
    text = StringIO()
    with mpl.rc_context({"svg.hashsalt": plot.name, "svg.fonttype": "none"}):
        plot.figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", drawn)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    for color, variable in _CSS.items():
        drawn = drawn.replace(color, f"var(--{variable})")
    drawn = drawn.replace("'DejaVu Sans', ", "")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{escape(plot.text)}"', 1)


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        raise UnusableInput(f"{name}: cannot be written ({os.strerror(number)})") from None


# The summary


def _of_inputs(log: _Log) -> dict[str, Any]:
    """What was read, and when it was."""
    run, reader = log.run, log.reader
    events = [(*which, count) for which, count in reader.events.most_common()]
    return {
        "inputs": log.inputs.names,
        "report_version": VERSION,
        "versions": sorted(reader.versions),
        "settings": reader.settings,
        "begin": datetime.fromtimestamp(run.begin, UTC).isoformat(timespec="milliseconds"),
        "end": datetime.fromtimestamp(run.end, UTC).isoformat(timespec="milliseconds"),
        "duration_seconds": run.seconds,
        "lines": dict(reader.counts),
        "clock_steps": reader.clock_steps,
        "events": [dict(zip(("level", "message", "count"), each, strict=True)) for each in events],
    }


def _summary(log: _Log, other: _Log | None) -> dict[str, Any]:
    """All figures in seconds, tokens and US dollars, as they are written to ``--json``."""
    run, sums, seconds = log.run, log.run.sums, log.run.seconds
    generation = sums["generation_seconds"]
    objectives = [(each.text, each.unit, *run.met(each)) for each in run.objectives]
    failures = [(*which, count) for which, count in run.errors.most_common()]
    named = ("outcome", "upstream_status", "upstream_code", "cause", "count")
    return {
        **_of_inputs(log),
        "requests": int(sums["requests"]),
        "requests_per_second": sums["requests"] / seconds,
        "failed": int(sums["failed"]),
        "good": run.good if run.objectives else None,
        "goodput_per_second": run.good / seconds if run.objectives else None,
        "outcomes": dict(run.counts["outcome"].most_common()),
        "failures": [dict(zip(named, each, strict=True)) for each in failures],
        "latencies": {name: sketch.summary() for name, sketch in run.sketches.items()},
        "parts_of_ttft": {"all": run.parts(), "slowest_1_percent": run.parts(0.01)},
        "sums": dict(sums),
        "cached_ratio": _ratio(sums["cached_tokens"], sums["prompt_tokens"]),
        "completion_tokens_per_second": sums["completion_tokens"] / seconds,
        "tokens_per_second_of_generation": _ratio(sums["streamed_tokens"], generation),
        "connections": dict(run.counts["connection"].most_common()),
        "finish_reasons": dict(run.counts["finish_reason"].most_common()),
        "groups": {
            KINDS[kind]: {value: group.summary() for value, group in groups.items()}
            for kind, groups in run.groups.items()
            if any(groups)  # with a name
        },
        "slowest": [orjson.loads(text) for _, text in run.slowest],
        "objectives": [
            dict(zip(("text", "unit", "value", "met"), each, strict=True)) for each in objectives
        ],
        "comparison": None if other is None else _comparison(run, other.run),
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _comparison(run: Run, other: Run) -> dict[str, Any]:
    return {
        name: {
            f"p{100 * q:g}": difference(sketch, other.sketches[name], q) for q in (0.5, 0.95, 0.99)
        }
        for name, sketch in run.sketches.items()
        if sketch.count and other.sketches[name].count
    }


def _head(summary: dict[str, Any]) -> Table:
    lines = summary["lines"]
    kinds = ("selected", "not selected", "other requests", "events", "broken", "not ours")
    rows = [
        ("from", summary["begin"]),
        ("to", f"{summary['end']} ({summary['duration_seconds']:,.1f} s)"),
        ("chat requests", f"{summary['requests']:,} ({summary['requests_per_second']:.3g}/s)"),
        ("lines", ", ".join(f"{lines[kind]:,} {kind}" for kind in kinds if lines.get(kind))),
        ("inputs", ", ".join(summary["inputs"])),
        ("proxy's version", ", ".join(summary["versions"]) or "not in the log"),
        *((name, str(value)) for name, value in summary["settings"].items()),
    ]
    return Table("Run", ("", ""), rows, " ".join(_cautions(summary)))


def _cautions(summary: dict[str, Any]) -> Iterator[str]:
    """What has to be known to read the figures right."""
    lagged, requests = int(summary["sums"]["lagged"]), summary["requests"]
    if not lagged:
        yield (
            "Coordinated omission cannot be excluded: no request tells when it was meant to start "
            "(X-Request-Timestamp), so a client that was late does not show."
        )
    elif lagged < requests:
        yield f"{lagged:,} of {requests:,} requests tell when they were meant to start."
    if summary["latencies"]["ttft_derived"]["count"]:
        yield "TTFTs of plain responses are derived from Cerebras's time_info, and told apart."
    if summary["clock_steps"]:
        yield (
            f"Time goes backwards in {summary['clock_steps']} places: logs one behind another in "
            "one input, or a clock that was set. Series over time may be wrong."
        )
    if len(summary["versions"]) > 1:
        yield "The lines are of several versions of the proxy."
    if missing := int(summary["sums"]["usage_missing"]):
        yield f"{missing:,} responses came without usage: tokens and cost are too low."
    if summary["lines"].get("broken"):
        yield "Broken lines are left out."
