"""The reference tables of these pages, made from the code's own tables.

    python reference.py      # make docs: writes them anew where they are not current

A page names a table between two comments, ``<!-- reference: NAME -->`` and ``<!-- end of reference
-->``; what stands between them is replaced. A test fails while a page is not current.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import ape_cerebras
from ape_cerebras.config.config import Config
from ape_cerebras.config.settings import SETTINGS, Setting
from ape_cerebras.errors import ProxyError
from ape_cerebras.simulator.options import FAULTS, SIMULATION_FLAGS, Simulation
from ape_cerebras.simulator.quota import LIMIT_FLAGS, AccountLimits
from ape_cerebras.telemetry.logs import DEBUG_FIELDS, FIRST_FIELDS, LOG_FIELDS
from ape_cerebras.telemetry.metric_table import METRICS, WORKER_METRICS, MetricRow
from ape_cerebras.telemetry.outcomes import CAUSES, OUTCOMES

__all__ = ("TABLES", "current")

HERE = Path(__file__).parent
MARKED = re.compile(
    r"(?<=^<!-- reference: )(.+)( -->\n)(?:.*\n)*?(?=<!-- end of reference -->$)", re.MULTILINE
)
NONE = "–"
# The first setting of each part of the table, and its heading.
PARTS = {
    "CEREBRAS_API_KEY": "Keys and the API",
    "LOG_LEVEL": "Log, address and metrics",
    "DEFAULT_MODEL": "Models and prices",
    "ASYNC_WORKERS": "Processes",
    "MAX_CONCURRENT_REQUESTS": "Limits and quota",
    "CONNECTION_POOL_SIZE": "Connections to upstream",
    "RETRY_ATTEMPTS": "When upstream fails",
    "REQUEST_TIMEOUT": "Timeouts and sizes of requests",
    "GRACEFUL_SHUTDOWN_TIMEOUT": "Shutdown, times and TLS",
}
# Defaults that are no value.
IN_WORDS = {
    "CEREBRAS_API_KEY": "required, except with `--demo`",
    "MODEL_PRICES": "built-in prices",
    "MAX_CONNECTIONS": "half of the open files allowed",
    "HISTOGRAM_BUCKETS": "built-in bounds",
    "SSL_CERT_FILE": "certifi's",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines
    )


def code(text: object) -> str:
    return f"`{text}`"


# Settings


def settings() -> str:
    parts: list[tuple[str, list[Setting]]] = []
    for setting in SETTINGS:
        if setting.variable in PARTS:
            parts.append((PARTS[setting.variable], []))
        parts[-1][1].append(setting)
    head = ("variable", "default", "meaning")
    return "\n".join(
        f"### {heading}\n\n{table(head, [setting_row(each) for each in part])}"
        for heading, part in parts
    )


def setting_row(setting: Setting) -> tuple[str, str, str]:
    of_config = {field.name: field for field in fields(Config)}
    default = IN_WORDS.get(setting.variable) or shown(of_config[setting.variable.lower()])
    return code(setting.variable), default, setting.meaning


def shown(field: "Field[Any]") -> str:
    """The default of a field, as its variable would have it."""
    value = None if field.default is MISSING else field.default
    if value is None or value == ():
        return NONE
    if isinstance(value, tuple) and isinstance(value[0], bytes):
        return " ".join(code(name.decode()) for name in value)
    if isinstance(value, bool):
        return code("on" if value else "off")
    return code(f"{value:g}" if isinstance(value, float) else str(value).removesuffix(":443"))


# Metrics


def metrics() -> str:
    head = ("metric", "type", "labels", "meaning")
    return table(head, [metric_row(row) for row in METRICS])


def worker_metrics() -> str:
    head = ("metric", "type", "labels", "meaning")
    return table(head, [metric_row(row) for row in WORKER_METRICS])


def metric_row(row: MetricRow) -> tuple[str, str, str, str]:
    return code(row.name), row.type, ", ".join(map(code, row.labels)), row.meaning


# Log lines and outcomes


def log_fields() -> str:
    parts = {
        "Of every line": FIRST_FIELDS,
        "Of an exchange": LOG_FIELDS,
        "With `LOG_LEVEL=debug`": DEBUG_FIELDS,
    }
    tables = []
    for heading, fields_there in parts.items():
        rows = [(code(each.key), each.meaning) for each in fields_there]
        tables.append(f"### {heading}\n\n{table(('field', 'meaning'), rows)}")
    return "\n".join(tables)


def outcomes() -> str:
    head = ("outcome", "meaning", "class", "level", "failed", "degrades")
    rows = [
        (
            code(name),
            each.meaning,
            each.side,
            each.level,
            *(yes(flag) for flag in (each.failed, each.degrades)),
        )
        for name, each in OUTCOMES.items()
    ]
    return table(head, rows)


def causes() -> str:
    return table(("cause", "meaning"), [(code(name), meaning) for name, meaning in CAUSES.items()])


def yes(flag: bool) -> str:
    return "yes" if flag else NONE


# Errors


def errors() -> str:
    rows = [
        (
            str(each.status),
            code(each.code),
            code(each.type),
            code(each.outcome),
            each.message or "what is wrong",
        )
        for each in dict.fromkeys(subclasses(ProxyError))
        if each.status and ("message" in vars(each) or each.__init__ is not ProxyError.__init__)
    ]
    head = ("status", "`code`", "`type`", "`outcome`", "message")
    return table(head, sorted(set(rows)))


def subclasses(kind: type[ProxyError]) -> Iterator[type[ProxyError]]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


# The simulator


def faults() -> str:
    return table(("fault", "what happens"), [(code(name), text) for name, text in FAULTS.items()])


def flags(of: type, given: Sequence[tuple[str, Callable[[str], Any], str]]) -> str:
    defaults = {field.name: shown(field) for field in fields(of)}
    rows = [(code("--" + name.replace("_", "-")), defaults[name], text) for name, _, text in given]
    return table(("flag", "default", "meaning"), rows)


# The package


def drawing(number: int) -> str:
    """A literal block of the package's docstring, without its indentation."""
    blocks = re.findall(r"::\n\n((?: {4}.*\n)+)", str(ape_cerebras.__doc__))
    return f"```text\n{dedent(blocks[number])}```\n"


