"""The simulator over real sockets: its responses."""

import gzip

import anyio
import orjson
import pytest
from memory_stream import memory_pair
from running_simulator import KEY, STREAM, bare, chat, payloads, post, rig

from ape_cerebras.simulator.options import Simulation
from ape_cerebras.simulator.replies import ERRORS
from ape_cerebras.simulator.server import Simulator
from ape_cerebras.upstream.connect import connect_tcp

pytestmark = pytest.mark.anyio


async def test_a_stream() -> None:
    async with rig(tokens=20) as running:
        response = await running.request(chat(STREAM, model="gpt-oss-120b"))
    *events, last = payloads(response.body)
    assert last == b"[DONE]"
    assert response.status == 200
    assert response.complete
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["inference-id"] == orjson.loads(events[0])["id"]
    assert orjson.loads(events[0])["choices"] == [{"delta": {"role": "assistant"}, "index": 0}]
    assert "reasoning" in orjson.loads(events[1])["choices"][0]["delta"]
    assert orjson.loads(events[-1])["usage"]["completion_tokens"] == 20


async def test_a_plain_reply() -> None:
    async with rig(cached_tokens=3) as running:
        response = await running.request(chat())
    completion = response.json()
    assert response.headers["content-type"] == "application/json"
    assert response.headers["inference-id"] == completion["id"]
    assert response.headers["cf-ray"]
    assert response.headers["transfer-encoding"] == "chunked"
    taken = completion["usage"]["total_tokens"]
    limit = int(response.headers["x-ratelimit-limit-tokens-day"])
    assert int(response.headers["x-ratelimit-remaining-tokens-day"]) == limit - taken
    assert completion["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_the_options_shape_the_response() -> None:
    async with rig(tokens=9, reasoning_tokens=4, tokens_per_chunk=2) as running:
        response = await running.request(chat(STREAM, model="zai-glm-4.7"))
        overridden = await running.request(chat(None, "X-Simulate: tokens=5, reasoning_tokens=1"))
    *_, finish, _ = payloads(response.body)
    usage = orjson.loads(finish)["usage"]
    assert usage["completion_tokens"] == 9
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4
    assert len(payloads(response.body)) == 1 + (1 + 2) + 3 + 2
    assert overridden.json()["usage"]["completion_tokens"] == 5


async def test_bodies_that_are_not_plain_json() -> None:
    binary = b"\x82\xa8messages\x90\xa6stream\xc3"
    async with rig() as running:
        zipped = await running.request(
            post(
                gzip.compress(chat().partition(b"\r\n\r\n")[2]),
                "Content-Type: application/json",
                "Content-Encoding: gzip",
            )
        )
        binary_response = await running.request(post(binary, "Content-Type: application/msgpack"))
    assert zipped.json()["model"] == "gemma-4-31b"
    assert payloads(binary_response.body)[-1] == b"[DONE]"
    assert orjson.loads(payloads(binary_response.body)[0])["model"] == "llama3.1-8b"


async def test_a_connection_serves_many_requests() -> None:
    async with rig() as running:
        client = await running.client()
        responses = [await client.request(chat(STREAM)) for _ in range(3)]
        responses.append(await client.get("/v1/models", KEY))
        await running.simulator.until(lambda simulator: simulator.in_flight == 0)
        assert running.simulator.connections == 1
        assert running.simulator.requests == 4
        assert running.simulator.cancelled == 0
        assert [truth.status for truth in running.simulator.truth] == [200] * 4
        assert running.simulator.truth[0].body == chat(STREAM).partition(b"\r\n\r\n")[2]
    assert all(response.complete for response in responses)


async def test_the_ground_truth_is_kept_of_the_latest_requests_only() -> None:
    simulator = Simulator(Simulation(ttft=0.0), remember=2)
    client, server = memory_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(simulator.handle, server)
        for _ in range(3):
            await client.send(bare("GET /v1/models"))
            await client.receive()
            await simulator.until(lambda simulator: simulator.in_flight == 0)
        assert simulator.requests == 3
        assert len(simulator.truth) == 2
        client.close()


# Routes and keys


async def test_models_are_listed_and_found_by_name() -> None:
    async with rig() as running:
        everything = (await running.get("/v1/models", KEY)).json()
        one = (await running.get("/v1/models/gpt-oss-120b", KEY)).json()
        public = (await running.get("/public/v1/models")).json()
        public_one = (await running.get("/public/v1/models/gpt-oss-120b")).json()
        none = await running.get("/v1/models/gpt-5", KEY)
    assert one in everything["data"]
    assert public_one in public["data"]
    assert "pricing" in public_one
    assert (none.status, none.body) == (404, ERRORS["model_not_found"].body)


async def test_warming_needs_no_key_and_has_no_faults() -> None:
    async with rig(fault="503", api_key="secret") as running:
        response = await running.get("/v1/tcp_warming")
    assert (response.status, response.body) == (200, b"{}")


@pytest.mark.parametrize(
    "request_line",
    ["GET /", "GET /v1/chat/completions", "POST /v1/models", "GET /v1/models/", "GET /v1/other"],
)
async def test_any_other_route_is_an_empty_404(request_line: str) -> None:
    async with rig() as running:
        response = await running.request(bare(request_line))
    assert (response.status, response.body) == (404, b"")
    assert response.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("line", "only", "status", "body"),
    [
        ("", None, 403, ERRORS["unauthenticated"].body),
        ("", "secret", 403, ERRORS["unauthenticated"].body),
        ("Authorization: Bearer any", None, 200, None),
        ("Authorization: Bearer any", "secret", 401, ERRORS["wrong_api_key"].body),
        ("Authorization: Bearer secret", "secret", 200, None),
    ],
)
async def test_keys_are_checked_as_by_the_api(
    line: str, only: str | None, status: int, body: bytes | None
) -> None:
    sent = chat().partition(b"\r\n\r\n")[2]
    async with rig(api_key=only) as running:
        response = await running.request(post(sent, "Content-Type: application/json", key=line))
        models = await running.get("/v1/models", *filter(None, [line]))
    assert response.status == models.status == status
    if body is not None:
        assert response.body == models.body == body


async def test_invalid_requests_are_refused() -> None:
    async with rig() as running:
        unknown = await running.request(chat({"store": True}))
        model = await running.request(chat(model="gpt-5"))
        header = await running.request(chat(None, "X-Simulate: speed=9"))
        malformed = await running.request(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert (unknown.status, unknown.body) == (400, ERRORS["unknown_field"].body)
    assert (model.status, model.body) == (404, ERRORS["model_not_found"].body)
    assert header.status == 400
    assert header.json()["message"].startswith("x-simulate: 'speed' is no option")
    assert malformed.status == 400
    assert malformed.headers["connection"] == "close"


async def test_cancelling_the_task_closes_connections_and_listener() -> None:
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(Simulator(Simulation(fault="stall")).serve, "127.0.0.1", 0)
        stream = await connect_tcp("127.0.0.1", port)
        await stream.send(chat(STREAM))
        assert await stream.receive()
        tasks.cancel_scope.cancel()
    stream.close()
    with pytest.raises(OSError, match=r"."):
        await connect_tcp("127.0.0.1", port)
