"""The house rules that a machine can hold."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import ape_cerebras

PACKAGE = Path(ape_cerebras.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
LAYERS = {
    name: int(layer)
    for layer, name in re.findall(r"^(\d+) +(\w+) {2,}\S", ape_cerebras.__doc__ or "", re.MULTILINE)
}
PUBLIC = {"VERSION", "Config", "ConfigError", "Proxy", "serve"}


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))


def test_the_map_names_every_module() -> None:
    assert sorted(LAYERS) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_the_layers_below(module: str) -> None:
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module is not None
            assert LAYERS[node.module] < LAYERS[module], node.module


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_owns_and_what_it_gives(module: str) -> None:
    imported = importlib.import_module(
        "ape_cerebras" if module == "__init__" else f"ape_cerebras.{module}"
    )
    assert imported.__doc__
    assert isinstance(imported.__all__, tuple)
    assert all(hasattr(imported, name) for name in imported.__all__)


def test_the_public_api_is_what_it_is() -> None:
    assert set(ape_cerebras.__all__) == PUBLIC


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module: str) -> None:
    assert len((PACKAGE / f"{module}.py").read_text("utf-8").splitlines()) <= 300
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 40, node.name


@pytest.mark.parametrize("module", MODULES)
def test_nothing_prints_a_foreign_exception(module: str) -> None:
    """Its text can quote a header, and with it a key."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ExceptHandler) and node.name:
            foreign = "Error" in ast.unparse(node.type) if node.type else True
            ours = {"ProxyError", "ConfigError", "ValueError"}
            if foreign and ast.unparse(node.type or ast.Constant("")) not in ours:
                used = ast.unparse(ast.Module(node.body, []))
                assert f"str({node.name})" not in used
                assert f"repr({node.name})" not in used
                assert f"{{{node.name}" not in used
