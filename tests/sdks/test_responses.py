"""The official Python SDKs get through the proxy what they would get without it."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from sdks import LEAVES_GENERATORS, TOOL, SdkClient, text_of
from server_process import Served

pytestmark = [LEAVES_GENERATORS, pytest.mark.loops_in_turn]
MakeClient = Callable[..., SdkClient]


def test_a_plain_response(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    response = client.whole()
    [choice] = response.choices
    line = demo.exchange(client.trace_id)
    assert choice.finish_reason == "stop"
    assert len(choice.message.content.split()) == 48
    assert len(choice.message.reasoning.split()) == 16
    assert response.usage.completion_tokens == line["completion_tokens"] == 64
    assert response.usage.completion_tokens_details.reasoning_tokens == 16
    assert (line["outcome"], line["ttft_source"]) == ("completed", "derived")


@pytest.mark.parametrize(
    ("model", "options"),
    [("llama3.1-8b", {}), ("gpt-oss-120b", {"stream_options": {"include_usage": True}})],
)
def test_a_stream(
    sdk_client: MakeClient, demo: Served, model: str, options: dict[str, Any]
) -> None:
    client = sdk_client(demo)
    events = client.stream(model=model, **options)
    line = demo.exchange(client.trace_id)
    plain = client.whole(model=model)
    message = plain.choices[0].message
    assert text_of(events) == message.content
    assert text_of(events, "reasoning") == (getattr(message, "reasoning", None) or "")
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "stop"
    assert events[-1].usage.total_tokens == line["total_tokens"] == plain.usage.total_tokens
    assert [event for event in events if event.usage] == events[-1:]  # told once
    assert (line["outcome"], line["ttft_source"]) == ("completed", "measured")


def test_reasoning_comes_first(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    deltas = [event.choices[0].delta for event in client.stream()]
    line = demo.exchange(client.trace_id)
    kinds = [
        "reasoning" if getattr(delta, "reasoning", None) else "content"
        for delta in deltas
        if getattr(delta, "reasoning", None) or delta.content
    ]
    assert kinds == sorted(kinds, reverse=True)
    assert set(kinds) == {"reasoning", "content"}
    assert line["reasoning_tokens"] == 16
    # Not "<": reasoning and output may have come in one read.
    assert 0 < line["ttft_seconds"] <= line["ttfo_seconds"]


def test_a_tool_call(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    [choice] = client.whole(tools=[TOOL]).choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert orjson.loads(call.function.arguments) == {"city": "test", "days": 1}


def test_a_streamed_tool_call(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    events = client.stream("tokens_per_chunk=1", tools=[TOOL])
    line = demo.exchange(client.trace_id)
    deltas = [event.choices[0].delta for event in events]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert events[-1].choices[0].finish_reason == "tool_calls"
    assert len(calls) > 2
    assert [call.function.name for call in calls if call.function.name] == ["get_weather"]
    assert [call.index for call in calls] == [0] * len(calls)
    assert calls[0].id
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert orjson.loads(arguments) == {"city": "test", "days": 1}
    assert line["ttft_source"] == "measured"


def test_several_choices(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    events = client.stream(model="llama3.1-8b", extra_body={"n": 2})
    texts = [
        text_of([event for event in events if event.choices[0].index == index])
        for index in range(2)
    ]
    plain = client.whole(model="llama3.1-8b", extra_body={"n": 2})
    assert texts == [choice.message.content for choice in plain.choices]


def test_the_models(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    models = client.models()
    assert {"gpt-oss-120b", "llama3.1-8b"} <= set(models)
    assert client.model(models[-1]).id == models[-1]


def test_an_unknown_model_is_not_found(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    with pytest.raises(client.sdk.errors.NotFoundError, match="does not exist"):
        client.model("nobody")


def test_a_key_that_fits(sdk_client: MakeClient, guarded: Served) -> None:
    client = sdk_client(guarded, api_key="ape-key-0123456789")
    client.whole()
    assert guarded.exchange(client.trace_id)["client"] == "alice"


def test_a_stream_that_the_client_closes_early(sdk_client: MakeClient, demo: Served) -> None:
    client = sdk_client(demo)
    client.stream("rate=100, tokens=100000", most=3)
    line = demo.exchange(client.trace_id)
    assert len(client.events) == 3
    assert (line["outcome"], line["status_code"]) == ("client_disconnected", 200)
    assert demo.metric("cerebras_proxy_requests_in_flight") == 1  # the scrape's own
    assert demo.metric("cerebras_proxy_upstream_connections_active") == 0
