"""Features of the OpenAI SDK alone: a response requested as in the README, its own reassembly of
streams, and errors with attributes."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal

import pydantic
import pytest
from sdks import NO_CERTIFICATES, OPENAI, REQUEST, TOOL, SdkClient
from server_process import CLIENT_KEY, Served

pytestmark = pytest.mark.every_loop

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hello!"}]
TOOLS: list[dict[str, Any]] = [TOOL]


def client_of(served: Served, api_key: str = "any") -> Any:
    url = f"http://127.0.0.1:{served.port}/v1"
    openai = OPENAI.errors
    http_client = openai.DefaultHttpxClient(verify=NO_CERTIFICATES)
    return openai.OpenAI(base_url=url, api_key=api_key, max_retries=0, http_client=http_client)


def test_a_response(demo: Served) -> None:
    with client_of(demo) as client:
        reply = client.chat.completions.create(model="llama3.1-8b", messages=MESSAGES)
    assert (reply.choices[0].message.content or "").startswith("the wafer holds")


def test_a_stream_reassembled_by_the_sdk(demo: Served) -> None:
    plain = SdkClient(OPENAI, demo.port).whole(model="llama3.1-8b")
    with (
        client_of(demo) as client,
        client.chat.completions.stream(model="llama3.1-8b", messages=MESSAGES) as stream,
    ):
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == plain.choices[0].message.content
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage == plain.usage


def test_a_tool_call_reassembled_by_the_sdk(demo: Served) -> None:
    with (
        client_of(demo) as client,
        client.chat.completions.stream(
            model="gpt-oss-120b",
            messages=MESSAGES,
            tools=TOOLS,
            extra_headers={"x-simulate": "tokens_per_chunk=1"},
        ) as stream,
    ):
        [call] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.function.name == "get_weather"
    assert call.function.arguments == '{"city":"test","days":1}'


@pytest.mark.parametrize(
    ("base", "request_it", "path", "advice"),
    [
        ("", lambda c: c.models.list(), "/models", "must end in /v1"),
        (
            *("", lambda c: c.chat.completions.create(model="m", messages=MESSAGES)),
            *("/chat/completions", "must end in /v1"),
        ),
        (
            *("/v1", lambda c: c.completions.create(model="m", prompt="x")),
            *("/v1/completions", "send messages as a chat completion"),
        ),
        (
            *("/v1", lambda c: c.responses.create(model="m", input="x")),
            *("/v1/responses", "set the client to chat completions"),
        ),
        (
            *("/v1", lambda c: c.embeddings.create(model="m", input="x")),
            *("/v1/embeddings", "another service"),
        ),
    ],
)
def test_what_is_not_served_is_said_with_what_to_do_instead(
    demo: Served,
    base: str,
    request_it: Callable[[Any], object],
    path: str,
    advice: str,
) -> None:
    url, trace_id = f"http://127.0.0.1:{demo.port}{base}", f"nowhere{path}".replace("/", ".")
    headers = {"X-Trace-ID": trace_id}
    with (
        client_of(demo).with_options(base_url=url, default_headers=headers) as client,
        pytest.raises(OPENAI.errors.NotFoundError) as raised,
    ):
        request_it(client)
    assert advice in str(raised.value)
    line = demo.exchange(trace_id)
    assert (line["path"], line["route"], line["status_code"]) == (path, "none", 404)
    assert line["user_agent"].startswith("OpenAI/Python")
    assert (line["client_attempt"], line["peer"]) == (0, "127.0.0.1")


class Line(pydantic.BaseModel):
    text: str
    kind: Literal["street", "town"]
    lines: list["Line"]


class Address(pydantic.BaseModel):
    """What Pydantic makes into a schema with ``$defs``, ``$ref``, enums, arrays and unions."""

    lines: list[Line]
    since: datetime | None
    floor: Annotated[int, pydantic.Field(ge=3, lt=5)]
    other: "Address | None"


@pytest.mark.parametrize("model", ["gpt-oss-120b", "gemma-4-31b"])
def test_structured_output_parsed_by_the_sdk(demo: Served, model: str) -> None:
    with client_of(demo) as client:
        parsed = client.chat.completions.parse(
            model=model, messages=MESSAGES, response_format=Address
        )
    address = parsed.choices[0].message.parsed
    assert address is not None
    assert [line.kind for line in address.lines] == ["street"]
    assert 3 <= address.floor < 5


def test_streamed_structured_output_parsed_by_the_sdk(demo: Served) -> None:
    with (
        client_of(demo) as client,
        client.chat.completions.stream(
            model="gpt-oss-120b",
            messages=MESSAGES,
            response_format=Address,
            n=2,
            logprobs=True,
            stream_options={"include_usage": True},
            extra_headers={"x-simulate": "tokens_per_chunk=3"},
        ) as stream,
    ):
        completion = stream.get_final_completion()
    assert [type(choice.message.parsed) for choice in completion.choices] == [Address, Address]
    assert completion.usage
    for choice in completion.choices:
        tokens = (choice.logprobs and choice.logprobs.content) or []
        assert "".join(each.token for each in tokens) == choice.message.content


def test_a_named_tool_parsed_by_the_sdk(demo: Served) -> None:
    tools = [OPENAI.errors.pydantic_function_tool(each) for each in (Line, Address)]
    with client_of(demo) as client:
        parsed = client.chat.completions.parse(
            model="gpt-oss-120b",
            messages=MESSAGES,
            tools=tools,
            tool_choice={"type": "function", "function": {"name": "Address"}},
        )
    [call] = parsed.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Address)


def test_the_head_of_a_response(demo: Served) -> None:
    with client_of(demo) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="llama3.1-8b", messages=MESSAGES, extra_headers={"x-trace-id": "mine"}
        )
    completion = raw.parse()
    assert raw.headers["inference-id"] == completion.id
    assert raw.headers["x-trace-id"] == "mine"
    assert raw.request_id == raw.headers["x-request-id"]
    assert completion._request_id == raw.request_id


ATTRIBUTES = [
    ({"model": "nobody"}, ("model_not_found", "not_found_error", "model")),
    ({"extra_body": {"model": 5}}, ("bad_request", "invalid_request_error", "")),
]


@pytest.mark.parametrize(("fields", "expected"), ATTRIBUTES)
def test_the_attributes_of_an_error(
    demo: Served, fields: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    with pytest.raises(OPENAI.errors.APIStatusError) as caught:
        SdkClient(OPENAI, demo.port).whole(**fields)
    error = caught.value
    assert (error.code, error.type, error.param) == expected
    assert error.request_id


def test_the_attributes_of_a_refused_key(guarded: Served) -> None:
    with client_of(guarded, "a-wrong-key") as client:
        with pytest.raises(OPENAI.errors.AuthenticationError) as caught:
            client.chat.completions.create(**REQUEST)
        right = client.with_options(api_key=CLIENT_KEY)
        assert right.chat.completions.create(**REQUEST).usage
    error = caught.value
    assert (error.code, error.type) == ("invalid_api_key", "authentication_error")
    assert error.response.headers["www-authenticate"] == "Bearer"


def test_the_attributes_of_a_502(unreachable: Served) -> None:
    with client_of(unreachable) as client:
        with pytest.raises(OPENAI.errors.InternalServerError) as caught:
            client.chat.completions.create(**REQUEST)
        models = [model.id for model in client.models.list().data]
    error = caught.value
    assert (error.code, error.type) == ("connect_error", "upstream_error")
    assert error.message == "Error code: 502 - Could not connect to the upstream API."
    assert "gpt-oss-120b" in models  # those of the price table
