"""One frame of ``ape-cerebras top``: what running proxies do now, as tables for a terminal."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from ..telemetry.outcomes import OUTCOMES, SIDES
from .scrape import Merged, ScrapedProxy, SeriesKey, merged

__all__ = ("SORTS", "Look", "frame")

_QUANTILES = (0.5, 0.95, 0.99)
_TIMES = (
    ("felt", "ttft_seconds"),
    ("upstream", "upstream_ttft_seconds"),
    ("ours", "proxy_ttft_seconds"),
)
_PARTS = (
    ("queue", "upstream_queue_seconds", "magenta"),
    ("prompt", "upstream_prompt_seconds", "blue"),
    ("network", "network_seconds", "cyan"),
    ("upstream", "", "bright_blue"),  # what of upstream's time it does not account for
    ("retry", "retry_seconds", "red"),
    ("wait", "wait_seconds", "yellow"),
    ("connect", "upstream_connect_seconds", "bright_yellow"),
    ("TLS", "upstream_tls_seconds", "bright_magenta"),
    ("own", "proxy_own_seconds", "green"),
)
"""The parts of TTFT in their order, the histogram of each, and its colour."""

_STATES = (
    ("upstream_circuit", ("state", "open"), "circuit open"),
    ("upstream_circuit", ("state", "half_open"), "circuit half open"),
    ("degraded", ("reason", "ttft"), "slow TTFT"),
    ("degraded", ("reason", "failures"), "many failures"),
)
"""What a gauge that is not 0 says, by its name and one of its labels."""

_COLORS = {"client": "yellow", "limit": "yellow", "account": "red", "upstream": "red"}
_WINDOWS = "minute hour day"
_MOST_ROWS = 8
_MOST_NAME = 24  # characters
_WIDE = 110  # columns from which tables stand side by side
SORTS = ("requests", "errors", "ttft", "tokens", "cost", "name")
"""What tables of models and clients can be sorted by."""


class Look(NamedTuple):
    """How a frame is to look."""

    width: int
    sort: str = SORTS[0]
    is_paused: bool = False
    keys: bool = False  # whether there is somebody to press one
    clock: str = ""


class _Row(NamedTuple):
    """A row of the table of models or clients, before it is text. ``ttft``: the p95."""

    name: str
    requests: float
    errors: float | None
    ttft: float | None
    tokens: float
    cost: float


def frame(proxies: Sequence[ScrapedProxy], look: Look) -> RenderableType:
    """What these proxies do now."""
    now = merged(proxies)
    gauges = [proxy.gauges() for proxy in proxies]
    parts: list[RenderableType] = [_head(proxies, now, look), _totals(now, gauges, look.width)]
    quota = _quota(gauges)
    beside = [_ttft(now), *([quota] if quota.row_count else [])]
    parts += [Text(), _beside(look.width, *beside), *_bar(now, look.width)]
    tables = [
        each for each in (_models(now, look), _clients(now, look), _outcomes(now)) if each.row_count
    ]
    if look.width >= _WIDE and len(tables) > 1:
        parts += [Text(), _beside(look.width, tables[0], Group(*_apart(tables[1:])))]
    else:
        parts += [each for table in tables for each in (Text(), table)]
    parts += [Text(), _proxies(proxies)]
    return Group(*parts)


def _apart(tables: Iterable[RenderableType]) -> list[RenderableType]:
    return [each for table in tables for each in (table, Text())]


def _beside(width: int, *parts: RenderableType) -> RenderableType:
    if width < _WIDE:
        return Group(*_apart(parts)[:-1])
    grid = Grid.grid(padding=(0, 4, 0, 0))
    grid.add_row(*parts)
    return grid


def _grid(*head: str) -> Grid:
    """A table without lines: the first column is names, the others are numbers."""
    grid = Grid(box=None, padding=(0, 2, 0, 0), header_style="bold dim", pad_edge=False)
    grid.add_column(head[0], no_wrap=True, min_width=12)
    for name in head[1:]:
        grid.add_column(name, justify="right", no_wrap=True, min_width=7)
    return grid


# Numbers


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{_decimal(1000 * value)} ms"
    return f"{_decimal(value)} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else _decimal(value)


def _decimal(value: float) -> str:
    """Three digits, or more where those before the point are more."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:,.1f} M"


def _rate(value: float) -> str:
    return f"{_number(value)}/s"


def _dollars(per_second: float) -> str:
    per_hour = 3600 * per_second
    return f"${per_hour:,.2f}/h" if per_hour >= 0.01 or not per_hour else f"${per_hour:.2g}/h"


def _sum(gauges: Iterable[dict[SeriesKey, float]], name: str, **labels: str) -> float:
    return sum(
        value
        for each in gauges
        for series, value in each.items()
        if series.name == name and all(series.label(key) == text for key, text in labels.items())
    )


