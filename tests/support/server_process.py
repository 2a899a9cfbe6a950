"""The program as a user runs it: a process, its log lines, and the port it serves."""

import http.client
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import orjson
from fork_server import CAN_FORK, ForkedProcess
from key_leaks import check_for_keys

__all__ = (
    "CLIENT_KEY",
    "RUN_TIMEOUT",
    "START",
    "TIMEOUT",
    "Line",
    "Served",
    "environment",
    "refusing_port",
    "run",
    "serving",
    "start",
)

TIMEOUT = 15.0  # seconds until a test that waits for something fails
RUN_TIMEOUT = 60.0
"""Seconds until a test fails whose process has neither begun to serve nor ended. Python's start and
the imports take 0.3 s of a core, and took more than 15 s beside 24 others on two cores."""
CLIENT_KEY = "ape-key-0123456789"

_MAIN = "\nfrom ape_cerebras.__main__ import main; raise SystemExit(main())"

START = "fork" if CAN_FORK else "exec"

Line = dict[str, Any]


def environment(**settings: str) -> dict[str, str]:
    """That of the tests without settings of ours, and with output buffered as it mostly is."""
    ours = ("CEREBRAS_", "APE_", "HOST", "PORT", "BACKEND", "PYTHONUNBUFFERED")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, **settings}


def start(
    *arguments: str, fault: str = "", by: str = START, **options: Any
) -> subprocess.Popen[Any]:
    """A process of the program, with the options of ``subprocess.Popen``. ``fault``: a program that
    injects one, and runs in the process before ours. ``by``: "fork" is without a start of its own,
    see ``fork_server``; "exec" where the start is the subject."""
    if by == "fork":
        return ForkedProcess([fault + _MAIN, *arguments], **options)
    program = ("-c", fault + _MAIN) if fault else ("-m", "ape_cerebras")
    return subprocess.Popen((sys.executable, *program, *arguments), **options)


def run(
    *arguments: str,
    timeout: float = RUN_TIMEOUT,
    fault: str = "",
    by: str = START,
    **settings: str,
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; the arguments as for ``start``."""
    pipe, given = subprocess.PIPE, environment(**settings)
    options: Any = {"env": given, "stdout": pipe, "stderr": pipe, "text": True}
    with start(*arguments, fault=fault, by=by, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        finally:
            process.kill()
    check_for_keys(stdout)
    check_for_keys(stderr)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


class Served:
    """A serving process; ``port`` is where, ``lines`` are the log lines looked at so far.

    A thread reads what the process writes, so that the pipe never fills up, and no wait for a line
    is without end.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.port = 0
        self.lines: list[Line] = []
        self._unread: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            check_for_keys(text)
            self._unread.put(text)
        self._unread.put(b"")

    def _next(self, timeout: float = TIMEOUT) -> Line | None:
        """The next line; None at the end."""
        text = self._unread.get(timeout=timeout)
        if not text:
            self._unread.put(text)
            return None
        line: Line = orjson.loads(text)
        self.lines.append(line)
        return line

    def line_where(self, wanted: Callable[[Line], bool], timeout: float = TIMEOUT) -> Line:
        """The next line of that kind. ``timeout``: seconds for each line."""
        while (line := self._next(timeout)) is not None:
            if wanted(line):
                return line
        raise AssertionError("ended without such a line")

    def first_line_where(self, wanted: Callable[[Line], bool]) -> Line:
        """The first line of that kind, whether it has been looked at or is still to come: lines of
        several processes come in any order."""
        looked_at = next(filter(wanted, self.lines), None)
        return self.line_where(wanted) if looked_at is None else looked_at

    def line(self, key: str) -> Line:
        """The next line that has ``key``."""
        return self.line_where(lambda line: key in line)

    def exchange(self, trace_id: str) -> Line:
        """The next line of an exchange of that trace."""
        return self.line_where(lambda line: line.get("trace_id") == trace_id)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples, as a scrape gives them."""
        connection = self.connection()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        rows = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
        return sum(float(value) for series, _, value in rows if series.partition("{")[0] == name)

    def ended(self) -> int:
        """Wait for the exit status, and read the rest of the output."""
        status = self.process.wait(timeout=TIMEOUT)
        while self._next() is not None:
            pass
        return status

    def dumps_core(self, number: int) -> bool:
        """Whether it dumps core when ended by that signal. Linux only."""
        self.process.send_signal(number)
        ended = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert ended.si_status == number
        return ended.si_code == os.CLD_DUMPED

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def serving(
    *arguments: str, fault: str = "", stderr: str = "", by: str = START, **settings: str
) -> Iterator[Served]:
    """``fault`` and ``by`` as for ``start``. ``stderr``: the path of a file or a terminal; by
    default it is that of the tests."""
    with open(stderr, "wb") if stderr else nullcontext() as errors:
        process = start(
            *(*arguments, "--port", "0", "--host", "127.0.0.1"),
            fault=fault,
            by=by,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    served = Served(process)
    try:
        listening = served.line_where(lambda line: "address" in line, RUN_TIMEOUT)
        served.port = int(str(listening["address"]).rpartition(":")[2])
        yield served
    finally:
        served.end()


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])
