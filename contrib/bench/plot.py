"""Plot a run for the documentation: ``python plot.py IMAGE results.json …``. Needs matplotlib."""

import sys
from typing import Any, NamedTuple

import matplotlib
from report import joined, medians

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

OURS, FLOORS, OTHERS = "#d9480f", "#1971c2", "#868e96"


class Panel(NamedTuple):
    title: str
    scenario: str
    figure: str


PANELS = (
    Panel("plain reply, 32 connections: CPU µs a request", "plain, 32", "request_cpu_us"),
    Panel("burst of 100 tokens, 16 streams: CPU µs a token", "burst, 16", "token_cpu_us"),
    Panel("200 tokens a second, 16 streams: CPU µs a token", "paced, 16", "token_cpu_us"),
    Panel("one client, stream: TTFT added, ms", "stream, 1", "added_first_p50_ms"),
    Panel("memory of an open stream, KiB", "open streams", "stream_kib"),
    Panel("memory idle, MiB", "start", "idle_mib"),
)


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def colour_of(name: str) -> str:
    return OURS if name == "ape_cerebras" else FLOORS if name.startswith("floor") else OTHERS


def draw(axes: Axes, panel: Panel, values: dict[str, float]) -> None:
    names = sorted(values, key=values.__getitem__, reverse=True)
    colours = list(map(colour_of, names))
    bars = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(bars, labels=[shown(values[name]) for name in names], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.set_title(panel.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.xaxis.set_visible(False)
    axes.margins(x=0.15)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def values_of(run: dict[str, Any], panel: Panel) -> dict[str, float]:
    entry = next((e for e in run["scenarios"] if e["name"] == panel.scenario), None)
    found = medians(entry, panel.figure) if entry else {}
    return {name: value for name, value in found.items() if value > 0 and name != "direct"}


def main(image: str, *paths: str) -> None:
    run = joined(paths)
    panels = [(panel, values_of(run, panel)) for panel in PANELS]
    panels = [(panel, values) for panel, values in panels if values]
    rows = -(-len(panels) // 2) or 1
    figure, grid = pyplot.subplots(rows, 2, figsize=(10, 2.2 * rows), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (panel, values) in zip(grid.flat, panels, strict=False):
        draw(axes, panel, values)
    figure.suptitle("less is better; logarithmic; blue: floors", fontsize=8, x=0.99, ha="right")
    figure.tight_layout()
    figure.savefig(image, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