# The parts of a frame


def _head(proxies: Sequence[ScrapedProxy], now: Merged, look: Look) -> RenderableType:
    up = sum(proxy.is_up for proxy in proxies)
    text = Text()
    text.append("ape-cerebras top", "bold")
    text.append("   ")
    text.append(f"{up} of {len(proxies)} up", "green" if up == len(proxies) else "bold red")
    if look.is_paused:
        text.append("   paused", "bold yellow")
    else:
        text.append(f"   last {now.seconds:.0f} s" if now.seconds else "   no rates yet", "dim")
    grid = Grid.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    grid.add_row(text, _keys(look) if look.keys else Text(look.clock, "dim"))
    return grid


def _totals(now: Merged, gauges: list[dict[SeriesKey, float]], width: int) -> RenderableType:
    requests, errors = now.rate("requests_total"), now.rate("errors_total")
    share = f" {100 * errors / requests:.1f} %" if errors and requests else ""
    cells = (
        ("requests", _rate(requests), ""),
        ("errors", _rate(errors) + share, "bold red" if errors else ""),
        ("in flight", _number(_sum(gauges, "requests_in_flight")), ""),
        ("queue", _number(_sum(gauges, "queue_length")), ""),
        ("tokens out", _rate(now.rate("tokens_total", type="completion")), ""),
        ("tokens in", _rate(now.rate("tokens_total", type="prompt")), ""),
        ("cost", _dollars(now.rate("cost_usd_total")), ""),
    )
    grid = Grid.grid(expand=width < _WIDE, padding=(0, 2, 0, 0))
    for _ in cells:
        grid.add_column(no_wrap=True)
    grid.add_row(*(Text(name, "bold dim") for name, _, _ in cells))
    grid.add_row(*(Text(value, style or "bold") for _, value, style in cells))
    return grid


def _ttft(now: Merged) -> RenderableType:
    grid = _grid("TTFT", *(f"p{100 * q:.0f}" for q in _QUANTILES), "count")
    for name, metric in _TIMES:
        times = [_seconds(now.quantile(q, metric)) for q in _QUANTILES]
        grid.add_row(name, *times, _number(now.count(f"{metric}_count")))
    return grid


def _quota(gauges: list[dict[SeriesKey, float]]) -> Grid:
    """What is left of the account's quota: the least that any proxy has seen."""
    left: dict[tuple[str, str], float] = {}
    limits: dict[tuple[str, str], float] = {}
    for each in gauges:
        for series, value in each.items():
            which = series.label("window"), series.label("kind")
            if series.name == "upstream_ratelimit_remaining":
                left[which] = min(value, left.get(which, value))
            elif series.name == "upstream_ratelimit_limit":
                limits[which] = max(value, limits.get(which, value))
    grid = _grid("quota left", "now", "of", "")
    for (window, kind), value in sorted(left.items(), key=lambda item: _WINDOWS.find(item[0][0])):
        limit = limits.get((window, kind))
        share = value / limit if limit else 1.0
        style = "bold red" if share < 0.1 else "yellow" if share < 0.25 else ""
        of = _whole(limit) if limit else "-"
        percent = Text(f"{100 * share:.0f} %" if limit else "", style)
        grid.add_row(f"{kind}/{window}", _whole(value), of, percent)
    return grid


def _bar(now: Merged, width: int) -> list[RenderableType]:
    """The parts of the mean TTFT as a bar, and as words."""
    count = now.count("ttft_seconds_count")
    if not count:
        return []
    means = {name: now.count(f"{metric}_sum") / count for name, metric, _ in _PARTS if metric}
    known = sum(means[name] for name in ("queue", "prompt", "network"))
    means["upstream"] = max(0.0, now.count("upstream_ttft_seconds_sum") / count - known)
    shown = [(name, max(0.0, means[name]), color) for name, _, color in _PARTS]
    total = sum(value for _, value, _ in shown)
    cells = min(width, _WIDE) - 2
    bar, words, done, drawn = Text(), [Text()], 0.0, 0
    for name, value, color in shown:
        done += value
        end = round(cells * done / total) if total else 0
        bar.append("█" * (end - drawn), color)
        drawn = end
        if total and value / total >= 0.001:
            word = f"{name} {_seconds(value)}   "
            if words[-1].cell_len + 2 + len(word) > width:
                words.append(Text())
            words[-1].append("■ ", color).append(word)
    mean = _seconds(now.count("ttft_seconds_sum") / count)
    return [Text(), Text(f"mean TTFT {mean}, of it", "bold dim"), bar, *words]


