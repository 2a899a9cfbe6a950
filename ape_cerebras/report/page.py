"""The tables of a summary, and the plots of a run.

matplotlib draws the plots: one program for SVG, which an HTML file carries, and for PNG, with axes,
ticks and clipping that need no care of ours. In the SVG CSS variables take the place of its
colours, so that a page follows the reader's choice of light or dark. Every plot has a text for who
does not see it, and its figures as a table behind it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .reader import METRICS, PARTS
from .run import QUANTILES, Run, Series, percentiles

__all__ = ("KINDS", "Plot", "Table", "plots_of", "tables_of", "value_text")

KINDS = {"model": "model", "client": "client", "session_id": "session", "agent_id": "agent"}
"""The labels that tables are by, and their names on the command line."""


_TOO_FEW, _MET = "too few requests to tell", ("missed", "met")


class Table(NamedTuple):
    """``note`` says how to read it; cells are text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Plot(NamedTuple):
    """``text`` says what is to be seen for who does not see it."""

    name: str
    title: str
    text: str
    figure: Figure
    table: Table


# Tables


def value_text(value: Any, unit: str, none: str = "–") -> str:
    """A value to three digits, in a unit of its size."""
    if not isinstance(value, int | float):  # of a line that was changed
        return none
    if unit == "%":
        return f"{100 * value:.3g} %"
    if unit == "/s":
        return f"{value:,.0f}/s" if value >= 100 else f"{value:.3g}/s"
    if value == 0:
        return "0"
    scaled, name = (value, "s") if abs(value) >= 1 else (value * 1e3, "ms")
    if abs(scaled) < 1:
        scaled, name = value * 1e6, "µs"
    return f"{scaled:,.0f} {name}" if abs(scaled) >= 1000 else f"{scaled:.3g} {name}"


def tables_of(summary: dict[str, Any]) -> list[Table]:
    """All tables that have something to tell, in their order."""
    tables = [
        _objectives(summary),
        _comparison_table(summary),
        _latencies(summary),
        _parts(summary),
        _outcomes(summary),
        _tokens(summary),
        *_groups(summary),
        _slowest(summary),
        _events(summary),
    ]
    return [table for table in tables if table.rows]


def _objectives(summary: dict[str, Any]) -> Table:
    rows = [
        (each["text"], value_text(each["value"], each["unit"], _TOO_FEW), _MET[each["met"]])
        for each in summary["objectives"]
    ]
    note = ""
    if rows:
        good, rate = summary["good"], value_text(summary["goodput_per_second"], "/s")
        note = f"Goodput: {good:,} requests were completed and within every limit, {rate}."
    return Table("Objectives", ("objective", "value", ""), rows, note)


def _comparison_table(summary: dict[str, Any]) -> Table:
    rows = []
    for name, quantiles in (summary["comparison"] or {}).items():
        label, unit = METRICS[name]
        for quantile, told in quantiles.items():
            if told is None:
                shown = _TOO_FEW
            elif not told["differs"]:
                shown = "no difference that these data show"
            else:
                shown = f"{'+' if told['value'] > 0 else ''}{value_text(told['value'], unit)}"
            interval = "–" if told is None else _interval(told["interval"], unit)
            rows.append((label, quantile, shown, interval))
    note = (
        "The other run less this one, with the interval that holds the difference in 95 of 100 "
        "cases (bootstrap). It takes requests for independent; those of one run are not quite, so "
        "repeat runs before you act on a small difference."
    )
    return Table("Compared", ("", "", "difference", "95 % interval"), rows, note)


def _interval(interval: Sequence[float], unit: str) -> str:
    return " to ".join(value_text(value, unit) for value in interval)


def _latencies(summary: dict[str, Any]) -> Table:
    rows = []
    for name, told in summary["latencies"].items():
        label, unit = METRICS[name]
        if told["count"]:
            cells = [_quantile(each, unit) for each in told["quantiles"].values()]
            least, most = value_text(told["min"], unit), value_text(told["max"], unit)
            mean = value_text(told["mean"], unit)
            rows.append((label, f"{told['count']:,}", mean, least, *cells, most))
    head = ("", "requests", "mean", "min", "p50", "p90", "p95", "p99", "p99.9", "max")
    note = (
        "In brackets the interval that holds the true percentile in 95 of 100 cases (order "
        "statistics); where so few requests cannot tell one, it says how many are needed. Values "
        "are off by 0.3 % at most. Total is of completed requests; tokens per second and TPOT are "
        "of streams."
    )
    return Table("Latencies", head, rows, note)


