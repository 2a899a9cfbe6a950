"""The tables of a report, made from its figures, and all of them as Markdown."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .columns import METRICS, PARTS
from .summary import completeness
from .texts import printable

__all__ = ("Table", "cautions_of", "head_of", "markdown", "tables_of", "value_text")

_TOO_FEW, _MET = "too few requests for it", ("missed", "met")


class Table(NamedTuple):
    """``note`` says how to read it; cells are text."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def value_text(value: Any, unit: str, none: str = "–") -> str:
    """A value to three digits, in a unit of its size."""
    if not isinstance(value, int | float):  # of a line that was changed
        return none
    if unit == "%":
        return f"{100 * value:.3g} %"
    if unit == "/s":
        return f"{value:,.0f}/s" if abs(value) >= 100 else f"{value:.3g}/s"
    if value == 0:
        return "0"
    scaled, name = (value, "s") if abs(value) >= 1 else (value * 1e3, "ms")
    if abs(scaled) < 1:
        scaled, name = value * 1e6, "µs"
    return f"{scaled:,.0f} {name}" if abs(scaled) >= 1000 else f"{scaled:.3g} {name}"


def markdown(summary: dict[str, Any]) -> str:
    """All tables as Markdown."""
    cautions = [f"* {text}" for text in cautions_of(summary)]
    tables = [head_of(summary), *tables_of(summary)]
    first, *others = map(_markdown, tables)
    return "\n".join([first, *cautions, "", *others])


def _markdown(table: Table) -> str:
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    note = [table.note, ""] if table.note else []
    return "\n".join([f"## {table.title}", "", *note, *lines, ""])


def tables_of(summary: dict[str, Any]) -> list[Table]:
    """All tables that have something to show, in their order, behind the head."""
    tables = [
        _objectives(summary),
        _comparison(summary),
        _latencies(summary),
        _parts(summary),
        _outcomes(summary),
        _tokens(summary),
        *_groups(summary),
        _agents(summary),
        _slowest(summary),
        _events(summary),
    ]
    return [table for table in tables if table.rows]


def head_of(summary: dict[str, Any]) -> Table:
    """What the report is of."""
    lines, runs = summary["lines"], summary["runs"]
    kinds = ("selected", "not selected", "other requests", "events", "broken", "not ours")
    good = summary["goodput_per_second"]
    rows = [
        ("run", _listed([*runs])),
        ("from", summary["begin"]),
        ("to", f"{summary['end']} ({summary['duration_seconds']:,.1f} s)"),
        ("chat requests", f"{summary['requests']:,} ({summary['requests_per_second']:.3g}/s)"),
        ("completed", value_text(summary["completed_per_second"], "/s")),
        ("goodput", "needs objectives: --slo" if good is None else value_text(good, "/s")),
        ("complete", completeness(runs)),
        ("lines", ", ".join(f"{lines[kind]:,} {kind}" for kind in kinds if lines.get(kind))),
        ("inputs", _listed(summary["inputs"])),
        ("proxy's version", ", ".join(summary["versions"]) or "not in the log"),
        ("settings", "" if summary["settings"] else _no_settings(summary)),
        *((name, " or ".join(values)) for name, values in summary["settings"].items()),
    ]
    note = "Settings are those that differ from the defaults." if summary["settings"] else ""
    return Table("Run", ("", ""), [row for row in rows if row[1]], note)


def _no_settings(summary: dict[str, Any]) -> str:
    return "all are the defaults" if summary["versions"] else "not in the log"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown}, and {len(names) - 8} more"


def cautions_of(summary: dict[str, Any]) -> Iterator[str]:
    """What has to be known to read the figures right."""
    yield from _cautions_of_times(summary)
    yield from _cautions_of_lines(summary)


def _cautions_of_times(summary: dict[str, Any]) -> Iterator[str]:
    lagged, requests = int(summary["sums"]["lagged"]), summary["requests"]
    if not lagged:
        yield (
            "Coordinated omission cannot be excluded: no request says when it was meant to start "
            "(X-Request-Timestamp), so a client that was late does not show."
        )
    elif lagged < requests:
        yield f"Only {lagged:,} of {requests:,} requests say when they were meant to start."
    if summary["latencies"]["ttft_derived"]["count"]:
        yield "TTFTs of plain responses are derived from Cerebras's time_info, and marked so."
    if summary["clock_steps"]:
        yield (
            f"Time goes backwards in {summary['clock_steps']} places: logs one behind another in "
            "one input, or a clock that was set. Series over time may be wrong."
        )


