"""The pages of the documentation: their code blocks, and a session that runs them for a test.

The info string of a block decides how it is tested; ``contrib/docs/develop.md`` has the table. A
session runs one page in a directory that looks like the project's. At most one service runs at a
time: a page starts it, and it ends before the next one, or with the page. Services listen on free
ports; ``localhost:8000`` in a block means the one that runs.
"""

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson
from fork_server import CAN_FORK, ForkedProcess
from key_leaks import check_for_keys
from programs import tool
from server_process import RUN_TIMEOUT, environment, start

__all__ = ("PAGES", "ROOT", "Block", "Session", "blocks_of", "matches", "session")

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "contrib" / "docs").glob("*.md")))
_REQUIREMENTS = ROOT / "pyproject.toml"
_FENCED = re.compile(r"^```(?P<info>.*)\n(?P<text>(?:.*\n)*?)```$", re.MULTILINE)
# One command of ours, after settings, in which nothing is for the shell; and a comment.
_OURS = re.compile(
    r"(?P<settings>(?:[A-Z_]+=[\w.,:/-]+\s+)*)ape-cerebras(?P<arguments>(?: [\w./-]+)+)\s*(?:#.*)?"
)
_API_KEY = '"csk-0123456789"'
_LOOPS = ("asyncio", "trio")
_PROGRAMS = {"curl": "curl", "make": "make", "promtool": "prometheus"}  # and Debian's packages


class Block(NamedTuple):
    """A code block: ``kind`` is its language, ``note`` the rest of its info string."""

    page: Path
    line: int
    kind: str
    note: str
    text: str

    @property
    def why_not(self) -> str:
        """Why the block is not run; empty where it is."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in _FENCED.finditer(text):
        kind, _, note = match["info"].partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, kind, note, match["text"]))
    return found


def matches(expected: str, output: str) -> bool:
    """Whether an output is the expected one, in which … stands for any text."""
    pattern = re.escape(_tidied(expected)).replace("…", ".*?")
    return re.fullmatch(pattern, _tidied(output), re.DOTALL) is not None


def _tidied(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _started(block: Block, program: str, settings: dict[str, str], **options: Any) -> Any:
    """A process that runs ``program``, of a block of ``sh`` or ``python``. A fork has the program
    loaded, see ``fork_server``; the shell takes what is more than one command of ours."""
    if block.kind == "python" and CAN_FORK:
        return ForkedProcess([program], env=settings, **options)
    if block.kind == "python":
        return subprocess.Popen((sys.executable, "-c", program), env=settings, **options)
    if ours := _OURS.fullmatch(program.replace("\\\n", " ").strip()):
        more = dict(pair.split("=", 1) for pair in ours["settings"].split())
        return start(*shlex.split(ours["arguments"]), env={**settings, **more}, **options)
    command = ("sh", "-ec", program)
    return subprocess.Popen(command, env=settings, start_new_session=True, **options)


class _Service:
    """A process that a page has started, and all that it started: a process group of its own where
    the shell started it."""

    def __init__(
        self, block: Block, command: str, directory: Path, settings: dict[str, str]
    ) -> None:
        self.process = _started(
            *(block, command, settings),
            cwd=str(directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        self._output: IO[bytes] = self.process.stdout
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = 0

    def wait_until_it_listens(self) -> None:
        self.port = int(str(self.line_with("address")["address"]).rpartition(":")[2])

    def _read(self) -> None:
        for line in self._output:
            check_for_keys(line)
            self._lines.put(line)
        self._lines.put(b"")

    def line_with(self, key: str) -> dict[str, Any]:
        """The next log line that has ``key``; other lines are skipped."""
        while line := self._lines.get(timeout=RUN_TIMEOUT):
            if line.startswith(b"{") and key in (fields := orjson.loads(line)):
                found: dict[str, Any] = fields
                return found
        raise AssertionError(f"the service ended without a line that has {key!r}")

    def end(self) -> None:
        """SIGTERM, as a service manager would; SIGKILL where that does not help."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                if os.getpgid(self.process.pid) == self.process.pid:
                    os.killpg(self.process.pid, number)
                else:
                    self.process.send_signal(number)
                self.process.wait(timeout=RUN_TIMEOUT)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self._reader.join()
        self._output.close()


