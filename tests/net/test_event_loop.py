"""The event loops by name: which there are, what is said of one that is missing, that the named one
runs."""

import sys
from importlib.machinery import FrozenImporter

import pytest

from ape_cerebras.config.values import BACKENDS, read_backend
from ape_cerebras.net.event_loop import current_backend, run_on


async def seen(*arguments: int) -> tuple[str, tuple[int, ...]]:
    return current_backend(), arguments


@pytest.mark.parametrize("backend", BACKENDS)
def test_work_runs_on_the_named_one(backend: str) -> None:
    assert run_on(backend, seen, 1, 2) == (backend, (1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_is_read_in_any_case(backend: str) -> None:
    assert read_backend(backend.upper()) == backend


def test_an_unknown_one_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="must be one of asyncio, trio, uvloop"):
        read_backend("twisted")


def test_one_that_is_not_installed_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    monkeypatch.setattr(sys, "meta_path", [FrozenImporter])  # finds no packages
    with pytest.raises(ValueError, match=r"pip install 'ape-cerebras\[uvloop\]'"):
        read_backend("uvloop")
