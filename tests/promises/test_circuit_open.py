"""The circuit breaker in a proxy, as clients, upstream, log, metrics and /health see it."""

from typing import Any

import anyio
import pytest
from end_to_end import (
    Conversation,
    Response,
    Running,
    chat,
    error_shape,
    free_port,
    running_proxy,
    running_upstream,
)
from memory_stream import MemoryStream
from mock_clock import Rig, on_mock_clock, rig
from upstream_scripts import closes, one_after_another, responds, responds_with

pytestmark = [pytest.mark.anyio, pytest.mark.loops_in_turn]

THREE = {"CIRCUIT_FAILURES": "3"}
FAILS = one_after_another(responds_with(500))


async def state(running: Running) -> str:
    """The state in /health, which the gauge repeats."""
    response = await (await running.client()).get("/health")
    assert response.status == 200
    name = "cerebras_proxy_upstream_circuit"
    states = {
        each: await running.sample(f'{name}{{state="{each}"}}')
        for each in ("closed", "open", "half_open")
    }
    state: str = response.json()["upstream_circuit"]
    assert states == {each: float(each == state) for each in states}
    return state


async def responses_at_once(running: Running, times: int) -> list[Response]:
    """The responses to requests that came all at once: the second for which the circuit is open
    would be over by chance, if the client took part in it."""
    client = await running.client()
    await client.send(chat() * times)
    return [await client.response() for _ in range(times)]


def messages(running: Running) -> list[tuple[str, str]]:
    events = [(line["level"], line["message"]) for line in running.lines.all()]
    return [each for each in events if each[1].startswith("Circuit")]


async def test_after_a_run_of_failures_nothing_is_sent_upstream() -> None:
    async with (
        running_upstream(FAILS) as upstream,
        running_proxy(upstream.port, **THREE) as running,
    ):
        assert await state(running) == "closed"
        *failed, response = await responses_at_once(running, 4)
        assert await state(running) == "open"
        count = await running.metric("cerebras_proxy_errors_total")
        outcome = "upstream_unavailable"
        line = next(line for line in running.lines.exchanges() if line["outcome"] == outcome)
    assert [each.status for each in failed] == [500] * 3
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert error_shape(response.json()) == ("upstream_error", "upstream_unavailable")
    assert len(upstream.requests) == 3
    assert count == 4
    assert (line["error"], line["level"]) == ("upstream_unavailable", "error")
    assert not {"connection", "upstream_status", "ttfb_seconds"} & line.keys()
    assert messages(running) == [("warning", "Circuit opened")]
    [opened] = [line for line in running.lines.all() if line["message"] == "Circuit opened"]
    assert (opened["failures"], opened["cause"]) == (3, "status_500")
    assert opened["trace_id"] in {line["trace_id"] for line in running.lines.exchanges()}


@pytest.mark.parametrize("port", ["refuses", "closes"])
async def test_without_a_connection_or_a_response_too(port: str) -> None:
    async with running_upstream(closes) as upstream:
        where = free_port() if port == "refuses" else upstream.port
        async with running_proxy(where, **THREE) as running:
            codes = [error_shape(each.json())[1] for each in await responses_at_once(running, 4)]
    failure = "connect_error" if port == "refuses" else "invalid_response"
    assert codes == [failure] * 3 + ["upstream_unavailable"]


async def test_by_default_there_is_no_circuit_breaker() -> None:
    async with running_upstream(FAILS) as upstream, running_proxy(upstream.port) as running:
        client = await running.client()
        statuses = {(await client.request(chat())).status for _ in range(50)}
        health = (await client.get("/health")).json()
        assert await running.metric("cerebras_proxy_upstream_circuit") == 0
    assert statuses == {500}
    assert len(upstream.requests) == 50
    assert "upstream_circuit" not in health


@pytest.mark.parametrize("status", [400, 401, 404, 429])
async def test_errors_of_the_client_or_the_account_are_no_failures(status: int) -> None:
    script = one_after_another(responds_with(status))
    async with running_upstream(script) as upstream, running_proxy(upstream.port, **THREE) as it:
        client = await it.client()
        for _ in range(5):
            await client.request(chat())
        assert await state(it) == "closed"
    assert len(upstream.requests) == 5


async def test_the_list_of_models_is_requested_all_the_same() -> None:
    """It is no chat request, and has its own pause after a failure."""
    script = one_after_another(
        responds_with(500),
        responds_with(500),
        responds_with(500),
        responds_with(200, b'{"data":[]}'),
    )
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **THREE) as running,
    ):
        client = await running.client()
        for _ in range(3):
            await client.request(chat())
        response = await client.get("/v1/models")
    assert response.body == b'{"data":[]}'
    assert len(upstream.requests) == 4


