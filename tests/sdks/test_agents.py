"""APE's agents at work: the custom LLM and the MCP gateway, many at once, against the proxy and the
simulator as processes of their own; and one trace id all the way."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import httpx
import pytest
from agent_clients import ATTEMPTS, CerebrasLLM, McpGateway, trace
from end_to_end import Conversation, running_proxy, running_upstream
from server_process import CLIENT_KEY, Line, Served, serving

from ape_cerebras.net.event_loop import run_on

AGENTS = 8
ROUNDS = 2


@dataclass
class Stack:
    """The proxy, and the API behind it."""

    proxy: Served
    api: Served

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def llm(self) -> CerebrasLLM:
        return CerebrasLLM(self.url, CLIENT_KEY)

    def gateway(self, timeout: float | httpx.Timeout = 10.0) -> McpGateway:
        return McpGateway(self.url, CLIENT_KEY, timeout)

    def seen(self, trace_id: str, times: int = 1) -> tuple[list[Line], list[Line]]:
        """The lines of a trace, at the proxy and at the API, once there are as many."""
        return _lines(self.proxy, trace_id, times), _lines(self.api, trace_id, times)


def _lines(served: Served, trace_id: str, times: int) -> list[Line]:
    def so_far() -> list[Line]:
        return [line for line in served.lines if line.get("trace_id") == trace_id]

    while len(so_far()) < times:
        served.exchange(trace_id)
    return so_far()


@contextmanager
def before(api: Served, backend: str, **settings: str) -> Iterator[Stack]:
    environment = {
        "CEREBRAS_API_KEY": "csk-upstream-key-0123456789",
        "CEREBRAS_BASE_URL": f"http://127.0.0.1:{api.port}",
        "APE_API_KEY": f"agents:{CLIENT_KEY}",
        "BACKEND": backend,
        **settings,
    }
    with serving("serve", **environment) as proxy:
        yield Stack(proxy, api)


@pytest.fixture(scope="module")
def api(backend: str) -> Iterator[Served]:
    with serving("simulate", "--backend", backend, "--ttft", "0.01") as api:
        yield api


@pytest.fixture(scope="module")
def stack(api: Served, backend: str) -> Iterator[Stack]:
    with before(api, backend) as stack:
        yield stack


@pytest.fixture(scope="module")
def hasty(api: Served, backend: str) -> Iterator[Stack]:
    """One whose proxy does not wait for long; for one request at a time."""
    with before(api, backend, UPSTREAM_FIRST_BYTE_TIMEOUT="1") as stack:
        yield stack


def turns_of_an_agent(stack: Stack) -> list[str]:
    """The trace ids of its turns: as plain responses and as streams, which give the same text."""
    llm = stack.llm()
    trace_ids = [trace() for _ in range(ROUNDS * 2)]
    with llm.client:
        for whole, streamed in zip(trace_ids[::2], trace_ids[1::2], strict=True):
            text = llm.complete("Hello!", whole)
            assert text.startswith("the wafer holds")
            assert list(llm.stream_complete("Hello!", streamed))[-1] == text
    return trace_ids


async def calls_of_the_gateway(stack: Stack) -> list[str]:
    trace_ids = [trace() for _ in range(AGENTS * ROUNDS)]

    async def call(trace_id: str) -> None:
        response, statuses = await gateway.call("Hello!", trace_id)
        assert (statuses, response.headers["x-trace-id"]) == ([200], trace_id)
        assert response.json()["choices"][0]["message"]["content"]

    async with stack.gateway() as gateway, anyio.create_task_group() as tasks:
        for trace_id in trace_ids:
            tasks.start_soon(call, trace_id)
    return trace_ids


def test_many_agents_both_ways_at_once(stack: Stack, backend: str) -> None:
    """Every turn is one line at the proxy and one request at the API."""
    with ThreadPoolExecutor(AGENTS) as pool:
        agents = [pool.submit(turns_of_an_agent, stack) for _ in range(AGENTS)]
        trace_ids = run_on(backend, calls_of_the_gateway, stack)
        trace_ids += [trace_id for agent in agents for trace_id in agent.result()]
    for trace_id in trace_ids:
        [line], [request] = stack.seen(trace_id)
        assert (line["outcome"], line["client"]) == ("completed", "agents")
        assert request["trace_id"] == trace_id
    assert len(set(trace_ids)) == AGENTS * ROUNDS * 3


def test_one_trace_from_the_gateway_to_the_api(stack: Stack, backend: str) -> None:
    """The trace id is in the client's header, the response, the log line and the upstream request;
    and so is the time at which the gateway meant to send it."""
    trace_id = trace()

    async def call() -> httpx.Response:
        async with stack.gateway() as gateway:
            return (await gateway.call("Hello!", trace_id))[0]

    response = run_on(backend, call)
    [line], [request] = stack.seen(trace_id)
    assert response.headers["x-trace-id"] == line["trace_id"] == request["trace_id"] == trace_id
    assert response.headers["x-request-id"] == line["request_id"]
    assert response.json()["usage"]["total_tokens"] == line["total_tokens"]
    assert line["intended_start_lag_seconds"] >= 0


FAULTS = {502: "fault=close", 503: "fault=unavailable", 504: "fault=silence"}


@pytest.mark.parametrize("status", FAULTS)
def test_the_gateway_retries_and_the_trace_has_all_attempts(
    hasty: Stack, backend: str, status: int
) -> None:
    """A line for each attempt, under the one trace id; the last attempt succeeds."""
    trace_id = trace()

    async def call() -> list[int]:
        async with hasty.gateway() as gateway:
            return (await gateway.call("Hello!", trace_id, *[FAULTS[status]] * (ATTEMPTS - 1)))[1]

    assert run_on(backend, call) == [status, status, 200]
    lines, requests = hasty.seen(trace_id, ATTEMPTS)
    assert [line["status_code"] for line in lines] == [status, status, 200]
    assert lines[-1]["outcome"] == "completed"
    assert len(requests) == ATTEMPTS


@pytest.mark.anyio
async def test_the_gateway_retries_a_408() -> None:
    """Which the simulator has not among its errors."""
    trace_id = trace()

    async def script(peer: Conversation) -> None:
        while True:
            await peer.request()
            first = len(peer.upstream.requests) == 1
            await peer.respond(b"{}", status="408 Request Timeout" if first else "200 OK")

    async with running_upstream(script) as upstream, running_proxy(upstream.port) as running:
        async with McpGateway(f"http://127.0.0.1:{running.port}", CLIENT_KEY) as gateway:
            assert (await gateway.call("Hello!", trace_id))[1] == [408, 200]
        lines = [await running.lines.exchange(number) for number in (1, 2)]
    assert {line["trace_id"] for line in lines} == {trace_id}
    header = f"x-trace-id: {trace_id}".encode()
    assert all(header in request.lower() for request in upstream.requests)


def test_a_timeout_of_the_gateway_ends_its_request(stack: Stack, backend: str) -> None:
    trace_id = trace()

    async def call() -> None:
        async with stack.gateway(httpx.Timeout(10.0, read=0.1)) as gateway:
            with pytest.raises(httpx.ReadTimeout):
                await gateway.call("Hello!", trace_id, "fault=silence")

    run_on(backend, call)
    [line], [request] = stack.seen(trace_id)
    assert line["outcome"] == "client_disconnected"
    assert request["trace_id"] == trace_id
