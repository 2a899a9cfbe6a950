"""What all plots share: their form, their axes, and the table behind each."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .columns import Floats
from .over_time import Series
from .tables import Table, value_text

__all__ = (
    "DAY",
    "Plot",
    "data_table",
    "durations",
    "highest",
    "legend",
    "new_figure",
    "save",
    "stacked",
    "time_axis",
)

DAY = 86_400  # seconds: matplotlib's dates are days


class Plot(NamedTuple):
    """``text`` says what is to be seen for who does not see it."""

    name: str
    title: str
    text: str
    figure: Figure
    table: Table


def new_figure(label: str, across: str, rows: int = 1) -> tuple[Figure, Any]:
    figure = Figure(layout="constrained")
    axes = figure.subplots(rows, sharex=True)
    for each in np.atleast_1d(axes):
        each.set_ylabel(label)
    np.atleast_1d(axes)[-1].set_xlabel(across)
    return figure, axes


def durations(axes: Axes) -> None:
    """A logarithmic axis of durations, once they are drawn."""
    axes.set(yscale="log", ylabel="")
    if not np.isfinite(axes.dataLim.minposy):  # there is none above zero
        axes.set_ylim(0.001, 1)
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(lambda value, _: value_text(value, "s"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    low, high = axes.get_ylim()
    if high / low > 1000:
        axes.yaxis.set_minor_formatter(lambda *_: "")


def time_axis(axes: Axes, series: Series) -> None:
    """The axis of time, the same of all plots."""
    width = series.width / DAY
    axes.set_xlim(series.days[0] - width / 2, series.days[-1] + 1.5 * width)
    locator = AutoDateLocator(maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.set_xlabel("UTC")


def legend(axes: Axes, columns: int = 3) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1))


def stacked(axes: Axes, series: Series, columns: dict[str, Any], colors: Sequence[str]) -> None:
    """Columns on top of one another, each level over the whole of its window."""
    edges = np.append(series.days, series.days[-1] + series.width / DAY)
    below = np.zeros(len(edges))
    for number, (label, values) in enumerate(columns.items()):
        above = below + np.append(values, values[-1])
        color = colors[number % len(colors)]
        axes.fill_between(edges, below, above, step="post", label=label, color=color, alpha=0.85)
        below = above
    axes.set_ylim(bottom=0)
    time_axis(axes, series)


def data_table(first: str, names: Sequence[str], columns: dict[str, Any]) -> Table:
    rows = [
        (name, *("–" if np.isnan(cell) else f"{cell:.4g}" for cell in cells))
        for name, *cells in zip(names, *columns.values(), strict=True)
    ]
    return Table("", (first, *columns), rows)


def highest(series: Series, values: Floats, unit: str) -> str:
    """The highest value, and when it was."""
    if np.isnan(values).all():
        return "is not known"
    place = int(np.nanargmax(values))
    return f"is highest at {series.names[place]}: {value_text(float(values[place]), unit)}"


def save(plot: Plot, file: Any, **options: Any) -> None:
    """Write the plot, as ``Figure.savefig``. matplotlib warns where its font lacks a character of
    some name, and draws a box; a browser has other fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        plot.figure.savefig(file, **options)