def _cautions_of_lines(summary: dict[str, Any]) -> Iterator[str]:
    sums = summary["sums"]
    if len(summary["versions"]) > 1:
        yield f"Lines are of several versions of the proxy: {', '.join(summary['versions'])}."
    if any(each["missing"] for each in summary["runs"].values()):
        yield "The log is not complete, or has lines twice: see Run."
    if missing := int(sums["usage_missing"]):
        yield f"{missing:,} responses came without usage: tokens and cost are too low."
    if estimated := int(sums["usage_estimated"]):
        yield f"The usage of {estimated:,} requests is an estimate: upstream did not report it."
    of_info = any(each["level"] == "info" for each in summary["events"])
    if "completed" not in summary["outcomes"] and not of_info:
        yield (
            "No request was completed, and no line has the level info: with a LOG_LEVEL above it "
            "requests that are completed have no line."
        )
    if broken := summary["lines"].get("broken"):
        yield f"{broken:,} broken lines are left out."


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


_BY_REQUESTS = (
    "The other run less this one, with the interval that holds the difference in 95 of 100 cases "
    "(bootstrap). It takes requests for independent; those of one run are not quite, so repeat "
    "runs before you act on a small difference. From five runs on each side on, runs are compared."
)
_BY_RUNS = (
    "Of {} runs here and {} others, the medians of their percentiles. The difference is the median "
    "of those between any two runs, with the interval that holds it in 95 of 100 cases or a little "
    "more (Hodges and Lehmann; Mann and Whitney)."
)


def _comparison(summary: dict[str, Any]) -> Table:
    rows = []
    comparison = summary["comparison"] or {"metrics": {}, "by": "requests"}
    for name, quantiles in comparison["metrics"].items():
        label, unit = METRICS[name]
        for quantile, found in quantiles.items():
            if found is None:
                rows.append((label, quantile, "–", "–", _TOO_FEW, "–"))
                continue
            shown = f"{'+' if found['value'] > 0 else ''}{value_text(found['value'], unit)}"
            if not found["differs"]:
                shown = "no difference that these data show"
            both = [value_text(found[side], unit) for side in ("ours", "other")]
            rows.append((label, quantile, *both, shown, _interval(found["interval"], unit)))
    by_runs = comparison["by"] == "runs"
    note = _BY_RUNS.format(*comparison["runs"]) if by_runs else _BY_REQUESTS
    head = ("", "", "this", "other", "difference", "95 % interval")
    return Table("Compared", head, rows, note)


def _interval(interval: Sequence[float], unit: str) -> str:
    return " to ".join(value_text(value, unit) for value in interval)


def _latencies(summary: dict[str, Any]) -> Table:
    rows = []
    for name, each in summary["latencies"].items():
        label, unit = METRICS[name]
        if each["count"]:
            cells = [_quantile(found, unit) for found in each["quantiles"].values()]
            least, most = value_text(each["min"], unit), value_text(each["max"], unit)
            mean = value_text(each["mean"], unit)
            rows.append((label, f"{each['count']:,}", mean, least, *cells, most))
    head = ("", "requests", "mean", "min", "p50", "p90", "p95", "p99", "p99.9", "max")
    note = (
        "In brackets the interval that holds the true percentile in 95 of 100 cases (order "
        "statistics). Where there are not enough samples for a percentile, it says how many are "
        "needed. Values are off by 0.3 % at most. Total is of completed requests; tokens per "
        "second and TPOT are of streams."
    )
    return Table("Latencies", head, rows, note)


def _quantile(found: dict[str, Any], unit: str) -> str:
    if found["value"] is None:
        return f"needs {found['needs']:,}"
    return f"{value_text(found['value'], unit)} ({_interval(found['interval'], unit)})"


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
    if again := int(sums["requests"] - sums["turns"]):
        note += f" {again:,} requests are retries by the client itself."
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
    speed = summary["tokens_per_second_of_generation"]
    rows += [
        ("cached of the prompt", value_text(ratio, "%")),
        ("completion, over the run", value_text(summary["completion_tokens_per_second"], "/s")),
        ("completion of streams, by the sum of their generation times", value_text(speed, "/s")),
        ("the same, mean of all streams", _mean(summary["latencies"]["tokens_per_second"])),
    ]
    if sums["reserved_tokens"]:
        used = f"{sums['used_of_reserved']:,.0f}"
        used += f" ({value_text(summary['used_of_reserved'], '%')})"
        rows += [("quota reserved", f"{sums['reserved_tokens']:,.0f}"), ("used of it", used)]
    rows.append(("cost", f"${sums['cost_usd']:,.6f}"))
    rows += [(f"finish reason {name}", f"{n:,}") for name, n in summary["finish_reasons"].items()]
    note = "" if not sums["no_cost"] else f"{sums['no_cost']:,.0f} requests have no price."
    return Table("Tokens and cost", ("", "tokens"), rows, note)


