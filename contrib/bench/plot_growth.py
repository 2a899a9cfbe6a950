"""Plot what ``growth.py`` measured: ``python plot_growth.py IMAGE JSON``. Needs matplotlib."""

import json
import sys
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("#d9480f", "#1971c2")
FLAT = 0.1  # of the figure with nothing open: the band in which growth is none


def main(image: str, path: str) -> None:
    rounds = json.loads(Path(path).read_text("utf-8"))
    figure, grid = pyplot.subplots(1, len(rounds), figsize=(10, 3), sharey=True, squeeze=False)
    for axes, colour, (what, counts) in zip(grid[0], COLOURS, rounds.items(), strict=True):
        numbers = [int(number) for number in counts]
        middles = [median(values) for values in counts.values()]
        errors = [
            [middle - min(values) for middle, values in zip(middles, counts.values(), strict=True)],
            [max(values) - middle for middle, values in zip(middles, counts.values(), strict=True)],
        ]
        axes.axhspan(middles[0] * (1 - FLAT), middles[0] * (1 + FLAT), color="#f1f3f5")
        axes.errorbar(numbers, middles, errors, color=colour, marker="o", capsize=3)
        axes.set_xscale("symlog", linthresh=100)
        axes.set_ylim(bottom=0)
        axes.set_title(f"CPU µs of a plain request beside open {what}", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.99, 0.01, "grey: within 10 % of none open", fontsize=8, ha="right")
    figure.tight_layout()
    figure.savefig(image, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
