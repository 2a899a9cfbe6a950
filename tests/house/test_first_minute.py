"""The first minute with the project: a refusal names its cause and the remedy, in one line."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from pages import ROOT
from server_process import run

from ape_cerebras.downstream.listener import CannotListen
from ape_cerebras.process.signals import report_not_listening

OLD = """#!/bin/sh
[ "$1" = --version ] && echo Python 3.10.12 && exit
exit 1
"""
WITHOUT_VENV = f"""#!/bin/sh
case "$*" in *ensurepip*) exit 1; esac
exec {sys.executable} "$@"
"""


def set_up(python: Path, text: str = "") -> list[str]:
    """The lines of a make that sets up with this Python, which fails."""
    if text:
        python.write_text(text)
        python.chmod(0o755)
    venv = python.parent / "venv"
    made = subprocess.run(
        ("make", "--no-print-directory", f"PYTHON={python}", f"VENV={venv}", f"{venv}/bin/python"),
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert made.returncode == 2
    assert not venv.exists()
    return made.stdout.splitlines()


def test_a_python_that_is_too_old_or_missing_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    [missing] = set_up(python)
    [old] = set_up(python, OLD)
    for line, found in ((missing, "not found"), (old, "Python 3.10.12")):
        assert line.startswith(f"Python 3.11 or newer is needed, and {python} is {found}; ")
        assert "apt-get install python3 python3-venv;" in line


@pytest.mark.parametrize("name", ["python3", "python3.13"])
def test_a_python_without_venv_names_the_package_of_its_own_version(
    name: str, tmp_path: Path
) -> None:
    python = tmp_path / name
    assert set_up(python, WITHOUT_VENV) == [
        f"{python} has no venv; on Debian and Ubuntu: apt-get install {name}-venv"
    ]


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (errno.EADDRINUSE, "set PORT, --port"),
        (errno.EACCES, "set PORT, --port"),
        (errno.EADDRNOTAVAIL, "set HOST or --host"),
        (errno.EAFNOSUPPORT, "set HOST or --host"),
        (socket.EAI_NONAME, "set HOST or --host"),
        (errno.EMFILE, None),
    ],
)
def test_an_address_that_cannot_be_had_names_the_setting(
    number: int, names: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    report_not_listening(CannotListen(number, "", "0.0.0.0:8000"))
    [line] = [orjson.loads(text) for text in capfd.readouterr().out.splitlines()]
    assert (line["message"], line["address"]) == ("Cannot listen", "0.0.0.0:8000")
    assert (line["remedy"] is None) if names is None else line["remedy"].startswith(names)


def test_help_of_health_is_of_the_proxy_that_it_asks() -> None:
    text = " ".join(run("health", "--help").stdout.split())
    assert "--host HOST address of the proxy (default: HOST, else 127.0.0.1)" in text
