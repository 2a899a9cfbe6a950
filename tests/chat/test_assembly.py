"""Reassembly case by case: fields known and unknown, errors, malformed events, sizes."""

from typing import Any

import orjson
import pytest

from ape_cerebras.chat.assembly import Assembly, Reply
from ape_cerebras.errors import InvalidResponse

DONE = b"data: [DONE]\n\n"
MIB = 1024 * 1024


def events(*sent: Any) -> bytes:
    return b"".join(b"data: %s\n\n" % orjson.dumps(each) for each in sent)


def assembled(*pieces: bytes) -> Reply:
    assembly = Assembly()
    for piece in pieces:
        assembly.feed(piece)
    return assembly.reply()


def completion(*sent: Any) -> Any:
    status, body = assembled(events(*sent), DONE)
    assert status == 200
    return orjson.loads(body)


def choice(*parts: dict[str, Any]) -> Any:
    """The choice that parts of one add up to."""
    [whole] = completion(*({"choices": [{"index": 0, **part}]} for part in parts))["choices"]
    return whole


def message(*deltas: Any) -> Any:
    return choice(*({"delta": delta} for delta in deltas))["message"]


DELTAS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "nothing": ([None], {"content": ""}),
    "text that is empty": ([{"content": ""}], {"content": ""}),
    "reasoning alone": ([{"reasoning": "a"}], {"content": "", "reasoning": "a"}),
    "another name for it": (
        [{"reasoning_content": "a"}, {"reasoning_content": "b", "content": "c"}],
        {"content": "c", "reasoning_content": "ab"},
    ),
    "null before text, and after": (
        [{"content": None}, {"content": "a"}, {"content": None}],
        {"content": "a"},
    ),
    "null alone": ([{"content": None, "refusal": None}], {"content": None, "refusal": None}),
    "the role again": (
        [{"role": "assistant"}, {"role": "assistant", "content": "a"}],
        {"content": "a"},
    ),
    "a refusal": ([{"refusal": "I "}, {"refusal": "won't"}], {"content": "", "refusal": "I won't"}),
    "unknown text": ([{"new": "a"}, {"new": "b"}], {"content": "", "new": "ab"}),
    "an unknown number": ([{"new": 1}, {"new": 2}], {"content": "", "new": 2}),
    "an unknown list": ([{"new": [1]}, {"new": [2]}], {"content": "", "new": [1, 2]}),
    "an unknown object": (
        [{"audio": {"id": "x", "data": "a"}}, {"audio": {"id": "x", "data": "b", "at": 1}}],
        {"content": "", "audio": {"id": "x", "data": "ab", "at": 1}},
    ),
    "another kind of value": (
        [{"new": "a"}, {"new": [1]}, {"new": "b"}],
        {"content": "", "new": "b"},
    ),
    "no calls": ([{"tool_calls": None}, {"tool_calls": []}], {"content": ""}),
    "text beside calls": (
        [{"content": "a"}, {"tool_calls": [{"index": 0, "id": "x"}]}],
        {"content": "a", "tool_calls": [{"id": "x"}]},
    ),
    "whole calls in one event": (
        [{"tool_calls": [{"index": 1, "id": "b"}, {"index": 0, "id": "a"}]}],
        {"tool_calls": [{"id": "a"}, {"id": "b"}]},
    ),
    "whole calls without an index": (
        [{"tool_calls": [{"id": "a", "index": 1}]}, {"tool_calls": [{"id": "b"}, {"id": "c"}]}],
        {"tool_calls": [{"id": "a"}, {"id": "b"}, {"id": "c"}]},
    ),
    "calls side by side": (
        [
            {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]},
            {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}}]},
            {"tool_calls": [{"index": 1, "id": "", "function": {"name": "g", "arguments": "2"}}]},
            {"tool_calls": [{"index": 0, "function": {"name": None, "arguments": "1"}}]},
        ],
        {
            "tool_calls": [
                {"id": "a", "function": {"name": "f", "arguments": "1"}},
                {"id": "b", "function": {"name": "g", "arguments": "2"}},
            ]
        },
    ),
}