def _quantile(told: dict[str, Any], unit: str) -> str:
    if told["value"] is None:
        return f"needs {told['needs']:,}"
    return f"{value_text(told['value'], unit)} ({_interval(told['interval'], unit)})"


def _parts(summary: dict[str, Any]) -> Table:
    both = whole, slow = tuple(summary["parts_of_ttft"].values())
    sums = [sum(parts[name] for name in PARTS) or 1 for parts in both]
    rows = []
    for name, label in PARTS.items() if whole["count"] else ():
        shares = [parts[name] / of for parts, of in zip(both, sums, strict=True)]
        means = [value_text(parts[name], "s") for parts in both]
        rows.append((label, *means, *(value_text(share, "%") for share in shares)))
    head = ("", "mean", "mean of the slowest 1 %", "share", "share in the slowest 1 %")
    note = f"Of {whole['count']:,.0f} measured TTFTs, and of the slowest {slow['count']:,.0f}."
    return Table("Parts of TTFT", head, rows, note)


def _outcomes(summary: dict[str, Any]) -> Table:
    rows = [
        (outcome, "", "", "", f"{count:,}", value_text(count / summary["requests"], "%"))
        for outcome, count in summary["outcomes"].items()
        if outcome not in {each["outcome"] for each in summary["failures"]}
    ]
    names = ("outcome", "upstream_status", "upstream_code", "cause")
    for each in summary["failures"]:
        share = value_text(each["count"] / summary["requests"], "%")
        rows.append((*(each[name] for name in names), f"{each['count']:,}", share))
    head = ("outcome", "upstream's status", "upstream's code", "cause", "requests", "share")
    sums = summary["sums"]
    note = f"{sums['retried']:,.0f} requests were retried, {sums['attempts']:,.0f} attempts in all."
    if summary["connections"]:
        used = ", ".join(f"{count:,} {kind}" for kind, count in summary["connections"].items())
        note += f" Connections: {used}."
    return Table("Outcomes", head, rows, note)


def _tokens(summary: dict[str, Any]) -> Table:
    sums, ratio = summary["sums"], summary["cached_ratio"]
    rows = [
        (name.removesuffix("_tokens"), f"{sums[name]:,.0f}")
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    ]
    if sums["reserved_tokens"]:
        rows.append(("reserved of the quota", f"{sums['reserved_tokens']:,.0f}"))
    speed = summary["tokens_per_second_of_generation"]
    rows += [
        ("cached of the prompt", value_text(ratio, "%")),
        ("completion, over the run", value_text(summary["completion_tokens_per_second"], "/s")),
        ("completion, by the time of generation", value_text(speed, "/s")),
        ("cost", f"${sums['cost_usd']:,.6f}"),
    ]
    rows += [(f"finish reason {name}", f"{n:,}") for name, n in summary["finish_reasons"].items()]
    note = "" if not sums["no_cost"] else f"{sums['no_cost']:,.0f} requests have no price."
    return Table("Tokens and cost", ("", "tokens"), rows, note)


