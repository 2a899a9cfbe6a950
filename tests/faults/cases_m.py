"""M the process."""

import http.client
import resource
import signal
import socket
import subprocess
import sys
from functools import partial

import anyio
import orjson
from end_to_end import (
    TOKEN,
    Client,
    Conversation,
    Response,
    Running,
    chat,
    running_proxy,
    running_upstream,
)
from end_to_end import events as sent_as
from fault_bench import Case, Scene, post
from server_process import environment, run, serving, start
from soak import soaked
from upstream_scripts import one_token_and_no_more, responds
from waiting import TIMEOUT, until, wait_all_tasks_blocked

from ape_cerebras.net.event_loop import run_on
from ape_cerebras.net.socket_stream import SocketStream
from ape_cerebras.net.stream import TimestampedStream
from ape_cerebras.upstream.connect import connect_tcp

__all__ = ("CASES",)

OK = post()
ONE = sent_as(TOKEN)
END = b"0\r\n\r\n"


async def idle_ends_at_once(scene: Scene) -> None:
    async with running_proxy(scene.upstream.port) as running:
        client = await running.client()
        await client.get("/health")
        running.proxy.begin_drain()
        with anyio.fail_after(5):
            assert await client.until_closed() == b""
            await running.ended.wait()


async def what_runs_is_finished(scene: Scene) -> None:
    may_end = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(ONE)
        await may_end.wait()
        await peer.chunk(sent_as(b"[DONE]"))
        await peer.end()

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        streaming, slow = await running.client(), await running.client()
        await streaming.send(OK)
        await streaming.until(ONE)
        await slow.send(OK[:-5])
        await wait_all_tasks_blocked()
        running.proxy.begin_drain()
        may_end.set()
        await slow.send(OK[-5:])
        await streaming.until(b"[DONE]\n\n\r\n0\r\n\r\n")
        response = await slow.response()
        assert (response.complete, response.headers["connection"]) == (True, "close")
        with anyio.fail_after(5):
            await running.ended.wait()


async def error_at_the_end_of_the_grace(scene: Scene) -> None:
    async with (
        running_upstream(one_token_and_no_more) as upstream,
        running_proxy(upstream.port, GRACEFUL_SHUTDOWN_TIMEOUT="0.1") as running,
    ):
        client = await running.client()
        await client.send(OK)
        await client.until(ONE)
        running.proxy.begin_drain()
        rest = await client.until_closed()
        with anyio.fail_after(5):
            await running.ended.wait()
            await upstream.disconnected.wait()
    assert b'"code":"shut_down"' in rest
    assert not rest.endswith(END)


async def nothing_is_lost_under_load(scene: Scene) -> None:
    """30 clients send requests until the response closes the connection: every request gets its
    response."""
    responses: list[Response] = []

    async def request_on(running: Running) -> None:
        client = await running.client()
        closing = False
        while not closing:
            responses.append(response := await client.request(OK))
            assert response.complete
            closing = "connection" in response.headers

    async with running_upstream(responds) as upstream, running_proxy(upstream.port) as running:
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(request_on, running)
            await until(lambda: len(responses) >= 60, 10)
            running.proxy.begin_drain()
        with anyio.fail_after(10):
            await running.ended.wait()
    assert {response.status for response in responses} == {200}
    assert len(upstream.requests) == len(responses)


def signals(backend: str) -> None:
    """M5: PIPE, USR1 and USR2 do nothing; INT and HUP end it, cleanly."""
    for last in (signal.SIGINT, signal.SIGHUP):
        with serving("serve", "--demo", BACKEND=backend) as served:
            for number in (signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2):
                served.process.send_signal(number)
            assert served.metric("cerebras_proxy_client_connections") == 1
            served.process.send_signal(last)
            assert served.ended() == 0
            assert served.lines[-1]["message"] == "Stopped"


