"""The systemd unit, as systemd itself reads it."""

import subprocess
import sys
from pathlib import Path

import pytest
from deployment_files import CONTRIB, config_of
from programs import tool

UNIT = CONTRIB / "systemd" / "cerebras-proxy.service"
PROGRAM = "/opt/ape-cerebras/bin/ape-cerebras"
MOST_EXPOSED = 20  # of 100, as systemd rates what a service could do


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists, as systemd requires."""
    text = UNIT.read_text("utf-8")
    assert text.count(PROGRAM) == 1
    path = tmp_path / UNIT.name
    path.write_text(text.replace(PROGRAM, sys.executable))
    return path


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = tool("systemd-analyze", "systemd")
    return subprocess.run((program, *arguments), capture_output=True, text=True, check=False)


def settings(name: str) -> list[str]:
    lines = UNIT.read_text("utf-8").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def test_systemd_finds_nothing_wrong(unit: Path) -> None:
    """systemd ignores what it does not know, and prints a warning."""
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_little_can_be_done_with_it(unit: Path) -> None:
    threshold = f"--threshold={MOST_EXPOSED}"
    done = analyze("security", "--offline=true", threshold, str(unit))
    assert done.returncode == 0, done.stdout


def test_the_proxy_knows_its_settings_and_may_finish(tmp_path: Path) -> None:
    pairs = [pair.split("=", 1) for text in settings("Environment") for pair in text.split()]
    environment = dict(pairs)
    config = config_of(environment, tmp_path)
    assert config.graceful_shutdown_timeout + 5 <= int(settings("TimeoutStopSec")[0])
    credentials = {text.partition(":")[0] for text in settings("LoadCredential")}
    files = {path for name, path in environment.items() if name.endswith("_FILE")}
    assert files == {f"%d/{name}" for name in credentials}
