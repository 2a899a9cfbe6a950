"""What `pyproject.toml` says of the package: its extras, its groups and its licence."""

import tomllib
from typing import Any

from packaging.requirements import Requirement
from pages import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[str | dict[str, str]]] = PROJECT["dependency-groups"]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


def test_all_is_every_other_extra() -> None:
    (itself,) = map(Requirement, EXTRAS["all"])
    assert (itself.name, itself.extras) == (PROJECT["project"]["name"], EXTRAS.keys() - {"all"})


def test_no_group_repeats_what_users_install() -> None:
    """Developers install every extra beside the groups, so that a bound stands in one place."""
    of_users = names(PROJECT["project"]["dependencies"])
    of_users |= {name for extra in EXTRAS.values() for name in names(extra)}
    of_groups = {
        name: names([each for each in group if isinstance(each, str)])
        for name, group in GROUPS.items()
    }
    assert {name: group & of_users for name, group in of_groups.items() if group & of_users} == {}


def test_the_development_group_includes_all_that_the_tests_need() -> None:
    included = {each["include-group"] for each in GROUPS["dev"] if isinstance(each, dict)}
    assert included == GROUPS.keys() - {"dev", "package"}


def test_the_licence_is_an_spdx_expression_with_its_text() -> None:
    assert PROJECT["project"]["license"] == "MIT"
    (path,) = PROJECT["project"]["license-files"]
    assert (ROOT / path).read_text("utf-8").startswith("MIT License\n\nCopyright")


def test_every_supported_python_has_a_classifier() -> None:
    classifiers = PROJECT["project"]["classifiers"]
    prefix = "Programming Language :: Python :: 3."
    minors = sorted(int(each.removeprefix(prefix)) for each in classifiers if prefix in each)
    assert PROJECT["project"]["requires-python"] == f">=3.{minors[0]}"
    assert minors == list(range(minors[0], minors[-1] + 1))