async def test_retries_end_where_it_opens() -> None:
    """Nobody waits for a retry that would be refused: the client gets upstream's response."""
    settings = {"RETRY_ATTEMPTS": "9", "RETRY_BACKOFF": "0.001", **THREE}
    async with (
        running_upstream(FAILS) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        response = await (await running.client()).request(chat())
        line = await running.lines.exchange()
        assert await running.sample('cerebras_proxy_retries_forgone_total{why="circuit"}') == 1
    assert (response.status, response.body) == (500, b"{}")
    assert (len(upstream.requests), line["tries"], line["upstream_status"]) == (3, 3, 500)


async def test_a_response_that_does_not_come_is_a_failure() -> None:
    async def silent(peer: Conversation) -> None:
        await peer.request()
        await peer.until_disconnected()

    settings = {"UPSTREAM_FIRST_BYTE_TIMEOUT": "0.02", "CIRCUIT_FAILURES": "2"}
    async with (
        running_upstream(silent) as upstream,
        running_proxy(upstream.port, **settings) as running,
    ):
        statuses = [each.status for each in await responses_at_once(running, 3)]
    assert statuses == [504, 504, 503]


async def test_a_run_is_ended_by_any_response() -> None:
    script = one_after_another(
        responds_with(500),
        responds_with(500),
        responds_with(429),
        responds_with(500),
        responds_with(500),
        responds_with(200),
    )
    async with (
        running_upstream(script) as upstream,
        running_proxy(upstream.port, **THREE) as running,
    ):
        client = await running.client()
        statuses = [(await client.request(chat())).status for _ in range(6)]
        assert await state(running) == "closed"
    assert statuses == [500, 500, 429, 500, 500, 200]


async def test_an_upstream_that_responds_leaves_it_closed() -> None:
    async with (
        running_upstream(responds) as upstream,
        running_proxy(upstream.port, **THREE) as running,
    ):
        client = await running.client()
        for _ in range(5):
            await client.request(chat())
        assert await state(running) == "closed"
        assert messages(running) == []
    assert len(upstream.requests) == 5


# At exact times


class Played:
    """An upstream that fails until ``well_at``, and takes ``takes`` seconds for each response."""

    def __init__(self, well_at: float, takes: float = 0.0) -> None:
        self.well_at = well_at
        self.takes = takes
        self.began_at = anyio.current_time()
        self.requested_at: list[float] = []

    @property
    def now(self) -> float:
        return anyio.current_time() - self.began_at

    async def script(self, stream: MemoryStream) -> None:
        self.requested_at.append(self.now)
        await anyio.sleep(self.takes)
        status = b"200 OK" if self.now >= self.well_at else b"500 X"
        await stream.send(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")
        stream.close()


async def request(running: Rig) -> bytes:
    """The status of a response."""
    client = running.another_client()
    await client.send(chat())
    head = await client.receive()
    client.close()
    return head[9:12]


def events_of(running: Rig) -> list[str]:
    return [line["message"] for line in running.lines.all() if "outcome" not in line]


async def probes_come_after_one_two_and_four_seconds() -> None:
    played = Played(well_at=6.5)
    async with rig(played.script, **THREE) as running:
        statuses: dict[float, bytes] = {}
        for _ in range(3):
            await request(running)
        while played.now < 9:
            statuses[played.now] = await request(running)
            await anyio.sleep(0.25)
    assert played.requested_at[:3] == [0.0] * 3
    # Open for 1 s, 2 s, 4 s; then it is well.
    assert played.requested_at[3:6] == [1.0, 3.0, 7.0]
    assert {at for at, status in statuses.items() if status == b"500"} == {1.0, 3.0}
    assert {status for at, status in statuses.items() if at >= 7} == {b"200"}
    assert {statuses[at] for at in (0.0, 0.75, 1.25, 2.75, 3.25, 6.75)} == {b"503"}
    assert events_of(running) == ["Circuit opened", "Circuit closed"]


async def many_that_come_at_once_are_one_probe() -> None:
    played = Played(well_at=1.0, takes=0.5)
    async with rig(played.script, **THREE) as running:
        for _ in range(3):
            await request(running)  # till 1.5, of which the last is well
        played.well_at = 100
        for _ in range(3):
            await request(running)  # till 3, when it opens
        played.well_at = 4
        await anyio.sleep(1)
        statuses: list[bytes] = []
        async with anyio.create_task_group() as tasks:

            async def note() -> None:
                statuses.append(await request(running))

            for _ in range(20):
                tasks.start_soon(note)
    assert played.requested_at == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 4.0]
    assert sorted(statuses) == [b"200"] + [b"503"] * 19


async def a_probe_whose_client_disconnects_makes_room_for_the_next() -> None:
    played = Played(well_at=1.0, takes=0.0)
    async with rig(played.script, **THREE) as running:
        for _ in range(3):
            await request(running)
        played.takes = 10
        await anyio.sleep(1)
        disconnecting = running.another_client()
        await disconnecting.send(chat())
        await anyio.sleep(2)
        refused = await request(running)
        disconnecting.close()
        await anyio.sleep(1)
        played.takes = 0
        responded: list[Any] = [await request(running), await request(running)]
    assert refused == b"503"
    assert responded == [b"200", b"200"]
    assert played.requested_at[3:] == [1.0, 4.0, 4.0]


@pytest.mark.parametrize(
    "test",
    [
        probes_come_after_one_two_and_four_seconds,
        many_that_come_at_once_are_one_probe,
        a_probe_whose_client_disconnects_makes_room_for_the_next,
    ],
    ids=lambda test: test.__name__,
)
def test_at_exact_times(test: Any) -> None:
    on_mock_clock(test)
