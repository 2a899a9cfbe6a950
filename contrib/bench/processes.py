"""Processes of the bench: each on a core of its own, measured through /proc, ended by its id."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

CORES = sorted(os.sched_getaffinity(0))
PROXY_CORE, OTHER_CORE = CORES[0], CORES[-1]
WORKER_CORES = CORES[:2]  # of two workers; the other core among them, where there are only two
KEEP_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
"""For Python programs' environments: what is installed comes compiled, and so should they."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


class Process:
    """A program and its children: a session of their own, so that none is missed."""

    def __init__(
        self,
        cores: Collection[int],
        command: Sequence[str],
        environment: Mapping[str, str],
        output: Path,
    ) -> None:
        self.output = output
        self.started_at = time.perf_counter()
        with output.open("ab") as file:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=output.parent,
                env={**os.environ, **environment, **KEEP_BYTECODE},
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    def _stats(self) -> Iterator[list[str]]:
        """Of each process of the session, the fields of its ``stat`` that follow the name."""
        for path in _PROC.glob("[0-9]*/stat"):
            try:
                number, _, fields = path.read_text().partition(" ")
            except OSError:  # it has ended
                continue
            rest = fields.rpartition(")")[2].split()
            if int(rest[3]) == self._popen.pid:
                yield [number, *rest]

    def cpu(self) -> float:
        """Seconds of CPU, the system's part included, of all threads there are."""
        # The scheduler's own count, in nanoseconds: that of `stat` goes by ticks of 10 ms, and a
        # second of a paced stream costs some proxies no more than that.
        return sum(_scheduled(fields[0]) for fields in self._stats())

    def resident(self) -> float:
        """Bytes; pages that several processes share count for each."""
        return sum(int(fields[22]) for fields in self._stats()) * float(_PAGE)

    @property
    def number(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        return self._popen.poll() is None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self.resume()
        if self.running():
            self._popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(10)
        self._signal(signal.SIGKILL)  # what it left behind
        self._popen.wait(10)

    def _signal(self, number: int) -> None:
        """To all of the session, which is a process group of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)


def _scheduled(number: str) -> float:
    total = 0
    for path in _PROC.glob(f"{number}/task/*/schedstat"):
        try:
            total += int(path.read_text().partition(" ")[0])
        except OSError:  # it has ended
            continue
    return total / 1e9


@contextmanager
def started(
    cores: Collection[int], command: Sequence[str], environment: Mapping[str, str], output: Path
) -> Iterator[Process]:
    process = Process(cores, command, environment, output)
    try:
        yield process
    finally:
        process.stop()


def free_port() -> int:
    """A free port below the range of ephemeral ports, so that no process gets it that lets the
    system choose, before the peer listens: under valgrind that takes many seconds."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            return port


def listening(port: int, process: Process, timeout: float) -> float:
    """Seconds from the start of the process until somebody listens; infinite if nobody does."""
    while process.running() and time.perf_counter() - process.started_at < timeout:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.002)
        else:
            return time.perf_counter() - process.started_at
    return float("inf")


def settle_down_here() -> None:
    """Pin this process to the core that the proxies do not use, and raise its limit of open files.
    Debian's directories of servers are added to PATH, because not every user has them there."""
    os.sched_setaffinity(0, {OTHER_CORE})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.environ["PATH"] += ":/usr/local/sbin:/usr/sbin"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # started processes are stopped
