"""A stream is reassembled to the reply that the same request gets without ``stream``."""

from itertools import pairwise
from typing import Any

import orjson
import recorded_streams
from characters import CHARACTERS
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_cerebras.chat.assembly import Assembly, Reply
from ape_cerebras.simulator.completion import Completion, Timing
from ape_cerebras.simulator.request import CompletionRequest

TIMING = Timing(1787427094.337268, 0.002, 0.048, 0.5, 0.55)


def event(payload: Any) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(payload)


def assembled(pieces: list[bytes]) -> Reply:
    assembly = Assembly()
    for piece in pieces:
        assembly.feed(piece)
    return assembly.reply()


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % len(stream) for place in cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(bounds)]


# Streams of the simulator

NAMES = st.text("abc_é", min_size=1, max_size=8)
TYPES = st.sampled_from(("string", "integer", "number", "boolean", "array", "object", "null", "x"))
SCHEMAS = st.dictionaries(NAMES, TYPES.map(lambda kind: {"type": kind}), max_size=4)
TOOLS = st.builds(
    lambda name, fields: {"name": name, "parameters": {"type": "object", "properties": fields}},
    NAMES,
    SCHEMAS,
)
REQUESTS = st.builds(
    CompletionRequest,
    model=st.sampled_from(("llama3.1-8b", "gpt-oss-120b", "qwen-3.8-27b", "gemma-4-31b")),
    prompt_tokens=st.integers(1, 1000),
    limit=st.none() | st.integers(0, 40),
    choices=st.integers(1, 4),
    effort=st.sampled_from((None, "high", "none")),
    tool=st.none() | TOOLS,
    schema=st.none() | SCHEMAS.map(lambda fields: {"type": "object", "properties": fields}),
    top_logprobs=st.none() | st.integers(0, 3),
)
COMPLETIONS = st.builds(
    Completion,
    REQUESTS,
    tokens=st.integers(0, 60),
    reasoning_tokens=st.integers(0, 20),
    tokens_per_event=st.integers(1, 12),
    cached_tokens=st.integers(0, 2000),
)


@settings(max_examples=160)
@given(COMPLETIONS, st.lists(st.integers(0, 2**30), max_size=20))
def test_a_stream_is_reassembled_to_the_plain_reply(
    completion: Completion, cuts: list[int]
) -> None:
    stream = b"".join(event.data for event in completion.events(TIMING))
    assert assembled(cut(stream, cuts)) == Reply(200, completion.plain(TIMING).data)


@settings(max_examples=8)
@given(COMPLETIONS)
def test_byte_by_byte(completion: Completion) -> None:
    stream = b"".join(event.data for event in completion.events(TIMING))
    pieces = [bytes([byte]) for byte in stream]
    assert assembled(pieces) == Reply(200, completion.plain(TIMING).data)


# Whatever the API could send: plain replies are made up, split into events, and reassembled.

