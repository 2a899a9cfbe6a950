"""What only the Cerebras SDK does: it warms a connection when it is made, has a base URL without
/v1, and types for Cerebras's own times."""

from typing import Any

import pytest
from sdks import CEREBRAS, REQUEST
from server_process import CLIENT_KEY, Served

from ape_cerebras.net.event_loop import run_on

WARMING = "/v1/tcp_warming"


def client_of(served: Served, prefix: str = "", **options: Any) -> Any:
    url = f"http://127.0.0.1:{served.port}{prefix}"
    make = CEREBRAS.errors.Cerebras
    return make(base_url=url, **{"api_key": "any", "max_retries": 0, **options})


def warmed(served: Served) -> dict[str, Any]:
    return served.line_where(lambda line: line.get("route") == WARMING)


def test_a_response_requested_as_in_the_readme(demo: Served) -> None:
    request: Any = [{"role": "user", "content": "Hello!"}]
    text = ""
    with client_of(demo) as client:
        events: Any = client.chat.completions.create(
            model="llama3.1-8b", messages=request, stream=True
        )
        for event in events:
            text += event.choices[0].delta.content or ""
    assert text.startswith("the wafer holds")


def test_the_times_of_a_response(demo: Served) -> None:
    with client_of(demo) as client:
        plain: Any = client.chat.completions.create(**REQUEST)
        events: list[Any] = list(client.chat.completions.create(**REQUEST, stream=True))
    assert plain.time_info.completion_time == events[-1].time_info.completion_time == 0.032
    assert plain.time_info.queue_time == 0.002


@pytest.mark.parametrize("api_key", [CLIENT_KEY, "a-wrong-key"])
def test_the_warm_up_gets_its_response_whatever_the_key(guarded: Served, api_key: str) -> None:
    client_of(guarded, api_key=api_key, max_retries=2).close()
    line = warmed(guarded)
    assert (line["method"], line["status_code"], line["outcome"]) == ("GET", 200, "completed")


def test_the_warm_up_of_an_asynchronous_client(guarded: Served, backend: str) -> None:
    async def make() -> None:
        url = f"http://127.0.0.1:{guarded.port}"
        async with CEREBRAS.errors.AsyncCerebras(base_url=url, api_key=CLIENT_KEY) as client:
            await client.models.list()

    run_on(backend, make)
    assert warmed(guarded)["status_code"] == 200
    listed = guarded.line_where(lambda line: line.get("route") == "/v1/models")
    assert (listed["status_code"], listed["client"]) == (200, "alice")


def test_the_warm_up_fails_not_while_upstream_does(unreachable: Served) -> None:
    client_of(unreachable, max_retries=2).close()
    assert unreachable.metric("cerebras_proxy_errors_total") == 0


def test_a_base_url_that_ends_in_v1(demo: Served) -> None:
    with (
        client_of(demo, "/v1", max_retries=2) as client,
        pytest.raises(
            CEREBRAS.errors.NotFoundError, match="its base URL must not end in /v1"
        ) as caught,
    ):
        client.chat.completions.create(**REQUEST)
    body: Any = caught.value.body
    assert (body["type"], body["code"]) == ("invalid_request_error", "not_found")


def test_a_wrong_base_url_makes_no_client_wait(demo: Served) -> None:
    """The warm-up of such a client is refused once; the SDK would try a 5xx or 429 again."""
    for prefix, trace_id in (("/v1", "wrong"), ("", "right")):
        traced = {"x-trace-id": trace_id}
        client_of(demo, prefix, max_retries=2, default_headers=traced).close()
    assert demo.exchange("wrong")["status_code"] == 404
    assert demo.exchange("right")["status_code"] == 200
    assert [line["trace_id"] for line in demo.lines].count("wrong") == 1
