"""The lines of a run that most tests of the report read, and plots that are drawn faster."""

from collections.abc import Sequence
from typing import Any

import pytest
from report_lines import lines_of


@pytest.fixture
def raw_lines() -> Sequence[bytes]:
    return lines_of(5000)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty drawing in place of each plot, where a page's other parts are the subject: drawing
    is nine tenths of a page's CPU, 2 s."""
    monkeypatch.setattr("ape_cerebras.report.page._svg", lambda plot: "<svg></svg>")


@pytest.fixture
def not_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are drawn, but not laid out: for that matplotlib draws each of them once more, and
    measures its texts again and again, two thirds of a page's CPU."""
    from matplotlib.figure import Figure

    def figure(**options: Any) -> Figure:
        return Figure(**{**options, "layout": "none"})

    for module in ("drawing", "plots"):
        monkeypatch.setattr(f"ape_cerebras.report.{module}.Figure", figure)