def cannot_listen(backend: str) -> None:
    """M7"""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port in (("127.0.0.1", str(taken.getsockname()[1])), ("192.0.2.1", "0")):
            ended = run("serve", "--demo", "--host", host, "--port", port, BACKEND=backend)
            [line] = [orjson.loads(text) for text in ended.stdout.splitlines()]
            assert (ended.returncode, line["level"], ended.stderr) == (1, "error", "")


def out_of_files(backend: str) -> None:
    """M8: nobody is served above the limit, everybody below it."""
    with serving("serve", "--demo", BACKEND=backend, MAX_CONNECTIONS="1000") as served:
        if sys.platform == "linux":
            resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        crowd = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
        assert "out of file descriptors" in served.line_where(_complains)["message"]
        for sock in crowd:
            sock.close()
        while served.metric("cerebras_proxy_client_connections") > 1:
            pass  # until it has noticed the disconnects
        assert served.process.poll() is None


def _complains(line: dict[str, object]) -> bool:
    return line["level"] == "error"


async def both_families(scene: Scene) -> None:
    for host in ("::1", "::"):
        async with running_proxy(scene.upstream.port, HOST=host) as running:
            [line] = [line for line in running.lines.all() if "address" in line]
            assert line["address"] == f"http://[{host}]:{running.port}"
            for address in ("::1",) if host == "::1" else ("::1", "127.0.0.1"):
                stream = await connect_tcp(address, running.port)
                assert isinstance(stream, SocketStream)
                assert (await Client(stream).get("/health")).status == 200
                stream.close()


def output_ends(backend: str) -> None:
    """M10: nobody reads the log any more; lines are lost and counted, and serving goes on."""
    command = ("serve", "--demo", "--port", "0")
    settings = environment(BACKEND=backend, HOST="127.0.0.1", LOG_LEVEL="debug")
    with start(*command, env=settings, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        listening = next(line for line in process.stdout if b'"address"' in line)
        process.stdout.close()
        port = int(str(orjson.loads(listening)["address"]).rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
        text = "log_lines_dropped_total 0.0\n"
        while "log_lines_dropped_total 0.0\n" in text:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        connection.close()
        process.terminate()
        assert process.wait(15) == 0


def soaks_a_little(backend: str) -> None:
    """M13: as much as a test may; the hour is for ``soak`` itself."""
    little = partial(soaked, backend, 0.2, 13, clients=20, patience="0.2")
    assert run_on(backend, little).problems == []


async def _name_changes() -> None:
    async with running_upstream(responds) as old, running_upstream(responds) as new:
        meant = old

        async def connect(host: str, port: int) -> TimestampedStream:
            return await connect_tcp("127.0.0.1", meant.port)

        settings = {
            "CEREBRAS_BASE_URL": "http://moving.example",
            "UPSTREAM_MAX_CONNECTION_AGE": "0.1",
        }
        async with running_proxy(0, connect, **settings) as running:
            client = await running.client()
            assert (await client.request(chat())).complete
            meant = new
            with anyio.fail_after(TIMEOUT):
                while not new.requests:
                    assert (await client.request(chat())).complete
    assert old.requests


def name_changes(backend: str) -> None:
    """The API's name means another address, and connections are never idle."""
    run_on(backend, _name_changes)


CASES: list[Case] = [
    Case("M1", play=idle_ends_at_once, lines=0),
    Case("M2", play=what_runs_is_finished, lines=0),
    Case("M3", play=error_at_the_end_of_the_grace, lines=0),
    Case("M4", play=nothing_is_lost_under_load, lines=0),
    Case("M5", process=signals),
    Case("M6", needs="the container: make image-test plays it"),
    Case("M7", process=cannot_listen),
    Case("M8", process=out_of_files),
    Case("M9", play=both_families, lines=0),
    Case("M10", process=output_ends),
    Case("M11", needs="the container: make image-test plays it"),
    Case("M12", process=name_changes),
    Case("M13", process=soaks_a_little),
]