def _groups(summary: dict[str, Any]) -> Iterator[Table]:
    head = (
        *("", "requests", "failed", "TTFT p50", "p95", "p99", "total p50", "p95"),
        *("tokens/s p50", "prompt", "cached", "completion", "cost", "pause p50", "finish reasons"),
    )
    note = (
        "Pause: from the end of one of its requests to the begin of the next that waited for it, "
        "within one input. Percentiles are off by 1 % at most."
    )
    for kind, groups in summary["groups"].items():
        rows = []
        for name, told in sorted(groups.items(), key=lambda pair: -pair[1]["requests"]):
            ttft = told["ttft"] if told["ttft"]["count"] else told["ttft_derived"]
            mark = "" if ttft is told["ttft"] or not ttft["count"] else " (derived)"
            cached = 100 * told["cached_tokens"] / (told["prompt_tokens"] or 1)
            row = (
                *(name or "–", f"{told['requests']:,.0f}", f"{told['failed']:,.0f}"),
                *(_short(ttft, f"p{percent}", "s") + mark for percent in (50, 95, 99)),
                *(_short(told["total"], f"p{percent}", "s") for percent in (50, 95)),
                _short(told["tokens_per_second"], "p50", "/s"),
                *(f"{told['prompt_tokens']:,.0f}", f"{cached:.0f} %"),
                *(f"{told['completion_tokens']:,.0f}", f"${told['cost_usd']:,.4f}"),
                _short(told["pause"], "p50", "s"),
                ", ".join(f"{count} {reason}" for reason, count in told["finish_reasons"].items()),
            )
            rows.append(row)
        yield Table(f"By {kind}", head, rows, note)


def _short(told: dict[str, Any], quantile: str, unit: str) -> str:
    value = told["quantiles"][quantile]["value"] if told["count"] else None
    return value_text(value, unit)


def _slowest(summary: dict[str, Any]) -> Table:
    times = ("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "total_time_seconds")
    texts = (
        *("timestamp", "ttft_source", "outcome", "model", "client", "prompt_tokens"),
        *("trace_id", "request_id", "upstream_id"),
    )
    rows = [
        (
            *(value_text(line.get(name), "s") for name in times),
            *(str(line.get(name, "–")) for name in texts),
        )
        for line in summary["slowest"]
    ]
    head = ("TTFT", "upstream", "proxy", "total", *texts)
    return Table("The slowest", head, rows, "By TTFT, measured or derived.")


def _events(summary: dict[str, Any]) -> Table:
    rows = [(each["level"], each["message"], f"{each['count']:,}") for each in summary["events"]]
    return Table("Other lines of the log", ("level", "message", "lines"), rows)


# Plots

_STYLE = Path(__file__).with_name("page.mplstyle")
_SHARES = (0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def plots_of(run: Run, summary: dict[str, Any]) -> Iterator[Plot]:
    """All plots. The title says where a TTFT is derived."""
    counts = [summary["latencies"][name]["count"] for name in ("ttft", "ttft_derived")]
    source = " (derived)" if counts[1] else ""
    source = " (measured and derived)" if all(counts) else source
    with mpl.rc_context(fname=str(_STYLE)):
        series, ttft = Series(run), f"TTFT{source}"
        yield from _over_time(run, series, ttft)
        yield _percentiles(run, summary)
        yield from _parts_plot(summary["parts_of_ttft"])
        yield _by_concurrency(series, ttft)
        yield _by_prompt(run, ttft)


def _lines(series: Series, label: str, columns: dict[str, Any]) -> tuple[Figure, Axes, Table]:
    """A plot of lines over time, and its table."""
    figure, axes = _figure(label, "UTC")
    for name, values in columns.items():
        if not np.isnan(values).all():
            axes.plot(series.days, values, ".-", markersize=3, label=name)
    width = series.width / 86_400
    axes.set_xlim(series.days[0] - width, series.days[-1] + width)
    locator = AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    if label != "seconds":
        axes.set_ylim(bottom=0)
    return figure, axes, _table("begin", series.names, columns)


def _figure(label: str, across: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(ylabel=label, xlabel=across)
    if label == "seconds":
        axes.set(yscale="log", ylabel="")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda value, _: value_text(value, "s"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    return figure, axes


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=2)


def _table(first: str, names: Sequence[str], columns: dict[str, Any]) -> Table:
    rows = [
        (name, *("–" if np.isnan(cell) else f"{cell:.4g}" for cell in cells))
        for name, *cells in zip(names, *columns.values(), strict=True)
    ]
    return Table("", (first, *columns), rows)


def _over_time(run: Run, series: Series, ttft: str) -> Iterator[Plot]:
    each = f"{series.width:g} s"
    figure, axes, table = _lines(series, "seconds", series.quantiles)
    begins, values = run.points[:, 1] / 86_400, run.points[:, 2]  # matplotlib's dates are days
    axes.scatter(begins, values, s=3, color="#999999", alpha=0.6, zorder=0, rasterized=True)
    _legend(axes)
    text = f"A point is a request, 2,000 at most; lines are percentiles of {each} by their begin."
    yield Plot("ttft-over-time", f"{ttft} over time", text, figure, table)
    figure, axes, table = _lines(series, "requests per second", series.outcomes)
    _legend(axes)
    text = f"By when requests began, per {each}. A failure of upstream stands out from the others."
    yield Plot("outcomes", "Outcomes over time", text, figure, table)
    figure, axes, table = _lines(series, "requests", {"in flight": series.in_flight})
    yield Plot("in-flight", "Requests in flight", f"The mean of {each}.", figure, table)
    rates = {name: series.per_second(f"{name}_tokens") for name in ("prompt", "completion")}
    spent = np.cumsum(series.per_second("cost_usd") * series.seconds)
    figure, axes, table = _lines(series, "tokens per second", {**rates})
    _legend(axes)
    axes.set_yscale("symlog", linthresh=10)
    table = _table("begin", series.names, {**rates, "dollars so far": spent})
    text = f"By when requests began; ${spent[-1]:,.4f} in all, whose course is among the figures."
    yield Plot("tokens", "Tokens over time", text, figure, table)


def _percentiles(run: Run, summary: dict[str, Any]) -> Plot:
    figure, axes = _figure("seconds", "percentile")
    for name in ("ttft_intended", "ttft", "ttft_derived", "upstream_ttft", "proxy_ttft"):
        if run.sketches[name].count:
            shares, values = run.sketches[name].curve()
            axes.plot(1 / (1 - shares), values, label=METRICS[name][0])
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - share) for share in _SHARES], [f"{100 * s:g}" for s in _SHARES])
    axes.set_xlim(1, max(10, summary["requests"]))
    _legend(axes)
    columns = {
        METRICS[name][0]: [quantile["value"] or np.nan for quantile in each["quantiles"].values()]
        for name, each in summary["latencies"].items()
        if each["count"]
    }
    text = "How slow the slowest are: each step to the right is a tenth of the requests before."
    table = _table("percentile", [f"p{100 * each:g}" for each in QUANTILES], columns)
    return Plot("percentiles", "Percentiles", text, figure, table)


