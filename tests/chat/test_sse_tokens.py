"""Events that are a token and nothing else, counted by the bytes around their text."""

import json
from itertools import accumulate

import pytest
from characters import CHARACTERS
from hypothesis import given
from hypothesis import strategies as st

from ape_cerebras.chat.meter import StreamMeter
from ape_cerebras.chat.sse import TokenEvents
from ape_cerebras.telemetry.exchange import Exchange

BEFORE, BEHIND = b'{"choices":[{"delta":{"content":"', b'"},"index":0}],"model":"m"}'
NEXT = BEHIND + b"\n\ndata: " + BEFORE


def chunk(text: bytes) -> bytes:
    return b"data: " + BEFORE + text + BEHIND + b"\n\n"


@pytest.fixture
def events() -> TokenEvents:
    events = TokenEvents()
    events.learn(BEFORE + b"Hi" + BEHIND)
    return events


@pytest.mark.parametrize(
    "text",
    [
        b" word",
        b"\\n",
        b'\\"content\\":\\"x',
        b'\\"usage\\"',
        b"\\\\",
        b"\xf0\x9f\x98\x80",
        b"[DONE]",
        b"data: ",
        b"\x00",
    ],
)
def test_texts_of_one_token(events: TokenEvents, text: bytes) -> None:
    assert events.count_in(chunk(text)) == 1
    assert events.count_in(chunk(text) * 3) == 3


@pytest.mark.parametrize(
    "other",
    [
        b"",
        b"data: [DONE]\n\n",
        chunk(b""),
        chunk(b"a") + chunk(b""),
        chunk(b"a") + b"data: [DONE]\n\n",
        chunk(b"a") + b": ping\n\n" + chunk(b"b"),
        chunk(b'","refusal":"x'),
        chunk(b'"},"finish_reason":"stop","x":{"y":"'),
        chunk(b"a\\"),
        chunk(b"a\n\nb"),
        chunk(b"a\rb"),
        chunk(b"a\\\nb"),
        chunk(b"a")[:-1],
        chunk(b"a")[1:],
        chunk(b"a").replace(b'"m"', b'"n"'),
        chunk(b"a").replace(b'"index":0', b'"index":0,"finish_reason":"stop"'),
        chunk(b"a").replace(b'"m"}', b'"m","usage":{"prompt_tokens":1}}'),
        b"data: " + BEFORE + BEHIND[1:] + b"\n\n",
    ],
)
def test_chunks_with_anything_else(events: TokenEvents, other: bytes) -> None:
    assert events.count_in(other) == 0


def test_payloads_that_are_all_tokens(events: TokenEvents) -> None:
    first, second = (BEFORE + text + BEHIND for text in (b"a", b"[DONE]"))
    assert events.are_all([first])
    assert events.are_all([first, second, first])
    for other in (b"", b"[DONE]", BEFORE + BEHIND, first + b"\n", b"\n" + first, first + b" "):
        assert not events.are_all([other])
        assert not events.are_all([first, other, second])
    assert not events.are_all([first + b"\n\ndata: " + second])


def test_nothing_is_counted_before_an_event_is_known() -> None:
    assert TokenEvents().count_in(chunk(b"a")) == 0


@pytest.mark.parametrize(
    "event",
    [
        BEFORE + BEHIND,
        BEFORE + b"x" * 3000 + BEHIND,
        b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}',
    ],
)
def test_events_that_teach_nothing(event: bytes) -> None:
    events = TokenEvents()
    events.learn(event)
    assert events.count_in(b"data: " + event + b"\n\n") == 0


def test_a_stream_whose_events_all_differ_is_given_up() -> None:
    events = TokenEvents()
    for number in range(100):
        assert events.learns is (number < 16)
        if events.learns:
            events.learn(BEFORE + b"a" + BEHIND.replace(b'"m"', b'"%d"' % number))
    assert events.count_in(chunk(b"a").replace(b'"m"', b'"15"')) == 1


def test_arguments_of_a_tool_call() -> None:
    events = TokenEvents()
    event = b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"%b"},"index":0}]}}]}'
    events.learn(event % b'{\\"')
    assert events.count_in(b"data: " + event % b"city" + b"\n\n") == 1


texts = st.text(CHARACTERS, max_size=5) | st.sampled_from(
    ('"content":"x', "[DONE]", "\\", '"', "\n\n", "\u2028", "a", "b")
)
names = st.sampled_from(("content", "content", "reasoning", "refusal"))
extras = st.sampled_from(({}, {}, {}, {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}))
tokens = st.tuples(names, texts, extras)
few, many = st.lists(tokens, min_size=1, max_size=3), st.lists(tokens, min_size=9, max_size=25)
groups = st.lists(few | many, max_size=12)


@given(groups)
def test_every_token_counts_once_however_like_the_others_it_is(
    groups: list[list[tuple[str, str, dict[str, object]]]],
) -> None:
    exchange = Exchange(started_at=0.0)
    meter = StreamMeter(exchange, (1.5,))
    for moment, group in enumerate(groups):
        written = b""
        for name, text, extra in group:
            event = {"choices": [{"delta": {name: text}, "index": 0}], "model": "m", **extra}
            written += b"data: %b\n\n" % json.dumps(event).encode()
        meter.feed(written, moment, moment)
    counts = [sum(bool(text) for _, text, _ in group) for group in groups]
    moments = [moment for moment, count in enumerate(counts) if count]
    outputs = [
        moment
        for moment, group in enumerate(groups)
        if any(text and name != "reasoning" for name, text, _ in group)
    ]
    assert exchange.token_events == sum(counts)
    assert exchange.token_reads == len(moments)
    assert exchange.first_token_at == (moments[0] if moments else None)
    assert exchange.first_output_at == (outputs[0] if outputs else None)
    assert exchange.last_token_at == (moments[-1] if moments else None)
    with_usage = [
        total
        for (_, _, extra), total in zip(
            (token for group in groups for token in group),
            accumulate(bool(text) for group in groups for _, text, _ in group),
            strict=True,
        )
        if extra
    ]
    assert exchange.usage_events == (with_usage[-1] if with_usage else 0)


def test_a_line_end_cut_in_two_before_events_that_are_known() -> None:
    exchange = Exchange(started_at=0.0)
    meter = StreamMeter(exchange)
    for moment, piece in enumerate((chunk(b"a"), chunk(b"b"), b": ping\r\n\r", chunk(b"c"))):
        meter.feed(piece, moment, moment)
    meter.feed(b"\n" + chunk(b"d"), 9, 9)
    assert exchange.token_events == 4
    assert meter.can_take_event
