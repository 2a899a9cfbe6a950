"""Write the locks of the image anew: ``make lock``. Needs ``uv``.

``requirements.txt`` has what runs in the image, ``build-requirements.txt`` what builds it: each
package in one version, for every Python and platform, with the hashes of its files. Versions that
still fit stay; ``--upgrade`` takes the newest.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

__all__ = ("BUILD_LOCK", "EXTRAS", "LOCK")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOCK = HERE / "requirements.txt"
BUILD_LOCK = HERE / "build-requirements.txt"
EXTRAS = ("redis",)  # what the image has beside the package's own dependencies
_COMPILE = (sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal")
_FORM = ("--generate-hashes", "--no-annotate", "--custom-compile-command", "make lock")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    oldest = project["project"]["requires-python"].removeprefix(">=")
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    build = "\n".join(project["build-system"]["requires"])
    for lock, source, stdin in (
        (LOCK, ("pyproject.toml", *extras), ""),
        (BUILD_LOCK, ("-",), build),
    ):
        command = (*_COMPILE, *_FORM, "--python-version", oldest, *source)
        options = (*sys.argv[1:], "--output-file", str(lock))
        subprocess.run((*command, *options), cwd=ROOT, input=stdin, text=True, check=True)


if __name__ == "__main__":
    main()
