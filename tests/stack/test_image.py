"""The image's parts: the Dockerfile, what gets into the build, and which index pip uses inside it.
``make image-test`` builds it and runs it."""

import json
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from ape_cerebras.config.settings import SETTINGS
from ape_cerebras.version import VERSION

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
DOCKER_STOP = 10  # seconds that 'docker stop' gives


def instructions(name: str) -> list[str]:
    return [text.strip() for text in re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)]


def test_the_base_is_an_argument_of_both_stages() -> None:
    assert "BASE=python:3.13-slim" in instructions("ARG")
    base = "${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}"
    assert instructions("FROM") == [f"{base} AS build", base]


def test_the_label_has_the_version() -> None:
    assert f"VERSION={VERSION}" in instructions("ARG")


def test_signals_arrive() -> None:
    """The exec form: no shell is in between."""
    assert [json.loads(text) for text in instructions("ENTRYPOINT")] == [["ape-cerebras"]]
    assert [json.loads(text) for text in instructions("CMD")] == [["serve"]]
    [check] = instructions("HEALTHCHECK")
    assert json.loads(check.partition("CMD ")[2]) == ["ape-cerebras", "health"]


def test_the_user_is_a_number_and_not_root() -> None:
    """Kubernetes cannot check that a user name is not root."""
    [user] = instructions("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_its_drain_ends_before_it_is_killed() -> None:
    environment = dict(pair.split("=") for text in instructions("ENV") for pair in text.split())
    environment.pop("PATH")
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    assert 0 < int(environment["GRACEFUL_SHUTDOWN_TIMEOUT"]) < DOCKER_STOP


def test_nothing_gets_in_that_is_not_named() -> None:
    sources = [path for text in instructions("COPY") for path in text.split()[:-1]]
    copied = {path for path in sources if (ROOT / path).exists()}
    first, *rest = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert first == "*"
    assert {rule[1:] for rule in rest if rule.startswith("!")} == copied


def test_pip_inside_uses_the_index_of_pip_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.test/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "file:///folder/of/this/machine")
    monkeypatch.setenv("PIP_CERT", str(bundle))
    monkeypatch.syspath_prepend(str(ROOT / "contrib" / "image"))
    secrets = import_module("build_image").pip_secrets(tmp_path)
    written = (tmp_path / "pip.conf").read_text()
    assert "index-url = https://index.test/simple\n" in written
    assert "cert = /run/secrets/ca\n" in written
    assert "file:" not in written
    wanted = [f"id=pip,src={tmp_path / 'pip.conf'}", f"id=ca,src={bundle}"]
    assert secrets == ["--secret", wanted[0], "--secret", wanted[1]]


def test_the_commit_is_named_but_for_an_unpacked_sdist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "contrib" / "image"))
    build_image = import_module("build_image")
    monkeypatch.setattr(build_image, "ROOT", tmp_path)
    assert build_image.revision() == []
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.test")
    for command in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "first")):
        subprocess.run(("git", "-C", tmp_path, *command), check=True)
    flag, argument = build_image.revision()
    assert flag == "--build-arg"
    assert re.fullmatch(r"REVISION=[0-9a-f]{40}", argument)
