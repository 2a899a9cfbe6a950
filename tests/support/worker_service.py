"""A service of two worker processes, as a user runs it: its workers, and connections to one of them
by its number."""

import http.client
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client import parser
from server_process import START, Line, Served, serving

__all__ = ("CHAT", "JSON", "WorkerService", "running_workers", "scraped")

CHAT = b'{"model":"llama3.1-8b","messages":[{"role":"user","content":"hi"}],"stream":true}'
JSON = {"Content-Type": "application/json"}
_MAX_CONNECTIONS = 100  # connections until one of them is the wanted worker's


class WorkerService:
    """``processes`` are the workers', by number."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.processes: dict[int, int] = {}
        self._gone: set[int] = set()
        self._handles: list[int] = []
        self.open: list[tuple[int, http.client.HTTPConnection]] = []
        """Connections, each with the worker that took it."""

    def wait_for(self, number: int) -> None:
        """Wait until that worker serves, or after its end the one that replaces it."""

        def wanted(line: Line) -> bool:
            is_it = line["message"] == "Worker serves" and line["worker"] == number
            return is_it and line["process"] not in self._gone

        process = self.served.first_line_where(wanted)["process"]
        self.processes[number] = process
        self._handles.append(os.pidfd_open(process))

    def connection(self, number: int) -> http.client.HTTPConnection:
        """A connection that this worker has accepted. One that another accepted stays open, so that
        the worker with fewer is likely to accept the next."""
        for _ in range(_MAX_CONNECTIONS):
            connection = self.served.connection()
            trace_id = f"connection-{len(self.open)}"
            connection.request("GET", "/health", headers={"X-Trace-ID": trace_id})
            connection.getresponse().read()
            self.open.append((self.line_of(trace_id)["worker"], connection))
            if self.open[-1][0] == number:
                return connection
        raise AssertionError(f"worker {number} took none of {_MAX_CONNECTIONS} connections")

    def open_at(self, number: int) -> int:
        return sum(worker == number for worker, _ in self.open)

    def line_of(self, trace_id: str) -> Line:
        return self.served.first_line_where(lambda line: line["trace_id"] == trace_id)

    def wait_for_drain(self) -> None:
        """Wait until all workers have begun their drain."""
        for number in self.processes:
            self.served.first_line_where(
                lambda line, n=number: line["message"] == "Draining" and line["worker"] == n  # type: ignore[misc]
            )

    def count(self, message: str) -> int:
        """The number of lines read so far with that message."""
        return sum(line["message"] == message for line in self.served.lines)

    def end(self, number: int, how: int = signal.SIGKILL) -> Line:
        """End that worker by a signal; the parent's line about it."""
        process = self.processes.pop(number)
        self._gone.add(process)
        os.kill(process, how)
        return self.served.first_line_where(
            lambda line: line.get("process") == process and line["message"] == "Worker ended"
        )

    def close(self) -> None:
        """Close all connections and kill the workers that are left, also after a failed test."""
        for _, connection in self.open:
            connection.close()
        for handle in self._handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)


def scraped(connection: http.client.HTTPConnection) -> Counter[str]:
    """The sum of the samples of each metric."""
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    sums: Counter[str] = Counter()
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name.removeprefix("cerebras_proxy_")] += sample.value  # type: ignore[assignment]
    return sums


@contextmanager
def running_workers(
    backend: str, directory: Path, *, by: str = START, **settings: str
) -> Iterator[WorkerService]:
    """A demo of two workers that serve, with ``directory`` for their files. ``by`` as for
    ``start``."""
    command = ("serve", "--demo", "--workers", "2", "--backend", backend)
    # At that level also the lines of /health, which say who took a connection.
    level = {"LOG_LEVEL": "debug"}
    with serving(*command, by=by, TMPDIR=str(directory), **{**level, **settings}) as served:
        workers = WorkerService(served)
        try:
            for number in (1, 2):
                workers.wait_for(number)
            yield workers
        finally:
            served.process.kill()
            workers.close()