@pytest.mark.parametrize("case", DELTAS)
def test_deltas_add_up_to_a_message(case: str) -> None:
    deltas, expected = DELTAS[case]
    assert message(*deltas) == {"role": "assistant", **expected}


def test_fields_beside_a_delta_are_added_up_too() -> None:
    one, two = {"token": "a"}, {"token": "b", "top_logprobs": [{"token": "c"}]}
    made = choice(
        {"logprobs": None, "own": "x"},
        {"delta": None, "logprobs": {"content": [one], "refusal": None}, "own": "y"},
        {"logprobs": {"content": [two]}, "reasoning_logprobs": {"content": [one]}, "text": "a"},
        {"text": "b", "finish_reason": "length", "filters": {"hate": "none"}},
        {"filters": {"hate": "none", "other": 1}, "finish_reason": None},
    )
    assert list(made) == [
        *("finish_reason", "index", "message", "logprobs", "own", "reasoning_logprobs"),
        *("text", "filters"),
    ]
    assert made["finish_reason"] == "length"
    assert made["logprobs"] == {"content": [one, two], "refusal": None}
    assert made["reasoning_logprobs"] == {"content": [one]}
    assert (made["own"], made["text"]) == ("y", "ab")
    assert made["filters"] == {"hate": "none", "other": 1}


def test_choices_are_sorted_by_index() -> None:
    made = completion(
        {"choices": [{"index": 2, "delta": {"content": "c"}}, {"index": 0, "delta": {}}]},
        {"choices": [{"index": 1, "delta": {"content": "b"}}]},
    )
    assert [each["index"] for each in made["choices"]] == [0, 1, 2]
    assert [each["message"]["content"] for each in made["choices"]] == ["", "b", "c"]
    assert [each["finish_reason"] for each in made["choices"]] == [None] * 3


