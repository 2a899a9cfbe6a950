#!/usr/bin/env python3
"""Build the image with docker, podman or buildah, whichever is there: ``make image``.

Arguments go to the builder, such as ``--build-arg BASE=…``. The commit becomes a label. pip inside
the build uses the index of pip outside: its configuration, and the CA bundle that names, are passed
as secrets.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ("build", "pip_secrets", "revision")

ROOT = Path(__file__).parent.parent.parent
TAG = "cerebras-proxy"
# How each says that it can work at all, and builds. HEALTHCHECK is of Docker's format, not OCI's.
ENGINES = {
    "docker": (("docker", "info"), ("docker", "build")),
    "podman": (("podman", "info"), ("podman", "build", "--format", "docker")),
    "buildah": (("buildah", "version"), ("buildah", "build", "--format", "docker")),
}
_CARRIED = ("index-url", "extra-index-url", "proxy", "trusted-host", "timeout", "retries")


def main() -> int:
    for engine, (check, command) in ENGINES.items():
        if shutil.which(engine) and not _run_quietly(check):
            print(f"Building {TAG} with {engine}", flush=True)
            return build((*command, "--tag", TAG, *revision(), *sys.argv[1:]))
    print("Neither docker, podman nor buildah is here, or none can work.", file=sys.stderr)
    return 1


def build(command: Sequence[str]) -> int:
    """Run a builder's command on this tree; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.call((*command, *pip_secrets(Path(folder)), str(ROOT)))


def revision() -> list[str]:
    """A builder's arguments that name the commit, ``-dirty`` where files differ from it; none in an
    unpacked sdist, which may lie in another repository."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return []
    command = ("git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty")
    named = subprocess.run((*command, "--exclude=*"), capture_output=True, text=True, check=False)
    return ["--build-arg", f"REVISION={named.stdout.strip()}"] if named.returncode == 0 else []


def pip_secrets(folder: Path) -> list[str]:
    """A builder's arguments, after writing the secrets into a folder."""
    settings = _pip_settings()
    lines = ["[global]", *(f"{name} = {settings[name]}" for name in _CARRIED if name in settings)]
    secrets = {"pip": folder / "pip.conf"}
    if certificates := settings.get("cert"):
        lines.append("cert = /run/secrets/ca")
        secrets["ca"] = Path(certificates)
    secrets["pip"].write_text("\n".join(lines) + "\n")
    return [
        part for name, path in secrets.items() for part in ("--secret", f"id={name},src={path}")
    ]


def _pip_settings() -> dict[str, str]:
    """The settings of ``pip config list``, a line ``scope.name='value'`` each; files first, then
    the environment, which takes precedence. Paths of this machine mean nothing in the build."""
    command = (sys.executable, "-m", "pip", "config", "list")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = (line.split("=", 1) for line in listed.splitlines() if "=" in line)
    by_scope = sorted(pairs, key=lambda pair: pair[0].startswith(":env:"))
    settings = {name.rpartition(".")[2]: value.strip("'\"") for name, value in by_scope}
    return {name: value for name, value in settings.items() if "file:" not in value}


def _run_quietly(command: Sequence[str]) -> int:
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
