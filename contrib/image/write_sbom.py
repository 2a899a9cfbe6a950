"""Write the bill of materials of a virtual environment, as CycloneDX 1.6 in JSON, into it.

``python write_sbom.py FOLDER`` makes ``FOLDER/sbom.cdx.json``. It names no time and no serial
number, so that the same packages give the same bytes. Needs ``packaging``.
"""

import json
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ("bill_of",)

APPLICATION = "ape-cerebras"
NAME = "sbom.cdx.json"


def main() -> None:
    folder = Path(sys.argv[1])
    paths = [str(path) for path in folder.glob("lib/python3.*/site-packages")]
    bill = bill_of(distributions(path=paths))
    (folder / NAME).write_text(json.dumps(bill, indent=1) + "\n")


def bill_of(installed: Iterable[Distribution]) -> dict[str, Any]:
    packages = {canonicalize_name(each.name): each for each in installed}
    references = {name: _reference(name, each) for name, each in sorted(packages.items())}
    components = {name: _component(references[name], packages[name]) for name in references}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": components.pop(APPLICATION)},
        "components": list(components.values()),
        "dependencies": [
            {"ref": reference, "dependsOn": _depends_on(packages[name], references)}
            for name, reference in references.items()
        ],
    }


def _reference(name: str, package: Distribution) -> str:
    return f"pkg:pypi/{name}@{package.version}"


def _component(reference: str, package: Distribution) -> dict[str, Any]:
    name = canonicalize_name(package.name)
    return {
        "type": "application" if name == APPLICATION else "library",
        "bom-ref": reference,
        "name": name,
        "version": package.version,
        "purl": reference,
        "licenses": _licences(package),
    }


def _licences(package: Distribution) -> list[dict[str, Any]]:
    """An SPDX expression where there is one, otherwise the names that the classifiers have."""
    if expression := package.metadata.get("License-Expression"):
        return [{"expression": expression}]
    prefix = "License :: "
    classifiers: list[str] = package.metadata.get_all("Classifier") or []
    names = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith(prefix)]
    return [{"license": {"name": name}} for name in names]


def _depends_on(package: Distribution, references: dict[str, str]) -> list[str]:
    """What it needs, of what is there: the packages of its extras too, where they are."""
    needed = {canonicalize_name(Requirement(text).name) for text in package.requires or ()}
    return sorted(references[name] for name in needed if name in references)


if __name__ == "__main__":
    main()
