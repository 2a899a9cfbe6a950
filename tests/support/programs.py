"""Programs that only some tests need, from Debian's packages: .ci/packages names these."""

import os
import shutil

import pytest

__all__ = ("tool",)

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def tool(name: str, package: str) -> str:
    """Where a program is; the test is skipped where it is not, save in CI."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        missing = f"there is no {name}: apt-get install {package}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    assert path is not None
    return path
