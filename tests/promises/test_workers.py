"""Several workers as a user runs them: real processes, real signals. One port, one log, one set of
metrics; whoever dies is replaced."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from end_to_end import KEY
from run_here import run_here
from server_process import TIMEOUT, Line, Served, environment, run, serving, start
from worker_service import CHAT, JSON, WorkerService, running_workers, scraped

from ape_cerebras.process.workers import restart_delay


def request(workers: WorkerService, connection: http.client.HTTPConnection, trace_id: str) -> Line:
    """The line of a stream that was read to its end; its values have been counted."""
    connection.request("POST", "/v1/chat/completions", CHAT, {**JSON, "X-Trace-ID": trace_id})
    assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    return workers.line_of(trace_id)


def begin(connection: http.client.HTTPConnection, simulate: str) -> http.client.HTTPResponse:
    """A stream of which the first bytes have come."""
    headers = {**JSON, "X-Simulate": simulate}
    connection.request("POST", "/v1/chat/completions", CHAT, headers)
    response = connection.getresponse()
    assert response.read(6) == b"data: "
    return response


def health(connection: http.client.HTTPConnection) -> dict[str, Any]:
    connection.request("GET", "/health")
    reported: dict[str, Any] = orjson.loads(connection.getresponse().read())
    return reported


def open_connections_are(connection: http.client.HTTPConnection, count: int) -> bool:
    return scraped(connection)["client_connections"] == count


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < until


def test_any_worker_reports_all(backend: str, tmp_path: Path) -> None:
    """Counters agree with the log, and are the same at every worker."""
    with running_workers(backend, tmp_path) as workers:
        ours = {number: workers.connection(number) for number in (1, 2)}
        lines = [request(workers, ours[1 + (each > 1)], f"chat-{each}") for each in range(6)]
        assert [line["worker"] for line in lines] == [1] * 2 + [2] * 4
        tokens = sum(line["total_tokens"] + line["cached_tokens"] for line in lines)
        cost = sum(Decimal(str(line["cost_usd"])) for line in lines)
        for connection in ours.values():
            metrics = scraped(connection)
            assert metrics["requests_total"] == metrics["ttft_seconds_count"] == 6
            for name in ("ttft_seconds", "upstream_ttft_seconds", "tpot_seconds"):
                assert metrics[f"{name}_sum"] == pytest.approx(
                    sum(line.get(name, 0.0) for line in lines)
                )
            assert metrics["tokens_total"] == tokens
            assert metrics["cost_usd_total"] == pytest.approx(float(cost))
            assert (metrics["workers_up"], metrics["workers_configured"]) == (2, 2)
            assert metrics["build_info"] == 1
            assert health(connection)["workers"] == {"up": 2, "configured": 2}
        for connection in ours.values():
            wait_until(partial(open_connections_are, connection, len(workers.open)))


def test_a_worker_that_dies_is_replaced_and_counted(backend: str, tmp_path: Path) -> None:
    with running_workers(backend, tmp_path) as workers:
        first, second = workers.connection(1), workers.connection(2)
        request(workers, first, "before")
        begin(workers.connection(1), "fault=stall, at=3")
        wait_until(lambda: scraped(second)["requests_in_flight"] == 2)
        line = workers.end(1)
        assert (line["level"], line["signal"], line["worker"]) == ("error", signal.SIGKILL, 1)
        metrics = scraped(second)
        assert metrics["requests_in_flight"] == 1
        assert metrics["client_connections"] == workers.open_at(2)
        request(workers, second, "meanwhile")
        workers.wait_for(1)
        third = workers.connection(1)
        request(workers, third, "after")
        for connection in (second, third):
            metrics = scraped(connection)
            assert (metrics["workers_up"], metrics["worker_restarts_total"]) == (2, 1)
            assert metrics["requests_total"] == 3
            assert health(connection)["workers"] == {"up": 2, "configured": 2}


def test_pauses_grow_from_death_to_death(tmp_path: Path) -> None:
    pauses = []
    with running_workers("asyncio", tmp_path) as workers:
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT):
            pauses.append(workers.end(1, how)["restart_in_seconds"])
            workers.wait_for(1)
        assert health(workers.connection(2))["workers"] == {"up": 2, "configured": 2}
    assert pauses == [0.1, 0.2, 0.4]


@pytest.mark.parametrize(
    ("last", "lived", "pause"),
    [
        (0.0, 0.0, 0.1),
        (0.1, 0.0, 0.2),
        (0.2, 29.9, 0.4),
        (6.4, 1.0, 10.0),
        (10.0, 1.0, 10.0),
        (10.0, 30.0, 0.1),
        (0.0, 1e6, 0.1),
    ],
)
def test_pauses(last: float, lived: float, pause: float) -> None:
    assert restart_delay(last, lived) == pause


def test_a_worker_that_gets_sigterm_finishes_first(backend: str, tmp_path: Path) -> None:
    with running_workers(backend, tmp_path) as workers:
        response = begin(workers.connection(1), "rate=200, tokens=128")
        line = workers.end(1, signal.SIGTERM)
        assert (line["level"], line["exit_status"]) == ("warning", 0)
        assert response.read().endswith(b"data: [DONE]\n\n")
        workers.wait_for(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_all_processes_is_one_signal(backend: str, number: int, tmp_path: Path) -> None:
    """As a terminal sends it, or a manager that signals all processes of a service; the parent's
    own signal comes on top."""
    with running_workers(backend, tmp_path) as workers:
        responses = [begin(workers.connection(n), "rate=200, tokens=128") for n in (1, 2)]
        for process in workers.processes.values():
            os.kill(process, number)
        if number == signal.SIGTERM:
            workers.wait_for_drain()  # else both of them could come as one
        workers.served.process.send_signal(number)
        for response in responses:
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert workers.served.ended() == 0
        assert workers.count("Draining") == workers.count("Stopped") == 2
        assert workers.served.lines[-1]["message"] == "All workers have ended"
    assert not list(tmp_path.iterdir())


def test_the_second_signal_ends_at_once(backend: str, tmp_path: Path) -> None:
    with running_workers(backend, tmp_path) as workers:
        responses = [begin(workers.connection(n), "fault=stall, at=3") for n in (1, 2)]
        workers.served.process.send_signal(signal.SIGTERM)
        workers.wait_for_drain()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", workers.served.port))
        workers.served.process.send_signal(signal.SIGTERM)
        for response in responses:
            with pytest.raises(http.client.IncompleteRead) as cut:
                response.read()
            assert b'"code":"shut_down"' in cut.value.partial
        assert workers.served.ended() == 0


def test_a_worker_that_dies_in_the_drain_is_not_replaced(backend: str, tmp_path: Path) -> None:
    with running_workers(backend, tmp_path) as workers:
        response = begin(workers.connection(2), "rate=200, tokens=128")
        begin(workers.connection(1), "fault=stall, at=3")
        workers.served.process.send_signal(signal.SIGTERM)
        workers.wait_for_drain()
        os.kill(workers.processes[1], signal.SIGKILL)
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert workers.served.ended() == 1
        assert workers.count("Worker serves") == 2
    assert not list(tmp_path.iterdir())


def request_on(
    workers: WorkerService, name: str, with_response: list[str], without_response: list[str]
) -> None:
    """Send requests on one connection until it is closed."""
    connection = workers.served.connection()
    for number in count():
        trace_id = f"{name}-{number}"
        try:
            connection.request(
                "POST", "/v1/chat/completions", CHAT, JSON | {"X-Trace-ID": trace_id}
            )
            response = connection.getresponse()
            assert response.status == 200
            assert response.read().endswith(b"data: [DONE]\n\n")
        except (ConnectionError, http.client.RemoteDisconnected):
            without_response.append(trace_id)
            break
        with_response.append(trace_id)
        if response.will_close:
            break
    connection.close()


def test_a_drain_under_load_loses_no_accepted_request(backend: str, tmp_path: Path) -> None:
    """A client whose request was begun gets the whole response; a late one finds the connection
    closed, and the log has no such request."""
    with_response: list[str] = []
    without_response: list[str] = []
    with (
        running_workers(backend, tmp_path, LOG_LEVEL="debug") as workers,
        ThreadPoolExecutor(16) as pool,
    ):
        clients = [
            pool.submit(request_on, workers, f"client-{number}", with_response, without_response)
            for number in range(16)
        ]
        wait_until(lambda: len(with_response) > 32)
        workers.served.process.send_signal(signal.SIGTERM)
        for each in clients:
            each.result(TIMEOUT)
        assert workers.served.ended() == 0
        logged = [
            line for line in workers.served.lines if str(line["trace_id"]).startswith("client")
        ]
    assert {line["outcome"] for line in logged} == {"completed"}
    assert {line["worker"] for line in logged} == {1, 2}
    assert sorted(line["trace_id"] for line in logged) == sorted(with_response)
    assert len(with_response) > 32
    assert not set(without_response) & set(with_response)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with running_workers("asyncio", tmp_path, GRACEFUL_SHUTDOWN_TIMEOUT="0.1") as workers:
        os.kill(workers.processes[1], signal.SIGSTOP)
        workers.served.process.send_signal(signal.SIGTERM)
        assert workers.served.ended() == 1
        assert workers.count("Worker does not end, and is killed") == 1
        assert workers.count("Stopped") == 1
    assert not list(tmp_path.iterdir())


def test_how_a_worker_ended_is_known_even_where_sigchld_is_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # which the process inherits
    try:
        with running_workers("asyncio", tmp_path, by="exec") as workers:
            assert workers.end(1)["signal"] == signal.SIGKILL
            workers.wait_for(1)
            workers.served.process.send_signal(signal.SIGTERM)
            workers.served.first_line_where(is_last)
    finally:
        signal.signal(signal.SIGCHLD, before)


def is_last(line: Line) -> bool:
    return bool(line["message"] == "All workers have ended")


def test_workers_end_with_their_parent(backend: str, tmp_path: Path) -> None:
    """However that ends; and they take their files along."""
    with running_workers(backend, tmp_path) as workers:
        [directory] = tmp_path.iterdir()
        assert len(list(directory.glob("counter_*.db"))) == 2
        response = begin(workers.connection(1), "rate=200, tokens=128")
        workers.served.process.kill()
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert (
            workers.served.ended() == -signal.SIGKILL
        )  # at the end of the output, which all share
        assert workers.count("Stopped") == 2
    assert not list(tmp_path.iterdir())


def test_one_worker_is_the_process_itself(tmp_path: Path) -> None:
    settings = {"TMPDIR": str(tmp_path), "LOG_LEVEL": "debug"}  # for the line of /health
    with serving("serve", "--demo", "--workers", "1", **settings) as served:
        process = served.process.pid
        assert not Path(f"/proc/{process}/task/{process}/children").read_text()
        assert not list(tmp_path.iterdir())
        with closing(served.connection()) as connection:
            assert "workers" not in health(connection)
        assert "worker" not in served.line("outcome")
        assert served.metric("cerebras_proxy_workers_configured") == 0


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run("serve", "--demo", "--workers", "2", "--host", "127.0.0.1", "--port", port)
    assert (refused.returncode, refused.stderr) == (1, "")
    [line] = [orjson.loads(text) for text in refused.stdout.splitlines()]
    assert (line["level"], line["message"]) == ("error", "Cannot listen")
    assert line["address"].endswith(port)


TWO = {"ASYNC_WORKERS": "2", "HOST": "127.0.0.1", "PORT": "0"}

# As where a bundle is replaced by an unreadable one once the parent has judged it.
BUNDLE_GONE = """
import os, ssl
create, parent = ssl.create_default_context, os.getpid()
def create_in_parent(*arguments, **options):
    if os.getpid() != parent:
        raise FileNotFoundError
    return create(*arguments, **options)
