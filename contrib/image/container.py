"""Run an image's root as a container: read-only, an unprivileged user, no capability, no new
privileges, little memory, a network of its own. Uses runc, without a daemon.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ("Container", "Run", "running")

TIMEOUT = 60  # seconds for a command inside, and for the end of the container


class Container:
    """A running container; ``process`` is runc, which ends with the container's first process."""

    def __init__(self, name: str, bundle: Path, log: Path) -> None:
        self.name = name
        self._state = bundle / "state"
        self._log = log
        with log.open("wb") as output:
            command = self._runc("run", "--bundle", str(bundle), name)
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def _runc(self, *arguments: str) -> list[str]:
        return ["runc", "--root", str(self._state), *arguments]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def exec_command(self, *command: str) -> list[str]:
        """The command that runs another inside."""
        return self._runc("exec", self.name, *command)

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return subprocess.run(
            self.exec_command(*command),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def signal(self, name: str) -> None:
        subprocess.run(self._runc("kill", self.name, name), check=True)

    def ended(self) -> int:
        return self.process.wait(TIMEOUT)

    def remove(self) -> None:
        if self.process.poll() is None:
            subprocess.run(self._runc("delete", "--force", self.name), check=False)
        self.process.wait(TIMEOUT)


class Run(NamedTuple):
    """A root to run with the image's own settings, the arguments after its entry point, and the
    memory limit in bytes."""

    root: Path
    image: dict[str, Any]
    command: Sequence[str]
    memory: int


@contextmanager
def running(name: str, run: Run, folder: Path) -> Iterator[Container]:
    bundle = folder / name
    bundle.mkdir()
    subprocess.run(("runc", "spec", "--bundle", bundle), check=True)
    path = bundle / "config.json"
    path.write_text(json.dumps(_hardened(json.loads(path.read_text()), run)))
    container = Container(name, bundle, folder / f"{name}.log")
    try:
        yield container
    except BaseException:
        print(container.log)
        raise
    finally:
        container.remove()


def _hardened(spec: dict[str, Any], run: Run) -> dict[str, Any]:
    user, _, group = run.image["User"].partition(":")
    process = spec["process"]
    process |= {"terminal": False, "args": [*run.image["Entrypoint"], *run.command]}
    process |= {
        "env": run.image["Env"],
        "user": {"uid": int(user), "gid": int(group)},
        "noNewPrivileges": True,
    }
    process["capabilities"] = {kind: [] for kind in process["capabilities"]}
    process.pop("rlimits", None)
    spec["root"] = {"path": str(run.root), "readonly": True}
    limit = {"limit": run.memory, "swap": run.memory}
    spec["linux"].setdefault("resources", {})["memory"] = limit
    return spec