class Session:
    """Runs the blocks of one page, in their order."""

    def __init__(self, directory: Path, api: str) -> None:
        self._directory = directory
        self._api = api
        self._service: _Service | None = None
        self._outputs: list[str] = []

    def run(self, block: Block) -> None:
        """Run a block, or compare it with the output of the last one. Raises AssertionError."""
        match block.kind, block.note:
            case ("sh", _) if not block.why_not:
                self._shell(block)
            case ("python", note) if not block.why_not:
                for loop in _LOOPS if note == "on asyncio and trio" else _LOOPS[-1:]:
                    program = self._here(block).replace('backend="trio"', f'backend="{loop}"')
                    self._finish(block, program)
            case ("text", "output"):
                shown = self._outputs[-1]
                assert matches(block.text, shown), f"{block}: it printed\n{shown}"
            case ("json", "log line"):
                assert self._service is not None
                line = self._service.line_with("outcome")
                line.pop("uncertainty_seconds", None)  # where the machine was busy for a moment
                assert list(orjson.loads(block.text)) == list(line), f"{block}: {line}"
            case ("toml" | "json" | "yaml", name) if name:
                (self._directory / name).write_text(block.text, "utf-8")

    def _shell(self, block: Block) -> None:
        for program, package in _PROGRAMS.items():
            if f"{program} " in block.text:
                tool(program, package)
        if block.note == "stays running":
            self._start(block)
        else:
            status = int(block.note.removeprefix("exits with ") or 0)
            self._finish(block, self._here(block), status)

    def _here(self, block: Block) -> str:
        """The block with this session's addresses: of the service, and of the API where a program
        names its key."""
        text = block.text.replace(_API_KEY, f'{_API_KEY}, "CEREBRAS_BASE_URL": "{self._api}"')
        if self._service is not None:
            text = text.replace("localhost:8000", f"localhost:{self._service.port}")
        return text

    def _settings(self, **more: str) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        path = os.pathsep.join((programs, os.environ.get("PATH", os.defpath)))
        settings = environment(PATH=path, VENV=sys.prefix, HOST="127.0.0.1", **more)
        # A make that runs these tests passes its flags on; the makes of a page are their own.
        return {name: value for name, value in settings.items() if not name.startswith("MAKE")}

    def _start(self, block: Block) -> None:
        self.end()
        command = block.text.replace("cerebras simulate", "cerebras simulate --port 0")
        settings = self._settings(PORT="0", CEREBRAS_BASE_URL=self._api)
        self._service = _Service(block, command, self._directory, settings)
        self._service.wait_until_it_listens()

    def _finish(self, block: Block, command: str, status: int = 0) -> None:
        more = {} if self._service is None else {"PORT": str(self._service.port)}
        with _started(
            *(block, command, self._settings(**more)),
            cwd=str(self._directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=RUN_TIMEOUT)
            finally:
                process.kill()
        check_for_keys(output)
        check_for_keys(errors)
        assert process.returncode == status, f"{block}: {output}{errors}"
        self._outputs.append(output or errors)

    def end(self) -> None:
        if self._service is not None:
            self._service.end()
            self._service = None


@contextmanager
def session(directory: Path, api: str) -> Iterator[Session]:
    """In ``directory``, which becomes a view of the project; ``api`` stands for the real API."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path != _REQUIREMENTS:
            (directory / path.name).symlink_to(path)
    # Old, so that no make of a page installs anew, from this directory, what these tests run in.
    (directory / _REQUIREMENTS.name).write_bytes(_REQUIREMENTS.read_bytes())
    os.utime(directory / _REQUIREMENTS.name, (0, 0))
    running = Session(directory, api)
    try:
        yield running
    finally:
        running.end()