TEXTS = st.text(CHARACTERS, min_size=1, max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
LOGPROBS = st.fixed_dictionaries(
    {"content": st.lists(st.fixed_dictionaries({"token": TEXTS, "logprob": st.floats(-9, 0)}))}
)
CALLS = st.fixed_dictionaries(
    {
        "function": st.fixed_dictionaries(
            {"name": NAMES, "arguments": st.text(CHARACTERS, max_size=20)}
        ),
        "type": st.just("function"),
        "id": NAMES,
    }
)
# A plain message has content or calls, never neither.
MESSAGES = st.builds(
    lambda output, thought, refused, unknown: {
        **({"content": output} if isinstance(output, str) else {}),
        **({"reasoning": thought} if thought else {}),
        **({"tool_calls": output} if isinstance(output, list) else {}),
        "role": "assistant",
        **({"refusal": refused} if refused else {}),
        **({"unknown": unknown} if unknown else {}),
    },
    TEXTS | st.lists(CALLS, min_size=1, max_size=3),
    st.none() | TEXTS,
    st.none() | TEXTS,
    st.none() | TEXTS,
)
CHOICES = st.fixed_dictionaries(
    {
        "finish_reason": st.sampled_from(("stop", "length", "tool_calls", "content_filter")),
        "message": MESSAGES,
    },
    optional={"logprobs": LOGPROBS, "reasoning_logprobs": LOGPROBS, "own": TEXTS},
)
ENVELOPES = st.fixed_dictionaries(
    {"created": st.integers(0, 2**31), "model": NAMES, "system_fingerprint": NAMES},
    optional={
        "usage": st.fixed_dictionaries({"total_tokens": st.integers(0, 9)}),
        "time_info": st.fixed_dictionaries({"queue_time": st.floats(0, 1)}),
        "service_tier": NAMES,
        "new": VALUES,
    },
)


@st.composite
def splits(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]


@st.composite
def parts_of_a_choice(draw: st.DrawFn, whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a choice in its events, in order."""
    message = whole["message"]
    texts = [name for name in ("reasoning", "refusal", "unknown", "content") if name in message]
    parts: list[dict[str, Any]] = [{"delta": {"role": message["role"], **dict.fromkeys(texts)}}]
    for name in texts:
        parts += [{"delta": {name: text}} for text in draw(splits(message[name]))]
    for index, call in enumerate(message.get("tool_calls", ())):
        first, *rest = draw(splits(call["function"]["arguments"]))
        begun = {"name": call["function"]["name"], "arguments": first}
        parts.append({"delta": {"tool_calls": [{**call, "index": index, "function": begun}]}})
        for text in rest:
            more = {"index": index, "type": "function", "function": {"arguments": text}}
            parts.append({"delta": {"tool_calls": [more]}})
    for name in ("logprobs", "reasoning_logprobs"):
        if name in whole:
            entries: list[Any] = [{name: {"content": []}}]
            entries += [{name: {"content": [entry]}} for entry in whole[name]["content"]]
            parts += entries
    last = {name: whole[name] for name in ("finish_reason", "own") if name in whole}
    return [*parts, {"delta": {}, **last}]


@settings(max_examples=150)
@given(st.data(), ENVELOPES, st.lists(CHOICES, min_size=1, max_size=3))
def test_split_texts_are_reassembled(
    data: st.DataObject, envelope: dict[str, Any], choices: list[dict[str, Any]]
) -> None:
    head = {name: envelope[name] for name in ("created", "model", "system_fingerprint")}
    queues = [data.draw(parts_of_a_choice(each)) for each in choices]
    stream = b""
    while any(queues):
        index = data.draw(st.sampled_from([n for n, queue in enumerate(queues) if queue]))
        part = {"index": index, **queues[index].pop(0)}
        stream += event({"id": "x", "choices": [part], **head, "object": "chat.completion.chunk"})
    stream += event({"id": "x", "choices": [], **envelope, "object": "chat.completion.chunk"})
    made = orjson.loads(assembled([stream, b"data: [DONE]\n\n"]).body)
    whole = [{"index": index, **each} for index, each in enumerate(choices)]
    assert made == {"id": "x", "choices": whole, **envelope, "object": "chat.completion"}


# Recorded streams


def test_a_recorded_reply() -> None:
    made = orjson.loads(assembled([recorded_streams.TEXT]).body)
    assert list(made) == [
        *("id", "choices", "created", "model", "system_fingerprint", "object", "usage"),
        "time_info",
    ]
    assert made["object"] == "chat.completion"
    assert made["usage"]["total_tokens"] == 104
    assert made["time_info"]["total_time"] == 0.027499914169311523
    [choice] = made["choices"]
    assert list(choice) == ["finish_reason", "index", "message"]
    assert choice["finish_reason"] == "stop"
    assert list(choice["message"].items()) == [
        (
            "content",
            "Your test message came through successfully! Let me know if there's anything I can"
            " help you with.",
        ),
        ("reasoning", "We just need to respond."),
        ("role", "assistant"),
    ]


def test_a_recorded_tool_call() -> None:
    [choice] = orjson.loads(assembled([recorded_streams.TOOL_CALL]).body)["choices"]
    function = {"name": "run_me", "arguments": '{"foo":"test","bar":["a","b"]}'}
    call = {"function": function, "type": "function", "id": "08d59c72f"}
    assert choice["message"] == {"tool_calls": [call], "role": "assistant"}
    assert list(choice["message"]["tool_calls"][0]) == ["function", "type", "id"]
