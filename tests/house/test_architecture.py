"""The house rules that a machine can hold."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import ape_cerebras

PACKAGE = Path(ape_cerebras.__file__).parent
PATHS = sorted(PACKAGE.rglob("*.py"))
PUBLIC = {"VERSION", "Config", "ConfigError", "Proxy", "serve"}


def module_of(path: Path) -> str:
    """Its dotted name within the package; a room's is the room itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PATHS}
ROOMS = {path.parent.name for path in PATHS if path.parent != PACKAGE}


def ranks() -> dict[str, int]:
    """How high in the picture each room and each module beside them is drawn."""
    picture = (ape_cerebras.__doc__ or "").partition("::\n")[2]
    lines = [
        re.findall(r"\w+", line) for line in picture.strip("\n").partition("\n\n")[0].splitlines()
    ]
    lines = [names for names in lines if names]
    return {name: -line for line, names in enumerate(lines) for name in names}


RANKS = ranks()


@cache
def tree_of(module: str) -> ast.Module:
    """Parsed once: eight tests look at each module."""
    return ast.parse(MODULES[module].read_text("utf-8"))


def imports_of(module: str) -> Iterator[str]:
    """The modules of the package that one imports, also inside functions."""
    folder = list(MODULES[module].relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = folder[: len(folder) - node.level + 1]
            if node.module is None:
                yield from (".".join((*above, alias.name)) for alias in node.names)
            else:
                yield ".".join((*above, node.module))


def test_the_picture_names_every_room_and_top_module() -> None:
    beside = {name for name in MODULES if "." not in name} - {"__init__", "__main__"}
    assert set(RANKS) == beside | ROOMS | {"__main__"}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__init__"])
def test_a_module_imports_from_its_own_room_and_those_below(module: str) -> None:
    room = module.partition(".")[0]
    for imported in imports_of(module):
        other = imported.partition(".")[0]
        allowed = other == room or RANKS[other] < RANKS[room]
        assert allowed, imported


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_room_has_a_cycle(room: str) -> None:
    left = {
        module: {each for each in imports_of(module) if each.startswith(f"{room}.")}
        for module in MODULES
        if module.startswith(f"{room}.")
    }
    while free := [module for module, needed in left.items() if not needed & set(left)]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_is_a_docstring(room: str) -> None:
    [only] = tree_of(room).body
    assert isinstance(only, ast.Expr)
    assert ast.get_docstring(ast.Module([only], [])) is not None


@pytest.mark.parametrize("module", sorted(set(MODULES) - ROOMS))
def test_a_module_has_a_docstring_and_an_all_tuple(module: str) -> None:
    imported = importlib.import_module(
        "ape_cerebras" if module == "__init__" else f"ape_cerebras.{module}"
    )
    assert imported.__doc__
    assert isinstance(imported.__all__, tuple)
    assert all(hasattr(imported, name) for name in imported.__all__)


def test_the_public_api_is_unchanged() -> None:
    assert set(ape_cerebras.__all__) == PUBLIC


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_stay_short(module: str) -> None:
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= 400
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 40, node.name


def test_the_package_stays_small() -> None:
    """A file is as long as its subject, and there are few of them. The room ``report`` reads logs
    and metrics of a proxy, and no request passes it: its modules are not counted."""
    modules = [name for name in MODULES if name not in ROOMS and not name.startswith("report.")]
    texts = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    functions = sum(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for module in MODULES
        for node in ast.walk(tree_of(module))
    )
    assert len(ROOMS) <= 11
    assert len(modules) <= 70
    assert len([name for name in modules if lines[name] < 70]) <= 8
    assert 100 * functions / sum(lines.values()) < 6.5


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_prints_a_foreign_exception(module: str) -> None:
    """The text of an exception can quote a header, and with it a key."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ExceptHandler) and node.name:
            foreign = "Error" in ast.unparse(node.type) if node.type else True
            ours = {"ProxyError", "ConfigError", "ValueError"}
            if foreign and ast.unparse(node.type or ast.Constant("")) not in ours:
                used = ast.unparse(ast.Module(node.body, []))
                assert f"str({node.name})" not in used
                assert f"repr({node.name})" not in used
                assert f"{{{node.name}" not in used