def rooms() -> str:
    package = Path(str(ape_cerebras.__file__)).parent
    rows = []
    for folder in sorted(path.parent for path in package.glob("*/__init__.py")):
        docstring = str(ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))))
        first = docstring.partition("\n\n")[0].replace("\n", " ")
        rows.append((code(folder.name), first))
    return table(("room", "what it is for"), rows)


# Benchmarks


def scenarios() -> str:
    sys.path.insert(0, str(HERE.parent / "bench"))
    rows = import_module("scenarios").SCENARIOS
    return table(("scenario", "what"), [(code(row.name), row.what) for row in rows])


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "metrics": metrics,
    "worker metrics": worker_metrics,
    "log fields": log_fields,
    "outcomes": outcomes,
    "causes": causes,
    "errors": errors,
    "faults": faults,
    "simulator flags": lambda: flags(Simulation, SIMULATION_FLAGS),
    "account flags": lambda: flags(AccountLimits, LIMIT_FLAGS),
    "picture of the rooms": lambda: drawing(0),
    "way of a request": lambda: drawing(1),
    "rooms": rooms,
    "bench scenarios": scenarios,
}


def current(page: str) -> str:
    """The text of a page with its reference tables as they should be."""
    return MARKED.sub(lambda match: f"{match[1]}{match[2]}\n{TABLES[match[1]]()}\n", page)


def main() -> None:
    for path in sorted(HERE.glob("*.md")):
        text = path.read_text("utf-8")
        if current(text) != text:
            path.write_text(current(text), "utf-8")
            print(f"written: {path.name}")


if __name__ == "__main__":
    main()