def _rows(now: Merged, look: Look, rows: list[_Row]) -> list[_Row]:
    """Sorted, and no more than fit."""
    ranks: dict[str, Callable[[_Row], float]] = {
        "requests": lambda row: row.requests,
        "errors": lambda row: row.errors or 0.0,
        "ttft": lambda row: row.ttft or 0.0,
        "tokens": lambda row: row.tokens,
        "cost": lambda row: row.cost,
    }
    rows.sort(key=lambda row: row.name)
    if look.sort in ranks:
        rows.sort(key=ranks[look.sort], reverse=True)
    return rows[:_MOST_ROWS]


def _models(now: Merged, look: Look) -> Grid:
    names = now.rates_by("requests_total", "model")
    rows = [
        _Row(
            model,
            rate,
            now.rate("errors_total", model=model),
            now.quantile(0.95, "ttft_seconds", model=model),
            now.rate("tokens_total", model=model, type="completion"),
            now.rate("cost_usd_total", model=model),
        )
        for model, rate in names.items()
    ]
    grid = _grid("model", "requests", "errors", "TTFT p95", "tokens", "cost")
    for row in _rows(now, look, rows):
        errors = Text(_rate(row.errors or 0.0), "red" if row.errors else "dim")
        cells = (_rate(row.requests), errors, _seconds(row.ttft), _rate(row.tokens))
        grid.add_row(row.name[:_MOST_NAME], *cells, _dollars(row.cost))
    return grid


def _clients(now: Merged, look: Look) -> Grid:
    names = now.rates_by("client_requests_total", "client")
    rows = [
        _Row(
            client,
            rate,
            None,
            None,
            now.rate("client_tokens_total", client=client, type="completion"),
            now.rate("client_cost_usd_total", client=client),
        )
        for client, rate in names.items()
    ]
    grid = _grid("client", "requests", "tokens", "cost")
    for row in _rows(now, look, rows):
        cells = (_rate(row.requests), _rate(row.tokens), _dollars(row.cost))
        grid.add_row(row.name[:_MOST_NAME], *cells)
    return grid


def _outcomes(now: Merged) -> Grid:
    """Failures by their outcome, and whose side each is on."""
    grid = _grid("failures", "rate", "class")
    rates = now.rates_by("outcomes_total", "outcome")
    failed = {name: rate for name, rate in rates.items() if rate and _side_of(name) != "ok"}
    for name, rate in sorted(failed.items(), key=lambda item: -item[1])[:_MOST_ROWS]:
        side = _side_of(name)
        grid.add_row(name, _rate(rate), Text(side, _COLORS.get(side, "red")))
    return grid


def _side_of(outcome: str) -> str:
    known = OUTCOMES.get(outcome)  # a proxy may be newer than this program
    return known.side if known and known.side in SIDES else "unknown"


def _proxies(proxies: Sequence[ScrapedProxy]) -> Grid:
    grid = _grid("proxy", "requests", "flight", "queue", "clients", "workers", "state")
    for proxy in proxies:
        name = proxy.name if len(proxy.name) <= _MOST_NAME else f"…{proxy.name[1 - _MOST_NAME :]}"
        if not proxy.is_up:
            grid.add_row(name, *("-" * 5), Text(proxy.problem, "bold red", overflow="fold"))
            continue
        seen = [proxy.gauges()]
        one = merged([proxy])
        configured = _sum(seen, "workers_configured")
        workers = f"{_sum(seen, 'workers_up'):.0f}/{configured:.0f}" if configured else "1"
        flight, queue = _sum(seen, "requests_in_flight"), _sum(seen, "queue_length")
        cells = (_rate(one.rate("requests_total")), _number(flight), _number(queue))
        clients = _number(_sum(seen, "client_connections"))
        grid.add_row(name, *cells, clients, workers, _state(proxy, seen[0]))
    grid.columns[-1].justify = "left"
    grid.columns[-1].no_wrap = False
    return grid


def _state(proxy: ScrapedProxy, seen: dict[SeriesKey, float]) -> Text:
    """What is not as it should be."""
    if proxy.problem:
        return Text(proxy.problem, "bold yellow")
    words = [
        text
        for name, labels, text in _STATES
        if any(series.name == name and labels in series.labels and v for series, v in seen.items())
    ]
    if _sum([seen], "workers_up") < _sum([seen], "workers_configured"):
        words.append("workers are missing")
    if proxy.restarts:
        words.append(f"restarted {proxy.restarts}x")
    return Text(", ".join(words), "yellow") if words else Text("ok", "green")


def _keys(look: Look) -> Text:
    text = Text()
    for key, meaning in (
        ("q", "quit"),
        ("p", "go on" if look.is_paused else "pause"),
        ("s", f"by {look.sort}"),
    ):
        text.append(key, "bold reverse")
        text.append(f" {meaning}  ", "dim")
    return text.append(look.clock, "dim")