def test_a_choice_without_an_index_is_identified_by_its_position() -> None:
    made = completion(
        {"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]},
        {"choices": [{"delta": {"content": "c"}, "index": None}]},
    )
    assert [each["message"]["content"] for each in made["choices"]] == ["ac", "b"]


def test_the_last_value_beside_the_choices_wins_unless_it_is_null() -> None:
    made = completion(
        {"choices": None, "usage": None, "new": {"a": 1}, "list": [1], "id": "x", "tier": None},
        {"choices": [{"index": 0}], "usage": {"total_tokens": 1}, "new": {"b": 2}, "list": [2]},
        {"choices": [], "usage": {"total_tokens": 2}, "object": "chat.completion.chunk"},
        {"usage": None},
    )
    assert made.pop("choices")
    assert made == {
        "id": "x",
        "object": "chat.completion",
        "usage": {"total_tokens": 2},
        "new": {"b": 2},
        "list": [2],
        "tier": None,
    }


def test_halves_of_a_surrogate_pair_are_joined() -> None:
    stream = (
        b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n'
        b'data: {"choices":[{"delta":{"content":"\\ude00b"}}]}\n\n'
    )
    made = orjson.loads(assembled(stream, DONE).body)
    assert made["choices"][0]["message"]["content"] == "a\U0001f600b"


def test_events_after_the_end_marker_are_ignored() -> None:
    assembly = Assembly()
    assembly.feed(events({"choices": [{"delta": {"content": "a"}}]}) + DONE)
    reply = assembly.reply()
    assembly.feed(events({"choices": [{"delta": {"content": "b"}}]}) + b"data: nonsense\n\n")
    for _ in range(80):
        assembly.feed(b"a" * (MIB // 16))
    assert assembly.reply() == reply


# Errors

ERROR = {"message": "Oh", "type": "server_error", "param": "", "code": "", "id": ""}


@pytest.mark.parametrize(
    ("given", "status"),
    [
        *((given, given) for given in (400, 401, 429, 499, 500, 503, 599)),
        *((given, 502) for given in (None, 0, 200, 399, 600, -500, True, 500.0, "500")),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_an_error_event_is_the_reply_unchanged(given: Any, status: int, begun: bool) -> None:
    event = {"status_code": given, "error": ERROR}
    before = events({"choices": [{"delta": {"content": "a"}}]}) if begun else b""
    reply = assembled(before + events(event) + b"data: nonsense\n\n")
    assert reply == Reply(status, orjson.dumps(event))


def test_a_null_error_is_not_an_error() -> None:
    assert completion({"error": None, "choices": [{"delta": {"content": "a"}}]})["choices"]


MALFORMED = {
    "no JSON": b"data: {\n\n",
    "no text": b"data: \x00\xff\n\n",
    "null": b"data: null\n\n",
    **{
        f"no event: {sent!r}": events(sent)
        for sent in (
            *([], "a", 1, {"choices": {}}, {"choices": "a"}, {"choices": [1]}),
            *({"choices": [{"delta": each}]} for each in ("a", [1], 1)),
            *({"choices": [{"delta": {"tool_calls": each}}]} for each in ("a", {"a": 1}, [1])),
        )
    },
    "too deep": b'data: {"choices":[{"delta":%s1%s}]}\n\n' % (b'{"a":' * 900, b"}" * 900),
    "too deep to be JSON": b"data: %s%s\n\n" % (b"[" * 5000, b"]" * 5000),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_stream_of_anything_but_completions_is_refused(case: str) -> None:
    with pytest.raises(InvalidResponse):
        assembled(MALFORMED[case] + DONE)


@pytest.mark.parametrize("depth", range(150, 950, 50))
def test_nested_values_are_reassembled_or_refused(depth: int) -> None:
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    try:
        reply = assembled(b'data: {"choices":[{"delta":%s}]}\n\n' % nested, DONE)
    except InvalidResponse:
        return
    assert reply.body.count(b'"a":') == depth


@pytest.mark.parametrize("stream", [b"", DONE, events({}), events({"choices": []}), b": hm\n\n"])
def test_a_stream_without_a_choice_is_refused(stream: bytes) -> None:
    with pytest.raises(InvalidResponse):
        assembled(stream)


# Sizes


HALF = "a" * (MIB // 2)


@pytest.mark.parametrize(
    "sent",
    [
        {"choices": [{"delta": {"content": HALF}}]},
        {"choices": [{"delta": {"new": [HALF]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": HALF}}]}}]},
        {"choices": [{"logprobs": {"content": [{"token": HALF}]}}]},
        {"new%d": HALF},
    ],
)
def test_a_reply_is_held_up_to_32_mib(sent: Any) -> None:
    assembly, event = Assembly(), events(sent)
    for number in range(63):
        assembly.feed(event.replace(b"%d", b"%d" % number))
    with pytest.raises(InvalidResponse):
        assembly.feed(event)


def test_a_repeated_value_is_held_once() -> None:
    assembly = Assembly()
    for _ in range(100):
        assembly.feed(events({"choices": [{}], "new": HALF}))
    assert assembly.reply().status == 200


def test_an_event_too_large_to_read_fails_the_reply() -> None:
    assembly = Assembly()
    assembly.feed(events({"choices": [{"delta": {"content": "a"}}]}) + b"data: ")
    for _ in range(63):
        assembly.feed(b"a" * (MIB // 16))
    with pytest.raises(InvalidResponse):
        assembly.feed(b"a" * (MIB // 8) + b"\n\n" + events({"choices": [{}]}) + DONE)


def test_the_limit_of_one_event_is_not_reached_by_many() -> None:
    assembly, event = Assembly(), events({"choices": [{}], "new": "a" * (MIB // 16)})
    assembly.feed(event[:-1])
    for _ in range(100):
        assembly.feed(event[-1:] + event[:-1])
    assembly.feed(event[-1:] + DONE)
    assert assembly.reply().status == 200


def test_comments_do_not_count_towards_an_event() -> None:
    assembly = Assembly()
    for _ in range(100):
        assembly.feed((b": " + b"w" * 98 + b"\n\n") * 1000)
    assembly.feed(events({"choices": [{"delta": {"content": "a"}}]}) + DONE)
    assert assembly.reply().status == 200
