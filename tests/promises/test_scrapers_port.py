"""The port for scrapers: its routes, and when it responds."""

import socket
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path

import anyio
import orjson
import pytest
from anyio import to_thread
from end_to_end import (
    TOKEN,
    Conversation,
    Running,
    chat,
    events,
    free_port,
    running_proxy,
    running_upstream,
)
from scraped_metrics import value
from server_process import TIMEOUT, run
from worker_service import CHAT, JSON, running_workers, scraped

OWN = {"METRICS_PORT": "0"}


async def statuses(running: Running, path: str) -> tuple[int, int]:
    """Of a response to a client, and to a scraper."""
    client, scraper = await running.client(), await running.scraper()
    return (await client.get(path)).status, (await scraper.get(path)).status


async def until_refused(running: Running) -> None:
    """Until clients cannot connect any more."""
    with anyio.fail_after(TIMEOUT), suppress(OSError):
        while True:
            (await running.client()).stream.close()
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_only_metrics_and_health_are_there() -> None:
    async with running_proxy(1, **OWN) as running:
        [(host, port)] = running.proxy.scrapers_addresses
        assert (host, port != running.port) == ("127.0.0.1", True)
        assert await statuses(running, "/metrics") == (200, 200)
        assert await statuses(running, "/health") == (200, 200)
        assert await statuses(running, "/v1/models") == (200, 404)
        assert await statuses(running, "/v1/tcp_warming") == (200, 404)
        refused = await (await running.scraper()).request(chat(), "POST")
        assert (refused.status, refused.json()["code"]) == (404, "not_found")
        listening = [line for line in running.lines.all() if "address" in line]
    assert [line["message"] for line in listening] == ["Listening", "Listening for scrapers"]
    assert listening[1]["address"] == f"http://127.0.0.1:{port}"


@pytest.mark.anyio
async def test_it_is_as_strict_there_and_as_thorough() -> None:
    async with running_proxy(1, **OWN) as running:
        scraper = await running.scraper()
        response = await scraper.get("/health", "X-Trace-ID: trace-1")
        assert response.headers["x-trace-id"] == "trace-1"
        wrong = await scraper.request(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n")
        assert (wrong.status, wrong.headers["connection"]) == (400, "close")
        assert await scraper.until_closed() == b""
        labels = 'class="ok",outcome="completed",route="/health",status_code="200"'
        assert await running.sample(f"cerebras_proxy_outcomes_total{{{labels}}}") == 1
        assert [line["status_code"] for line in running.lines.exchanges()][:2] == [200, 400]


@pytest.mark.anyio
async def test_metrics_can_be_there_only() -> None:
    async with running_proxy(1, **OWN, METRICS_ON_MAIN_PORT="false") as running:
        assert await statuses(running, "/metrics") == (404, 200)
        assert await statuses(running, "/health") == (200, 200)


@pytest.mark.anyio
async def test_a_port_that_is_the_main_one_is_no_other() -> None:
    port = str(free_port())
    async with running_proxy(1, PORT=port, METRICS_PORT=port) as running:
        assert running.proxy.scrapers_addresses == ()
        assert await statuses(running, "/metrics") == (200, 200)


@pytest.mark.anyio
async def test_without_metrics_nothing_is_counted_and_nothing_listens() -> None:
    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.respond(b"{}")

    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **OWN, METRICS_ENABLED="false") as running,
    ):
        client = await running.client()
        assert (await client.request(chat(), "POST")).status == 200
        assert running.proxy.scrapers_addresses == ()
        assert await statuses(running, "/metrics") == (404, 404)
        metrics = running.proxy._metrics
        assert value(metrics, "requests_total", model="gpt-oss-120b") is None
        assert value(metrics, "loop_lag_seconds_count") == 0


