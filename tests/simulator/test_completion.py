"""Completions against recordings of the real API: the same members, in the same order."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from recorded_streams import TEXT, TOOL_CALL

from ape_cerebras.simulator.completion import Completion, Event, Timing
from ape_cerebras.simulator.request import CompletionRequest

TIMING = Timing(1787427094.337268, 0.002, 0.048, 0.5, 0.55)
GPT = CompletionRequest("gpt-oss-120b", 69)
REASONING = GPT._replace(effort="high")
PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}}
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": PROPERTIES}}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": ["city", "days"]}
RECORDED = {
    "plain": CompletionRequest("gemma-4-31b"),
    "plain_reasoning": GPT,
    "plain_tool_call": CompletionRequest("gemma-4-31b", tool=TOOL),
}


def completion_of(request: CompletionRequest = GPT, *, tokens: int = 30, **more: int) -> Completion:
    return Completion(
        request, tokens=tokens, **{"reasoning_tokens": 10, "tokens_per_event": 8, **more}
    )


def payloads(stream: bytes) -> list[Any]:
    """The JSON of a stream's events, whose end mark must be the last."""
    *events, last, nothing = stream.split(b"\n\n")
    assert last == b"data: [DONE]"
    assert nothing == b""
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events]


def streamed(completion: Completion) -> list[Any]:
    return payloads(b"".join(event.data for event in completion.events(TIMING)))


def plain(completion: Completion) -> Any:
    return orjson.loads(completion.plain(TIMING).data)


def shape(value: Any) -> Any:
    """The names in their order, with types in place of values."""
    if isinstance(value, dict):
        return [(name, shape(each)) for name, each in value.items()]
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.parametrize("name", RECORDED)
def test_a_plain_reply_has_the_shape_of_a_recorded_one(name: str) -> None:
    recorded = (Path(__file__).parents[1] / "support" / "replies" / f"{name}.json").read_bytes()
    made = completion_of(RECORDED[name]).plain(TIMING).data
    assert shape(orjson.loads(made)) == shape(orjson.loads(recorded))
    assert orjson.dumps(orjson.loads(made)) == made  # compact


def distinct(stream: list[Any]) -> list[Any]:
    """The distinct shapes of the events, in order of appearance."""
    shapes: list[Any] = []
    for each in map(shape, stream):
        if each not in shapes:
            shapes.append(each)
    return shapes


def test_a_stream_has_the_shapes_of_a_recorded_one() -> None:
    assert distinct(streamed(completion_of())) == distinct(payloads(TEXT))


def test_a_tool_call_has_the_shapes_of_a_recorded_one() -> None:
    request = GPT._replace(tool=TOOL, effort="none")
    recorded = distinct(payloads(TOOL_CALL))  # the recording has only its end
    assert distinct(streamed(completion_of(request)))[1:] == recorded


@pytest.mark.parametrize("takes_images", [True, False])
def test_the_details_of_usage_depend_on_the_model(takes_images: bool) -> None:
    usage = completion_of(
        CompletionRequest("qwen-3.8-27b" if takes_images else "zai-glm-4.7")
    ).usage()
    assert ("image_tokens" in usage["prompt_tokens_details"]) is takes_images
    assert ("accepted_prediction_tokens" in usage["completion_tokens_details"]) is not takes_images


# Counts


def merged(stream: list[Any], choice: int = 0) -> dict[str, Any]:
    """The message that the deltas of a stream add up to, and its finish reason."""
    message: dict[str, Any] = {"finish_reason": None, "name": "", "arguments": ""}
    for event in stream:
        for each in event["choices"]:
            if each["index"] != choice:
                continue
            message["finish_reason"] = each.get("finish_reason", message["finish_reason"])
            for kind in ("reasoning", "content"):
                if kind in each["delta"]:
                    message[kind] = message.get(kind, "") + each["delta"][kind]
            for call in each["delta"].get("tool_calls", ()):
                message["name"] += call["function"].get("name", "")
                message["arguments"] += call["function"]["arguments"]
    return message


