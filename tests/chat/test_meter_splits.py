"""However a stream is cut into chunks, the meter finds what an oracle does that sees it whole."""

import json
import re
from bisect import bisect_right
from dataclasses import asdict
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from characters import CHARACTERS
from hypothesis import given, settings
from hypothesis import strategies as st

from ape_cerebras.chat.meter import StreamMeter
from ape_cerebras.telemetry.exchange import Exchange, TimeInfo, Usage

texts = st.text(CHARACTERS, max_size=8) | st.sampled_from(
    (
        "",
        '"content":"x',
        "[DONE]",
        "data: [DONE]\n\n",
        '"usage":{"prompt_tokens":1}',
        '{"error":{"message":"x"}}',
        '"tool_calls":[{',
        "\\",
        '\\"',
        "\u2028\r\n\n\x85",
        "\U0001f600",
    )
)
calls = st.fixed_dictionaries({"function": st.fixed_dictionaries({"arguments": texts})})
deltas = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "role": st.just("assistant"),
        "content": st.none() | texts,
        "reasoning": st.none() | texts,
        "reasoning_content": texts,
        "tool_calls": st.lists(calls, max_size=2),
    },
)
reasons = st.sampled_from(("stop", "length", "odd"))
choices = st.fixed_dictionaries(
    {"index": st.integers(0, 2)},
    optional={"delta": deltas, "finish_reason": st.none() | reasons, "text": texts},
)
usages = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 9), "completion_tokens": st.just(2)}
)
infos = st.fixed_dictionaries({"queue_time": st.floats(0, 9), "prompt_time": st.none()})
payloads = st.fixed_dictionaries(
    {"choices": st.none() | st.lists(choices, max_size=3)},
    optional={
        "usage": st.none() | usages,
        "time_info": st.none() | infos,
        "error": st.none() | st.fixed_dictionaries({"message": texts}),
    },
)


class Written(NamedTuple):
    """An event: its content (None is the end marker), and its bytes up to the one that completes
    it, and after."""

    event: dict[str, Any] | None
    text: bytes
    rest: bytes


@st.composite
def events(draw: st.DrawFn) -> Written:
    event = draw(payloads)
    compact = draw(st.booleans())
    text = json.dumps(
        event,
        ensure_ascii=draw(st.booleans()),
        separators=(",", ":") if compact else (", ", ": "),
    )
    if draw(st.integers(0, 9)) == 0:
        event, text = None, "[DONE]"  # type: ignore[assignment]
    end, rest = draw(st.sampled_from((("\n\n", ""), ("\n\n", ""), ("\r\n\r", "\n"), ("\r\r", ""))))
    space = draw(st.sampled_from((" ", " ", "")))
    comment = draw(st.sampled_from(("", "", ": wait\n", "event: x\n")))
    return Written(event, f"{comment}data:{space}{text}{end}".encode(), rest.encode())


def plain(event: dict[str, Any], before: bytes = b"", end: bytes = b"\n\n") -> Written:
    """An event as the API writes them."""
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return Written(event, before + b"data: " + text.encode() + end, b"")


