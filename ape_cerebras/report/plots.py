"""The plots of a run.

matplotlib draws them: one program for SVG, which an HTML file carries, and for PNG, with axes,
ticks and clipping that need no care of ours. In the SVG CSS variables take the place of its
colours, so that a page follows the reader's choice of light or dark. Every plot has a text for who
does not see it, and its figures as a table behind it.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .columns import METRICS, PARTS
from .drawing import (
    DAY,
    Plot,
    data_table,
    durations,
    highest,
    legend,
    new_figure,
    stacked,
    time_axis,
)
from .over_time import Series, percentiles, ttft_edges
from .run import OTHERS, Group, Run
from .sketches import QUANTILES
from .tables import value_text

__all__ = ("plots_of",)

_STYLE = Path(__file__).with_name("page.mplstyle")
_SHARES = (0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_GREY, _GOOD = "#999999", "#009e73"
_BAD = ("#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f", "#0072b2")
_MANY_FAIL = 0.1  # of a window's requests: it is shaded
_HEAT_BINS = 6  # of TTFT to a row of the heat map, 20 % wide then
_HEAT_LIMITS = (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9)  # seconds, of its table
_MULTIPLES = 12


def plots_of(run: Run, summary: dict[str, Any]) -> Iterator[Plot]:
    """All plots that there are data for. The title says where a TTFT is derived."""
    counts = [summary["latencies"][name]["count"] for name in ("ttft", "ttft_derived")]
    source = " (derived)" if counts[1] else ""
    source = " (measured and derived)" if all(counts) else source
    with mpl.rc_context(fname=str(_STYLE)):
        series, ttft = Series(run.timeline, run.begin, run.end), f"TTFT{source}"
        if any(counts):
            yield _over_time(run, series, ttft)
            yield _heat_map(series, ttft)
        yield _outcomes(series)
        yield _in_flight(series)
        yield _tokens(series)
        if counts[0]:
            yield _parts(summary["parts_of_ttft"])
            yield _parts_over_time(series)
        if any(counts):
            yield _percentiles(run, summary)
            yield _by_concurrency(series, ttft)
            yield _by_prompt(run, ttft)
            yield from _multiples(run, series, ttft)


# Over time


def _over_time(run: Run, series: Series, ttft: str) -> Plot:
    figure, axes = new_figure("", "UTC")
    begins, values = run.sample.points.T
    dots = {"s": 3, "color": _GREY, "alpha": 0.6, "zorder": 0, "rasterized": True}
    axes.scatter(begins / DAY, values, **dots)
    for name, quantile in series.quantiles.items():
        if not np.isnan(quantile).all():
            axes.plot(series.days + series.width / DAY / 2, quantile, ".-", label=name)
    failing = series.per_second("failed") > _MANY_FAIL * np.maximum(
        series.per_second("requests"), 1e-9
    )
    for day in series.days[failing]:
        axes.axvspan(day, day + series.width / DAY, color=_BAD[0], alpha=0.15, zorder=-1)
    durations(axes)
    time_axis(axes, series)
    legend(axes)
    text = (
        f"A point is a request, 2,000 at most; lines are percentiles of {series.width:g} s, by "
        f"when requests began. Shaded where more than a tenth of them failed. "
        f"The p50 {highest(series, series.quantiles['p50'], 's')}."
    )
    table = data_table("begin", series.names, series.quantiles)
    return Plot("ttft-over-time", f"{ttft} over time", text, figure, table)


def _heat_map(series: Series, ttft: str) -> Plot:
    counts, edges = series.counts(), ttft_edges()
    rows = counts.reshape(len(counts), -1, _HEAT_BINS).sum(axis=2)
    used = np.flatnonzero(rows.any(axis=0))
    shown = rows[:, used[0] : used[-1] + 1].T.astype(float)
    levels = edges[::_HEAT_BINS][used[0] : used[-1] + 2]
    days = np.append(series.days, series.days[-1] + series.width / DAY)
    figure, axes = new_figure("", "UTC")
    norm = LogNorm(1, max(2.0, shown.max()))
    cells = np.ma.masked_equal(shown, 0)
    mesh = axes.pcolormesh(days, levels, cells, norm=norm, cmap="viridis", rasterized=True)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30, format=lambda value, _: f"{value:g}")
    bar.ax.tick_params(which="both", labelsize=7, length=2)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    durations(axes)
    time_axis(axes, series)
    columns = {}
    for low, high in pairwise(_HEAT_LIMITS):
        inside = counts[:, (edges[:-1] >= low) & (edges[:-1] < high)].sum(axis=1)
        if inside.any():
            columns[f"from {value_text(low, 's')}"] = inside
    table = data_table("begin", series.names, columns)
    fullest = value_text(float(levels[int(shown.sum(axis=1).argmax())]), "s")
    text = (
        f"How many requests of each {series.width:g} s had which TTFT; most had about {fullest}. "
        "Two bands are two kinds of requests, or two states of what serves them."
    )
    return Plot("heat-map", f"{ttft}, heat map", text, figure, table)


def _outcomes(series: Series) -> Plot:
    names = sorted(series.outcomes, key=lambda name: (name != "completed", name))
    columns = {name: series.outcomes[name] for name in names}
    colors = (_GOOD, *_BAD) if "completed" in columns else _BAD
    figure, axes = new_figure("requests per second", "UTC")
    stacked(axes, series, columns, colors)
    legend(axes, 2)
    failed = highest(series, series.per_second("failed"), "/s")
    text = f"By when requests began, each {series.width:g} s. The rate of failures {failed}."
    return Plot("outcomes", "Outcomes", text, figure, data_table("begin", series.names, columns))


def _in_flight(series: Series) -> Plot:
    figure, axes = new_figure("requests", "UTC")
    stacked(axes, series, {"in flight": series.in_flight}, ("#0072b2",))
    place = int(series.in_flight.argmax())
    most = f"{series.in_flight[place]:.3g} at {series.names[place]}"
    text = f"How many requests were open, the mean of each {series.width:g} s; at most {most}."
    table = data_table("begin", series.names, {"in flight": series.in_flight})
    return Plot("in-flight", "Requests in flight", text, figure, table)


def _tokens(series: Series) -> Plot:
    rates = {name: series.per_second(f"{name}_tokens") for name in ("prompt", "completion")}
    spent = np.cumsum(series.sums("cost_usd"))
    figure, (above, below) = new_figure("", "UTC", rows=2)
    stacked(above, series, rates, ("#56b4e9", "#0072b2"))
    above.set(ylabel="tokens/s", xlabel="")
    above.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    legend(above)
    stacked(below, series, {"dollars": spent}, ("#e69f00",))
    below.set_ylabel("dollars")
    table = data_table("begin", series.names, {**rates, "dollars so far": spent})
    text = f"By when requests began. The run cost ${spent[-1]:,.4f}."
    return Plot("tokens", "Tokens and cost", text, figure, table)


def _parts_over_time(series: Series) -> Plot:
    columns = {PARTS[name]: series.part(name) for name in PARTS}
    shown = {name: np.maximum(0, values) for name, values in columns.items() if values.any()}
    figure, axes = new_figure("", "UTC")
    colors = [_color_of_part(label) for label in shown]
    stacked(axes, series, shown, colors)
    axes.yaxis.set_major_formatter(lambda value, _: value_text(value, "s"))
    legend(axes, 2)
    whole = np.sum([*columns.values()], axis=0)
    largest = max(columns, key=lambda name: float(columns[name].sum()))
    text = (
        f"The mean TTFT of each {series.width:g} s by what took the time. It "
        f"{highest(series, whole, 's')}; the largest part is {largest!r}."
    )
    table = data_table("begin", series.names, columns)
    return Plot("parts-over-time", "Parts of TTFT over time (measured)", text, figure, table)


def _color_of_part(label: str) -> str:
    colors = (
        "#7f7f7f",
        "#e69f00",
        "#8a6d3b",
        "#cc79a7",
        "#d55e00",
        "#0072b2",
        "#56b4e9",
        "#009e73",
    )
    return colors[[*PARTS.values()].index(label)]


# Of the whole run


def _parts(parts: dict[str, dict[str, float]]) -> Plot:
    names = ("all", "slowest 1 %")
    figure, axes = new_figure("", "mean")
    left = np.zeros(2)
    for name, label in PARTS.items():
        widths = np.array([max(0.0, each[name]) for each in parts.values()])
        if widths.any():
            color = _color_of_part(label)
            axes.barh(names, widths, left=left, label=label, height=0.55, color=color, alpha=0.85)
        left += widths
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: value_text(value, "s"))
    axes.grid(axis="y", visible=False)
    legend(axes, 2)
    cells = [[each[part] for part in PARTS] for each in parts.values()]
    columns = dict(zip(names, cells, strict=True))
    blamed = [PARTS[max(PARTS, key=each.__getitem__)] for each in parts.values()]
    text = (
        f"Where the time to the first token goes: of all requests mostly to {blamed[0]!r}, of the "
        f"slowest 1 % to {blamed[1]!r}."
    )
    table = data_table("part", [*PARTS.values()], columns)
    return Plot("parts", "Parts of TTFT (measured)", text, figure, table)


def _percentiles(run: Run, summary: dict[str, Any]) -> Plot:
    figure, axes = new_figure("", "percentile")
    for name in ("ttft_intended", "ttft", "ttft_derived", "upstream_ttft", "proxy_ttft"):
        if run.sketches[name].count:
            shares, values = run.sketches[name].curve()
            axes.plot(1 / (1 - shares), values, label=METRICS[name][0])
    axes.set_xscale("log")
    axes.set_xticks([1 / (1 - share) for share in _SHARES], [f"{100 * s:g}" for s in _SHARES])
    axes.set_xlim(1, max(10, summary["requests"]))
    axes.minorticks_off()
    durations(axes)
    legend(axes, 2)
    columns = {
        METRICS[name][0]: [quantile["value"] or np.nan for quantile in each["quantiles"].values()]
        for name, each in summary["latencies"].items()
        if each["count"]
    }
    text = "How slow the slowest are: with each step to the right a tenth of the requests is left."
    table = data_table("percentile", [f"p{100 * each:g}" for each in QUANTILES], columns)
    return Plot("percentiles", "Percentiles", text, figure, table)


def _by_concurrency(series: Series, ttft: str) -> Plot:
    figure, axes = new_figure("", "requests in flight")
    for name, values in series.quantiles.items():
        if not np.isnan(values).all():
            axes.plot(series.in_flight, values, ".", label=name, alpha=0.8)
    durations(axes)
    legend(axes)
    text = (
        f"A point is {series.width:g} s: its mean of requests in flight, and its percentiles. "
        "Where they rise to the right, waiting is a matter of load."
    )
    table = data_table("in flight", [f"{each:.3g}" for each in series.in_flight], series.quantiles)
    return Plot("concurrency", f"{ttft} by concurrency", text, figure, table)


def _by_prompt(run: Run, ttft: str) -> Plot:
    sizes = np.flatnonzero(run.by_prompt.any(axis=1))
    found = [percentiles(run.by_prompt[size]) for size in sizes]
    columns = {name: np.array([each[name] for each in found], float) for name in ("p50", "p95")}
    figure, axes = new_figure("", "tokens of the prompt, from")
    for name, values in columns.items():
        axes.plot(2.0**sizes, values, ".-", label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    durations(axes)
    legend(axes)
    table = data_table("tokens from", [f"{2**size:,}" for size in sizes], columns)
    text = "Percentiles of requests whose prompts have up to twice as many tokens as the mark says."
    return Plot("prompt", f"{ttft} by the prompt's size", text, figure, table)


def _multiples(run: Run, series: Series, ttft: str) -> Iterator[Plot]:
    """A small plot for each agent, or session where no agent is named."""
    for kind, word in (("agent_id", "agent"), ("session_id", "session")):
        named = {
            name: group
            for name, group in run.groups.get(kind, {}).items()
            if name not in ("", OTHERS)
        }
        if len(named) > 1:
            shown = sorted(named.items(), key=lambda pair: -pair[1].sums["requests"])
            yield _small_plots(dict(shown[:_MULTIPLES]), len(named), series, (ttft, word))
            return


def _small_plots(groups: dict[str, Group], of: int, series: Series, words: tuple[str, str]) -> Plot:
    ttft, word = words
    rows = -(-len(groups) // 2)
    figure = Figure(figsize=(5.2, 0.7 + 1.05 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, group) in zip(grid, groups.items(), strict=False):
        begins, values = group.sample.points.T
        dots = {"s": 4, "rasterized": True}
        axes.scatter(begins / DAY, values, color="#0072b2", **dots)
        failed = begins[np.isnan(values)] / DAY
        foot = {"transform": axes.get_xaxis_transform(), "markersize": 5, "color": _BAD[0]}
        axes.plot(failed, np.full(len(failed), 0.04), "|", **foot)
        axes.set_title(f"{name[:24]}: {group.sums['requests']:,.0f}", pad=2)
        axes.label_outer()
    for axes in grid[len(groups) :]:
        axes.set_visible(False)
    durations(grid[0])
    time_axis(grid[0], series)
    for axes in grid:
        axes.set_xlabel("")
    names = [*groups]
    cells = {
        "requests": [group.sums["requests"] for group in groups.values()],
        "failed": [group.sums["failed"] for group in groups.values()],
        "p50": [_quantile_of(group, 0.5) for group in groups.values()],
        "p95": [_quantile_of(group, 0.95) for group in groups.values()],
    }
    text = (
        f"The {len(groups)} of {of} {word}s with most requests, 150 of them at most, at the same "
        "scale; a mark at the foot is a request without a token."
    )
    title = f"{ttft} by {word}"
    return Plot("multiples", title, text, figure, data_table(word, names, cells))


def _quantile_of(group: Group, quantile: float) -> float:
    sketches = [group.sketches[name] for name in ("ttft", "ttft_derived")]
    sketch = max(sketches, key=lambda each: each.count)
    if not sketch.count or sketch.interval(quantile) is None:
        return float("nan")
    return sketch.quantile(quantile)