@pytest.mark.anyio
async def test_scrapers_get_responses_where_clients_have_all_connections() -> None:
    async with running_proxy(1, **OWN, MAX_CONNECTIONS="1") as running:
        first = await running.client()
        assert (await first.get("/health")).status == 200
        second = await running.client()
        await second.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        scraper = await running.scraper()
        assert await running.metric("cerebras_proxy_client_connections") == 1
        # A probe of Kubernetes, again and again.
        for _ in range(3):
            assert (await scraper.get("/health")).json()["status"] == "healthy"
        assert await running.metric("cerebras_proxy_client_connections_full_total") == 1
        await running.lines.exchange(6)
        assert len(running.lines.exchanges()) == 6
        full = [line for line in running.lines.all() if line["message"].startswith("All client")]
        assert [(line["level"], line["limit"]) for line in full] == [("warning", 1)]
        first.stream.close()
        assert (await second.response()).status == 200


@pytest.mark.anyio
async def test_a_scrape_does_not_wait_for_other_work_of_threads() -> None:
    async with running_proxy(1, **OWN) as running:
        threads = to_thread.current_default_thread_limiter()
        borrowers = [object() for _ in range(int(threads.available_tokens))]
        for each in borrowers:  # as name lookups do that stall
            threads.acquire_on_behalf_of_nowait(each)
        try:
            with anyio.fail_after(TIMEOUT):
                assert (await (await running.scraper()).get("/metrics")).status == 200
        finally:
            for each in borrowers:
                threads.release_on_behalf_of(each)


@pytest.mark.anyio
async def test_a_drain_is_seen_there_to_its_end() -> None:
    may_end = anyio.Event()

    async def script(peer: Conversation) -> None:
        await peer.request()
        await peer.stream_head()
        await peer.chunk(events(TOKEN))
        await may_end.wait()
        await peer.chunk(events(b"[DONE]"))
        await peer.end()

    async with running_upstream(script) as upstream, running_proxy(upstream.port, **OWN) as running:
        client, early = await running.client(), await running.scraper()
        await running.scraper()  # sends nothing, and delays nothing
        await client.send(chat())
        await client.until(TOKEN)
        running.proxy.begin_drain()
        await until_refused(running)
        for scraper in (early, await running.scraper()):
            health = await scraper.get("/health")
            assert (health.status, health.json()["status"]) == (503, "draining")
        assert await running.metric("cerebras_proxy_requests_in_flight") == 2
        may_end.set()
        with anyio.fail_after(TIMEOUT):
            await client.until_closed()
            await running.ended.wait()
        with pytest.raises(OSError):  # noqa: PT011 - refused, by whatever name
            await running.scraper()


def test_any_worker_responds_there_for_all(backend: str, tmp_path: Path) -> None:
    settings = {**OWN, "METRICS_ON_MAIN_PORT": "false"}
    with running_workers(backend, tmp_path, **settings) as workers:
        line = workers.served.first_line_where(lambda line: "scrapers" in line["message"])
        port = int(line["address"].rpartition(":")[2])
        for number in (1, 2):
            connection = workers.connection(number)
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (404, True)
            connection = workers.connection(number)
            headers = JSON | {"X-Trace-ID": f"chat-{number}"}
            connection.request("POST", "/v1/chat/completions", CHAT, headers)
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
            workers.line_of(f"chat-{number}")  # its values have been counted
        with_response = set()
        for _ in range(8):
            with closing(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as scraper:
                metrics = scraped(scraper)
            assert (metrics["requests_total"], metrics["workers_up"]) == (2, 2)
            line = workers.served.line_where(lambda line: line.get("route") == "/metrics")
            with_response.add(line["worker"])
        assert with_response <= {1, 2}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_that_port_in_use_is_one_line(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ("serve", "--demo", "--host", "127.0.0.1", "--port", "0", "--workers", workers)
        refused = run(*command, METRICS_PORT=port)
    assert (refused.returncode, refused.stderr) == (1, "")
    [line] = [orjson.loads(text) for text in refused.stdout.splitlines()]
    assert (line["message"], line["address"]) == ("Cannot listen", f"127.0.0.1:{port}")
