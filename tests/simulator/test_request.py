"""Reading of chat requests, and their rejection."""

import gzip
from datetime import time
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

from ape_cerebras.simulator.replies import ERRORS, Rejected
from ape_cerebras.simulator.request import (
    ANY_OBJECT,
    CompletionRequest,
    example_of,
    parse_completion_request,
    read_completion_request,
)

HI = [{"role": "user", "content": "hi"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object"}},
}
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


SECOND = {"type": "function", "function": {"name": "answer"}}
CALLED = {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]}
RESULT = {"role": "tool", "content": "1"}


@pytest.mark.parametrize(
    ("choice", "messages", "name"),
    [
        ({"type": "function", "function": {"name": "answer"}}, HI, "answer"),
        ({"type": "function", "function": {"name": "look"}}, [*HI, CALLED, RESULT], "look"),
        ("auto", HI, "look"),
        ("auto", [*HI, CALLED, RESULT], None),
        ("required", HI, "look"),
        ("required", [*HI, CALLED, RESULT], "answer"),
        ("required", [*HI, {"role": "assistant", "tool_calls": 7}, RESULT], "look"),
        ("none", HI, None),
    ],
)
def test_tool_choice_decides_which_tool_is_called(
    choice: Any, messages: list[Any], name: str | None
) -> None:
    tool = parse(tools=[TOOL, SECOND], tool_choice=choice, messages=messages).tool
    assert (tool and tool["name"]) == name


def test_with_every_tool_called_the_last_is_called_again() -> None:
    again = [*HI, CALLED, RESULT]
    tool = parse(tools=[TOOL], tool_choice="required", messages=again).tool
    assert tool == FUNCTION


def test_choices_and_stream() -> None:
    parsed = parse(n=3, stream=True, stream_options={"include_usage": True})
    assert (parsed.choices, parsed.stream) == (3, True)


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, ANY_OBJECT),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, ANY_OBJECT),
    ],
)
def test_the_response_format(response_format: Any, schema: Any) -> None:
    assert parse(response_format=response_format).schema == schema


@pytest.mark.parametrize(
    ("fields", "top"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 2}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs(fields: dict[str, Any], top: int | None) -> None:
    assert parse(**fields).top_logprobs == top


# Examples of JSON schemas

NODE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
        "all": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
        "parent": {"$ref": "#/$defs/Node"},
    },
    "required": ["name", "next", "all"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "nothing": {},
    "any object": ANY_OBJECT,
    "nested references": {
        "type": "object",
        "properties": {"to": {"$ref": "#/$defs/Address"}, "by": {"$ref": "#/$defs/Kind"}},
        "required": ["to", "by"],
        "additionalProperties": False,
        "$defs": {
            "Kind": {"enum": ["post", "courier"]},
            "Address": {
                "type": "object",
                "properties": {
                    "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}, "minItems": 2},
                    "kind": {"$ref": "#/$defs/Kind", "description": "how"},
                },
                "required": ["lines", "kind"],
                "additionalProperties": False,
            },
            "Line": {
                "type": "object",
                "properties": {"text": {"const": "x"}},
                "required": ["text"],
            },
        },
    },
    "within itself": {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
    "the root within itself": {
        "type": "object",
        "properties": {"more": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["more"],
    },
    "a definition's name with / and ~": {
        "$ref": "#/definitions/a~1b~0c",
        "definitions": {"a/b~c": {"type": "integer", "minimum": 5}},
    },
    "all of": {
        "allOf": [
            {"$ref": "#/$defs/A"},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ],
        "$defs": {
            "A": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]}
        },
    },
    "one of": {"oneOf": [False, {"type": "array", "maxItems": 0}, {"type": "string"}]},
    "a property that cannot be": {"type": "object", "properties": {"a": False, "b": True}},
    "types": {"type": ["null", "string"]},
    "a tuple": {"prefixItems": [{"type": "integer"}, {"type": "boolean"}], "type": "array"},
    "required, not described": {"type": "object", "required": ["free"]},
    "an int from 3": {"type": "integer", "exclusiveMinimum": 3},
    "an int between": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    "an int of at most": {"type": "integer", "maximum": -7},
    "a number between": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "a number of at most": {"type": "number", "exclusiveMaximum": 0},
    "a multiple": {"type": "integer", "multipleOf": 7, "minimum": 30, "maximum": 41},
    "a part": {"type": "number", "multipleOf": 0.25, "minimum": 3.1},
    "text of a length": {"type": "string", "minLength": 9, "maxLength": 9},
    "short text": {"type": "string", "maxLength": 2},
}
for each in ("date-time", "date", "email", "uri", "uuid", "hostname", "other"):
    SCHEMAS[each] = {"type": "string", "format": each}


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_example_is_valid(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    value = orjson.loads(example_of(schema))
    Draft202012Validator(schema, format_checker=FormatChecker()).validate(value)


def test_a_time_has_its_offset() -> None:  # which the validator takes for a mistake
    text = orjson.loads(example_of({"type": "string", "format": "time"}))
    assert time.fromisoformat(text).tzinfo is not None


def test_an_example_has_what_is_optional_unless_it_contains_itself() -> None:
    value = orjson.loads(example_of(SCHEMAS["within itself"]))
    assert value == {"name": "test", "next": None, "all": []}
    assert orjson.loads(example_of(SCHEMA)) == {"a": "test"}


DEEP: dict[str, Any] = {"type": "string"}
for _ in range(400):
    DEEP = {"allOf": [{"anyOf": [{"type": "array", "items": DEEP, "minItems": 1}]}]}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/gone"},
        {"$ref": 7},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "minItems": 10**9, "items": {}},
        {"type": "string", "minLength": 10**12},
        {"type": "string", "minLength": "long"},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"anyOf": [False]},
        {"anyOf": {"a": 1}},
        {"properties": [1]},
        {"enum": 7},
        {"type": "integer", "multipleOf": "x"},
        {"type": "object", "properties": {"a": 7}, "required": ["a"]},
        DEEP,
    ],
)
def test_what_has_no_example_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(Rejected) as caught:
        example_of(schema)
    assert caught.value.reply.status == 400


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


STRICT = {"type": "function", "function": {**FUNCTION, "strict": True}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "auto"}, "only allowed with 'tools'"),
    ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "names no function"),
    ({"tools": [TOOL], "tool_choice": {"function": {"name": []}}}, "names no function"),
    ({"tools": [TOOL, STRICT]}, "mixed values for 'strict'"),
    ({"response_format": {"type": "xml"}}, "body.response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "'name'"),
    ({"response_format": "json"}, "body.response_format"),
    ({"logprobs": True, "top_logprobs": 21}, "at most 20"),
    ({"logprobs": True, "top_logprobs": -1}, "body.top_logprobs"),
]


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
        *(({"model": "gpt-oss-120b", "messages": HI, **fields}, word) for fields, word in REFUSED),
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
