"""README and the pages of ``contrib/docs``: their examples run, the names in them exist, and their
reference tables are current."""

import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, blocks_of, matches, session
from programs import tool
from prometheus_server import known_names, names_in
from server_process import Served, serving

from ape_cerebras.commands import run_command
from ape_cerebras.config.settings import SETTINGS
from ape_cerebras.telemetry.outcomes import CAUSES

DOCS = ROOT / "contrib" / "docs"
TEXTS = {page: page.read_text("utf-8") for page in PAGES}
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
IS_OUTPUT = {("text", "output"), ("json", "log line")}
DRAWINGS = {("text", ""), ("mermaid", "")}
CHECKED = {("promql", ""), ("logql", "")}
# Upper-case names with an underscore that are no setting: of the Makefile and of other programs.
NO_SETTINGS = {
    *("CEREBRAS_API_KEY_FILE", "APE_API_KEY_FILE", "PYTHON_CONFIGURE_OPTS", "X_FILE"),
    *("TMPDIR", "_CAP", "PROMETHEUS_MULTIPROC_DIR", "HTTPS_PROXY", "NO_PROXY"),
    *("UPSTREAM_PROXY_FILE", "MEMORY_LIMIT_MB", "CACHE_SIZE_MB", "BATCH_SIZE", "BASE_DIGEST"),
    *("INFERENCE_TIMEOUT", "PERFORMANCE_TRACKING", "TCP_INFO", "PYTHON_GIL"),
    *("ORJSON_BUILD_FREETHREADED",),
    *("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"),
    *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_BSP_SCHEDULE_DELAY"),
    *("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_BSP_MAX_QUEUE_SIZE"),
}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    """A simulator instead of the real API."""
    with serving("simulate") as served:
        yield served


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_examples_of_a_page_run_with_the_printed_output(
    page: Path, tmp_path: Path, api: Served
) -> None:
    with session(tmp_path, f"http://127.0.0.1:{api.port}") as running:
        for block in blocks_of(page):
            running.run(block)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_of_a_known_kind(block: Block) -> None:
    run = block.kind in ("sh", "python")
    known = {"", "stays running", "on asyncio and trio", "exits with 1", "exits with 2"}
    is_file = block.kind in ("toml", "json", "yaml") and "." in block.note
    form = (block.kind, block.note)
    assert (
        form in IS_OUTPUT | DRAWINGS | CHECKED
        or is_file
        or (run and block.note in known)
        or (run and len(block.why_not) > 10)
    )


def test_output_follows_its_command() -> None:
    for before, block in pairwise(BLOCKS):
        if (block.kind, block.note) in IS_OUTPUT:
            assert before.page == block.page
            assert before.kind in ("sh", "python", "text")
            assert not before.why_not


@pytest.mark.parametrize(
    ("expected", "output", "fits"),
    [
        ("a\n\nb", "a\n\nb\n", True),
        ("a …", "a b\nc", True),
        ("…\nlast", "first\nsecond\nlast", True),
        ("a", "a b", False),
        ("a.c", "abc", False),
    ],
)
def test_output_matches_its_pattern(expected: str, output: str, *, fits: bool) -> None:
    assert matches(expected, output) is fits


# Names


def test_every_named_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    there = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", makefile, re.MULTILINE))
    targets = {name for names in there for name in names.split()}
    named = set(re.findall(r"[`\n]make ([a-z][\w-]*)", "".join(TEXTS.values())))
    assert named
    assert named <= targets


def test_every_named_command_and_flag_exists(capsys: pytest.CaptureFixture[str]) -> None:
    used: dict[str, set[str]] = {}
    for block in BLOCKS:
        if block.kind == "sh":
            for line in re.findall(r"ape-cerebras (.*)", block.text.replace("\\\n", " ")):
                command, *words = re.sub(r"[#|].*", "", line).split()
                used.setdefault(command, set()).update(w for w in words if w.startswith("--"))
    for command, flags in used.items():
        if re.fullmatch("[a-z]+", command):
            with pytest.raises(SystemExit, match="0"):
                run_command([command, "--help"])
            there = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
            assert flags <= there, command


def test_every_named_setting_exists() -> None:
    settings = {setting.variable for setting in SETTINGS}
    text = "".join(TEXTS.values())
    named = set(re.findall(r"[`\s]([A-Z]+(?:_[A-Z]+)+)\b", text))
    assert named - settings - NO_SETTINGS - set(CAUSES) == set()


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"(?:contrib|tests|ape_cerebras)/[\w./-]*\w", "".join(TEXTS.values())))
    made = {"contrib/bench/results/bench.json", "contrib/kubernetes/secrets"}
    assert {name for name in named - made if not (ROOT / name).exists()} == set()


def test_every_named_message_is_logged() -> None:
    text = TEXTS[DOCS / "log-fields.md"].partition("## Messages")[2].partition("## Loki")[0]
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = {name.partition(":")[0] for cell in cells for name in re.findall("`([^`]+)`", cell)}
    package = "".join(path.read_text("utf-8") for path in ROOT.glob("ape_cerebras/**/*.py"))
    assert len(named) > 20
    assert {name for name in named if f'"{name}' not in package} == set()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    outside = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(set(plain)) == len(plain)
    return set(plain)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_link_is_dead(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_row_of_a_table_has_as_many_cells(page: Path) -> None:
    """GitHub splits a row at each bar that is not escaped, also within code."""
    for match in re.finditer(r"(?:^ *\|.*\n)+", TEXTS[page], re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", row)) for row in match[0].splitlines()]
        assert len(set(rows)) == 1, match[0]


def test_every_page_is_linked() -> None:
    for place in (DOCS / "README.md", ROOT / "README.md"):
        linked = set(re.findall(r"\]\(([^)#\s]+)", place.read_text("utf-8")))
        there = {(place.parent / each).resolve() for each in linked if "://" not in each}
        assert set(PAGES) - there <= {place, ROOT / "README.md"}


def test_readme_is_short() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 200


# Queries and tables


QUERIES = [block for block in BLOCKS if block.kind == "promql"]


@pytest.mark.parametrize("block", QUERIES, ids=str)
def test_a_query_is_promql_over_existing_metrics(block: Block, tmp_path: Path) -> None:
    assert names_in(block.text) <= known_names(tmp_path)
    indented = "".join(f"        {line}\n" for line in block.text.splitlines())
    rule = f"groups:\n- name: page\n  rules:\n  - record: a:b:c\n    expr: >-\n{indented}"
    (tmp_path / "rules.yml").write_text(rule, "utf-8")
    command = (tool("promtool", "prometheus"), "check", "rules", str(tmp_path / "rules.yml"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module("reference")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_reference_tables_are_current(page: Path, reference: Any) -> None:
    assert reference.current(TEXTS[page]) == TEXTS[page], "run 'make docs'"


def test_every_reference_table_is_on_a_page(reference: Any) -> None:
    marked = re.findall(r"^<!-- reference: (.+) -->$", "".join(TEXTS.values()), re.MULTILINE)
    assert sorted(marked) == sorted(reference.TABLES)