def one(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def in_lines(event: dict[str, Any]) -> Written:
    """An event whose data is in several lines."""
    lines = json.dumps(event, indent=0).split("\n")
    return Written(event, "".join(f"data: {line}\n" for line in lines).encode() + b"\n", b"")


A = one(content="a")
TOKEN = plain(A)
OF_TWO = {"choices": [{"index": 0, "finish_reason": None}, {"index": 1, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2}
NOTHING: dict[str, Any] = {"choices": None}
DONE = Written(None, b"data: [DONE]\n\n", b"")
# Events that differ from a plain token in what matters; some of them are nothing but comments.
NEARLY_TOKENS = (
    plain(one(content="")),
    plain(one(content='"content":"\u00c5\u2028\U0001f600\\')),
    plain(one(content="a", reasoning_content="b")),
    plain(one(reasoning="a")),
    plain(one(reasoning="a", content="b")),
    plain(one(role="assistant")),
    plain(one(tool_calls=[{"function": {"arguments": "a"}}])),
    plain({"choices": [{"index": 0, "text": "a"}]}),
    plain({"choices": [{"index": 0}, *A["choices"]]}),
    plain({"choices": [*A["choices"], *OF_TWO["choices"]]}),
    plain({"choices": [A["choices"][0] | {"finish_reason": "stop"}, *A["choices"]]}),
    *(plain(A | {"usage": USAGE}), plain({"choices": [], "usage": USAGE})),
    *(plain(A | {"time_info": {"queue_time": 1.0}}), plain(A | {"error": {"message": "a"}})),
    plain(one(reasoning="a") | {"usage": USAGE}),
    *(plain(A, b": wait\n"), plain(A, b"event: x\n"), plain(A, end=b"\r\r"), in_lines(A)),
    Written(NOTHING, b":" + TOKEN.text, b""),
    DONE,
)


def in_crlf(written: Written) -> Written:
    text = written.text.replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return Written(written.event, text[:-1], text[-1:])


def varied(kinds: tuple[Written, ...], crlf: bool, pattern: bytes) -> list[Written]:
    """Plain tokens and events of these kinds, by a byte each; a large byte is several of them."""
    stream = []
    for byte in pattern:
        times = 1 if byte < 160 else byte // 16
        stream += [kinds[byte // 2 % len(kinds)] if byte % 2 else TOKEN] * times
    return [in_crlf(each) for each in stream] if crlf else stream


kinds = st.sampled_from(NEARLY_TOKENS)
several_kinds = st.tuples(kinds, kinds, kinds, kinds)
streams = (
    st.lists(events(), min_size=1, max_size=8)
    | st.lists(
        events() | st.just(TOKEN) | st.just(TOKEN) | st.just(TOKEN), min_size=20, max_size=60
    )
    | st.builds(varied, several_kinds, st.just(False), st.binary(min_size=2, max_size=20))
    | st.builds(varied, several_kinds, st.just(False), st.binary(min_size=8, max_size=30))
    | st.builds(varied, several_kinds, st.booleans(), st.binary(min_size=10, max_size=40))
)
# Beside line ends, within a character, and within the name of a field.
SEAMS = re.compile(rb"[\r\n\x80-\xff]|(?<=da)ta: ?")


def has_token(event: dict[str, Any], *names: str) -> bool:
    for choice in event["choices"] or ():
        delta = choice.get("delta") or {}
        if any(delta.get(name) for name in names) or ("content" in names and choice.get("text")):
            return True
    return False


def oracle(stream: list[Written], chunk_of: list[int], chunks: int) -> Exchange:
    """Parses everything up to the end marker. Event n is completed by chunk ``chunk_of[n]`` of so
    many."""
    found = Exchange(started_at=0.0, streamed=True, last_body_at=float(chunks - 1))
    reads: set[int] = set()
    for (event, _, _), number in zip(stream, chunk_of, strict=True):
        arrived_at, sent_at = float(number), number + 0.5
        if event is None:
            found.done_seen, found.last_body_at = True, arrived_at
            break
        found.time_info = TimeInfo.read(event.get("time_info")) or found.time_info
        found.stream_failed = found.stream_failed or bool(event.get("error"))
        for choice in event["choices"] or ():
            if reason := choice.get("finish_reason"):
                found.finish_reason = "other" if reason == "odd" else reason
        output = has_token(event, "content", "tool_calls")
        reasons = has_token(event, "reasoning", "reasoning_content")
        if output or reasons:
            found.last_token_at = arrived_at
            found.token_events += 1
            reads.add(number)
            if found.first_token_at is None:
                found.first_token_at, found.first_token_sent_at = arrived_at, sent_at
        if (usage := Usage.read(event.get("usage"))) is not None:
            found.usage, found.usage_events = usage, found.token_events
        if found.first_output_at is None:
            found.has_reasoning = found.has_reasoning or reasons
            if output:
                found.first_output_at, found.first_output_sent_at = arrived_at, sent_at
    found.token_reads = len(reads)
    moments = sorted(reads)
    found.gap_counts = gaps(moments)
    steps = [later - before for before, later in pairwise(moments)]
    found.longest_gap = float(max(steps, default=0))
    return found


GAP_BOUNDS = (1, 2, 4)


def gaps(moments: list[int]) -> list[int]:
    """How many are at most 1, above it but at most 2, above it but at most 4, above that."""
    sizes = [later - earlier for earlier, later in pairwise(moments)]
    return [
        sizes.count(1),
        sizes.count(2),
        sizes.count(3) + sizes.count(4),
        sum(s > 4 for s in sizes),
    ]


def feed(meter: StreamMeter, exchange: Exchange, chunks: list[bytes]) -> None:
    for number, chunk in enumerate(chunks):
        held = meter.may_hold(chunk)
        before = (exchange.first_token_at, exchange.first_output_sent_at)
        meter.feed(chunk, float(number), number + 0.5)
        if before != (exchange.first_token_at, exchange.first_output_sent_at):
            assert not held, "a moment was noted at which the chunk was not written"
    meter.end()


@settings(max_examples=600)
@given(st.data(), streams)
def test_every_split_gives_the_same_record(data: st.DataObject, stream: list[Written]) -> None:
    whole = b"".join(text + rest for _, text, rest in stream)
    ends = list(accumulate(len(text) + len(rest) for _, text, rest in stream))
    seams = sorted({at for found in SEAMS.finditer(whole) for at in found.span() if at})
    places = st.integers(1, len(whole) - 1) | st.sampled_from(ends) | st.sampled_from(seams)
    first = data.draw(st.integers(0, len(seams)))
    several = set(seams[first : first + data.draw(st.integers(0, 6))])
    cuts = sorted((data.draw(st.sets(places, max_size=20)) | several) - {len(whole)})
    check_split(stream, cuts)
    first, every = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 10))
    check_split(stream, sorted(set(ends[first::every]) - {len(whole)}))


def check_split(stream: list[Written], cuts: list[int]) -> None:
    whole = b"".join(text + rest for _, text, rest in stream)
    bounds = [0, *cuts, len(whole)]
    chunks = [whole[begin:end] for begin, end in pairwise(bounds)]
    chunk_of, position = [], 0
    for _, text, rest in stream:
        completing = position + len(text) - 1
        chunk_of.append(bisect_right(cuts, completing))
        position += len(text) + len(rest)
    exchange = Exchange(started_at=0.0)
    feed(StreamMeter(exchange, GAP_BOUNDS), exchange, chunks)
    assert asdict(exchange) == asdict(oracle(stream, chunk_of, len(chunks)))


@settings(max_examples=40)
@given(st.lists(events(), min_size=1, max_size=5))
def test_byte_by_byte(stream: list[Written]) -> None:
    exchange = Exchange(started_at=0.0)
    chunks = [bytes([byte]) for _, text, rest in stream for byte in text + rest]
    feed(StreamMeter(exchange, GAP_BOUNDS), exchange, chunks)
    chunk_of, position = [], 0
    for _, text, rest in stream:
        chunk_of.append(position + len(text) - 1)
        position += len(text) + len(rest)
    assert asdict(exchange) == asdict(oracle(stream, chunk_of, len(chunks)))
