"""A report as one HTML file that loads nothing.

No script: the figures behind a plot open by ``details``, light and dark are CSS. Whatever a log
holds is escaped.
"""

import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from io import StringIO
from string import Template
from typing import Any

import matplotlib as mpl

from ..version import VERSION
from .drawing import Plot, save
from .tables import Table, cautions_of, head_of, tables_of, value_text

__all__ = ("page",)

_CSS = {"#222222": "ink", "#dddddd": "rule", "#999999": "faint", "#7f7f7f": "faint"}
_BEFORE_PLOTS = ("Objectives", "Compared", "Latencies")
_SMALL, _IN_SMALL = re.compile(r" (\(.+\))$"), r"<br><small>\1</small>"
_MARKS = {"met": "good", "missed": "bad"}
_PIXELS = 144  # an inch, of what is drawn as an image


def page(summary: dict[str, Any], plots: Iterable[Plot], *, reload_seconds: float | None) -> str:
    """The HTML; ``reload_seconds``: the browser reads it anew so often."""
    tables = tables_of(summary)
    first = [table for table in tables if table.title in _BEFORE_PLOTS]
    others = [table for table in tables if table.title not in _BEFORE_PLOTS]
    template = Template(files(__package__).joinpath("page.html").read_text("utf-8"))
    begin, end = (summary[name][:19].replace("T", " ") for name in ("begin", "end"))
    reload = f'<meta http-equiv="refresh" content="{reload_seconds or 0:.0f}">'
    titles = [table.title for table in first] + ["Plots"] + [table.title for table in others]
    return template.substitute(
        title=f"{summary['requests']:,} chat requests",
        subtitle=f"{begin} to {end[11:] if begin[:10] == end[:10] else end} UTC",
        reload="" if reload_seconds is None else reload,
        links="".join(f'<a href="#{_anchor(each)}">{escape(each)}</a>' for each in titles),
        cards="".join(_card(*each) for each in _key_figures(summary)),
        cautions="".join(f"<li>{escape(each)}</li>" for each in cautions_of(summary)),
        first="".join(map(_section, first)),
        plots="".join(map(_figure, plots)),
        others="".join(map(_section, others)),
        run=_section(head_of(summary)),
        version=VERSION,
    )


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _key_figures(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """What is read first: a name, a value, what it is of, and whether that is good or bad."""
    latencies, requests = summary["latencies"], summary["requests"]
    name = next((each for each in ("ttft_intended", "ttft") if latencies[each]["count"]), "")
    name = name or "ttft_derived"
    of = {"ttft_intended": "from the intended start", "ttft": "measured"}.get(name, "derived")
    of = f"{of}, of {latencies[name]['count']:,}"
    cards = []
    for percent in ("p50", "p95", "p99"):
        found = latencies[name].get("quantiles", {}).get(percent, {"value": None, "needs": 1})
        value = value_text(found["value"], "s", "too few")
        cards.append((f"TTFT {percent}", value, of if percent == "p50" else "", ""))
    speed = latencies["tokens_per_second"].get("quantiles", {}).get("p50", {}).get("value")
    cards.append(("Tokens per second", value_text(speed, "/s"), "median of the streams", ""))
    failed = summary["failed"] / requests
    mark = "bad" if failed else "good"
    cards.append(("Failed", value_text(failed, "%"), f"{summary['failed']:,} requests", mark))
    rate = value_text(summary["requests_per_second"], "/s")
    cards.append(("Requests", rate, f"{requests:,} in all", ""))
    cost = summary["sums"]["cost_usd"]
    cards.append(("Cost", f"${cost:,.2f}" if cost >= 1 else f"${cost:.4f}", "US dollars", ""))
    if summary["objectives"]:
        met = sum(each["met"] for each in summary["objectives"])
        of = f"goodput {value_text(summary['goodput_per_second'], '/s')}"
        number = len(summary["objectives"])
        cards.append(
            ("Objectives", f"{met} of {number} met", of, "good" if met == number else "bad")
        )
    return cards


def _card(name: str, value: str, of: str, mark: str) -> str:
    of = f"<small>{escape(of)}</small>" if of else ""
    return f'<div class="card {mark}"><dt>{escape(name)}</dt><dd>{escape(value)}{of}</dd></div>'


def _section(table: Table) -> str:
    title = f"<h2>{escape(table.title)}</h2>"
    return f'<section id="{_anchor(table.title)}">{title}{_table(table)}</section>'


def _table(table: Table) -> str:
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    head = f"<thead><tr>{cells}</tr></thead>" if any(table.head) else ""
    rows = []
    for first, *rest in table.rows:
        cells = "".join(map(_cell, rest))
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    label = escape(table.title or "Figures")
    wide = f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
    return f"{note}{wide}<table>{head}<tbody>{''.join(rows)}</tbody></table></div>"


def _cell(text: str) -> str:
    mark = f' class="{_MARKS[text]}"' if text in _MARKS else ""
    return f"<td{mark}>{_SMALL.sub(_IN_SMALL, escape(text))}</td>"


def _figure(plot: Plot) -> str:
    caption = f"<figcaption><h3>{escape(plot.title)}</h3><p>{escape(plot.text)}</p></figcaption>"
    data = f"<details><summary>Figures</summary>{_table(plot.table)}</details>"
    return f"<figure>{caption}{_svg(plot)}{data}</figure>"


def _svg(plot: Plot) -> str:
    """The plot as SVG for a page: names of its own, colours by CSS, and a text in place of it."""
    text = StringIO()
    with mpl.rc_context({"svg.hashsalt": plot.name, "svg.fonttype": "none"}):
        save(plot, text, format="svg", dpi=_PIXELS, metadata={"Date": None})
    drawn = text.getvalue()[text.getvalue().index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot.name}-", drawn)
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", drawn, count=1)
    drawn = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", drawn, count=1)
    for color, variable in _CSS.items():
        drawn = drawn.replace(color, f"var(--{variable})")
    drawn = drawn.replace("'DejaVu Sans'", "system-ui, sans-serif")
    label = escape(f"{plot.title}. {plot.text}")
    return drawn.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