def _by_concurrency(series: Series, ttft: str) -> Plot:
    figure, axes = _figure("seconds", "requests in flight")
    for name, values in series.quantiles.items():
        axes.plot(series.in_flight, values, ".", label=name)
    _legend(axes)
    text = f"A point is {series.width:g} s: its mean of requests in flight, and its percentiles."
    table = _table("in flight", [f"{each:.3g}" for each in series.in_flight], series.quantiles)
    return Plot("concurrency", f"{ttft} by concurrency", text, figure, table)


def _by_prompt(run: Run, ttft: str) -> Plot:
    sizes = np.flatnonzero(run.by_prompt.any(axis=1))
    found = [percentiles(run.by_prompt[size]) for size in sizes]
    columns = {name: np.array([each[name] for each in found], float) for name in ("p50", "p95")}
    figure, axes = _figure("seconds", "tokens of the prompt, from")
    for name, values in columns.items():
        axes.plot(2.0**sizes, values, ".-", label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _legend(axes)
    table = _table("tokens from", [f"{2**size:,}" for size in sizes], columns)
    text = "Percentiles of requests whose prompts have up to twice as many tokens as the mark says."
    return Plot("prompt", f"{ttft} by the prompt's size", text, figure, table)


def _parts_plot(parts: dict[str, dict[str, float]]) -> Iterator[Plot]:
    names = ("all", "slowest 1 %")
    figure, axes = _figure("", "seconds, mean")
    left = np.zeros(2)
    for name, label in PARTS.items():
        widths = np.array([each[name] for each in parts.values()])
        axes.barh(names, widths, left=left, label=label, height=0.6)
        left += widths
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    cells = [[each[part] for part in PARTS] for each in parts.values()]
    columns = dict(zip(names, cells, strict=True))
    if left.any():
        table = _table("part", [*PARTS.values()], columns)
        text = "Where the time to the first token goes."
        yield Plot("parts", "Parts of TTFT (measured)", text, figure, table)
