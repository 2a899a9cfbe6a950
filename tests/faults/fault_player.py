"""Play a fault case, and check what must hold after each: the proxy is alive and responds over a
new connection, files and tasks are as many as before, nothing is in flight, there is one valid log
line for each exchange, no key anywhere, and no new series."""

import base64
import os
import re
import sys
from contextlib import suppress

import anyio
import sniffio
from end_to_end import KEY, Client, Response
from fault_bench import CLIENT_KEY, Bench, Case, Scene
from waiting import TIMEOUT, until

from ape_cerebras.net.event_loop import of_this_loop
from ape_cerebras.net.readiness import EdgePoller
from ape_cerebras.telemetry.outcomes import OUTCOMES

__all__ = (
    "assert_no_new_series",
    "files_open",
    "play_case",
    "tasks_alive",
    "until_nothing_is_left",
)

_SECRETS = [
    text
    for key in (KEY.encode(), CLIENT_KEY.encode())
    for text in (key, key[:8], base64.b64encode(key))
]
_ROUTES = {
    *("/v1/chat/completions", "/v1/models", "/v1/models/{id}", "/v1/tcp_warming"),
    *("/health", "/metrics", "*", "none"),
}


# Seconds until a case fails that does not end: some are a thousand requests, on a machine that may
# be busy with others.
_CASE_TIMEOUT = 120.0
_SCRAPED_EACH = 20  # cases; a scrape is 25 ms of CPU, a sixth of all
_PER_TIMEOUT = 2**20  # bytes of a request for which its response may take a TIMEOUT more


async def play_case(bench: Bench, case: Case) -> None:
    await _settle(bench)  # a case that failed did not get to that
    if not bench.series:
        bench.series = await _series(bench)
    of_this_loop(EdgePoller)  # one task and one descriptor, made once for each event loop
    tasks, files = tasks_alive(), files_open()
    bench.upstream.begin(bench.secure(case.upstream))
    scene = Scene(bench)
    try:
        with anyio.fail_after(_CASE_TIMEOUT):
            await (case.play(scene) if case.play else _send(scene, case))
    finally:
        for client in scene.clients:
            client.stream.close()
        bench.running.clients.clear()
    if case.up is not None:
        assert len(bench.upstream.requests) == case.up
        assert case.up or "TLS" in case.settings or not bench.upstream.got
    await _assert_as_before(scene, case, tasks, files)


async def _send(scene: Scene, case: Case) -> None:
    client = await scene.client()
    async with anyio.create_task_group() as group:

        async def send() -> None:
            step = -(-len(case.sends) // case.pieces)
            with suppress(anyio.BrokenResourceError):  # refused before all of it was sent
                for begin in range(0, len(case.sends), step):
                    await client.send(case.sends[begin : begin + step])

        group.start_soon(send)
        timeout = TIMEOUT * (1 + len(case.sends) // _PER_TIMEOUT)
        response = await client.response(case.method, timeout)
        await _assert_response(scene, case, client, response)
        group.cancel_scope.cancel()


async def _assert_response(scene: Scene, case: Case, client: Client, response: Response) -> None:
    statuses = (case.status,) if isinstance(case.status, int) else case.status
    assert response.status in statuses, response
    if response.status >= 400 and not case.relayed and case.method != "HEAD":
        _assert_own_error(response, case)
    if case.check is not None:
        assert case.check(scene, response) in (None, True)
    assert response.complete == (case.then != "cut")
    if case.then == "keep":
        assert response.headers.get("connection", "keep-alive") == "keep-alive"
        assert (await client.get("/health")).status == 200
    elif case.then == "close":
        assert response.headers["connection"] == "close"
        assert await client.until_closed() == b""
    await scene.logged(1)


def _assert_own_error(response: Response, case: Case) -> None:
    reported = response.json()
    inner = reported.pop("error")
    assert inner == reported
    assert set(reported) == {"message", "type", "param", "code"}
    assert all(isinstance(value, str) for value in reported.values())
    assert case.code in ("", reported["code"])
    kinds = {400: "invalid_request_error", 401: "authentication_error", 502: "upstream_error"}
    assert reported["type"] == kinds.get(response.status, reported["type"])
    assert response.headers["content-type"] == "application/json"
    assert {"date", "content-length", "x-trace-id", "x-request-id"} <= set(response.headers)


# What holds after every case


async def _assert_as_before(scene: Scene, case: Case, tasks: int, files: int) -> None:
    bench = scene.bench
    await _settle(bench)
    await until_nothing_is_left(tasks, files)
    exchanges = scene.exchanges
    if case.lines is not None:
        assert len(exchanges) == case.lines + (case.then == "keep" and case.play is None)
    for line in scene.written:
        assert re.fullmatch(rb"[\x20-\x7e]+\n", line)
    assert not [line for line in exchanges if line["outcome"] == "internal_error"]
    assert b"failed inside" not in b"".join(scene.written)
    shown = b"".join(scene.written) + scene.seen
    assert not [secret for secret in _SECRETS if secret in shown]
    assert CLIENT_KEY.encode() not in bench.upstream.got
    assert not bench.running.proxy._in_flight
    bench.played += 1
    if bench.played % _SCRAPED_EACH:
        await _serves(bench)
    else:
        await assert_no_new_series(bench)
    await until_nothing_is_left(tasks, files)


async def _settle(bench: Bench) -> None:
    """Close every connection to upstream, once the clients' have ended."""
    proxy = bench.running.proxy
    bench.upstream.end()
    await until(lambda: not proxy._connections and not proxy._upstream.pool.active)
    proxy._upstream.pool.close()


async def until_nothing_is_left(tasks: int, files: int) -> None:
    try:
        await until(lambda: (tasks_alive(), files_open()) == (tasks, files))
    except TimeoutError:
        left = tasks_alive() - tasks, files_open() - files
        raise AssertionError(f"left behind: {left[0]} tasks, {left[1]} descriptors") from None


async def assert_no_new_series(bench: Bench) -> None:
    """There is none since the first case. A series stays once it is there, so that a look at the
    end of a bench finds those of all its cases."""
    assert await _series(bench) == bench.series


async def _serves(bench: Bench, *paths: str) -> list[str]:
    """What it responds to /health and more, over a new connection."""
    client = await bench.running.scraper()
    with anyio.fail_after(TIMEOUT):
        responses = [await client.get(path) for path in ("/health", *paths)]
    client.stream.close()
    bench.running.clients.clear()
    assert {response.status for response in responses} == {200}
    proxy = bench.running.proxy
    await until(lambda: not proxy._connections and not proxy.for_scrapers.connections)
    return [response.body.decode() for response in responses]


async def _series(bench: Bench) -> set[str]:
    """The names and labels in /metrics. Those of outcomes come as they happen, out of closed
    lists."""
    _, text = await _serves(bench, "/metrics")
    assert not [secret for secret in _SECRETS if secret.decode() in text]
    assert "\ncerebras_proxy_requests_in_flight 1.0\n" in text  # the scrape itself
    rows = {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    for row in rows:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', row))
        assert labels.get("route", "none") in _ROUTES
        assert labels.get("outcome", "completed") in OUTCOMES
        assert re.fullmatch(r"0|[2-5]\d\d", labels.get("status_code", "0"))
    return {row for row in rows if "{" not in row}


def tasks_alive() -> int:
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_statistics().tasks_living
    import asyncio

    return len(asyncio.all_tasks())


def files_open() -> int:
    return len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
