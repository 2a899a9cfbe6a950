"""How connections are spread over several workers, as a user runs them: few of them evenly, and
none is left to a worker that is stopped."""

import http.client
import os
import signal
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from server_process import Served, serving
from worker_service import running_workers

# Without end, so that nothing depends on how fast this machine is.
PATIENCE = "from ape_cerebras.downstream import listener; listener._PATIENCE = 1000.0"


def workers_of(served: Served, count: int, stack: ExitStack) -> Counter[int]:
    """How many of ``count`` new connections each worker has accepted, by its number."""
    connections = [stack.enter_context(closing(served.connection())) for _ in range(count)]
    for connection in connections:
        connection.connect()
    return Counter(worker_of(served, connection) for connection in connections)


def worker_of(served: Served, connection: http.client.HTTPConnection) -> int:
    assert connection.sock is not None
    trace_id = f"port-{connection.sock.getsockname()[1]}"
    connection.request("GET", "/health", headers={"X-Trace-ID": trace_id})
    assert connection.getresponse().read()
    worker: int = served.first_line_where(lambda line: line["trace_id"] == trace_id)["worker"]
    return worker


@pytest.mark.parametrize(("workers", "clients"), [(2, 4), (4, 8)])
def test_few_clients_are_spread_evenly(
    workers: int, clients: int, backend: str, tmp_path: Path
) -> None:
    command = ("serve", "--demo", "--workers", str(workers), "--backend", backend)
    settings = {"TMPDIR": str(tmp_path), "LOG_LEVEL": "debug"}
    with serving(*command, fault=PATIENCE, **settings) as served, ExitStack() as stack:
        for _ in range(workers):
            served.line_where(lambda line: line["message"] == "Worker serves")
        for _ in range(2):  # and as many again beside the first
            assert set(workers_of(served, clients, stack).values()) == {clients // workers}
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0


def test_a_stopped_worker_strands_no_connection(backend: str, tmp_path: Path) -> None:
    with running_workers(backend, tmp_path) as workers, ExitStack() as stack:
        os.kill(workers.processes[2], signal.SIGSTOP)
        assert workers_of(workers.served, 8, stack) == {1: 8}
