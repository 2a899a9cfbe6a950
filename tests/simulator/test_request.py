"""Reading of chat requests, and their rejection."""

import gzip
from typing import Any

import orjson
import pytest

from ape_cerebras.simulator.replies import ERRORS, Rejected
from ape_cerebras.simulator.request import (
    CompletionRequest,
    parse_completion_request,
    read_completion_request,
)

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
FUNCTION = TOOL["function"]


def parse(**fields: Any) -> CompletionRequest:
    return parse_completion_request({"model": "gpt-oss-120b", "messages": HI, **fields})


def refusal(request: Any) -> tuple[int, str]:
    with pytest.raises(Rejected) as caught:
        parse_completion_request(request)
    return caught.value.reply.status, orjson.loads(caught.value.reply.body)["message"]


def test_a_minimal_request() -> None:
    parsed = parse()
    assert parsed == CompletionRequest("gpt-oss-120b", parsed.prompt_tokens)
    assert parsed.prompt_tokens > 1


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "max_tokens": None}, 7),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": -1}, None),
    ],
)
def test_the_token_limit(fields: dict[str, Any], limit: int | None) -> None:
    assert parse(**fields).limit == limit


def test_prompt_tokens_grow_with_the_text() -> None:
    longer = parse(messages=[{"role": "user", "content": "hi " * 400}])
    assert longer.prompt_tokens - parse().prompt_tokens == pytest.approx(300, abs=5)


@pytest.mark.parametrize(
    ("model", "effort", "reasons"),
    [
        ("gpt-oss-120b", None, True),
        ("gpt-oss-120b", "low", True),
        ("gpt-oss-120b", "none", False),
        ("qwen-3.8-27b", None, True),
        ("zai-glm-4.7", None, True),
        ("zai-glm-4.7", "none", False),
        ("gemma-4-31b", "high", False),
        ("llama3.1-8b", None, False),
    ],
)
def test_model_and_effort_decide_about_reasoning(
    model: str, effort: str | None, reasons: bool
) -> None:
    assert parse(model=model, reasoning_effort=effort).is_reasoning is reasons


@pytest.mark.parametrize(
    ("fields", "tool"),
    [
        ({}, None),
        ({"tools": []}, None),
        ({"tools": [TOOL]}, FUNCTION),
        ({"tools": [TOOL], "tool_choice": "required"}, FUNCTION),
        ({"tools": [TOOL], "tool_choice": "none"}, None),
        ({"tools": [TOOL], "messages": [*HI, {"role": "tool", "content": "1"}]}, None),
    ],
)
def test_tools_and_messages_decide_about_a_call(fields: dict[str, Any], tool: Any) -> None:
    assert parse(**fields).tool == tool


def test_choices_stream_and_usage() -> None:
    parsed = parse(n=3, stream=True, stream_options={"include_usage": True})
    assert (parsed.choices, parsed.stream, parsed.include_usage) == (3, True, True)


def test_each_unknown_field_is_named_on_a_line() -> None:
    request = {"model": "gpt-oss-120b", "messages": HI, "store": True, "metadata": {}}
    assert refusal(request) == (
        400,
        "body.store: property 'body.store' is unsupported\n"
        "body.metadata: property 'body.metadata' is unsupported",
    )


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(Rejected) as caught:
        parse(model="gpt-5")
    assert caught.value.reply is ERRORS["model_not_found"]


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ([], "object"),
        ({"messages": HI}, "model"),
        ({"model": "gpt-oss-120b"}, "messages"),
        ({"model": "gpt-oss-120b", "messages": []}, "messages"),
        ({"model": "gpt-oss-120b", "messages": HI, "n": 0}, "body.n"),
        ({"model": "gpt-oss-120b", "messages": HI, "n": True}, "body.n"),
        ({"model": "gpt-oss-120b", "messages": HI, "max_tokens": -2}, "body.max_tokens"),
        (
            {"model": "gpt-oss-120b", "messages": HI, "max_tokens": 1, "max_completion_tokens": 1},
            "only one of",
        ),
        ({"model": "gpt-oss-120b", "messages": HI, "tools": [{}]}, "needs a name"),
    ],
)
def test_invalid_requests_are_refused(request_: Any, word: str) -> None:
    status, message = refusal(request_)
    assert status == 400
    assert word in message


# Bodies

PLAIN = orjson.dumps({"model": "gemma-4-31b", "messages": HI, "stream": True})
# {"messages": [], "stream": true}, and the same with false
MESSAGE_PACK = b"\x82\xa8messages\x90\xa6stream"


def read(
    body: bytes, media_type: bytes = b"application/json", coding: bytes = b""
) -> CompletionRequest:
    return read_completion_request(body, media_type, coding, "llama3.1-8b")


@pytest.mark.parametrize("coding", [b"gzip", b" GZIP "])
def test_gzip_is_inflated(coding: bytes) -> None:
    assert read(gzip.compress(PLAIN), coding=coding) == read(PLAIN)
    assert read(PLAIN).model == "gemma-4-31b"


@pytest.mark.parametrize("subtype", [b"msgpack", b"vnd.msgpack", b"x-msgpack"])
@pytest.mark.parametrize(("end", "streams"), [(b"\xc3", True), (b"\xc2", False)])
def test_message_pack_is_accepted(subtype: bytes, end: bytes, streams: bool) -> None:
    parsed = read(MESSAGE_PACK + end, b"application/" + subtype)
    assert (parsed.model, parsed.stream) == ("llama3.1-8b", streams)
    assert read(gzip.compress(MESSAGE_PACK + end), b"application/" + subtype, b"gzip") == parsed


@pytest.mark.parametrize(
    ("body", "coding", "word"),
    [
        (b"{", b"", "JSON"),
        (b"", b"", "JSON"),
        (PLAIN, b"gzip", "gzip"),
        (gzip.compress(PLAIN, mtime=0)[:-9], b"gzip", "cut short"),
        (gzip.compress(bytes(52 * 2**20), 1, mtime=0), b"gzip", "too large"),
    ],
)
def test_an_unreadable_body_is_refused(body: bytes, coding: bytes, word: str) -> None:
    with pytest.raises(Rejected) as caught:
        read(body, coding=coding)
    assert caught.value.reply.status == 400
    assert word in orjson.loads(caught.value.reply.body)["message"]