def _mean(figures: dict[str, Any]) -> str:
    return value_text(figures.get("mean"), "/s")


def _groups(summary: dict[str, Any]) -> Iterator[Table]:
    head = (
        *("", "requests", "failed", "TTFT p50", "p95", "p99", "total p50", "p95"),
        *("tokens/s p50", "prompt", "cached", "completion", "cost", "finish reasons"),
    )
    for kind, groups in summary["groups"].items():
        rows = []
        for name, each in sorted(groups.items(), key=lambda pair: -pair[1]["requests"]):
            cached = 100 * each["cached_tokens"] / (each["prompt_tokens"] or 1)
            row = (
                *(name or "–", f"{each['requests']:,.0f}", f"{each['failed']:,.0f}"),
                *_ttft(each, (50, 95, 99)),
                *(_short(each["total"], f"p{percent}", "s") for percent in (50, 95)),
                _short(each["tokens_per_second"], "p50", "/s"),
                *(f"{each['prompt_tokens']:,.0f}", f"{cached:.0f} %"),
                *(f"{each['completion_tokens']:,.0f}", f"${each['cost_usd']:,.4f}"),
                ", ".join(f"{count} {reason}" for reason, count in each["finish_reasons"].items()),
            )
            rows.append(row)
        yield Table(f"By {kind}", head, rows, "Percentiles are off by 1 % at most.")


def _agents(summary: dict[str, Any]) -> Table:
    rows = []
    groups = {name: each for name, each in summary["groups"].get("agent", {}).items() if name}
    for name, each in sorted(groups.items(), key=lambda pair: -pair[1]["turns"]):
        turns = each["turns"] or 1
        row = (
            *(name, f"{each['turns']:,.0f}", f"{each['failed']:,.0f}"),
            f"{60 * turns / max(each['seconds'], 1.0):.3g}",
            *(_short(each["pause"], f"p{percent}", "s") for percent in (50, 95)),
            *_ttft(each, (50, 95)),
            f"{(each['prompt_tokens'] + each['completion_tokens']) / turns:,.0f}",
            *(f"${each['cost_usd']:,.4f}", f"${each['cost_usd'] / turns:,.6f}"),
        )
        rows.append(row)
    head = (
        *("", "turns", "failed", "turns a minute", "between p50", "p95", "TTFT p50", "p95"),
        *("tokens a turn", "cost", "a turn"),
    )
    note = (
        "A turn is a request that is no retry by the client itself. Between: the time between "
        "actions, from the end of one response to the begin of the next request; too long where "
        "the requests of an agent are spread over several logs."
    )
    return Table("Agents", head, rows, note)


def _ttft(group: dict[str, Any], percents: tuple[int, ...]) -> Iterator[str]:
    """Measured, else derived and marked so."""
    measured, derived = group["ttft"], group["ttft_derived"]
    figures = measured if measured["count"] or not derived["count"] else derived
    mark = " (derived)" if figures is derived else ""
    for percent in percents:
        yield _short(figures, f"p{percent}", "s") + mark


def _short(figures: dict[str, Any], quantile: str, unit: str) -> str:
    value = figures["quantiles"][quantile]["value"] if figures["count"] else None
    return value_text(value, unit)


def _slowest(summary: dict[str, Any]) -> Table:
    times = ("ttft_seconds", "upstream_ttft_seconds", "proxy_ttft_seconds", "total_time_seconds")
    texts = (
        *("timestamp", "ttft_source", "outcome", "model", "client", "agent_id", "prompt_tokens"),
        *("trace_id", "request_id", "upstream_id"),
    )
    rows = [
        (
            *(value_text(line.get(name), "s") for name in times),
            *(printable(str(line.get(name, "–"))) for name in texts),
        )
        for line in summary["slowest"]
    ]
    head = ("TTFT", "upstream", "proxy", "total", *texts)
    return Table("The slowest", head, rows, "By TTFT, measured or derived.")


def _events(summary: dict[str, Any]) -> Table:
    rows = [(each["level"], each["message"], f"{each['count']:,}") for each in summary["events"]]
    return Table("Other lines of the log", ("level", "message", "lines"), rows)
