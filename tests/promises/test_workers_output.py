"""The one output of several workers and their parent: no line is torn, none holds anybody up."""

import fcntl
import http.client
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from server_process import TIMEOUT, environment, start

PIPE_BYTES = 4096
REQUESTS = 400
MOST_CONNECTIONS = 100


@dataclass
class Muffled:
    """A service whose small output pipe is read only on demand."""

    process: subprocess.Popen[bytes]
    port: int = 0

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert select.select((self.process.stdout,), (), (), TIMEOUT)[0], "no line came"
        line: dict[str, Any] = orjson.loads(self.process.stdout.readline())
        return line

    def exchange(self) -> dict[str, Any]:
        """The next line of an exchange: at debug, a worker has others at any moment."""
        while "outcome" not in (line := self.line()):
            pass
        return line

    def fill(self) -> None:
        """Leave no room for another byte."""
        assert self.process.stdout is not None
        sink = os.open(f"/dev/fd/{self.process.stdout.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(sink, b" ")
        os.close(sink)

    def request(self, connection: http.client.HTTPConnection, trace_id: str) -> None:
        connection.request("GET", "/health", headers={"X-Trace-ID": trace_id})
        assert connection.getresponse().read()

    def connect(self, stack: ExitStack) -> list[http.client.HTTPConnection]:
        """Connections until each worker has taken one: which one does is not certain."""
        connections: list[http.client.HTTPConnection] = []
        takers: set[int] = set()
        while takers != {1, 2}:
            assert len(connections) < MOST_CONNECTIONS
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            connections.append(stack.enter_context(closing(connection)))
            self.request(connection, "who")
            while (line := self.exchange())["trace_id"] != "who":
                pass
            takers.add(line["worker"])
        return connections


@contextmanager
def muffled(backend: str, directory: Path) -> Iterator[Muffled]:
    """Two workers that serve, from now on unheard."""
    # Requests for /health are logged at debug.
    settings = environment(
        BACKEND=backend, HOST="127.0.0.1", PORT="0", TMPDIR=str(directory), LOG_LEVEL="debug"
    )
    command = ("serve", "--demo", "--workers", "2")
    process = start(*command, env=settings, stdout=subprocess.PIPE, bufsize=0)
    with process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        service, serving = Muffled(process), 0
        while serving < 2 or not service.port:  # they may be quicker than their parent
            line = service.line()
            serving += line["message"] == "Worker serves"
            if "address" in line:
                service.port = int(line["address"].rpartition(":")[2])
        try:
            yield service
        finally:
            process.kill()


def test_lines_of_several_workers_come_whole(backend: str, tmp_path: Path) -> None:
    with muffled(backend, tmp_path) as service, ExitStack() as stack:
        connections = service.connect(stack)
        for number in range(REQUESTS):  # more than the pipe takes the lines of
            service.request(connections[-1 - number % 2], f"request-{number}")
        lines = [service.exchange() for _ in range(REQUESTS)]
        assert {line["trace_id"] for line in lines} == {f"request-{n}" for n in range(REQUESTS)}
        assert {line["worker"] for line in lines} == {1, 2}


def test_an_output_that_nobody_reads_delays_no_end(backend: str, tmp_path: Path) -> None:
    with muffled(backend, tmp_path) as service:
        service.fill()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(TIMEOUT) == 0
    assert not list(tmp_path.iterdir())