REQUESTS = {
    "words": CompletionRequest("gemma-4-31b", 9),
    "reasoning": REASONING,
    "cut in the content": GPT._replace(limit=20),
    "cut in the reasoning": GPT._replace(limit=5),
    "three choices": GPT._replace(choices=3),
    "a call": GPT._replace(tool=TOOL),
    "a call cut": GPT._replace(tool=TOOL, limit=13),
    "JSON": GPT._replace(schema=SCHEMA),
    "JSON cut": GPT._replace(schema=SCHEMA, limit=14),
    "two choices of JSON": GPT._replace(schema=SCHEMA, choices=2),
    "nothing": GPT._replace(limit=0),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_stream_has_the_same_contents_as_the_plain_reply(name: str) -> None:
    request = REQUESTS[name]
    stream, whole = streamed(completion_of(request)), plain(completion_of(request))
    assert stream[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        made, message = merged(stream, choice["index"]), choice["message"]
        assert made["finish_reason"] == choice["finish_reason"]
        assert made.get("reasoning") == message.get("reasoning")
        assert made.get("content", "") == message.get("content", "")
        for call in message.get("tool_calls", ()):
            expected = {"name": made["name"], "arguments": made["arguments"]}
            assert call["function"] == expected


def test_usage_counts_the_words() -> None:
    whole = plain(completion_of(tokens=30, reasoning_tokens=10))
    message = whole["choices"][0]["message"]
    assert len(message["reasoning"].split()) == 10
    assert len(message["content"].split()) == 20
    usage = whole["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (
        69,
        30,
        99,
    )
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 10


@pytest.mark.parametrize(
    ("limit", "reason", "reasoning", "content"),
    [(None, "stop", 10, 20), (30, "stop", 10, 20), (29, "length", 10, 19), (4, "length", 4, 0)],
)
def test_a_limit_cuts_the_completion(
    limit: int | None, reason: str, reasoning: int, content: int
) -> None:
    choice = plain(completion_of(GPT._replace(limit=limit)))["choices"][0]
    assert choice["finish_reason"] == reason
    assert len(choice["message"]["reasoning"].split()) == reasoning
    assert len(choice["message"]["content"].split()) == content


def test_only_a_message_with_a_call_has_no_content() -> None:
    """A stream that is cut before its call does not show that there was to be one."""
    for limit, content in ((None, None), (11, None), (10, ""), (5, ""), (0, "")):
        [choice] = plain(completion_of(GPT._replace(tool=TOOL, limit=limit)))["choices"]
        assert choice["message"].get("content") == content
        assert ("tool_calls" in choice["message"]) is (content is None)


def test_choices_differ_and_usage_is_their_sum() -> None:
    whole = plain(completion_of(GPT._replace(choices=3)))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3
    assert whole["usage"]["completion_tokens"] == 90
    finishes = [
        each
        for each in streamed(completion_of(GPT._replace(choices=3)))
        if "finish_reason" in each["choices"][0]
    ]
    assert ["usage" in each for each in finishes] == [False, False, True]


def test_cached_tokens_are_at_most_the_prompt() -> None:
    for cached, reported in ((5, 5), (500, 69)):
        usage = completion_of(cached_tokens=cached).usage()
        assert usage["prompt_tokens_details"]["cached_tokens"] == reported


def test_usage_is_sent_once_on_the_last_finish_event() -> None:
    for choices in (1, 3):
        stream = streamed(completion_of(GPT._replace(choices=choices)))
        assert ["usage" in event for event in stream[:-1]] == [False] * (len(stream) - 1)
        assert stream[-1]["usage"]["completion_tokens"] == 30 * choices
        assert stream[-1]["choices"][0]["finish_reason"] == "stop"


def test_json_is_the_content_behind_the_reasoning() -> None:
    choice = plain(completion_of(REASONING._replace(schema=SCHEMA)))["choices"][0]
    assert choice["message"]["content"] == '{"city":"test","days":1}'
    assert len(choice["message"]["reasoning"].split()) == 10
    assert choice["finish_reason"] == "stop"


def logprobs_of(choices: list[Any], name: str) -> list[Any]:
    return [each for choice in choices for each in choice.get(name, {}).get("content", ())]


@pytest.mark.parametrize("name", ["reasoning", "JSON", "words", "three choices"])
def test_logprobs_are_of_the_tokens_that_were_sent(name: str) -> None:
    request = REQUESTS[name]._replace(top_logprobs=2)
    stream, whole = streamed(completion_of(request)), plain(completion_of(request))
    for choice in whole["choices"]:
        index = choice["index"]
        pieces = [each for event in stream for each in event["choices"] if each["index"] == index]
        for kind, member in (("content", "logprobs"), ("reasoning", "reasoning_logprobs")):
            probable = logprobs_of([choice], member)
            assert logprobs_of(pieces, member) == probable
            assert "".join(each["token"] for each in probable) == choice["message"].get(kind, "")
            for each in probable:
                assert bytes(each["bytes"]).decode() == each["token"]
                assert each["top_logprobs"][0]["token"] == each["token"]
                assert len({top["token"] for top in each["top_logprobs"]}) == 2
                assert each["logprob"] > each["top_logprobs"][1]["logprob"]


def test_without_top_logprobs_there_are_no_alternatives() -> None:
    [choice] = plain(completion_of(GPT._replace(top_logprobs=0)))["choices"]
    assert {len(each["top_logprobs"]) for each in logprobs_of([choice], "logprobs")} == {0}


def test_a_call_has_no_logprobs() -> None:
    request = CompletionRequest("gemma-4-31b", tool=TOOL, top_logprobs=1)
    [choice] = plain(completion_of(request))["choices"]
    assert list(choice) == ["finish_reason", "index", "message"]


def test_a_tool_call_fits_the_schema() -> None:
    properties = {
        "text": {"type": "string"},
        "whole": {"type": "integer"},
        "part": {"type": ["number", "null"]},
        "flag": {"type": "boolean"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "list": {"type": "array", "items": {"type": "string"}},
        "inner": {"type": "object", "properties": {"a": {"type": "null"}}},
        "any": {},
    }
    tool = {"name": "f", "parameters": {"type": "object", "properties": properties}}
    choice = plain(completion_of(GPT._replace(tool=tool)))["choices"][0]
    [call] = choice["message"]["tool_calls"]
    assert "content" not in choice["message"]
    assert len(call["id"]) == 9
    assert int(call["id"], 16) >= 0
    assert orjson.loads(call["function"]["arguments"]) == {
        "text": "test",
        "whole": 1,
        "part": 1.5,
        "flag": True,
        "unit": "C",
        "list": ["test"],
        "inner": {"a": None},
        "any": "test",
    }


def test_a_tool_without_parameters_is_called_without_arguments() -> None:
    message = merged(streamed(completion_of(GPT._replace(tool={"name": "now"}))))
    assert (message["name"], message["arguments"]) == ("now", "{}")


# Events


def test_the_first_event_with_tokens_has_a_single_one() -> None:
    events = completion_of(CompletionRequest("gemma-4-31b"), tokens=20, tokens_per_event=8).events(
        TIMING
    )
    assert [event.made for event in events] == [0, 1, 9, 17, 20, 20, 20]
    assert [event.has_tokens for event in events] == [False, True, True, True, True, False, False]


def test_a_plain_body_is_due_with_its_last_token() -> None:
    assert completion_of(tokens=20).plain(TIMING)[1:] == Event(b"", 20, has_tokens=True)[1:]


def test_a_response_has_one_id_and_its_times() -> None:
    completion = completion_of()
    for reported in (streamed(completion)[-1], plain(completion)):
        assert reported["id"] == completion.id
        assert reported["created"] == 1787427094
        assert reported["time_info"] == {
            "created": 1787427094.337268,
            "queue_time": 0.002,
            "prompt_time": 0.048,
            "completion_time": 0.5,
            "total_time": 0.55,
        }
    assert completion.id != completion_of().id