ssl.create_default_context = create_in_parent
"""


def test_workers_that_cannot_begin_are_not_tried_for_ever(tmp_path: Path) -> None:
    settings = {**TWO, "CEREBRAS_API_KEY": KEY, "TMPDIR": str(tmp_path)}
    ended = run("serve", timeout=TIMEOUT, fault=BUNDLE_GONE, **settings)
    messages = [orjson.loads(text)["message"] for text in ended.stdout.splitlines()]
    assert ended.returncode == 1
    # The other one may still be failing when the first has been found out.
    assert messages.count("No worker can serve") == 1
    assert messages[-1] == "All workers have ended"
    assert KEY not in ended.stdout + ended.stderr
    assert not list(tmp_path.iterdir())


def test_without_a_directory_nothing_is_served(tmp_path: Path) -> None:
    """As root may write anywhere, the directory it would be made in is none."""
    nowhere = tmp_path / "nowhere"
    nowhere.touch()
    fault = f"import tempfile; tempfile.tempdir = {str(nowhere)!r}"
    ended = run("serve", "--demo", timeout=TIMEOUT, fault=fault, TMPDIR=str(nowhere), **TWO)
    [line] = [orjson.loads(text) for text in ended.stdout.splitlines()]
    assert (ended.returncode, line["level"]) == (1, "error")
    assert line["message"] == "No directory for the metrics of workers"
    assert line["reason"] == "Not a directory"


def test_check_marks_what_each_worker_has_for_itself() -> None:
    alone = run_here("check", CEREBRAS_API_KEY=KEY).stdout
    assert "#" not in alone
    several = run_here("check", CEREBRAS_API_KEY=KEY, ASYNC_WORKERS="3").stdout.splitlines()
    reported = {
        line.partition("=")[0] for line in several if line.endswith("  # in each of 3 workers")
    }
    assert reported == {
        *("MAX_CONNECTIONS", "CONNECTION_POOL_SIZE", "KEEP_ALIVE_CONNECTIONS"),
        *("WARM_CONNECTIONS", "MAX_CONCURRENT_REQUESTS", "MAX_QUEUE_LENGTH"),
        *("RATE_LIMIT_PER_MINUTE", "APE_API_KEYS_FILE", "CIRCUIT_FAILURES"),
    }
    assert "ASYNC_WORKERS=3" in several


def test_no_room_for_a_process_is_waited_for(tmp_path: Path) -> None:
    fault = """
import errno, os
fork, refusals = os.fork, [1, 2]
def fork_or_not():
    if refusals:
        raise OSError(errno.EAGAIN, "no room", refusals.pop())
    return fork()
os.fork = fork_or_not
"""
    settings = environment(**TWO, TMPDIR=str(tmp_path), APE_API_KEY="key")
    command = ("serve", "--demo")
    served = Served(start(*command, fault=fault, env=settings, stdout=subprocess.PIPE))
    try:
        served.line("address")
        for _ in range(2):
            line = served.line_where(lambda line: line["message"] == "Cannot start a worker")
            assert line["reason"] == "Resource temporarily unavailable"
            assert line["restart_in_seconds"] == 0.1
        for _ in range(2):
            served.line_where(lambda line: line["message"] == "Worker serves")
        served.process.send_signal(signal.SIGTERM)
        assert served.ended() == 0
    finally:
        served.end()
