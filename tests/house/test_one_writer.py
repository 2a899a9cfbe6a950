"""Every field of an exchange is written by one module, the one that the comment above it
names."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import ape_cerebras
from ape_cerebras.telemetry.exchange import Exchange

PACKAGE = Path(ape_cerebras.__file__).parent
FIELDS = {field.name for field in fields(Exchange)}
# The simulator responds in exchanges of its own, and the doctor sends its request in one. No proxy
# observes them.
OPEN_THEIR_OWN = {"simulator/server", "upstream/doctor"}


def writers_by_comment() -> dict[str, str]:
    source = (PACKAGE / "telemetry" / "exchange.py").read_text("utf-8")
    lines = source[source.index("class Exchange:") :].splitlines()
    writers = {}
    for line in lines:
        if comment := re.fullmatch(r"    # ([\w/]+)", line):
            writer = comment[1]
        elif field := re.match(r"    (\w+): ", line):
            writers[field[1]] = writer
    return writers


def calls_exchange(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "Exchange"


def targets_of(node: ast.AST) -> Iterator[ast.expr]:
    """The targets that a statement assigns to."""
    found: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        found = list(node.targets)
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        found = [node.target]
    while found:
        target = found.pop()
        if isinstance(target, ast.Tuple | ast.List):
            found.extend(target.elts)
        else:
            yield target


def names_of_exchanges(nodes: list[ast.AST]) -> set[str]:
    """Expressions that stand for an exchange: annotated parameters, and variables set to them."""
    names = {
        node.arg
        for node in nodes
        if isinstance(node, ast.arg)
        and node.annotation
        and "Exchange" in ast.unparse(node.annotation)
    }
    assigned = [
        (None if calls_exchange(node.value) else ast.unparse(node.value), ast.unparse(target))
        for node in nodes
        if isinstance(node, ast.Assign)
        for target in targets_of(node)
    ]
    while True:
        more = {target for value, target in assigned if value is None or value in names}
        if more <= names:
            return names
        names |= more


def fields_written_in(nodes: list[ast.AST]) -> set[str]:
    names = names_of_exchanges(nodes)
    return {
        target.attr
        for node in nodes
        for target in targets_of(node)
        if isinstance(target, ast.Attribute)
        and target.attr in FIELDS
        and ast.unparse(target.value) in names
    }


def fields_given_in(nodes: list[ast.AST]) -> set[str]:
    """The fields that are passed to a new exchange."""
    calls = [node for node in nodes if isinstance(node, ast.Call) and calls_exchange(node)]
    return {str(keyword.arg) for call in calls for keyword in call.keywords}


def test_every_field_is_written_by_the_module_that_its_comment_names() -> None:
    writers: dict[str, set[str]] = {name: set() for name in FIELDS}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        writer = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if writer not in OPEN_THEIR_OWN and "Exchange" in text:  # as names of exchanges are found
            nodes = list(ast.walk(ast.parse(text)))
            for name in fields_written_in(nodes) | fields_given_in(nodes):
                writers[name].add(writer)
    assert writers == {name: {writer} for name, writer in writers_by_comment().items()}


def test_no_field_is_written_by_setattr() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"\bsetattr\(|__setattr__", path.read_text("utf-8")), path.name
