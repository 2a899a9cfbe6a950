"""The packages in the image: the locks are in step with ``pyproject.toml``, and the bill of
materials lists what is installed."""

import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pages import ROOT

FOLDER = ROOT / "contrib" / "image"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# The oldest Python and the newest, on what differs in the markers of our packages.
ENVIRONMENTS: list[dict[str, str]] = [
    {"python_full_version": f"{version}.0", "python_version": version, **system}
    for version, system in itertools.product(
        ("3.11", "3.14"),
        (
            {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux"},
            {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows"},
        ),
    )
]


class Locked(NamedTuple):
    version: str
    hashes: list[str]


def lock_in(path: Path) -> dict[str, Locked]:
    text = path.read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    locked = {}
    for line in lines:
        requirement, *hashes = line.split(" --hash=")
        name, _, version = requirement.partition(";")[0].strip().partition("==")
        locked[name] = Locked(version, [each.strip() for each in hashes])
    return locked


def applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(
        marker.evaluate({**environment, "extra": extra})
        for environment in ENVIRONMENTS
        for extra in extras or {""}
    )


def needed_by(requirements: list[Requirement]) -> Iterator[Requirement]:
    """These, and what they need, as the packages that are installed here say."""
    left, seen = [*requirements], set[str]()
    while left:
        requirement = left.pop()
        yield requirement
        name = canonicalize_name(requirement.name)
        if name in seen:
            continue
        seen.add(name)
        try:
            further = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # it needs another Python or system
        parsed = map(Requirement, further)
        left.extend(each for each in parsed if applies(each, requirement.extras))


def module_of_the_image(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return import_module(name)


@pytest.fixture
def locks() -> ModuleType:
    return module_of_the_image("write_locks")


def of_the_image(locks: ModuleType) -> list[Requirement]:
    project = PROJECT["project"]
    extras = [text for name in locks.EXTRAS for text in project["optional-dependencies"][name]]
    return [Requirement(text) for text in (*project["dependencies"], *extras)]


def test_the_lock_holds_what_the_package_needs_and_nothing_else(locks: ModuleType) -> None:
    locked = lock_in(locks.LOCK)
    needed = list(needed_by(of_the_image(locks)))
    assert {canonicalize_name(each.name) for each in needed} == locked.keys()
    for each in needed:
        version = locked[canonicalize_name(each.name)].version
        assert each.specifier.contains(version), f"{each}, locked is {version}: make lock"


def test_the_build_is_locked_too(locks: ModuleType) -> None:
    locked = lock_in(locks.BUILD_LOCK)
    for text in PROJECT["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name].version)


def test_every_locked_file_has_a_hash(locks: ModuleType) -> None:
    for path in (locks.LOCK, locks.BUILD_LOCK):
        for name, each in lock_in(path).items():
            assert each.hashes, name
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in each.hashes)


@pytest.fixture
def bill(locks: ModuleType) -> dict[str, Any]:
    """Of the packages of the image that this environment has."""
    names = {canonicalize_name(each.name) for each in needed_by(of_the_image(locks))}
    here = [distribution(name) for name in sorted(names) if name != "async-timeout"]
    made = module_of_the_image("write_sbom").bill_of([distribution("ape-cerebras"), *here])
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def test_the_bill_names_every_package_with_version_and_licence(bill: dict[str, Any]) -> None:
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == "ape-cerebras"
    components = {each["name"]: each for each in bill["components"]}
    assert components.keys() > {"anyio", "h11", "httpcore", "redis", "trio"}
    for name, each in components.items():
        version = distribution(name).version
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{name}@{version}"
        assert each["licenses"], name


def test_the_bill_says_what_needs_what(bill: dict[str, Any]) -> None:
    of = {each["ref"].partition("@")[0]: each["dependsOn"] for each in bill["dependencies"]}
    names = {
        reference: {needed.partition("@")[0].removeprefix("pkg:pypi/") for needed in depends}
        for reference, depends in of.items()
    }
    assert names["pkg:pypi/httpcore"] == {"anyio", "certifi", "h11", "trio"}
    ours = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    assert names["pkg:pypi/ape-cerebras"] == ours | {"redis"}
