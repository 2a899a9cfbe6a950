"""The command ``ape-cerebras report``: its flags, its outputs and its exit status.

0: the report is written; 1: an objective is missed; 2: there is nothing to report about, or
something given is wrong, which is said on standard error. matplotlib, 0.8 s of CPU (on two virtual
cores), is loaded only for what draws.
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
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from .inputs import Inputs, UnusableInput
from .objectives import UNITS, read_objective
from .reader import Reader, Selection
from .run import Run
from .summary import KINDS, summarize
from .tables import markdown

__all__ = ("add_flags", "run_report")

_LIVE_SECONDS = 3.0  # between two looks at growing inputs
_PROGRESS_SECONDS = 0.25
_BAR = 24  # characters


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
    for name in KINDS.values():
        flag = "--run-id" if name == "run" else f"--{name}"
        add(flag, dest=f"only_{name}", metavar="NAME", help=f"requests of this {name} only")
    kinds = tuple(name for name in KINDS.values() if name != "run")
    add("--by", action="append", choices=kinds, help="tables by these only (default: all)")
    text = "left out of each input (default: 0s)"
    add("--warmup", type=_duration, default=0.0, metavar="30s", help=text)
    text = "width of a point over time (default: 5s)"
    add("--window", type=_duration, default=5.0, metavar="5s", help=text)
    text = "such as 'ttft:p95<300ms', 'errors<1%%', 'tokens_per_second:p95>500'; may be repeated"
    add("--slo", action="append", default=[], metavar="OBJECTIVE", help=text)
    add("--compare", nargs="+", metavar="LOG", help="logs of other runs, and how they differ")
    add("--live", action="store_true", help="go on reading, and rewrite --html every 3 seconds")


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)?", text)
    if match is None:
        raise argparse.ArgumentTypeError("must be a time such as 30s, 500ms or 2m")
    return float(match[1]) * UNITS[match[2] or "s"]


def _time(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError("must be a time such as 2026-11-29T12:00:00Z") from None


class _ReadingProgress:
    """A bar on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._began_at = self._shown_at = time.monotonic()

    def show(self, inputs: Inputs, lines: int) -> None:
        now = time.monotonic()
        if self._shows and now - self._shown_at >= _PROGRESS_SECONDS:
            self._shown_at = now
            rate, share = lines / (now - self._began_at), inputs.share_read()
            bar = "" if share is None else "█" * round(_BAR * share)
            done = "" if share is None else f"{bar:░<{_BAR}} {100 * share:3.0f} %  "
            sys.stderr.write(f"\r{done}{lines:,} lines  {rate:,.0f} lines/s \x1b[K")

    def end(self) -> None:
        if self._shows:
            sys.stderr.write("\r\x1b[K")


class _Log(NamedTuple):
    """The logs of one run or several, and what was read of them."""

    inputs: Inputs
    reader: Reader
    run: Run

    def read(self, progress: _ReadingProgress) -> None:
        """Read all inputs to their present ends. Raises UnusableInput."""
        lines = 0
        try:
            for number, name in enumerate(self.inputs.names):
                self.reader.begin_input(name)
                for chunk in self.inputs.chunks(number):
                    self._add(chunk)
                    lines += len(chunk)
                    progress.show(self.inputs, lines)
        finally:
            progress.end()

    def finish(self) -> None:
        """Read what no newline ends. Raises UnusableInput where there is nothing to report."""
        for name, line in self.inputs.rests():
            self.reader.begin_input(name)
            self._add([line])
        counts, names = self.reader.counts, ", ".join(self.inputs.names)
        counts["broken"] += self.inputs.too_long
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
    objectives = [read_objective(text) for text in options.slo]
    wanted = [(key, getattr(options, f"only_{name}")) for key, name in KINDS.items()]
    labels = tuple((key, value) for key, value in wanted if value is not None)
    selection = Selection(options.since, options.until, options.warmup, labels)
    kinds = tuple(key for key, name in KINDS.items() if not options.by or name in options.by)
    inputs = Inputs.opened(names, stack)
    return _Log(inputs, Reader(selection), Run(options.window or 5.0, kinds, objectives))


def _summary(log: _Log, other: _Log | None) -> dict[str, Any]:
    compared = None if other is None else other.run
    return summarize(log.inputs.names, log.reader, log.run, compared)


def _write(options: argparse.Namespace, log: _Log, summary: dict[str, Any]) -> int:
    """Write all outputs and return the exit status. Raises UnusableInput."""
    if options.html:
        _write_html(options.html, log, summary)
    if options.png:
        from .drawing import save
        from .plots import plots_of

        with _writing(options.png):
            Path(options.png).mkdir(parents=True, exist_ok=True)
            for plot in plots_of(log.run, summary):
                file = Path(options.png) / f"{plot.name}.png"
                save(plot, file, dpi=200, facecolor="white")
    text = orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if options.json == "-":
        _print(text.decode())
    elif options.json:
        with _writing(options.json):
            Path(options.json).write_bytes(text)
    if options.md or not (options.html or options.png or options.json):
        _print(markdown(summary))
    return 0 if all(each["met"] for each in summary["objectives"]) else 1


def _print(text: str) -> None:
    """Until nobody reads any more, which changes no status."""
    with suppress(BrokenPipeError):
        sys.stdout.write(text)
        sys.stdout.flush()


def _write_html(name: str, log: _Log, summary: dict[str, Any], *, live: bool = False) -> None:
    from .page import page
    from .plots import plots_of

    reload_seconds = _LIVE_SECONDS if live else None
    text = page(summary, plots_of(log.run, summary), reload_seconds=reload_seconds)
    with _writing(name):
        part = Path(f"{name}.part")
        try:
            part.write_text(text, "utf-8", "replace")
            part.replace(name)  # at once: a browser may be reading it
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        raise UnusableInput(f"{name}: cannot be written ({os.strerror(number)})") from None
